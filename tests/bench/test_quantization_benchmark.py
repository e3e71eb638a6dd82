"""The quantization benchmark runs in pairs, counts bytes and names what it does not know. Speed is not tested."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from playground.bench.command import bench_app
from playground.bench.quantization import QuantizationPlan, Row, _turns
from playground.errors import ConfigError


def test_every_method_is_measured_in_pairs_with_bound_and_crossover(tmp_path: Path) -> None:
    file = tmp_path / "quantization.json"
    done = CliRunner().invoke(bench_app, ["quantization", "--quick", "--methods", "int8,fp8", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "Decoding, dummy-tiny" in done.output and "Crossover" in done.output
    data = json.loads(file.read_text(encoding="utf-8"))
    assert [(row["method"], row["batch"]) for row in data["rows"]] == [
        ("int8", "1"), ("fp8", "1"), ("int8", "3"), ("fp8", "3"),
    ]  # fmt: skip
    for row in data["rows"]:
        assert len(row["quantized"]) == len(row["unquantized"]) == 2 and min(row["quantized"]) > 0
        assert row["bound"] == row["unquantized_bytes"] / row["weights_bytes"] > 1.8
        assert row["reach"] is None, "nothing is to be reached on a model of no size"
    assert data["crossovers"] and data["definitions"] and data["machine"]["torch_threads"] >= 1


def test_ratios_are_medians_of_pairs_and_the_goals_are_for_one_request() -> None:
    row = Row("int8", "1", 100, 200, quantized=[30.0, 40.0, 90.0], unquantized=[20.0, 20.0, 30.0])
    found = row.to_dict("dummy-135m")
    assert found["ratio"] == 2.0 and found["bound"] == 2.0 and (found["reach"], found["reached"]) == (1.5, True)
    assert Row("int8", "16", 100, 200, [1.0], [1.0]).to_dict("dummy-135m")["reach"] is None
    assert list(_turns("int8", 0)) == list(_turns("int8", 1))[::-1]


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ConfigError, match="--methods int5 is not known: give some of int8"):
        QuantizationPlan(names=("int8", "int5"))
