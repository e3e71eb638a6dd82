"""The table's numbers: medians and intervals against numpy, paired ratios against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.bench.compare.measures import predicted_tokens_per_step
from playground.bench.compare.summary import summarise
from playground.bench.stats import Interval, median_interval, ratio_interval
from tests.bench.compare.records import record, run, side

VALUES = st.lists(st.floats(0.001, 1000), min_size=2, max_size=9)


@given(VALUES)
def test_the_interval_holds_the_median_and_stays_within_the_values(values: list[float]) -> None:
    found = median_interval(values)
    assert found.median == pytest.approx(np.median(values)) and found.n == len(values)
    assert found.low is not None and found.high is not None
    assert min(values) <= found.low <= found.high <= max(values)
    assert found.low <= found.median + 1e-9 and found.median <= found.high + 1e-9


def test_the_bootstrap_interval_agrees_with_the_exact_distribution_of_resampled_medians() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    # The median of 5 draws is at most k when at least 3 are: P = Σ_{i>=3} C(5,i) (k/5)^i (1-k/5)^(5-i), which is
    # 5.8 % for k = 1 and 31.7 % for k = 2, so the 2.5 % point is 1, and by symmetry the 97.5 % point is 5.
    assert median_interval(values) == Interval(3.0, 1.0, 5.0, 5)


def test_one_value_has_no_interval() -> None:
    assert median_interval([2.0]) == Interval(2.0, None, None, 1)
    with pytest.raises(ValueError, match="no values"):
        median_interval([])


def test_paired_ratios_cancel_what_a_round_has_in_common() -> None:
    base = [1.0, 10.0, 100.0]  # a machine that slows down
    found = ratio_interval([2.0, 20.0, 200.0], base)
    assert found == Interval(2.0, 2.0, 2.0, 3)
    assert ratio_interval([1.0], [0.0]) is None
    with pytest.raises(ValueError, match="do not pair"):
        ratio_interval([1.0], [1.0, 2.0])


def test_rounds_pair_by_their_number_and_what_is_missing_stays_missing() -> None:
    a = [run(0, time_per_output_token=0.010), run(1, time_per_output_token=0.020), run(2, time_per_output_token=0.030)]
    b = [run(2, time_per_output_token=0.015), run(0, time_per_output_token=0.005)]  # it failed in round 1
    (row,) = summarise(record([side("a", [], a), side("b", [], b)], [[], []]))
    assert row.metric.key == "time_per_output_token"
    assert row.sides[0] is not None and row.sides[0].median == 0.020
    assert row.sides[1] is not None and row.sides[1].n == 2
    against = row.against[1]
    assert against is not None and against.ratio is not None
    assert against.ratio.median == pytest.approx(0.5) and against.is_clear
    assert row.against[0] is None


def test_a_metric_that_nobody_has_is_no_row() -> None:
    rows = summarise(record([side("a", [], [run(0, acceptance_rate=None, num_cached_tokens=0)])] * 2, [[], []]))
    assert rows == []


def test_the_formula_takes_the_acceptance_of_every_position_and_the_drafts_of_every_step() -> None:
    runs = [
        {"reached": [10, 5], "accepted": [5, 4], "rows": [0, 0, 10]},
        {"reached": [10, 5], "accepted": [5, 0], "rows": [10, 0, 10]},
    ]
    always = 1 + 0.5 + 0.5 * 0.4
    assert predicted_tokens_per_step(runs) == pytest.approx((20 * always + 10) / 30)  # in ten steps there was no draft
    assert predicted_tokens_per_step([{"reached": [], "accepted": [], "rows": [5]}]) is None
    assert predicted_tokens_per_step([{"reached": [4], "accepted": [2], "rows": None}]) is None
