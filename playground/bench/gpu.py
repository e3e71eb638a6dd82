"""`playground bench gpu`: everything that only a GPU can show, in one command and one JSON file.

With `--check` the tests run first: kernels on the device, registered ops, models, and the engine's own tests with its
attention in Triton, with and without recorded decode steps. Then the kernels are measured. Each part is a process or a
function of its own: one that fails is reported, and the others go on.
"""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from playground import info
from playground.bench.gpu_engine import run_engine
from playground.bench.kernels import failures, run_kernels

Say = Callable[[str], None]
ROOT = Path(__file__).resolve().parents[2]
PART_SECONDS = 900


@dataclass(frozen=True)
class Part:
    """One run of pytest."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class PartResult:
    name: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    failures: list[str]
    """Names of tests that failed, or why the run itself did; at most 50."""


def parts(device: torch.device, *, quick: bool) -> list[Part]:
    """What is checked. Without a GPU, or `quick`, a few small tests of each kind, through the interpreter."""
    engine = ["tests/engine/test_parity.py", "tests/engine/test_engine.py", "tests/engine/test_reliability.py"]
    fields = ["--engine", "attention=triton", "--engine", "dtype=float32", "--engine", f"device={device}"]
    if quick or device.type != "cuda":
        few = [*engine[1:2], "-k", "stream or batch_size", *fields]
        return [
            Part("kernels", ("tests/kernels/triton/test_activation.py", "tests/kernels/triton/test_merge.py")),
            Part("decoder", ("tests/models/test_decode_graphs.py", "-k", "oversized")),
            Part("engine", tuple(few)),
        ]
    return [
        Part("kernels", ("tests/kernels", "--ignore=tests/kernels/triton/test_aot.py")),
        Part("decoder", ("tests/models", "-k", "triton or graphs or gpu")),
        Part("engine on the GPU", ("tests", "-m", "gpu", "--ignore=tests/ui", "--ignore=tests/sessions")),
        Part("engine, Triton attention", (*engine, *fields)),
        Part("engine, Triton attention, CUDA graphs", (*engine, *fields, "--engine", "cuda_graphs=true")),
    ]


def run_part(part: Part) -> PartResult:
    """Runs pytest in a process of its own and reads its JUnit report."""
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", f"--junitxml={report}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(
                [*command, *part.arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
                timeout=PART_SECONDS, check=False,
            )  # fmt: skip
            ending = (done.stdout + done.stderr).strip().splitlines()[-5:]
        except subprocess.TimeoutExpired:
            ending = [f"did not end within {PART_SECONDS} s"]
        seconds = time.perf_counter() - started
        if not report.is_file():
            return PartResult(part.name, 0, 1, 0, seconds, ["no report: " + " | ".join(ending)])
        return _read_report(part.name, report, seconds)


def _read_report(name: str, report: Path, seconds: float) -> PartResult:
    cases = ElementTree.parse(report).getroot().iter("testcase")
    passed = failed = skipped = 0
    failures: list[str] = []
    for case in cases:
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        if bad is not None:
            failed += 1
            reason = " ".join((bad.get("message") or "").split())[:300]
            failures.append(f"{case.get('classname')}::{case.get('name')}: {reason}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return PartResult(name, passed, failed, skipped, seconds, failures[:50])


def run_gpu(*, check: bool, measure: bool, quick: bool, only: str, say: Say) -> dict[str, Any]:
    """The whole report. On a machine without a GPU it is a rehearsal: everything runs, nothing is measured."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quick = quick or device.type != "cuda"
    report: dict[str, Any] = {
        "benchmark": "gpu",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rehearsal": device.type != "cuda",
        "quick": quick,
        "versions": info.versions(),
        "machine": info.machine(),
        "gpus": info.gpus(),
    }
    if check:
        report["checks"] = []
        for part in parts(device, quick=quick):
            say(f"checking: {part.name}")
            report["checks"].append(asdict(run_part(part)))
    if measure:
        report["kernels"] = run_kernels(device, quick=quick, say=say, only=only)
        if not only:
            bandwidth = report["kernels"]["ceilings"]["copy_bytes_per_second"]
            report["engine"] = run_engine(device, bandwidth, quick=quick, say=say)
    report["ok"] = not any(part["failed"] for part in report.get("checks", []))
    if measure:
        report["ok"] = report["ok"] and not list(failures(report["kernels"]))
    return report
