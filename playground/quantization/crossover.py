"""Up to how many rows a packed product beats writing the matrix out: measured on the machine in use.

Once a process and class of shapes, in some 10 ms, when a layer of that class first runs; every result is logged and
can be asked for. Where it lies differs by an order of magnitude: a CPU with AMX multiplies bfloat16 so fast that packed
products win up to 4 rows, one with AVX-512 alone up to some 30.
"""

import functools
import logging
import math
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
    return _measure(layout, min(_power_of_two(outputs), _MOST_OUTPUTS), _power_of_two(inputs), torch.get_num_threads())


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


def _power_of_two(size: int) -> int:
    """The nearest power of two, at least 64."""
    return max(64, 1 << round(math.log2(max(size, 1))))
