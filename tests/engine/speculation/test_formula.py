"""The formulae against closed forms, simulation and the numbers the paper printed."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.engine.speculation.formula import (
    LEVIATHAN_TABLE_1,
    LEVIATHAN_TABLE_2,
    best_num_tokens,
    expected_tokens,
    expected_tokens_by_position,
    operations_factor,
    speedup,
)

PROBABILITY = st.floats(0, 1)


@given(st.floats(0, 0.999), st.integers(0, 64))
def test_expected_tokens_is_the_geometric_sum(alpha, num_tokens):
    closed_form = (1 - alpha ** (num_tokens + 1)) / (1 - alpha)
    assert expected_tokens(alpha, num_tokens) == pytest.approx(closed_form, rel=1e-9)


@given(st.integers(0, 64))
def test_certain_acceptance_gives_every_draft_and_one_more(num_tokens):
    assert expected_tokens(1.0, num_tokens) == num_tokens + 1
    assert expected_tokens(1 - 1e-15, num_tokens) == pytest.approx(num_tokens + 1, rel=1e-12)
    assert expected_tokens(0.0, num_tokens) == 1


@given(PROBABILITY, st.integers(0, 64))
def test_equal_positions_are_the_special_case(alpha, num_tokens):
    assert expected_tokens_by_position([alpha] * num_tokens) == pytest.approx(expected_tokens(alpha, num_tokens))


@pytest.mark.parametrize("acceptance", [[], [0.3], [0.9, 0.8, 0.7, 0.6], [0.2, 1.0, 1.0], [1.0, 0.0, 1.0]])
def test_expected_tokens_is_the_mean_of_simulated_steps(acceptance):
    rng, num_steps, total = random.Random(7), 40_000, 0
    for _ in range(num_steps):
        total += 1
        for probability in acceptance:
            if rng.random() >= probability:
                break
            total += 1
    five_sigma = 5 * (len(acceptance) / 2 + 0.1) / num_steps**0.5
    assert total / num_steps == pytest.approx(expected_tokens_by_position(acceptance), abs=five_sigma)


@pytest.mark.parametrize("row", LEVIATHAN_TABLE_1, ids=str)
def test_table_1_of_the_paper_follows_from_the_formulae(row):
    tokens = expected_tokens(row.acceptance, row.num_tokens)
    assert speedup(tokens, row.num_tokens, draft_cost=0) == pytest.approx(row.speedup, abs=0.0051)
    assert operations_factor(row.acceptance, row.num_tokens, 0) == pytest.approx(row.operations, abs=0.0051)


@pytest.mark.parametrize("row", LEVIATHAN_TABLE_2, ids=str)
def test_the_expected_speedups_of_table_2_follow_from_the_formula(row):
    expected = speedup(expected_tokens(row.acceptance, row.num_tokens), row.num_tokens, row.draft_cost)
    assert expected == pytest.approx(row.expected_speedup, abs=0.07)  # α and c are printed with two digits


@pytest.mark.parametrize(
    ("alpha", "draft_cost", "num_tokens", "gain"),
    [(0.3, 0.01, 3, 1.38), (0.7, 0.05, 6, 2.35), (0.8, 0.1, 6, 2.47), (0.9, 0.2, 7, 2.37), (0.5, 0.3, 1, 1.15)],
)
def test_the_best_number_of_drafts_at_a_constant_acceptance(alpha, draft_cost, num_tokens, gain):
    best = best_num_tokens([alpha] * 32, [1 + k * draft_cost for k in range(33)])
    assert best.num_tokens == num_tokens
    assert best.speedup == pytest.approx(gain, abs=0.005)


@given(st.lists(PROBABILITY, max_size=8), st.lists(st.floats(0, 2), min_size=8, max_size=8))
def test_the_best_number_of_drafts_is_better_than_every_other(acceptance, added_costs):
    costs = [1.0, *(1.0 + added for added in added_costs)]
    gains = [expected_tokens_by_position(acceptance[:k]) / costs[k] for k in range(len(acceptance) + 1)]
    best = best_num_tokens(acceptance, costs)
    assert best.speedup == pytest.approx(max(gains))
    assert gains[best.num_tokens] == pytest.approx(max(gains))


@given(st.floats(0, 0.95), st.floats(0.01, 2))
def test_drafts_pay_exactly_where_acceptance_exceeds_their_cost(alpha, draft_cost):
    best = best_num_tokens([alpha] * 8, [1 + k * draft_cost for k in range(9)])
    assert (best.num_tokens > 0) == (alpha > draft_cost) or abs(alpha - draft_cost) < 1e-9
