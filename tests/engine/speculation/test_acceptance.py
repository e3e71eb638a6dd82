"""Acceptance by position: what is learned, what is assumed, what is forgotten."""

import random

import pytest

from playground.engine.speculation.acceptance import Acceptance


def test_without_experience_the_prior_holds():
    assert Acceptance(3).estimates([0.5, 0.5, 0.5], 2.0) == [0.5, 0.5, 0.5]


def test_only_the_positions_that_were_reached_are_told_of():
    acceptance = Acceptance(4)
    acceptance.observe(3, 1, memory=10)  # the second draft was wrong, the third never judged
    estimates = acceptance.estimates([0.5] * 4, 1.0)
    assert estimates[0] == pytest.approx((0.5 + 1) / 2)
    assert estimates[1] == pytest.approx(0.5 * (0.5 + estimates[0]) / 2)
    assert estimates[2] == pytest.approx((0.5 + estimates[1]) / 2)
    assert estimates[3] == pytest.approx((0.5 + estimates[2]) / 2)


def test_estimates_approach_the_conditional_frequencies():
    rng, true = random.Random(3), [0.9, 0.5, 0.8]
    acceptance = Acceptance(3)
    for _ in range(5000):
        accepted = 0
        while accepted < 3 and rng.random() < true[accepted]:
            accepted += 1
        acceptance.observe(3, accepted, memory=1000)
    assert acceptance.estimates([0.1] * 3, 2.0) == pytest.approx(true, abs=0.06)


def test_a_change_is_learned_within_the_memory():
    acceptance = Acceptance(1)
    for _ in range(200):
        acceptance.observe(1, 1, memory=10)
    for _ in range(10):
        acceptance.observe(1, 0, memory=10)
    assert acceptance.estimates([1.0], 0.0)[0] == pytest.approx(0.9**10, abs=0.01)


def test_drafts_beyond_the_last_position_are_ignored():
    acceptance = Acceptance(2)
    acceptance.observe(5, 5, memory=10)
    assert acceptance.estimates([0.0, 0.0], 1.0) == pytest.approx([0.5, (0.25 + 1) / 2])


def test_more_experience_outweighs_the_prior():
    few, many = Acceptance(1), Acceptance(1)
    few.observe(1, 1, memory=100)
    for _ in range(50):
        many.observe(1, 1, memory=100)
    assert few.estimates([0.0], 2.0)[0] < 0.4 < 0.9 < many.estimates([0.0], 2.0)[0]
