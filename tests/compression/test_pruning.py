"""A whole pruning: from a folder to a folder, to the target, in rounds, healed, and nothing left where it fails."""

from pathlib import Path

import pytest
import torch

from playground.compression import pruning as module
from playground.compression.calibration import Calibration
from playground.compression.float_checkpoint import FloatCheckpoint
from playground.compression.healing import Healing
from playground.compression.pruning import METHODS, Pruned, Pruning, prune
from playground.compression.sparsity import Pattern
from playground.compression.targets import Target
from playground.errors import ConfigError
from tests.checkpoints import checkpoint


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("A fox and a cat sat on a mat. Is it wet? Yes, said the cat. " * 30)
    return Calibration((file,), sequences=8, length=48)


def run(method: str, folder: Path, calibration: Calibration, variant: str = "llama-2", **options: object) -> Pruned:
    return prune(checkpoint(variant), Pruning(method, **options), folder / "out", calibration)  # type: ignore[arg-type]


def test_every_method_writes_a_checkpoint_and_says_what_it_did(tmp_path: Path, calibration: Calibration) -> None:
    options: dict[str, dict[str, object]] = {
        "prune-layers": {"target": Target(0.25)},
        "prune-ffn": {"target": Target(0.3, "parameters")},
        "prune-heads": {"target": Target(0.5)},
        "sparsegpt": {"sparsity": Pattern.parse("2:4")},
        "gqa": {"kv_heads": 2},
    }
    whole = FloatCheckpoint.load(checkpoint("llama-2"))
    for method in METHODS:
        done = run(method, tmp_path / method, calibration, **options.get(method, {}))
        written = FloatCheckpoint.load(done.output)
        assert done.parameters == (whole.num_parameters, written.num_parameters)
        kv = tuple(m.config.kv_bytes_per_token(torch.float32) for m in (whole, written))
        assert done.kv_bytes_per_token == kv
        if method.startswith("prune-"):
            assert done.parameters[1] < done.parameters[0]
        if method == "prune-ffn":
            assert done.parameters[1] <= 0.7 * done.parameters[0]
        if method == "gqa":
            assert kv[0] == 3 * kv[1]
        assert (done.zeros > 0.3) == (method in ("magnitude", "wanda", "sparsegpt"))
        assert len(done.removed_layers) == (method == "prune-layers")


@pytest.mark.parametrize(
    ("method", "rounds", "plan"),
    [
        ("prune-layers", 2, [2, 1]),
        ("prune-layers", 9, [2, 1]),
        ("prune-ffn", 3, [64, 48, 32]),
        ("prune-heads", 2, [4, 2]),
    ],
)
def test_rounds_go_part_of_the_way_each_and_share_the_healing(
    method: str, rounds: int, plan: list[int], tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    steps: list[int] = []

    def watched(model: FloatCheckpoint, original: FloatCheckpoint, text: object, settings: Healing) -> FloatCheckpoint:
        config = model.config
        seen.append(
            {"prune-layers": config.num_layers, "prune-ffn": config.intermediate_size}.get(method, config.num_kv_heads)
        )
        steps.append(settings.steps)
        assert original.config.num_layers == 3
        return model

    monkeypatch.setattr(module, "heal", watched)
    healing = Healing(10, batch_size=2, length=32)
    done = run(method, tmp_path, calibration, target=Target(0.6), rounds=rounds, healing=healing)
    assert (seen, sum(steps)) == (plan, 10)
    assert len(done.removed_layers) == len(set(done.removed_layers)) == (2 if method == "prune-layers" else 0)


def test_layers_that_are_given_are_not_searched_for(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run("prune-layers", tmp_path / "found", calibration)
    monkeypatch.setattr(module, "choose_layers", None)
    given = run("prune-layers", tmp_path / "given", calibration, layers=tuple(found.removed_layers))
    assert given.removed_layers == found.removed_layers and given.parameters == found.parameters
    with pytest.raises(ConfigError, match="cannot be removed: give some of 0 to 2"):
        run("prune-layers", tmp_path / "wrong", calibration, layers=(3,))
    with pytest.raises(ConfigError, match="in one round"):
        Pruning("prune-heads", layers=(1,))


def test_removed_layers_are_named_by_their_numbers_in_the_original(tmp_path: Path, calibration: Calibration) -> None:
    done = run("prune-layers", tmp_path, calibration, target=Target(0.6), rounds=2, layers_by="influence")
    (kept,) = {0, 1, 2} - set(done.removed_layers)
    name = "model.layers.{}.mlp.up_proj.weight"
    whole, written = FloatCheckpoint.load(checkpoint("llama-2")), FloatCheckpoint.load(done.output)
    assert torch.equal(written.tensors[name.format(0)], whole.tensors[name.format(kept)])


def test_healing_keeps_the_zeros_of_a_sparse_model_and_no_others(tmp_path: Path, calibration: Calibration) -> None:
    healing = Healing(3, batch_size=2, length=32)
    raw = run("wanda", tmp_path / "raw", calibration, sparsity=Pattern.parse("2:4"))
    healed = run("wanda", tmp_path / "healed", calibration, sparsity=Pattern.parse("2:4"), healing=healing)
    assert healed.zeros == pytest.approx(raw.zeros, abs=1e-3)
    one, other = (FloatCheckpoint.load(done.output).tensors for done in (raw, healed))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one[name] == 0, other[name] == 0) and not torch.equal(one[name], other[name])


def test_without_a_text_the_model_calibrates_and_heals_on_its_own(tmp_path: Path) -> None:
    healing = Healing(1, batch_size=2, length=16)
    options = {"target": Target(0.3), "layers_by": "influence", "healing": healing}
    done = run("prune-layers", tmp_path, Calibration(sequences=4, length=24), **options)
    assert FloatCheckpoint.load(done.output).config.num_layers == 2


def test_what_fails_leaves_nothing_and_the_original_as_it_was(tmp_path: Path, calibration: Calibration) -> None:
    source = checkpoint("llama-2")
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    short = Calibration(calibration.files, sequences=500, length=48)
    failures: list[tuple[str, Calibration, dict[str, object], str]] = [
        ("prune-layers", calibration, {"target": Target(0.9)}, "leaves no layers"),
        ("prune-ffn", calibration, {"target": Target(0.99)}, "leaves no FFN channels"),
        ("wanda", short, {}, "give a longer text"),
        ("gqa", calibration, {"kv_heads": 6}, "has 6 KV heads already"),
        ("gqa", calibration, {"kv_heads": 4}, "do not become 4"),
        ("prune-ffn", calibration, {"healing": Healing(5, batch_size=400)}, "healing takes more than 400 rows"),
    ]
    for method, text, options, reason in failures:
        with pytest.raises(ConfigError, match=reason):
            run(method, tmp_path, text, **options)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        run("gqa", tmp_path, calibration, kv_heads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before
    with pytest.raises(ConfigError, match="method 'shave' is not known: use one of prune-layers"):
        Pruning("shave")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rounds=0 is not allowed: give at least 1"):
        Pruning("prune-layers", rounds=0)
    with pytest.raises(ConfigError, match="rounds=7 is not allowed: give at least 1 and at most 5"):
        Pruning("prune-layers", rounds=7, healing=Healing(5))
