"""`playground compress` with the methods that prune: what it writes and says, and what it refuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from playground.cli import app
from playground.compression.command import METHODS
from playground.compression.float_checkpoint import FloatCheckpoint
from playground.compression.pruning import METHODS as PRUNING_METHODS
from playground.compression.pruning_command import PRUNING_METHODS as COMMAND_METHODS
from playground.errors import ConfigError
from tests.checkpoints import checkpoint


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("A fox and a cat sat on a mat. Is it wet? Yes, said the cat. " * 40)
    return file


def run(folder: Path, text: Path, method: str, *options: str) -> Result:
    short = ["--calibration", str(text), "--calibration-sequences", "6", "--calibration-length", "32"]
    source = str(checkpoint("llama-2"))
    return CliRunner().invoke(
        app, ["compress", source, "--method", method, "--output", str(folder / "out"), *short, *options]
    )


def test_the_command_knows_every_method_of_the_library() -> None:
    assert COMMAND_METHODS == PRUNING_METHODS
    assert set(PRUNING_METHODS) <= set(METHODS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["prune-layers", "--target", "0.3", "--layers-by", "influence"], "without layers "),
        (["prune-layers", "--target", "0.6", "--rounds", "2", "--layers-by", "angular"], "without layers "),
        (["prune-ffn", "--target", "0.2", "--target-of", "parameters"], "% fewer)"),
        (["prune-heads", "--target", "0.5"], "1,152 bytes of KV a token are now 576"),
        (["wanda", "--sparsity", "2:4"], "of them zeros"),
        (["gqa", "--kv-heads", "2", "--pooling", "first", "--heal", "1"], "1,152 bytes of KV a token are now 384"),
    ],
)
def test_it_writes_a_checkpoint_and_says_what_became_of_it(
    options: list[str], said: str, tmp_path: Path, text: Path
) -> None:
    if "--heal" in options:
        text = tmp_path / "long.txt"
        text.write_text("A fox and a cat sat on a mat. Is it wet? Yes, said the cat. " * 80)
    result = run(tmp_path, text, *options)
    assert result.exit_code == 0, result.output
    assert said in result.stdout
    FloatCheckpoint.load(tmp_path / "out").decoder()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["prune-layers", "--target", "0.95"], "leaves no layers"),
        (["prune-layers", "--target", "1.5"], "out of range: give a share between 0 and 1"),
        (["prune-layers", "--bits", "4"], "--bits is of no use to --method prune-layers"),
        (["prune-layers", "--asymmetric"], "--symmetric is of no use to --method prune-layers"),
        (["wanda", "--target", "0"], "--target is of no use to --method wanda"),
        (["prune-layers", "--layers-by", "luck"], "use perplexity, influence, angular"),
        (["prune-layers", "--resume"], "--resume is of no use"),
        (["prune-ffn", "--format", "gptq"], "--format is of no use"),
        (["prune-ffn", "--device", "cuda"], "pruning runs on the CPU"),
        (["gqa"], "--method gqa needs --kv-heads"),
        (["gqa", "--kv-heads", "6"], "has 6 KV heads already"),
        (["gqa", "--kv-heads", "2", "--target", "0.5"], "--target is of no use to --method gqa"),
        (["wanda", "--sparsity", "4:2"], "sparsity '4:2' is not allowed"),
        (["wanda", "--heal", "0"], "heal nothing"),
        (["rtn", "--sparsity", "0.5"], "--sparsity is of no use to --method rtn"),
        (["shave"], "use one of rtn"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    options: list[str], reason: str, tmp_path: Path, text: Path
) -> None:
    result = run(tmp_path, text, *options)
    assert isinstance(result.exception, ConfigError)
    assert reason in str(result.exception) and "\n" not in str(result.exception)
    assert not list(tmp_path.iterdir())
