"""The sharing benchmark runs, and its counts are those that follow from lengths and widths."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from playground.bench.command import bench_app
from playground.bench.samples import BLOCK_SIZE, DEFINITIONS

COLUMNS = ("case", "shared", "private", "separate", "KiB", "of KiB", "saved", "copies")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("bench") / "samples.json"
    done = CliRunner().invoke(bench_app, ["samples", "--quick", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in COLUMNS) and "3 beams" in done.output, (
        "whole in a terminal of 80 columns"
    )
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_json_carries_its_conditions(data: dict[str, Any]) -> None:
    assert data["benchmark"] == "samples" and data["definitions"] == DEFINITIONS and data["created"]
    assert data["versions"]["torch"] and data["machine"]["processor"]
    assert data["plan"] == {
        "model": "dummy-tiny", "prompt_tokens": 37, "output_tokens": 12, "samples": [1, 2, 3], "beams": [2, 3],
    }  # fmt: skip


def test_samples_share_all_full_blocks_of_the_prompt(data: dict[str, Any]) -> None:
    rows = [row for row in data["rows"] if row["kind"] == "samples"]
    assert [row["width"] for row in rows] == [1, 2, 3]
    full, each = 37 // BLOCK_SIZE, -(-(37 + 11) // BLOCK_SIZE)
    for row in rows:
        assert row["blocks_shared"] == full + row["width"] * (each - full)
        assert row["blocks_private"] == row["blocks_separate"] == row["width"] * each, "computed is what is measured"
        assert row["copies"] == row["width"] - 1


def test_beams_share_more_than_samples(data: dict[str, Any]) -> None:
    samples = {row["width"]: row for row in data["rows"] if row["kind"] == "samples"}
    beams = [row for row in data["rows"] if row["kind"] == "beams"]
    assert [row["width"] for row in beams] == [2, 3]
    for row in beams:
        assert row["blocks_separate"] is None
        assert row["blocks_shared"] <= samples[row["width"]]["blocks_shared"] < row["blocks_private"]


def test_bytes_and_shares_follow_from_the_counts(data: dict[str, Any]) -> None:
    numbers = 2 * 2 * 16 * BLOCK_SIZE  # K and V, 2 layers, one head of 16
    assert data["block_bytes"] in (2 * numbers, 4 * numbers), "in bfloat16, or float32 where the machine has no other"
    for row in data["rows"]:
        assert row["bytes_shared"] == row["blocks_shared"] * data["block_bytes"]
        assert row["bytes_private"] == row["blocks_private"] * data["block_bytes"]
        assert row["saved"] == pytest.approx(1 - row["blocks_shared"] / row["blocks_private"])


def test_a_model_that_is_not_there_is_refused_with_the_names(tmp_path: Path) -> None:
    done = CliRunner().invoke(bench_app, ["samples", "--model", str(tmp_path / "nowhere")])
    assert done.exit_code != 0 and "nowhere" in str(done.exception)
