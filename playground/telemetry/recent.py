"""What happened within the last seconds: the times between a request's tokens, and the drafts that were verified.

Plain state machines fed in order; the caller passes the time.
"""

from collections import deque
from typing import NamedTuple

from playground.engine.speculation.formula import expected_tokens
from playground.telemetry.definitions import ACCEPTANCE_WINDOW_SECONDS, LATENCY_WINDOW_SECONDS
from playground.telemetry.percentiles import percentile
from playground.telemetry.rates import NS_PER_S
from playground.telemetry.rows import NS_PER_MS

MAX_GAPS = 8192
"""Gaps that are remembered; the oldest is forgotten beyond."""


class GapFigures(NamedTuple):
    """Percentiles in ms, of so many gaps; None where there are none."""

    p50_ms: float | None
    p95_ms: float | None
    num_gaps: int


class RecentGaps:
    """Inter-token latencies."""

    def __init__(self) -> None:
        self._gaps: deque[tuple[int, int]] = deque(maxlen=MAX_GAPS)  # when it ended, how long it was

    def add(self, ended_ns: int, gap_ns: int) -> None:
        self._gaps.append((ended_ns, gap_ns))

    def read(self, now_ns: int) -> GapFigures:
        """Of those that ended within the window."""
        oldest = now_ns - round(LATENCY_WINDOW_SECONDS * NS_PER_S)
        while self._gaps and self._gaps[0][0] <= oldest:
            self._gaps.popleft()
        ascending = sorted(gap / NS_PER_MS for _, gap in self._gaps)
        return GapFigures(percentile(ascending, 0.5), percentile(ascending, 0.95), len(ascending))


class DraftFigures(NamedTuple):
    """None where nothing was verified."""

    num_drafts: int
    acceptance: float | None
    """The share of the drafts that was accepted."""
    num_verified: int
    """Requests' steps that verified drafts."""
    tokens: float | None
    """Tokens that came out of each of them on average."""
    expected: float | None
    """What (1 - α^(K+1)) / (1 - α) gives for them, α the share of drafts accepted of those that were looked at."""


class RecentDrafts:
    """Verifications of drafts, each one request's in one step."""

    def __init__(self) -> None:
        self._verified: deque[tuple[int, int, int, int]] = deque()  # its end, drafts, accepted, tokens emitted

    def add(self, ended_ns: int, num_drafts: int, num_accepted: int, num_emitted: int) -> None:
        self._verified.append((ended_ns, num_drafts, num_accepted, num_emitted))

    def read(self, *, chain: bool) -> DraftFigures:
        """Of the window that ends with the latest. The formula is for drafts that are a `chain`: else None."""
        oldest = self._verified[-1][0] - round(ACCEPTANCE_WINDOW_SECONDS * NS_PER_S) if self._verified else 0
        while self._verified and self._verified[0][0] <= oldest:
            self._verified.popleft()
        count = len(self._verified)
        if not count:
            return DraftFigures(0, None, 0, None, None)
        num_drafts = sum(drafts for _, drafts, _, _ in self._verified)
        num_accepted = sum(accepted for _, _, accepted, _ in self._verified)
        tokens = sum(emitted for *_, emitted in self._verified) / count
        expected = None
        if chain:
            looked_at = sum(min(accepted + 1, drafts) for _, drafts, accepted, _ in self._verified)
            rate = num_accepted / looked_at
            expected = sum(expected_tokens(rate, drafts) for _, drafts, _, _ in self._verified) / count
        return DraftFigures(num_drafts, num_accepted / num_drafts, count, tokens, expected)
