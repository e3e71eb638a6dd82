"""Medians, spreads and ratios of paired measurements. Pure arithmetic: knows nothing of what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many times better ours is than the peer: the median over the repeats, and the range it was seen in."""

    ratio: float
    ratio_min: float
    ratio_max: float


def compare(ours: Sequence[float], peer: Sequence[float], *, smaller_is_better: bool) -> Comparison:
    """Ratio of each repeat's pair, taken one after the other under the same conditions; above 1 is a win for ours."""
    if len(ours) != len(peer) or not ours:
        raise ValueError(f"{len(ours)} and {len(peer)} measurements do not pair")
    ratios = [p / o if smaller_is_better else o / p for o, p in zip(ours, peer, strict=True)]
    return Comparison(median(ratios), min(ratios), max(ratios))


def tokens_after(start: float, token_times: Sequence[Sequence[float]]) -> int:
    """How many tokens of all requests came later than `start`."""
    return sum(time > start for times in token_times for time in times)


def decode_span(token_times: Sequence[Sequence[float]]) -> tuple[int, float]:
    """(tokens, seconds) from the moment when every request has its first token until the last token of all.

    `token_times` holds, for each request, when each of its useful tokens came.
    """
    start = max(times[0] for times in token_times)
    end = max(times[-1] for times in token_times)
    return tokens_after(start, token_times), end - start


def decode_rate(token_times: Sequence[Sequence[float]]) -> float:
    """Tokens per second of `decode_span`."""
    count, seconds = decode_span(token_times)
    if count == 0:
        raise ValueError("no token came after the last first token: let each request generate more tokens")
    return count / seconds


class Interval(NamedTuple):
    """A median with its 95 % bootstrap interval; `low` and `high` are None where one value is all there is."""

    median: float
    low: float | None
    high: float | None
    n: int


CONFIDENCE = 0.95
RESAMPLES = 2000


def median_interval(values: Sequence[float]) -> Interval:
    """The median of independent repeats and its percentile bootstrap interval (Efron 1979), always the same draws."""
    if not values:
        raise ValueError("no values have no median")
    if len(values) == 1:
        return Interval(values[0], None, None, 1)
    given = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, len(given), (RESAMPLES, len(given)))
    medians = np.median(given[picks], axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians, [tail, 100 - tail])
    return Interval(float(np.median(given)), float(low), float(high), len(given))


def ratio_interval(ours: Sequence[float], peer: Sequence[float]) -> Interval | None:
    """Ours over the peer's, from the ratios of pairs taken in the same round; None where a peer's value is 0.

    What changes from round to round, as the machine's other load, falls out of a pair's ratio.
    """
    if len(ours) != len(peer) or not ours:
        raise ValueError(f"{len(ours)} and {len(peer)} measurements do not pair")
    if not all(peer):
        return None
    return median_interval([one / other for one, other in zip(ours, peer, strict=True)])
