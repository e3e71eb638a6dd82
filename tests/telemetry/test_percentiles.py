"""Percentiles are numpy's, and say when they say little."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.telemetry.percentiles import SHARES, distribution

values = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


@given(values=values)
def test_percentiles_are_those_of_numpy(values: list[float]) -> None:
    found = distribution(values)
    for share in SHARES:
        assert found.percentiles[share] == pytest.approx(np.percentile(values, share))
    assert (found.largest, found.n) == (max(values), len(values))


def test_nothing_measured_is_none_and_not_zero() -> None:
    found = distribution([float("nan"), float("inf")])
    assert (found.percentiles[50], found.largest, found.n) == (None, None, 0)


@pytest.mark.parametrize(
    ("n", "p50", "p99"), [(19, True, True), (20, False, True), (99, False, True), (100, False, False)]
)
def test_few_values_make_a_percentile_doubtful(n: int, p50: bool, p99: bool) -> None:
    found = distribution([1.0] * n)
    assert (found.doubtful(50) is not None, found.doubtful(99) is not None) == (p50, p99)
