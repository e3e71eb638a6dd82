"""What a decode step costs on this machine, learned from noisy timings: the target by query tokens, drafting by round.

Each combination of sequences and drafts keeps the median of its recent timings, so that a step ten times too slow
changes nothing. Between combinations it is interpolated; where nothing was measured, a straight line through all
medians tells the growth with the number of tokens.
"""

import math
from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass
from functools import cache
from statistics import median_low

WINDOW = 31
MAX_AGE_STEPS = 256
"""Timings older than this are dropped once newer ones are there: contexts have grown since."""
MIN_KEPT = 3
MAX_SURPRISE = 2.0
"""A single timing is believed up to this many times what was expected: it may be an outlier, or a compilation."""
ROWS_PER_DOUBLING = 4
"""Numbers of sequences within about 19 % of each other share their timings."""
PLAIN_TOLERANCE = 1.1
"""A plain step is taken for at most this many times the time of one with drafts: what is more is noise."""
UNKNOWN_TOKEN_COST = 0.05
"""Assumed share of a plain step for a second token of every sequence, before any was measured."""
UNKNOWN_ROUND_COST = 0.1
"""Assumed share of a plain step for one round of drafting, before any was measured."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """One pure decode step: every sequence ran one token and its drafts."""

    num_seqs: int
    num_target_tokens: int
    """Query tokens of the target's forward pass: `num_seqs` and the verified drafts."""
    num_draft_tokens: int
    draft_ns: int
    """Drafting, or looking drafts up, and deciding how many."""
    target_ns: int
    """Everything else that the step took: a step with drafts also has more to account for."""


class StepCosts:
    """Robust model of step times. One row of timings for each number of sequences, rounded: memory is bounded."""

    def __init__(self) -> None:
        self._target: dict[int, _Curve] = {}
        """By query tokens per sequence, rounded."""
        self._draft: dict[int, _Curve] = {}
        """By rounds of drafting."""
        self._num_steps = 0
        self._growth: float | None = None
        """Nanoseconds another query token adds; None where it has to be computed anew."""
        self._plain: dict[int, float] = {}
        """Nanoseconds of a plain step, where nothing was observed since it was worked out."""

    def observe(self, cost: StepCost, num_rounds: int) -> None:
        """Learn from one step in which drafting took `num_rounds` rounds, one token each of every sequence.

        Without rounds, the time of drafting is that of planning and of looking drafts up: it counts with the step's.
        """
        self._num_steps += 1
        row, width = _row(cost.num_seqs), _rounded(cost.num_target_tokens / cost.num_seqs)
        is_known = self.num_plain_steps(cost.num_seqs) > 0
        target = self._target.setdefault(row, _Curve())
        most_target = most_draft = math.inf
        if is_known and not target.count(width):
            most_target = MAX_SURPRISE * self._target_ns(cost.num_seqs, width)
        if num_rounds:
            draft = self._draft.get(row, _Curve())
            if is_known and not draft.count(num_rounds):
                most_draft = MAX_SURPRISE * self._draft_ns(cost.num_seqs, num_rounds)
            draft.add(num_rounds, self._num_steps, cost.draft_ns, most_draft)
            self._draft[row] = draft
        target_ns = cost.target_ns if num_rounds else cost.target_ns + cost.draft_ns
        target.add(width, self._num_steps, max(1, target_ns), most_target)
        self._plain.pop(row, None)
        self._growth = None

    def num_plain_steps(self, num_seqs: int) -> int:
        """Timings of steps without drafts for about this many sequences."""
        row = self._target.get(_row(num_seqs))
        return row.count(1.0) if row else 0

    def longest_draft(self, num_seqs: int) -> int:
        """Most drafts a sequence whose verification was timed for about this many sequences."""
        row = self._target.get(_row(num_seqs))
        return math.ceil(row.xs[-1]) - 1 if row else 0

    def relative_cost(self, num_seqs: int, num_drafts: float, num_rounds: int) -> float:
        """Time of a step with `num_drafts` drafts a sequence on average, drafted in `num_rounds` rounds, in plain steps
        of as many sequences. Needs a plain step timed before."""
        time = self._target_ns(num_seqs, 1.0 + num_drafts) + self._draft_ns(num_seqs, num_rounds)
        return time / self._plain_ns(num_seqs)

    def _plain_ns(self, num_seqs: int) -> float:
        """More tokens never take less time: so that the engine's first, slow steps do not make drafts look cheap."""
        row = _row(num_seqs)
        if row not in self._plain:
            curve = self._target[row]
            wider = [curve.median(x) for x in curve.xs[1:] if curve.count(x) > 1]
            self._plain[row] = min(curve.median(1.0), PLAIN_TOLERANCE * min(wider, default=math.inf))
        return self._plain[row]

    def _target_ns(self, num_seqs: int, width: float) -> float:
        curve = self._target[_row(num_seqs)]
        longest = curve.xs[-1]
        if width <= longest:
            return curve.at(width)
        return curve.median(longest) + (width - longest) * num_seqs * self._growth_per_token(num_seqs)

    def _draft_ns(self, num_seqs: int, num_rounds: int) -> float:
        if not num_rounds:
            return 0.0
        row = _row(num_seqs)
        if not self._draft:
            return num_rounds * UNKNOWN_ROUND_COST * self._plain_ns(num_seqs)
        curve = self._draft[min(self._draft, key=lambda known: abs(known - row))]
        nearest = min(max(num_rounds, curve.xs[0]), curve.xs[-1])
        return curve.at(nearest) * num_rounds / nearest

    def _growth_per_token(self, num_seqs: int) -> float:
        """Slope of the least-squares line through all medians of the target's time, never below 0."""
        if self._growth is None:
            points = [
                (x * 2 ** (row / ROWS_PER_DOUBLING), curve.median(x))
                for row, curve in self._target.items()
                for x in curve.xs
            ]
            mean_x = sum(x for x, _ in points) / len(points)
            mean_t = sum(t for _, t in points) / len(points)
            spread = sum((x - mean_x) ** 2 for x, _ in points)
            if not spread:
                return UNKNOWN_TOKEN_COST * mean_t / num_seqs
            self._growth = max(0.0, sum((x - mean_x) * (t - mean_t) for x, t in points) / spread)
        return self._growth


class _Curve:
    """Time as a function of x: medians of recent timings at the x that occurred, straight lines between them."""

    def __init__(self) -> None:
        self.xs: list[float] = []
        self._timings: dict[float, deque[tuple[int, float]]] = {}
        self._medians: dict[float, float] = {}
        """Where no timing was noted since they were worked out: most steps note one that nobody asks for."""

    def add(self, x: float, step: int, ns: float, most: float) -> None:
        """Note a timing; the first at its x counts for no more than `most`."""
        if x not in self._timings:
            self._timings[x] = deque([(step, ns)], maxlen=WINDOW)
            self._medians[x] = min(ns, most)
            insort(self.xs, x)
            return
        timings = self._timings[x]
        timings.append((step, ns))
        while len(timings) > MIN_KEPT and timings[0][0] < step - MAX_AGE_STEPS:
            timings.popleft()
        self._medians.pop(x, None)

    def median(self, x: float) -> float:
        """Of the recent timings at an x that occurred."""
        if x not in self._medians:
            self._medians[x] = median_low(ns for _, ns in self._timings[x])  # of two the lower: the other is too slow
        return self._medians[x]

    def count(self, x: float) -> int:
        return len(self._timings.get(x, ()))

    def at(self, x: float) -> float:
        """Time at an x from the first to the last that occurred."""
        i = bisect_right(self.xs, x) - 1
        left = self.xs[i]
        if x == left:
            return self.median(left)
        right = self.xs[i + 1]
        share = (x - left) / (right - left)
        return (1 - share) * self.median(left) + share * self.median(right)


@cache
def _row(num_seqs: int) -> int:
    return round(ROWS_PER_DOUBLING * math.log2(num_seqs))


def _rounded(width: float) -> float:
    """Query tokens per sequence to halves, below 2 to eighths; a step with any drafts is never a plain one."""
    if width <= 1:
        return 1.0
    return max(1.125, round(8 * width) / 8) if width < 2 else round(2 * width) / 2
