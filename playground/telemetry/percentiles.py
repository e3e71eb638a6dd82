"""Percentiles of latencies, with how much they can be trusted. Pure.

Values between two ranks are interpolated linearly, as `numpy.percentile` does by default.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

SHARES = (50, 90, 95, 99)
FEW = 20
"""With fewer values, percentiles say little: they are shown in grey."""
FEW_FOR_P99 = 100
"""The 99th percentile of fewer values is hardly more than the largest."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of one quantity: its percentiles by share, its largest value, and of how many values. None: there are none."""

    percentiles: dict[int, float | None]
    largest: float | None
    n: int

    def doubtful(self, share: int) -> str | None:
        """Why this percentile says little; None where it says something."""
        if self.n < FEW:
            return f"n = {self.n}: a percentile of fewer than {FEW} values says little."
        if share == 99 and self.n < FEW_FOR_P99:
            return f"n = {self.n}: p99 needs {FEW_FOR_P99}."
        return None


def distribution(values: Iterable[float]) -> Distribution:
    """Of the values that are numbers."""
    ascending = sorted(value for value in values if math.isfinite(value))
    return Distribution(
        {share: percentile(ascending, share / 100) for share in SHARES},
        ascending[-1] if ascending else None,
        len(ascending),
    )


def percentile(ascending: list[float], share: float) -> float | None:
    """Of sorted values: at rank `share * (n - 1)`, counted from 0."""
    if not ascending:
        return None
    rank = share * (len(ascending) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (rank - below)
