"""What the controller promises whoever calls it: bounds, states, reasons, nothing kept of what is gone."""

import re

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from playground.engine.speculation.controller import SpeculationController, SpeculationState
from playground.engine.speculation.step_costs import StepCost
from tests.engine.speculation.simulation import cpu, gpu, run, steady


def fixed(num_tokens: int, max_batch_size: int | None = None) -> SpeculationController:
    return SpeculationController(num_tokens, max_batch_size=max_batch_size, drafts_cost_model_time=True)


def test_a_fixed_number_is_clipped_to_the_room_that_is_left():
    controller = fixed(4)
    assert [controller.plan(1, batch_size=1, limit=limit) for limit in (9, 4, 3, 0, -1)] == [4, 4, 3, 0, 0]
    assert controller.state(1) == SpeculationState("active", None, 0)


def test_a_fixed_number_learns_nothing():
    controller = fixed(4)
    for _ in range(50):
        assert controller.plan(1, batch_size=1, limit=9) == 4
        controller.observe_drafts(1, 4, 0)
        controller.observe_step(StepCost(1, 5, 4, 10**9, 10**6))
    assert controller.state(1) == SpeculationState("active", None, 4)


@pytest.mark.parametrize("num_tokens", [4, "auto"])
def test_a_batch_above_the_limit_turns_it_off_and_a_smaller_one_on_again(num_tokens):
    controller = SpeculationController(num_tokens, max_batch_size=8, drafts_cost_model_time=False)
    assert controller.plan(1, batch_size=9, limit=9) == 0
    state = controller.state(1)
    assert state.state == "off" and state.num_tokens == 0
    assert state.reason == "9 requests run at once, more than max_batch_size=8"
    controller.plan(1, batch_size=8, limit=9)
    assert controller.state(1).state == "active"


def test_disabling_is_for_good_and_for_all():
    controller = fixed(4)
    controller.plan(1, batch_size=1, limit=9)
    controller.disable("the draft model ran out of memory")
    controller.disable("something else")
    assert controller.plan(1, batch_size=1, limit=9) == 0 == controller.plan(2, batch_size=1, limit=9)
    assert controller.state(2) == SpeculationState("disabled", "the draft model ran out of memory", 0)


def test_an_unknown_request_is_active_with_no_drafts():
    assert fixed(4).state(7) == SpeculationState("active", None, 0)
    auto = SpeculationController("auto", drafts_cost_model_time=True)
    auto.forget(7)
    auto.observe_drafts(7, 2, 1)
    assert auto.state(7) == SpeculationState("active", None, 0)


def test_the_reason_against_drafts_names_the_measured_numbers():
    machine = cpu(0.36, noise=0.0, outlier_share=0.0)
    controller = machine.controller()
    run(controller, machine, [steady(0.0)], 600, seed=1)
    state = controller.state(0)
    assert state.state == "off"
    words = re.fullmatch(
        r"expected acceptance (\d+) % at a draft cost of ([\d.]+) steps: no faster than without", state.reason
    )
    assert int(words[1]) <= 8
    assert words[2] == "0.61"  # 0.36 for the draft, 0.15 for its verification, 0.1 for the jump from one token to two


def test_the_reason_against_drafts_in_a_mixed_batch_names_the_batch():
    machine = gpu(0.1)
    controller = machine.controller()
    run(controller, machine, [steady(0.95), *[steady(0.0)] * 15], 150, seed=1)
    states = [controller.state(i) for i in range(16)]
    assert {state.state for state in states} == {"off"}
    assert "in a batch of 16: no faster than without" in states[0].reason
    assert states[1].reason.startswith("expected acceptance ")


def test_it_starts_with_steps_that_draft_nothing_to_compare_with():
    controller = SpeculationController("auto", drafts_cost_model_time=True)
    planned = []
    for _ in range(4):
        planned.append(controller.plan(1, batch_size=1, limit=9))
        controller.observe_drafts(1, planned[-1], planned[-1])
        controller.observe_step(StepCost(1, 1 + planned[-1], planned[-1], 100_000 * planned[-1], 1_000_000))
    assert planned[:2] == [0, 0] and planned[2] == 1 and planned[3] >= 1


def test_new_requests_start_from_what_recent_ones_met():
    machine = gpu(0.3)
    good, bad = machine.controller(), machine.controller()
    run(good, machine, [steady(0.95)], 400, seed=1)
    run(bad, machine, [steady(0.0)], 400, seed=1)
    assert good.plan(9, batch_size=1, limit=9) >= 2
    assert bad.plan(9, batch_size=1, limit=9) == 0


def test_the_same_calls_give_the_same_plans():
    outcomes = [run(gpu(0.1).controller(), gpu(0.1), [steady(0.7)] * 3, 200, seed=5) for _ in range(2)]
    assert outcomes[0] == outcomes[1]


def test_forgotten_requests_leave_nothing():
    machine = gpu(0.1)
    controller = machine.controller()
    for i in range(40):
        run(controller, machine, [steady(0.5)] * 4, 10, seed=i, first_id=4 * i)
        for request_id in range(4 * i, 4 * i + 4):
            controller.forget(request_id)
    assert controller._last_planned == {}
    assert controller._adaptive._requests == {} == controller._adaptive._planned
    assert controller.state(3).num_tokens == 0


class AnyCaller(RuleBasedStateMachine):
    """Whatever is called with whatever numbers, plans stay within their limits."""

    def __init__(self) -> None:
        super().__init__()
        self.auto = SpeculationController("auto", max_batch_size=40, max_num_tokens=6, drafts_cost_model_time=True)
        self.planned: dict[int, int] = {}
        self.batch_size = 1
        self.disabled = False

    @rule(ids=st.sets(st.integers(0, 50), min_size=1, max_size=5), more=st.integers(0, 50), limit=st.integers(-1, 9))
    def plan_a_step(self, ids, more, limit):
        self.batch_size = len(ids) + more
        self.planned = {}
        for request_id in sorted(ids):
            plan = self.auto.plan(request_id, batch_size=self.batch_size, limit=limit)
            assert 0 <= plan <= max(0, min(limit, 6))
            assert plan == 0 or not (self.disabled or self.batch_size > 40)
            assert self.auto.state(request_id).num_tokens == plan
            self.planned[request_id] = plan

    @precondition(lambda self: self.planned)
    @rule(data=st.data(), draft_ns=st.integers(0, 10**10), target_ns=st.integers(0, 10**10), pure=st.booleans())
    def run_the_step(self, data, draft_ns, target_ns, pure):
        total = 0
        for request_id, plan in self.planned.items():
            drafted = data.draw(st.integers(0, plan))
            self.auto.observe_drafts(request_id, drafted, data.draw(st.integers(0, drafted)))
            total += drafted
        if pure:
            num_seqs = max(1, self.batch_size + data.draw(st.integers(-2, 2)))
            self.auto.observe_step(StepCost(num_seqs, num_seqs + total, total, draft_ns, target_ns))

    @rule(request_id=st.integers(0, 50))
    def forget(self, request_id):
        self.auto.forget(request_id)
        self.planned.pop(request_id, None)

    @precondition(lambda self: not self.disabled)
    @rule(sure=st.integers(0, 20))
    def disable(self, sure):
        if sure == 0:
            self.auto.disable("because")
            self.disabled = True

    @invariant()
    def every_state_says_why(self):
        for request_id in range(0, 51, 10):
            state = self.auto.state(request_id)
            assert (state.reason is None) == (state.state == "active")
            assert (state.state == "disabled") == self.disabled


AnyCaller.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestAnyCaller = AnyCaller.TestCase
