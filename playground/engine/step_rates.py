"""Tokens per second and acceptance over the last seconds of work. Written by the step loop, read by anybody."""

import threading
import time
from collections import deque
from dataclasses import replace
from typing import NamedTuple

from playground.engine.outputs import EngineStats

WINDOW_SECONDS = 5.0


class StepRate(NamedTuple):
    """What one step contributes."""

    ended_ns: int
    duration_ns: int
    num_prompt: int
    num_output: int
    num_drafts: int
    num_accepted: int


class StepRates:
    """The steps of the last `WINDOW_SECONDS`. Thread-safe."""

    def __init__(self) -> None:
        self._steps: deque[StepRate] = deque()
        self._lock = threading.Lock()

    def record(self, step: StepRate) -> None:
        with self._lock:
            self._steps.append(step)
            while step.ended_ns - self._steps[0].ended_ns > WINDOW_SECONDS * 1e9:
                self._steps.popleft()

    def into(self, stats: EngineStats) -> EngineStats:
        """The snapshot with the rates of now: tokens per second of engine time; unchanged where nothing ran."""
        oldest = time.perf_counter_ns() - int(WINDOW_SECONDS * 1e9)
        with self._lock:
            recent = [step for step in self._steps if step.ended_ns >= oldest]
        busy_seconds = sum(step.duration_ns for step in recent) * 1e-9
        if busy_seconds == 0:
            return stats
        num_drafts = sum(step.num_drafts for step in recent)
        return replace(
            stats,
            prompt_tokens_per_second=sum(step.num_prompt for step in recent) / busy_seconds,
            generated_tokens_per_second=sum(step.num_output for step in recent) / busy_seconds,
            acceptance_rate=sum(step.num_accepted for step in recent) / num_drafts if num_drafts else None,
        )
