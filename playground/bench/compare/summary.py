"""A comparison's numbers: for each metric the median of every side with its interval, and every side against the first.

Works on the plain record that a run leaves, so that a saved one gives the same table. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from playground.bench.compare.measures import METRICS, Metric, predicted_tokens_per_step
from playground.bench.stats import Interval, median_interval, ratio_interval


@dataclass(frozen=True, slots=True)
class Against:
    """One side against the first, over the rounds that both have."""

    ratio: Interval | None
    """Of the paired values, this side's over the first's; None where the first's is 0."""
    difference: float
    """Between the medians."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out "no difference"."""
        if self.ratio is None:
            return self.difference != 0
        low, high = self.ratio.low, self.ratio.high
        if low is None or high is None:
            return False
        return not low <= 1 <= high


@dataclass(frozen=True, slots=True)
class Row:
    """One metric. `values` has every run's number by round, `sides` and `against` are None for what is missing."""

    metric: Metric
    values: tuple[dict[int, float], ...]
    sides: tuple[Interval | None, ...]
    against: tuple[Against | None, ...]
    """The first is None: it is what the others are held against."""


def summarise(record: Mapping[str, Any]) -> list[Row]:
    """The rows that have a number on any side, in the metrics' order."""
    rows = [_row(metric, record["sides"]) for metric in METRICS]
    return [row for row in rows if any(any(values.values()) for values in row.values)]


def predictions(record: Mapping[str, Any]) -> list[float | None]:
    """Tokens per step that the formula gives for each side's measured acceptance."""
    return [predicted_tokens_per_step(side["runs"]) for side in record["sides"]]


def drafts(record: Mapping[str, Any]) -> list[int]:
    """Drafts in all runs of each side."""
    return [sum(run["drafts"] for run in side["runs"]) for side in record["sides"]]


def _row(metric: Metric, sides: Sequence[Mapping[str, Any]]) -> Row:
    values = tuple(
        {run["round"]: run["values"][metric.key] for run in side["runs"] if run["values"].get(metric.key) is not None}
        for side in sides
    )
    medians = tuple(median_interval(list(one.values())) if one else None for one in values)
    return Row(metric, values, medians, (None, *(_against(values[0], one) for one in values[1:])))


def _against(base: Mapping[int, float], other: Mapping[int, float]) -> Against | None:
    rounds = sorted(base.keys() & other.keys())
    if not rounds:
        return None
    ours, peers = [other[number] for number in rounds], [base[number] for number in rounds]
    return Against(ratio_interval(ours, peers), median_interval(ours).median - median_interval(peers).median)
