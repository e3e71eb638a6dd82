"""The GPU benchmarks as they run without one: every case once, no numbers, failures named."""

import io
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from playground.bench.command import bench_app
from playground.bench.device_timing import Ceilings, Timer, Timing
from playground.bench.gpu import Part, parts, run_part
from playground.bench.kernel_cases import Case, at_least
from playground.bench.kernels import failures, measure, run_kernels

CPU = torch.device("cpu")


class FixedTimer(Timer):
    """Every call takes 10 us."""

    def __init__(self) -> None:
        super().__init__(CPU)

    def time(self, call: Any) -> Timing | None:
        call()
        return Timing(10.0, 9.0, 11.0)


def test_a_rehearsal_runs_every_case_of_an_op_and_gives_no_number() -> None:
    report = run_kernels(CPU, quick=True, say=lambda text: None, only="rms_norm")
    assert report["rehearsal"] and report["ceilings"] == {"copy_bytes_per_second": None, "matmul_flops": None}
    assert {row["op"] for row in report["rows"]} == {"rms_norm", "rms_norm + residual"}
    assert all(row["us"] is None and not row["errors"] and row["reached"] is None for row in report["rows"])
    assert not list(failures(report))


def test_rates_are_held_against_the_ceilings_of_the_run() -> None:
    case = Case(
        "copy", "1 MB", lambda: None, {"slow": lambda: None}, bytes=1e6, flops=2e6, reach="half of the ceiling",
        reached=at_least("share_of_copy", 0.5),
    )  # fmt: skip
    row = measure(case, FixedTimer(), Ceilings(copy_bytes_per_second=2e11, matmul_flops=1e12))
    assert row.bytes_per_second == pytest.approx(1e11) and row.share_of_copy == pytest.approx(0.5)
    assert row.flops == pytest.approx(2e11) and row.share_of_matmul == pytest.approx(0.2)
    assert row.speedup == 1.0 and row.reached is True
    below = measure(case, FixedTimer(), Ceilings(copy_bytes_per_second=3e11, matmul_flops=1e12))
    assert below.reached is False


def test_an_implementation_that_fails_is_named_and_the_others_go_on() -> None:
    def broken() -> None:
        raise RuntimeError("no kernel image")

    row = measure(Case("op", "shape", lambda: None, {"peer": broken}), FixedTimer(), Ceilings(None, None))
    assert row.us == 10.0 and row.peers_us == {"peer": None}
    assert row.errors == {"peer": "RuntimeError: no kernel image"}
    ours = measure(Case("op", "shape", broken, {"peer": lambda: None}), FixedTimer(), Ceilings(None, None))
    assert ours.us is None and ours.peers_us == {"peer": 10.0}
    report = {"rows": [{"op": "op", "shape": "shape", "errors": ours.errors}]}
    assert list(failures(report)) == ["op shape: RuntimeError: no kernel image"]


def test_a_measured_row_reads_as_a_table() -> None:
    from rich.console import Console

    from playground.bench.kernel_report import render_kernels

    case = Case("copy", "1 MB", lambda: None, {"slow": lambda: None}, bytes=1e6, reach="half", reached=lambda row: True)
    row = measure(case, FixedTimer(), Ceilings(2e11, 1e12))
    row.extra_bytes = {"ours": 2**20, "slow": 2**22}
    console = Console(width=160, record=True, file=io.StringIO())
    ceilings = {"copy_bytes_per_second": 2e11, "matmul_flops": 1e12}
    render_kernels(
        {"rehearsal": False, "ceilings": ceilings, "rows": [asdict(row) | {"speedup": row.speedup}]}, console
    )
    text = console.export_text()
    for expected in ("10.0 us", "slow 10.0 us", "1.00x", "50% copy", "1.0 against 4.0 MiB", "half: yes"):
        assert expected in text


def test_a_part_counts_what_passed_failed_and_was_skipped(tmp_path: Path) -> None:
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_skipped(): pytest.skip('no')\n"
        "@pytest.fixture\ndef broken(): raise OSError('gone')\n"
        "def test_error(broken): pass\n"
    )
    result = run_part(Part("some", (str(tests),)))
    assert (result.passed, result.failed, result.skipped) == (1, 2, 1)
    assert "test_bad" in result.failures[0] and "1 == 2" in result.failures[0] and "gone" in result.failures[1]


def test_a_part_that_cannot_start_is_a_failure(tmp_path: Path) -> None:
    result = run_part(Part("nothing", (str(tmp_path / "missing.py"), "--no-such-option")))
    assert (result.passed, result.failed) == (0, 1) and "no report" in result.failures[0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_file_that_a_part_names_is_there(device: str) -> None:
    root = Path(__file__).parents[2]
    for part in parts(torch.device(device), quick=False):
        for argument in part.arguments:
            if argument.startswith("tests"):
                assert (root / argument).exists(), argument


def test_the_command_writes_what_it_found_and_refuses_a_missing_folder(tmp_path: Path) -> None:
    target = tmp_path / "kernels.json"
    done = CliRunner().invoke(bench_app, ["kernels", "--only", "swiglu", "--json", str(target)])
    assert done.exit_code == 0, done.output
    report = json.loads(target.read_text())
    assert report["ok"] and report["rehearsal"] == (not torch.cuda.is_available())
    assert [row["op"] for row in report["kernels"]["rows"]] == ["swiglu"]
    refused = CliRunner().invoke(bench_app, ["kernels", "--json", str(tmp_path / "no" / "file.json")])
    assert refused.exit_code != 0 and "does not exist" in str(refused.exception)


def test_nothing_of_the_gpu_command_needs_gradio_or_the_database() -> None:
    code = (
        "import sys\n"
        "for name in ('gradio', 'sqlmodel', 'sqlalchemy', 'alembic'): sys.modules[name] = None\n"
        "import playground.bench.gpu, playground.bench.kernel_report, playground.bench.__main__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)
