"""`playground compress` as a user meets it: one line of result, one line for every mistake."""

import io
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from playground.cli import main
from playground.compression import pipeline
from playground.compression.command import Options, quantization_config
from playground.config import QuantizationConfig
from playground.errors import ConfigError
from playground.models.config import read_json


def run(*arguments: str) -> tuple[int, str]:
    """Exit status and standard error of the command, in this process."""
    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(err):
        patch.setattr("sys.argv", ["playground", "compress", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), err.getvalue()


def test_it_writes_a_folder_and_says_how_much_smaller_it_is(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    status, _ = run(str(tiny_model), "--method", "int4", "--symmetric", "--group-size", "16", "--output", str(small))
    assert status == 0
    assert f"{small}: " in capsys.readouterr().out
    entry = read_json(small / "config.json")["quantization_config"]
    assert entry["config_groups"]["group_0"]["weights"]["group_size"] == 16


def test_an_interruption_says_how_to_go_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(tiny_model), "--method", "int8", "--output", str(tmp_path / "small")]
    layer = pipeline._Run._layer

    def interrupted(self: pipeline._Run, number: int, *rest: object) -> object:
        if number == 1:
            raise KeyboardInterrupt
        return layer(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline._Run, "_layer", interrupted)
    status, said = run(*arguments)
    assert status == 130 and "with --resume goes on" in said and "Traceback" not in said
    monkeypatch.undo()
    status, said = run(*arguments)
    assert status == 1 and "resume it (--resume)" in said
    assert run(*arguments, "--resume")[0] == 0
    assert (tmp_path / "small" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "magic"], "--method 'magic' is not known: use one of rtn, gptq, awq, nf4"),
        (["--method", "gptq", "--bits", "5"], "bits=5 is not allowed: give 2, 3, 4 or 8."),
        (["--method", "rtn", "--act-order"], "act_order is for method 'gptq'"),
        (["--method", "awq", "--scale-search"], "scale_search=True is for methods 'rtn' and 'gptq', not 'awq'"),
        (["--method", "awq", "--bits", "4", "--group-size", "7"], "group_size=7 does not divide the 32 inputs"),
        (["--method", "gptq", "--calibration", "/nowhere.txt"], "/nowhere.txt cannot be read"),
        (["--method", "fp8"], "method 'fp8' has no file to be written to"),
        (["--method", "gptq", "--calibration-length", "1"], "are too few"),
    ],
)
def test_a_mistake_gets_one_line(arguments: list[str], sentence: str, tiny_model: Path, tmp_path: Path) -> None:
    extra = [] if "--group-size" in arguments else ["--group-size", "16"] if arguments[1] in ("gptq", "rtn") else []
    status, said = run(str(tiny_model), *arguments, *extra, "--output", str(tmp_path / "small"))
    lines = [line for line in said.splitlines() if line.startswith("playground: ")]
    assert status == 1 and len(lines) == 1 and sentence in lines[0], said
    assert "Traceback" not in said and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "gptq"}, {"method": "gptq", "bits": 4, "symmetric": True, "scale_search": True}),
        ({"method": "gptq", "scale_search": False}, {"method": "gptq", "bits": 4, "scale_search": False}),
        ({"method": "awq", "bits": 3}, {"method": "awq", "bits": 3, "symmetric": False}),
        ({"method": "rtn"}, {"method": "rtn", "bits": 8}),
        ({"method": "nf4"}, {"method": "nf4"}),
        ({"method": "int4", "group_size": 32}, {"method": "rtn", "bits": 4, "group_size": 32, "symmetric": False}),
        ({"method": "gptq-int4", "act_order": True}, {"method": "gptq", "bits": 4, "act_order": True}),
    ],
)
def test_options_become_a_configuration(options: dict[str, object], expected: dict[str, object]) -> None:
    given = Options(model=None, output=Path("out"), **options)  # type: ignore[arg-type]
    made, wanted = quantization_config(given), QuantizationConfig(**expected)
    assert made.model_dump() == wanted.model_dump()


def test_a_short_name_may_not_be_contradicted() -> None:
    with pytest.raises(ConfigError, match="has no meaning for method 'nf4'"):
        quantization_config(Options(model=None, method="nf4", output=Path("out"), bits=8))
