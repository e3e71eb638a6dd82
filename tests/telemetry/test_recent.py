"""Recent windows: what is in them, what has left them, and what is missing where nothing is left."""

import pytest

from playground.engine.speculation.formula import expected_tokens
from playground.telemetry.definitions import ACCEPTANCE_WINDOW_SECONDS, LATENCY_WINDOW_SECONDS
from playground.telemetry.rates import NS_PER_S
from playground.telemetry.recent import MAX_GAPS, RecentDrafts, RecentGaps

MS = 1_000_000


def test_percentiles_are_of_the_gaps_that_ended_within_the_window() -> None:
    gaps = RecentGaps()
    assert gaps.read(0) == (None, None, 0)
    gaps.add(0, 900 * MS)
    for number in range(1, 101):
        gaps.add(NS_PER_S, number * MS)
    assert gaps.read(round(LATENCY_WINDOW_SECONDS * NS_PER_S)) == (50.5, pytest.approx(95.05), 100)
    assert gaps.read(round((LATENCY_WINDOW_SECONDS + 1) * NS_PER_S)) == (None, None, 0)


def test_gaps_are_bounded() -> None:
    gaps = RecentGaps()
    for _ in range(MAX_GAPS + 10):
        gaps.add(NS_PER_S, MS)
    assert gaps.read(NS_PER_S).num_gaps == MAX_GAPS


def test_drafts_are_those_of_the_window_that_ends_with_the_latest_verification() -> None:
    drafts = RecentDrafts()
    assert drafts.read(chain=True) == (0, None, 0, None, None)
    drafts.add(0, 4, 4, 5)
    later = round(ACCEPTANCE_WINDOW_SECONDS * NS_PER_S)
    drafts.add(later, 4, 1, 2)
    drafts.add(later + 1, 3, 3, 4)
    found = drafts.read(chain=True)
    assert (found.num_drafts, found.acceptance, found.num_verified, found.tokens) == (7, 4 / 7, 2, 3.0)
    rate = 4 / (2 + 3)  # of the four drafts of one, two were looked at
    assert found.expected == pytest.approx((expected_tokens(rate, 4) + expected_tokens(rate, 3)) / 2)
    assert drafts.read(chain=False) == found._replace(expected=None), "the formula is not for trees"
    assert drafts.read(chain=True) == found, "time alone takes nothing away"
