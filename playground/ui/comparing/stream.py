"""The comparison that runs, as events of the stream that every browser reads: what there is of it, and its end.

A tab that shows it draws them; how it ended, and what is saved, the tab asks for.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

from playground.ui.comparing.runs import ComparisonRun, ComparisonRuns

LOOK_SECONDS = 0.15


class ComparisonStream:
    """What there is to be told of the comparisons of one host. Thread-safe."""

    name = "comparison"

    def __init__(self, runs: ComparisonRuns, show: Callable[[ComparisonRun], dict[str, Any]]) -> None:
        """`show`: what the page draws of one that runs."""
        self._runs, self._show = runs, show
        self._wakes: tuple[Callable[[], None], ...] = ()
        self._lock = threading.Lock()
        runs.on_start = self._begun

    def read(self, wake: Callable[[], None]) -> "ComparisonReader":
        with self._lock:
            self._wakes = (*self._wakes, wake)
        return ComparisonReader(self, wake)

    def _begun(self) -> None:
        for wake in self._wakes:
            wake()

    def _remove(self, wake: Callable[[], None]) -> None:
        with self._lock:
            self._wakes = tuple(one for one in self._wakes if one is not wake)


class ComparisonReader:
    """What one browser has been told."""

    def __init__(self, stream: ComparisonStream, wake: Callable[[], None]) -> None:
        self._stream, self._wake = stream, wake
        self._told: tuple[int, int, bool] | None = None

    def take(self) -> list[str]:
        """The comparison, where something about it is new."""
        run = self._stream._runs.latest
        if run is None:
            return []
        ended = run.ended
        now = run.number, run.revision, ended
        if now == self._told:
            return []
        self._told = now
        view = None if ended else self._stream._show(run)
        return [json.dumps({"number": run.number, "ended": ended, "view": view}, allow_nan=False)]

    @property
    def wait(self) -> float | None:
        """A change is looked for so often while one runs."""
        run = self._stream._runs.latest
        is_over = run is None or self._told == (run.number, run.revision, True)
        return None if is_over else LOOK_SECONDS

    def close(self) -> None:
        self._stream._remove(self._wake)
