"""The benchmark runs, both sides do the same work, its JSON is whole. How fast is not for a test to say."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from playground.bench.command import bench_app
from playground.bench.engine import DEFINITIONS
from playground.bench.report import render
from playground.bench.stats import compare


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("bench") / "engine.json"
    done = CliRunner().invoke(bench_app, ["engine", "--peer", "transformers", "--quick", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "dummy-tiny, float32" in done.output
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_json_carries_its_conditions(data: dict[str, Any]) -> None:
    assert data["benchmark"] == "engine" and data["peer"] == "transformers" and data["created"]
    assert data["definitions"] == DEFINITIONS
    assert data["versions"]["torch"] and data["versions"]["transformers"]
    assert data["machine"]["torch_threads"] >= 1 and data["machine"]["processor"]
    assert data["plan"]["repeats"] == 2


def test_every_case_is_measured_on_both_sides(data: dict[str, Any]) -> None:
    assert [(row["metric"], row["case"]) for row in data["rows"]] == [
        ("first token", "8 in"),
        ("first token", "24 in"),
        ("decode", "1"),
        ("whole run", "1"),
        ("decode", "3 mixed"),
        ("whole run", "3 mixed"),
    ]
    for row in data["rows"]:
        assert len(row["ours"]) == len(row["peer"]) == 2 and min(row["ours"] + row["peer"]) > 0
        assert (row["model"], row["dtype"]) == ("dummy-tiny", "float32")


def test_ratios_in_the_json_follow_from_its_measurements(data: dict[str, Any]) -> None:
    for row in data["rows"]:
        found = compare(row["ours"], row["peer"], smaller_is_better=row["unit"] == "s")
        assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (found.ratio, found.ratio_min, found.ratio_max)
        assert row["reached"] == (None if row["reach"] is None else found.ratio >= row["reach"])


def test_both_sides_generate_the_same_tokens(data: dict[str, Any]) -> None:
    assert [line["case"] for line in data["agreement"]] == ["1", "3 mixed"]
    for line in data["agreement"]:
        assert line["identical"] == line["requests"]
        assert line["same_tokens_before_first_difference"] == line["tokens"]
    assert [line["tokens"] for line in data["agreement"]] == [6, 18]


def test_the_time_of_a_step_is_split(data: dict[str, Any]) -> None:
    (found,) = data["steps"]
    assert found["num_running"] == 3 and found["num_steps"] > 0
    assert set(found["part_ns"]) == {"schedule", "prepare", "forward", "sample", "post", "between"}
    assert found["total_ns"] == pytest.approx(sum(found["part_ns"].values()))
    assert 0 < found["overhead_share"] < 1
    assert found["reached"] == (found["overhead_share"] < found["target"])


def test_the_tables_show_a_missing_peer_as_a_dash(data: dict[str, Any]) -> None:
    row = {**data["rows"][2], "peer_median": None, "ratio": None, "reached": None}
    out = io.StringIO()
    render({**data, "rows": [row], "agreement": []}, Console(file=out, width=200))
    (line,) = [line for line in out.getvalue().splitlines() if "decode" in line and "1.4x" in line]
    assert line.count("—") == 3


def test_the_benchmark_runs_without_a_peer(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "out.json"
    arguments = [
        "engine",
        "--peer",
        "none",
        "--quick",
        "--repeats",
        "1",
        "--models",
        str(tiny_model),
        "--json",
        str(file),
    ]
    done = CliRunner().invoke(bench_app, arguments)
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert rows and all(row["peer"] == [] and row["ratio"] is None and len(row["ours"]) == 1 for row in rows)
