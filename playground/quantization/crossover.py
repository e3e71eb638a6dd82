"""Which of two ways to multiply is the faster one: measured on the machine in use, never guessed.

Up to how many rows a packed product beats the way for many (`Crossover`): once a process and class of shapes, in some
10 ms, when a layer of that class first runs; every result is logged and can be asked for. Where it lies differs by an
order of magnitude: a CPU with AMX multiplies bfloat16 so fast that packed products win up to 4 rows, one with AVX-512
alone up to some 30. And what depends on whether weights come from memory or from a cache (`Trial`), in the calls that
have to be made anyway: nothing else knows.
"""

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_REPEATS = 5
_MOST_OUTPUTS = 512
_MARGIN = 0.95


@dataclass(frozen=True, slots=True)
class Crossover:
    """One measurement: microseconds a call by rows of x, up to the first where writing out was faster."""

    layout: str
    outputs: int
    inputs: int
    threads: int
    rows: int
    """The most rows of x for which the packed product was the faster one; 0 where it never was."""
    packed_us: dict[int, float]
    written_us: dict[int, float]

    def __str__(self) -> str:
        pairs = ", ".join(f"{rows}: {self.packed_us[rows]:.0f}/{self.written_us[rows]:.0f}" for rows in self.packed_us)
        return (
            f"{self.layout} {self.outputs} x {self.inputs}, {self.threads} threads: packed up to {self.rows} rows "
            f"(us packed/written out by rows: {pairs})"
        )


class Measurable(Protocol):
    """What `Crossover` compares: see `layouts.FewRowsLayout`."""

    name: str

    @classmethod
    def random(cls, outputs: int, inputs: int) -> Any: ...


def measured_crossover(layout: type[Measurable], outputs: int, inputs: int) -> Crossover:
    """The measurement for matrices of about this shape, taken now if this process has none yet."""
    return _measure(layout, min(outputs, _MOST_OUTPUTS), inputs, torch.get_num_threads())


def known_crossovers() -> list[Crossover]:
    """What has been measured in this process."""
    return list(_known)


_known: list[Crossover] = []


@functools.cache
def _measure(layout: type[Measurable], outputs: int, inputs: int, threads: int) -> Crossover:
    matrix = layout.random(outputs, inputs)
    packed_us: dict[int, float] = {}
    written_us: dict[int, float] = {}
    most = 0
    for rows in ROWS:
        x = torch.ones(rows, inputs, dtype=torch.bfloat16)
        packed_us[rows], written_us[rows] = _best_of_both(matrix.packed, matrix.written, x)
        if written_us[rows] < _MARGIN * packed_us[rows]:
            break
        most = rows
    found = Crossover(layout.name, outputs, inputs, threads, most, packed_us, written_us)
    _known.append(found)
    logger.info("%s", found)
    return found


def _best_of_both(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """The shortest of several alternating calls of each, in microseconds: what else runs only ever adds."""
    best = [float("inf"), float("inf")]
    for _ in range(_REPEATS + 1):
        for number, run in enumerate((one, other)):
            start = time.perf_counter_ns()
            run(x)
            best[number] = min(best[number], (time.perf_counter_ns() - start) / 1e3)
    return best[0], best[1]


class Trial:
    """Finds the faster of two ways to the same result by taking turns until each was timed a few times."""

    def __init__(self, name: str, calls: int = 16) -> None:
        self._name, self._calls = name, calls
        self._seconds: tuple[list[int], list[int]] = ([], [])
        self.second_is_faster: bool | None = None
        """None until both were tried."""

    def run(self, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The result, one way or the other."""
        if self.second_is_faster is not None:
            return second(x) if self.second_is_faster else first(x)
        ways = self._seconds
        turn = int(len(ways[1]) < len(ways[0]))
        start = time.perf_counter_ns()
        y = (first, second)[turn](x)
        ways[turn].append(time.perf_counter_ns() - start)
        if len(ways[1]) == self._calls:
            medians = [sorted(way)[self._calls // 2] / 1e3 for way in ways]
            self.second_is_faster = medians[1] < medians[0]
            logger.info("%s: %.0f us one way, %.0f the other", self._name, *medians)
        return y


@functools.cache
def trial(name: str, outputs: int, inputs: int, threads: int) -> Trial:
    """The trial of this name for matrices of this shape."""
    return Trial(f"{name}, {outputs} x {inputs}, {threads} threads")
