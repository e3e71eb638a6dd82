"""The adaptive number of drafts on synthetic machines: never much slower than without, nearly as fast as the best fixed
number, quick to notice when a text changes. Seeds are fixed, times are true ones: nothing here depends on this machine.
"""

from statistics import mean

import pytest

from playground.engine.speculation.adaptive import AdaptivePlanner
from tests.engine.speculation.simulation import Text, cpu, gpu, run, steady

SEEDS = range(4)

HOPELESS = {
    "nothing is ever right": (gpu(0.1), [steady(0.0)]),
    "next to nothing is right": (gpu(0.1), [steady(0.05)]),
    "an expensive draft": (gpu(0.3), [steady(0.3)]),
    "a draft on the CPU": (cpu(0.36), [steady(0.05)]),
    "a fair draft on the CPU": (cpu(0.36), [steady(0.5)]),
    "just below the break-even": (cpu(0.36), [steady(0.6)]),
    "a perfect draft as slow as the target": (cpu(1.0), [steady(0.98)]),
    "n-grams of drawn text, on the CPU": (cpu(None), [Text(lambda position, index: 0.03, found=0.2)]),
    "n-grams that are never right": (gpu(None), [steady(0.0)]),
    "first good, then bad ones": (cpu(0.36), [steady(0.6, 0.0)]),
    "the first steps are slow": (gpu(0.1, warm_up_steps=4), [steady(0.05)]),
    "a noisy machine": (cpu(0.36, noise=0.2, outlier_share=0.05), [steady(0.3)]),
    "eight requests on a CPU": (cpu(0.36), [steady(0.6)] * 8),
    "one good request in sixteen": (gpu(0.1), [steady(0.9), *[steady(0.03)] * 15]),
}

STEADY = {
    "gpu, 0.5": (gpu(0.1), [0.5]),
    "gpu, 0.7": (gpu(0.1), [0.7]),
    "gpu, 0.9": (gpu(0.1), [0.9]),
    "gpu, cheap draft, 0.8": (gpu(0.02), [0.8]),
    "gpu, expensive draft, 0.8": (gpu(0.3), [0.8]),
    "gpu, falling with the position": (gpu(0.1), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]),
    "gpu, two good positions": (gpu(0.1), [0.9, 0.9, 0.1]),
    "cpu, 0.8": (cpu(0.15), [0.8]),
    "cpu, 0.9": (cpu(0.36), [0.9]),
    "n-grams, gpu, 0.6": (gpu(None), [0.6]),
    "n-grams, cpu, 0.7": (cpu(None), [0.7]),
    "n-grams, cpu, rising with the position": (cpu(None), [0.6, 0.9]),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_where_drafts_do_not_pay_almost_nothing_is_lost(name):
    machine, texts = HOPELESS[name]
    speedups = [run(machine.controller(), machine, texts, 500, seed).speedup for seed in SEEDS]
    assert min(speedups) >= 0.97


@pytest.mark.parametrize("name", STEADY)
def test_where_drafts_pay_it_is_nearly_as_fast_as_the_best_fixed_number(name):
    machine, acceptance = STEADY[name]
    by_position = [acceptance[min(i, len(acceptance) - 1)] for i in range(8)]
    speedups = [run(machine.controller(), machine, [steady(*acceptance)], 600, seed).speedup for seed in range(10)]
    assert mean(speedups) >= 0.93 * machine.best_fixed(by_position)


@pytest.mark.parametrize("acceptance", [0.03, 0.9])
def test_what_was_learned_serves_the_next_short_requests(acceptance):
    machine = gpu(0.1)
    controller = machine.controller()
    outcomes = []
    for i in range(20):
        outcomes.append(run(controller, machine, [steady(acceptance)], 40, seed=i, first_id=i))
        controller.forget(i)
    later = sum(o.plain_time for o in outcomes[5:]) / sum(o.time for o in outcomes[5:])
    assert later >= 0.93 * machine.best_fixed([acceptance] * 8)


@pytest.mark.parametrize("name", [*HOPELESS, *STEADY])
def test_a_step_that_is_not_planned_is_the_one_that_planning_would_have_made(name, monkeypatch):
    machine, given = (HOPELESS | STEADY)[name]
    texts = given if isinstance(given[0], Text) else [steady(*given)]
    outcome = run(machine.controller(), machine, texts, 500, seed=0)
    monkeypatch.setattr(AdaptivePlanner, "rest", lambda self, request_ids: False)
    assert run(machine.controller(), machine, texts, 500, seed=0).steps == outcome.steps


def test_where_drafts_do_not_pay_most_steps_are_not_planned(monkeypatch):
    rests: list[bool] = []
    rest = AdaptivePlanner.rest
    monkeypatch.setattr(AdaptivePlanner, "rest", lambda self, ids: rests.append(rest(self, ids)) or rests[-1])
    machine = cpu(None)
    run(machine.controller(), machine, [steady(0.0)] * 16, 500, seed=0)
    assert sum(rests) > 0.6 * len(rests)


CHANGE = 400


def changing(before: float, after: float) -> Text:
    return Text(lambda position, index: before if position < CHANGE else after)


@pytest.mark.parametrize(
    ("machine", "num_tokens"), [(gpu(0.1), 60), (cpu(0.36), 110), (gpu(None), 80)], ids=["gpu", "cpu", "n-grams"]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_text_that_becomes_predictable_is_drafted_again_soon(machine, num_tokens, seed):
    outcome = run(machine.controller(), machine, [changing(0.0, 0.95)], CHANGE + num_tokens + 60, seed)
    soon = [planned for position, planned in outcome.steps if position >= CHANGE + num_tokens]
    assert len(soon) > 5
    assert mean(planned > 0 for planned in soon) > 0.7
    assert max(soon) >= 2


@pytest.mark.parametrize("machine", [gpu(0.1), cpu(0.36), cpu(None)], ids=["gpu", "cpu", "n-grams"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_text_that_becomes_unpredictable_is_soon_not_drafted_any_more(machine, seed):
    outcome = run(machine.controller(), machine, [changing(0.95, 0.0)], CHANGE + 300, seed)
    after = [planned for position, planned in outcome.steps if position >= CHANGE]
    lost = sum(sum(machine.time(1, planned, planned)) / machine.target(1, 1) - 1 for planned in after)
    assert lost < 15  # plain steps of 300, tries included
    late = [planned for position, planned in outcome.steps if position >= CHANGE + 60]
    assert mean(planned > 0 for planned in late) < 0.2


def test_a_text_that_changes_again_and_again_is_faster_than_without():
    for machine in (gpu(0.1), cpu(0.36), cpu(None)):
        text = Text(lambda position, index: 0.9 if (position // 150) % 2 else 0.02)
        assert run(machine.controller(), machine, [text], 1500, seed=1).speedup > 1.0


def test_a_text_with_a_period_is_drafted_past_its_surprises():
    machine = gpu(0.1)
    text = Text(lambda position, index: float(position % 11 > 0))  # right but for one token in eleven
    speedups = [run(machine.controller(), machine, [text], 600, seed).speedup for seed in SEEDS]
    assert mean(speedups) > 2.5


@pytest.mark.parametrize(("machine", "acceptance"), [(cpu(None), 0.25), (gpu(None), 0.1)], ids=["cpu", "gpu"])
def test_drafts_that_are_seldom_found_and_seldom_right_are_noticed_to_be_of_no_use(machine, acceptance):
    controller = machine.controller()
    ends = []
    for i in range(8):
        outcome = run(controller, machine, [Text(lambda position, index: acceptance, found=0.07)], 150, i, first_id=i)
        assert outcome.speedup >= 0.97
        ends.append(controller.state(i))
        controller.forget(i)
    off = [state.reason for state in ends[2:] if state.state == "off"]
    assert len(off) >= 5
    assert all(reason.startswith("drafts found for ") for reason in off)


def test_drafts_that_are_seldom_found_but_long_and_right_are_used():
    for machine in (cpu(None), gpu(None)):
        text = Text(lambda position, index: 0.95, found=0.05)
        controller = machine.controller()
        assert mean(run(controller, machine, [text], 400, seed).speedup for seed in SEEDS) > 1.1
        assert controller.state(0).state == "active"


def test_a_growing_batch_turns_drafting_off_where_time_grows_with_tokens():
    machine = cpu(0.1)
    controller = machine.controller()
    alone = run(controller, machine, [steady(0.8)], 200, seed=1)
    assert mean(planned > 0 for _, planned in alone.steps) > 0.6
    crowd = run(controller, machine, [steady(0.8)] * 48, 200, seed=2, first_id=100)
    assert crowd.speedup > 0.97
    assert mean(planned > 0 for _, planned in crowd.steps) < 0.2
    assert controller.state(100).state == "off"
    for request_id in range(100, 148):
        controller.forget(request_id)
    again = run(controller, machine, [steady(0.8)], 300, seed=3, first_id=200)
    assert mean(planned > 0 for _, planned in again.steps) > 0.6


def test_a_batch_of_predictable_requests_is_drafted_where_the_machine_has_room():
    machine = gpu(0.1)
    outcome = run(machine.controller(), machine, [steady(0.8)] * 16, 300, seed=1)
    assert outcome.speedup > 1.7


def test_half_a_batch_may_draft_while_the_other_half_does_not():
    machine = cpu(None)
    controller = machine.controller()
    outcome = run(controller, machine, [steady(0.9)] * 2 + [steady(0.0)] * 2, 300, seed=1)
    assert outcome.speedup > 1.1
    assert [controller.state(i).state for i in range(4)] == ["active", "active", "off", "off"]


def test_rising_costs_of_all_steps_do_not_turn_drafting_off():
    machine = gpu(0.1)
    steps = 0

    def slower_and_slower(num_seqs: int, num_tokens: int) -> float:
        nonlocal steps
        steps += 1
        return (1 + steps / 400) * machine.target(num_seqs, num_tokens)

    growing = type(machine)(slower_and_slower, machine.draft_round)
    outcome = run(growing.controller(), growing, [steady(0.8)], 1500, seed=1)
    late = [planned for position, planned in outcome.steps if position > 700]
    assert mean(planned >= 3 for planned in late) > 0.85
