"""`LabRunner`: runs one benchmark at a time, with the machine to itself, and keeps its result.

A benchmark is a process of its own, so that the page stays usable and a fault of the one is none of the other. The
chat's engine stands still meanwhile: two engines on one machine would measure each other.
"""

import json
import logging
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from playground.errors import ConfigError
from playground.ui.host import EngineHost
from playground.ui.lab.catalogue import Benchmark, arguments, describe, is_quick, read_options, timeout_seconds
from playground.ui.lab.process import CommandRun, environment
from playground.ui.lab.results import ResultFiles

logger = logging.getLogger(__name__)

SHOWN_LINES = 12
PROGRAM = (sys.executable, "-m", "playground.ui.lab.child", "playground")
LEASE = "A benchmark is running"
BUSY = "A benchmark is running: wait for its end, or stop it."
_PROGRESS = re.compile(r"(\d{1,6}) of (\d{1,6}): ")
_COMPLAINT = "playground: "

State = Literal["running", "done", "stopped", "failed"]


@dataclass
class Job:
    """One run of a benchmark, from the click to its result."""

    benchmark: Benchmark
    options: dict[str, str]
    run: CommandRun
    started: float = field(default_factory=time.monotonic)
    state: State = "running"
    seconds: float | None = None
    """How long it took, once it has ended."""
    error: str | None = None
    result: str | None = None
    """The id of what it measured."""

    def view(self) -> dict[str, Any]:
        lines = self.run.lines
        return {
            "benchmark": self.benchmark.name,
            "title": self.benchmark.title,
            "what": describe(self.options),
            "state": self.state,
            "seconds": time.monotonic() - self.started if self.seconds is None else self.seconds,
            "lines": lines[-SHOWN_LINES:],
            "done": progress(lines),
            "error": self.error,
            "result": self.result,
        }


def progress(lines: Sequence[str]) -> float | None:
    """The share of cases behind it, from lines that begin with "3 of 18: "; None where none does."""
    for line in reversed(lines):
        if (found := _PROGRESS.match(line)) and 1 <= int(found[1]) <= int(found[2]):
            return (int(found[1]) - 1) / int(found[2])
    return None


class LabRunner:
    """The Lab's benchmarks over the app's engine host. Thread-safe."""

    def __init__(self, host: EngineHost, results: ResultFiles, program: Sequence[str] = PROGRAM) -> None:
        self._host, self._results, self._program = host, results, tuple(program)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.job: Job | None = None
        """The one that runs, or the latest."""

    def start(self, data: object) -> Job:
        """Begin what the page asked for; returns at once. Raises `ConfigError` for what cannot be, and while the
        machine is taken."""
        benchmark, options = read_options(data)
        with self._lock, ExitStack() as stack:
            if self._closed or (self.job is not None and self.job.state == "running"):
                raise ConfigError(BUSY)
            stack.enter_context(self._host.exclusive(LEASE))
            folder = Path(tempfile.mkdtemp(prefix="playground-lab-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            file = folder / "result.json"
            command = [*self._program, *arguments(benchmark, options, file)]
            try:
                run = CommandRun(command, environment=environment(folder), timeout=timeout_seconds(options))
            except OSError as error:
                raise ConfigError(f"The benchmark could not be started ({error.strerror or error}).") from None
            job = self.job = Job(benchmark, options, run)
            end = stack.pop_all().close
            self._thread = threading.Thread(target=self._see_through, args=(job, file, end), name="lab", daemon=True)
            self._thread.start()
        return job

    def stop(self) -> None:
        """End the benchmark that runs, without a result."""
        if self.job is not None:
            self.job.run.stop()

    def wait(self, timeout: float | None = None) -> None:
        """Until nothing runs."""
        if self._thread is not None:
            self._thread.join(timeout)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self.stop()
        self.wait(10.0)

    def _see_through(self, job: Job, file: Path, end: Callable[[], None]) -> None:
        state: State = "failed"
        try:
            ending, status = job.run.wait()
            job.seconds = time.monotonic() - job.started
            if ending == "stopped":
                state = "stopped"
            elif ending == "timed out":
                job.error = f"It was ended after {timeout_seconds(job.options) / 60:.0f} minutes without a result."
            else:
                job.result, job.error = self._result(job, file, status)
                state = "failed" if job.result is None else "done"
        except Exception:
            logger.exception("a benchmark's result could not be kept")
            job.error = "The result could not be kept because of a fault in the playground; its log says more."
        finally:
            try:
                end()
            except Exception:
                logger.exception("the machine could not be given back after a benchmark")
            job.state = state

    def _result(self, job: Job, file: Path, status: int) -> tuple[str | None, str | None]:
        """(id of the result, what is wrong)."""
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            return None, complaint(job.run.lines, status)
        lab = {"what": describe(job.options), "quick": is_quick(job.options), "options": job.options}
        result = self._results.keep(data, job.benchmark.name, {**lab, "seconds": job.seconds})
        return result, None if status == 0 else "Some of its cases failed; the result says which."


def complaint(lines: Sequence[str], status: int) -> str:
    """Why there is no result: the command's own sentence, or the last thing it said."""
    for line in reversed(lines):
        if line.startswith(_COMPLAINT):
            return line.removeprefix(_COMPLAINT)
    said = f" The last it said: {lines[-1]}" if lines else ""
    return f"It ended without a readable result (exit status {status}).{said}"
