"""`playground compress --report`: rows are measured, verdicts follow from the numbers, the page loads nothing."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from playground.cli import app
from playground.compression.calibration import Calibration
from playground.compression.perplexity import decoder_scorer, encode_text, paired_difference, text_nlls
from playground.compression.report import measure
from playground.compression.report.goals import check_goals, percent
from playground.compression.report.measure import ReportPlan, run_report
from playground.compression.report.page import markdown, page
from playground.compression.report.variants import variants_for
from playground.config import QuantizationConfig
from playground.errors import ConfigError
from playground.models.config import DecoderConfig
from playground.models.loader import load_model
from playground.models.tokenizer import load_tokenizer

TEXT = "A fox and a cat sat on a mat. Is it wet? Yes, said the cat; it rained all night. " * 6


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "te<x>t.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def data(tiny_model: Path, text: Path) -> dict:
    calibration = Calibration((text,), sequences=4, length=32)
    plan = ReportPlan(str(tiny_model), text, calibration, heal=0, max_tokens=200, window=64, pairs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "BATCHES", {1: 4, 16: 3})
        return run_report(plan, say=lambda line: None)


def test_every_row_is_measured_or_says_why_not(data: dict, tiny_model: Path) -> None:
    keys = [variant.key for variant in variants_for(DecoderConfig.from_folder(tiny_model), heal=0)]
    assert [row["key"] for row in data["rows"]] == keys
    failed = {row["key"]: row["error"] for row in data["rows"] if row["error"]}
    assert all("group_size=" in error for error in failed.values()), failed  # 128 does not divide 32
    measured = [row for row in data["rows"] if not row["error"]]
    assert {"int8", "kv-int8", "kv-fp8", "wanda", "layers", "heads-mean"} <= {row["key"] for row in measured}
    for row in measured:
        assert row["perplexity"] / data["base"]["perplexity"] - 1 == pytest.approx(row["change"], abs=2e-4)
        assert row["change_low"] <= row["change"] <= row["change_high"]
        assert ("speedup_1" in row) == ("speedup_16" in row) and row.get("speedup_1", 1) > 0
    assert next(row for row in measured if row["key"] == "heads-mean")["kv_share"] == 0.5
    assert next(row for row in measured if row["key"] == "wanda")["zeros"] == pytest.approx(0.5, abs=0.25)


def test_a_row_is_what_the_methods_themselves_give(data: dict, tiny_model: Path) -> None:
    ids = encode_text(load_tokenizer(tiny_model), TEXT)[:200]
    nlls = []
    for quantization in (None, QuantizationConfig(bits=4, group_size=32, symmetric=False, head="keep")):
        model = load_model(tiny_model, dtype=torch.float32, quantization=quantization).model
        with torch.inference_mode():
            nlls.append(text_nlls(decoder_scorer(model), ids, 64))
    row = next(row for row in data["rows"] if row["key"] == "rtn4-32")
    assert row["change"] == pytest.approx(paired_difference(nlls[1], nlls[0]).relative, rel=1e-6)


def test_the_page_holds_every_row_and_loads_nothing(data: dict) -> None:
    shown = page(data)
    for row in data["rows"]:
        assert row["label"] in shown
    assert "te&lt;x&gt;t.txt" in shown and "te<x>t" not in shown
    head = shown[: shown.index("<body>")]
    assert "default-src 'none'" in head and "http" not in head.replace("http-equiv", "")
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="http', shown)


def test_the_readme_gets_every_row_and_every_verdict(data: dict) -> None:
    rows, goals = (part.splitlines() for part in markdown(data).split("| What larger models show"))
    for row in data["rows"]:
        (line,) = [line for line in rows if line.startswith(f"| {row['label']} |")]
        assert line.count("|") == 8 and (row["error"] or percent(row["change"])) in line
    for goal in data["goals"]:
        (line,) = [line for line in goals if line.startswith(f"| {goal['what']} |")]
        assert line.endswith("| yes |") if goal["reached"] else line.endswith(f"| no: {goal['why']} |")


def rows_of(**changes: float) -> tuple[dict, dict]:
    """Rows with these losses, and differences of tokens that go with them."""
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.01
    nlls = {key.replace("_", "-"): noise * 0.1 + math.log1p(change) for key, change in changes.items()}
    rows = {
        key: {
            "label": key,
            "change": float(torch.expm1(values.mean())),
            "z": paired_difference(values, values * 0).z,
            "parameters_share": 0.79,
        }
        for key, values in nlls.items()
    }
    return rows, nlls


@pytest.mark.parametrize(
    ("changes", "what", "reached"),
    [
        ({"int8": 0.0005}, "within 0.1 %", True),
        ({"int8": 0.002}, "within 0.1 %", False),
        ({"kv_int8": 0.0007}, "within 0.05 %", False),
        ({"gptq4": 0.004, "rtn4_128": 0.01}, "at most 0.5", True),
        ({"gptq4": 0.006, "rtn4_128": 0.01}, "at most 0.5", False),
        ({"gptq4": -0.001, "rtn4_128": -0.002}, "at most 0.5", False),
        ({"layers_healed": 0.1, "layers": 0.2}, "at most 0.6", True),
        ({"nf4": 0.01, "rtn4_sym_64": 0.02}, "ascending", True),
        ({"nf4": 0.03, "rtn4_sym_64": 0.02}, "ascending", False),
        ({"sparsegpt": 0.1, "wanda": 0.3, "magnitude": 0.2}, "ascending", False),
        ({"nf4": 0.01, "nf4_double": 0.0101}, "at most 0.02 %", True),
        ({"nf4": 0.01, "nf4_double": 0.0105}, "at most 0.02 %", False),
        ({"rtn2_32": 0.5, "gptq2_32": 0.15}, "at least 0.6", True),
        ({"rtn2_32": 0.5, "gptq2_32": 0.25}, "at least 0.6", False),
    ],
)
def test_a_goal_is_reached_by_the_numbers_alone(changes: dict[str, float], what: str, reached: bool) -> None:
    goal = next(goal for goal in check_goals(*rows_of(**changes)) if goal.reach == what)
    assert goal.reached == reached
    assert bool(goal.why) != reached, "a goal that is not reached says why"


def test_a_goal_that_is_not_reached_names_what_was_tried() -> None:
    goals = check_goals(*rows_of(gptq4=0.006, gptq4_range=0.008, gptq4_order=0.007, rtn4_128=0.01))
    (why,) = [goal.why for goal in goals if goal.reach == "at most 0.5"]
    assert re.search(r"; of the loss stay 0\.\d+, with scales from the range 0\.\d+, largest inputs first 0\.\d+$", why)


def test_a_difference_within_its_error_is_called_noise() -> None:
    rows, nlls = rows_of(nf4=0.01, rtn4_sym_64=0.01)
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    nlls["nf4"] = nlls["nf4"] + (noise - noise.mean()) * 0.5 + 0.001
    rows["nf4"]["change"] = float(torch.expm1(nlls["nf4"].mean()))
    goal = next(goal for goal in check_goals(rows, nlls) if goal.what.startswith("nf4 loses"))
    assert not goal.reached and "no more than noise" in goal.why


@pytest.mark.parametrize(("spread", "said"), [(0.001, "is real"), (0.5, "no more than noise")])
def test_a_share_that_is_missed_is_weighed_against_the_goal_and_not_against_the_whole(spread: float, said: str) -> None:
    rows, nlls = rows_of(gptq4=0.0055, rtn4_128=0.01)
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    nlls["gptq4"] = nlls["gptq4"] + (noise - noise.mean()) * spread
    (goal,) = [goal for goal in check_goals(rows, nlls) if goal.reach == "at most 0.5"]
    assert not goal.reached and said in goal.why


@pytest.mark.parametrize(("value", "text"), [(0.123456, "+12.3 %"), (-0.00002, "-0.002 %"), (0.0, "+0.000 %")])
def test_percent(value: float, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--report"], "needs --text"),
        (["--report", "--text", "nowhere.txt"], "nowhere.txt"),
        (["--report", "--output", "x", "--text", "y"], "leave out --output"),
        (["--report", "--text", "TEXT", "--rows", "weigths"], "weigths"),
        (["--report", "--text", "TEXT", "--json", "nowhere/x.json"], "nowhere is not a folder"),
        (["--method", "rtn"], "needs --method and --output"),
    ],
)
def test_bad_options_get_one_sentence(options: list[str], said: str, text: Path, tiny_model: Path) -> None:
    options = [str(text) if option == "TEXT" else option for option in options]
    done = CliRunner().invoke(app, ["compress", str(tiny_model), *options])
    assert done.exit_code != 0 and isinstance(done.exception, ConfigError) and said in str(done.exception)


def test_the_command_writes_both_files(text: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = ["--text", str(text), "--rows", "kv", "--max-tokens", "80", "--pairs", "1"]
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    done = CliRunner().invoke(app, ["compress", str(tiny_model), "--report", *options, *files])
    assert done.exit_code == 0, done.output
    assert [row["key"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]] == ["kv-int8", "kv-fp8"]
    assert "KV cache in int8" in (tmp_path / "r.html").read_text()
