"""The quantization benchmark runs in pairs, counts bytes and names what it does not know. Speed is not tested."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from playground.bench.command import bench_app
from playground.bench.quantization import QuantizationPlan, Row, _turns
from playground.bench.quantization_report import markdown
from playground.bench.workload import Batch
from playground.errors import ConfigError
from playground.telemetry.ceilings import MachineRates


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
        assert 0 < row["read_bytes"] <= row["weights_bytes"] < row["unquantized_bytes"]
        assert row["floor_seconds"] < row["step_seconds"]
        assert row["bound"] >= row["unquantized_read_bytes"] / row["read_bytes"] > 1.8, "fewer bytes, no slower read"
        assert 1 <= row["bytes_alone"] <= row["bound"]
        assert row["ratio_min"] <= row["ratio_low"] <= row["ratio"] <= row["ratio_high"] <= row["ratio_max"]
        assert row["reach"] is None, "nothing is to be reached on a model of no size"
    assert data["crossovers"] and data["definitions"] and data["machine"]["torch_threads"] >= 1


RATES = MachineRates("a machine", "bfloat16", 1e12, ((1000, 1e6), (10_000, 1e5)))


def row(method: str, requests: int) -> Row:
    """1,000 bytes of 5,000 are read in a millisecond, and 5,000 in fifty."""
    stats = [SimpleNamespace(memory_weights_bytes=size + 500, step_weights_bytes=size) for size in (1000, 5000)]
    return Row.of(method, Batch(str(requests), (8,) * requests, (8,) * requests), *stats, RATES)  # type: ignore[arg-type]


def test_ratios_are_medians_of_pairs_and_the_goals_are_for_one_request() -> None:
    one = row("int8", 1)
    one.quantized, one.unquantized = [30.0, 40.0, 90.0], [10.0, 10.0, 30.0]
    found = one.to_dict("dummy-135m")
    assert found["ratio"] == 3.0 and (found["reach"], found["reached"]) == (1.5, True)
    assert found["ratio_low"] <= 3 <= found["ratio_high"]
    more = row("int8", 16)
    more.quantized, more.unquantized = [1.0], [1.0]
    assert more.to_dict("dummy-135m")["reach"] is None
    assert list(_turns("int8", 0)) == list(_turns("int8", 1))[::-1]


def test_a_step_is_no_shorter_than_reading_its_weights_as_fast_as_so_many_can_be_read() -> None:
    one = row("int4", 1)
    one.quantized, one.unquantized = [20.0], [10.0]  # steps of 50 and 100 ms
    found = one.to_dict("dummy-135m")
    assert (found["floor_seconds"], found["unquantized_floor_seconds"]) == (0.001, 0.05)
    assert found["bound"] == 50, "5,000 bytes are read at a tenth of the rate"
    assert found["bytes_alone"] == pytest.approx(100 / (100 - 50 + 1))
    data = {
        "created": "2026-01-01T00:00:00+00:00", "machine": {"processor": "CPU", "torch_threads": 2},
        "versions": {"commit": None, "torch": "2"}, "plan": {"model": "m", "dtype": "bfloat16", "repeats": 1},
        "reading": [{"bytes": 2**20, "bytes_per_second": 2e9}], "rows": [found | {"reach": 3.0, "reached": False}],
    }  # fmt: skip
    text = markdown(data)
    assert "| int4 | 1 | 20.0 | 10.0 | 2.00x (—) | 0 of 0 MB | 1.0 ms | 50.0 ms | 50.00x | 3.0x: not reached |" in text
    assert "at least 50.0; the fewer bytes alone make it 1.96 times as fast" in text


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ConfigError, match="--methods int5 is not known: give some of int8"):
        QuantizationPlan(names=("int8", "int5"))
