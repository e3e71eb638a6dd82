"""`CommandRun`: one command in a process group of its own, with its lines as they come, a time limit, and a sure end.

Knows nothing of benchmarks or of the page. Whatever ends a run (its own end, `stop`, the time limit), no process that
it has started is left.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import psutil

KEPT_LINES = 200
LONGEST_LINE = 300
POLL_SECONDS = 0.05
GRACE_SECONDS = 4.0
"""Between asking a process to end and killing it: time to remove what it has written."""

Ending = Literal["ended", "stopped", "timed out"]


class CommandRun:
    """A command that runs. `wait` sees it to its end and belongs to one thread; the rest may be called from any."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], timeout: float) -> None:
        """Starts at once. Raises `OSError` where there is no such program."""
        self._timeout = timeout
        self._stop = threading.Event()
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,  # "\r" ends a line, too: a bar that draws itself anew is a row of lines
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="lab-lines", daemon=True)
        self._reader.start()

    @property
    def lines(self) -> list[str]:
        """The latest lines of standard error, oldest first."""
        return list(self._lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Have it end now, with everything it has started."""
        self._stop.set()

    def wait(self) -> tuple[Ending, int]:
        """Blocks until nothing of it runs any more; why it ended, and its exit status."""
        ending: Ending = "ended"
        while self._process.poll() is None:
            if self._stop.wait(POLL_SECONDS):
                ending = "stopped"
                break
            if time.monotonic() - self._started > self._timeout:
                ending = "timed out"
                break
        self._end()
        return ending, self._process.returncode

    def _read(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            for line in self._process.stderr:
                if text := " ".join(line.split())[:LONGEST_LINE]:
                    self._lines.append(text)

    def _end(self) -> None:
        """Ask the group to end, then kill whatever is left of it and of its descendants."""
        family = _descendants(self._process.pid)
        if self._process.poll() is None:
            self._signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS)
        self._signal(signal.SIGKILL)
        for one in family:  # what has left the group
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait()
        self._reader.join(GRACE_SECONDS)
        for pipe in (self._process.stdin, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def environment(folder: Path) -> dict[str, str]:
    """This process's own, with `folder` for temporary files, and the modules that this process would import."""
    paths = [str(Path(__file__).resolve().parents[3]), *filter(None, sys.path)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "TMPDIR": str(folder),
        "PYTHONUNBUFFERED": "1",
    }
