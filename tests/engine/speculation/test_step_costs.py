"""The cost model against machines whose times are known: noise, outliers, gaps, growth, bounds."""

import random

import pytest

from playground.engine.speculation.step_costs import WINDOW, StepCost, StepCosts


def step(num_seqs: int, drafts_per_seq: float, target: float, draft: float = 0.0) -> StepCost:
    num_drafts = round(num_seqs * drafts_per_seq)
    return StepCost(num_seqs, num_seqs + num_drafts, num_drafts, int(draft * 1e6), int(target * 1e6))


def test_costs_are_relative_to_a_plain_step_of_as_many_sequences():
    costs = StepCosts()
    for _ in range(3):
        costs.observe(step(1, 0, 4.0), 0)
        costs.observe(step(1, 4, 5.0, draft=2.0), 4)
    assert costs.relative_cost(1, 0, 0) == 1
    assert costs.relative_cost(1, 4, 4) == pytest.approx(7 / 4)
    assert costs.num_plain_steps(1) == 3
    assert costs.num_plain_steps(2) == 0
    assert costs.longest_draft(1) == 4


def test_between_measured_numbers_of_drafts_it_is_interpolated_and_beyond_them_it_grows():
    costs = StepCosts()
    for _ in range(3):
        costs.observe(step(1, 0, 10.0), 0)
        costs.observe(step(1, 2, 12.0, draft=2.0), 2)
        costs.observe(step(1, 4, 18.0, draft=4.0), 4)
    assert costs.relative_cost(1, 1, 0) == pytest.approx(1.1)
    assert costs.relative_cost(1, 3, 0) == pytest.approx(1.5)
    assert costs.relative_cost(1, 6, 0) == pytest.approx(1.8 + 2 * 0.2)  # the line through all three has slope 2
    assert costs.relative_cost(1, 0, 3) == pytest.approx(1.3)
    assert costs.relative_cost(1, 0, 1) == pytest.approx(1.1)
    assert costs.relative_cost(1, 0, 8) == pytest.approx(1.8)


def test_drafts_are_assumed_to_cost_a_little_before_any_was_timed():
    costs = StepCosts()
    costs.observe(step(1, 0, 10.0), 0)
    assert 1 < costs.relative_cost(1, 1, 0) < 1.1
    assert 1.1 < costs.relative_cost(1, 1, 1) < 1.3


def test_growth_with_tokens_is_learned_from_plain_steps_of_other_batches():
    costs = StepCosts()
    for num_seqs in (1, 4, 16):
        for _ in range(2):
            costs.observe(step(num_seqs, 0, 1.0 + num_seqs), 0)
    assert costs.relative_cost(16, 1, 0) == pytest.approx(33 / 17, rel=0.01)


def test_medians_ignore_outliers_and_average_noise():
    rng, costs = random.Random(1), StepCosts()
    for _ in range(WINDOW):
        for drafts, time in ((0, 10.0), (4, 13.0)):
            outlier = rng.uniform(2, 10) if rng.random() < 0.05 else 1.0
            costs.observe(step(1, drafts, time * rng.lognormvariate(0, 0.1) * outlier), 0)
    assert costs.relative_cost(1, 4, 0) == pytest.approx(1.3, rel=0.08)


def test_a_first_timing_is_believed_up_to_twice_what_was_expected():
    costs = StepCosts()
    for _ in range(3):
        costs.observe(step(1, 0, 10.0), 0)
    costs.observe(step(1, 1, 500.0, draft=500.0), 1)  # compiled in this step
    assert costs.relative_cost(1, 1, 0) == pytest.approx(2 * 1.05)
    assert costs.relative_cost(1, 1, 1) == pytest.approx(2 * 1.05 + 2 * 0.1)
    costs.observe(step(1, 1, 11.0, draft=3.0), 1)
    assert costs.relative_cost(1, 1, 1) == pytest.approx(1.4)
    costs.observe(step(1, 1, 11.0, draft=3.0), 1)
    assert costs.relative_cost(1, 1, 1) == pytest.approx(1.4)


def test_slow_first_steps_do_not_make_drafts_look_cheap():
    costs = StepCosts()
    for _ in range(2):
        costs.observe(step(1, 0, 300.0), 0)
    for _ in range(2):
        costs.observe(step(1, 2, 11.0), 0)
    assert costs.relative_cost(1, 2, 0) > 0.9


def test_old_timings_give_way_to_new_ones():
    costs = StepCosts()
    for _ in range(20):
        costs.observe(step(1, 0, 10.0), 0)
    for _ in range(300):
        costs.observe(step(1, 4, 20.0), 0)  # contexts have grown: everything takes twice as long
    assert costs.relative_cost(1, 4, 0) == pytest.approx(2.0)
    for _ in range(3):
        costs.observe(step(1, 0, 20.0), 0)
    assert costs.relative_cost(1, 4, 0) == pytest.approx(1.0)


def test_a_step_in_which_few_of_many_draft_is_not_a_plain_one():
    costs = StepCosts()
    costs.observe(StepCost(64, 65, 1, 0, 1_000_000), 0)
    assert costs.num_plain_steps(64) == 0


def test_drafting_is_estimated_from_the_nearest_batch_that_was_timed():
    costs = StepCosts()
    for num_seqs, draft in ((1, 1.0), (32, 3.0)):
        for _ in range(2):
            costs.observe(step(num_seqs, 0, 10.0), 0)
            costs.observe(step(num_seqs, 2, 10.0, draft=2 * draft), 2)
    for num_seqs in (2, 16):
        costs.observe(step(num_seqs, 0, 10.0), 0)
    assert costs.relative_cost(2, 0, 2) == pytest.approx(1.2)
    assert costs.relative_cost(16, 0, 2) == pytest.approx(1.6)


def test_memory_is_bounded():
    rng, costs = random.Random(2), StepCosts()
    for _ in range(20_000):
        num_seqs = rng.randrange(1, 257)
        costs.observe(step(num_seqs, rng.uniform(0, 8), 1.0 + rng.random(), draft=1.0), rng.randrange(1, 9))
    target, draft = costs._target.values(), costs._draft.values()
    assert sum(len(curve.xs) for curve in target) <= 33 * (8 + 14)
    assert sum(len(curve.xs) for curve in draft) <= 33 * 8
    assert max(curve.count(x) for curve in target for x in curve.xs) <= WINDOW
