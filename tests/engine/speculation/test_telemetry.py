"""Counts, times and events tell what became of every draft."""

import pytest

from playground import SamplingParams
from playground.engine.events import BlockEvent, StepEvent
from tests.engine.speculation.test_equality import METHODS, some_prompts
from tests.engine.told import told

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.mark.parametrize("method", ["draft", "ngram"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_events_say_of_every_token_where_it_comes_from(make_speculative, method, temperature):
    engine = make_speculative(METHODS[method])
    subscription = engine.events.subscribe()
    params = [GREEDY.replace(temperature=temperature, seed=number) for number in range(6)]
    results = engine.generate(some_prompts(6), params)
    events = told(engine, subscription)
    steps = [event for event in events if isinstance(event, StepEvent)]
    for result in results:
        own = [one for step in steps for one in step.requests if one.request_id == result.request_id]
        assert [token for one in own for token in one.token_ids] == result.token_ids
        for one in own:
            assert one.num_emitted == len(one.token_ids)
            assert [one.draft_ids[i] for i in one.accepted_drafts] == list(one.token_ids[: len(one.accepted_drafts)])
            if one.draft_ids and temperature == 0:
                assert len(one.token_ids) == len(one.accepted_drafts) + 1
                assert one.has_bonus == (len(one.accepted_drafts) == len(one.draft_ids))
                if not one.has_bonus:  # the draft that was rejected, and what stands in its place
                    assert one.draft_ids[len(one.accepted_drafts)] != one.token_ids[-1]
        metrics = result.metrics
        assert metrics.num_draft_tokens == sum(len(one.draft_ids) for one in own)
        assert metrics.num_accepted_tokens == sum(len(one.accepted_drafts) for one in own)
        assert metrics.num_bonus_tokens == sum(one.has_bonus for one in own)
        if metrics.num_draft_tokens == 0:  # a lookup may find nothing
            assert metrics.acceptance_rate is metrics.draft_time is metrics.verify_time is None
            continue
        assert metrics.acceptance_rate == pytest.approx(metrics.num_accepted_tokens / metrics.num_draft_tokens)
        for position, reached in enumerate(metrics.drafts_reached):
            assert reached == sum(len(one.draft_ids) > position and len(one.accepted_drafts) >= position for one in own)
        assert metrics.draft_time > 0 and metrics.verify_time > 0
        assert metrics.speculation.state == "active"
    assert sum(step.num_draft_tokens for step in steps) == sum(r.metrics.num_draft_tokens for r in results)
    assert sum(step.num_accepted_tokens for step in steps) == sum(r.metrics.num_accepted_tokens for r in results)
    assert sum(step.num_emitted_tokens for step in steps) == sum(len(r.token_ids) for r in results)
    assert all(step.draft_ns > 0 for step in steps if step.num_draft_tokens)


def test_time_per_token_counts_tokens_and_gaps_count_steps(make_speculative, tiny_model):
    engine = make_speculative({"method": "draft", "num_tokens": 3}, draft_model=str(tiny_model))
    metrics = engine.generate("abc", GREEDY.replace(max_tokens=21))[0].metrics
    assert len(metrics.inter_token_latencies) == 5  # of four tokens each
    assert metrics.time_per_output_token == pytest.approx(sum(metrics.inter_token_latencies) / 20)


def test_the_engines_acceptance_rate_is_that_of_its_recent_steps(make_speculative):
    assert make_speculative(None).stats().acceptance_rate is None
    engine = make_speculative(METHODS["draft"])
    assert engine.stats().acceptance_rate is None
    metrics = engine.generate("abc", GREEDY)[0].metrics
    assert engine.stats().acceptance_rate == pytest.approx(metrics.acceptance_rate)


def test_blocks_taken_for_rejected_drafts_are_given_back_in_the_same_step(make_speculative):
    engine = make_speculative({"method": "draft", "num_tokens": 9}, prefix_caching=False)
    subscription = engine.events.subscribe()
    engine.generate([3, 4, 5], GREEDY)
    held, events = 0, told(engine, subscription)
    for event in events:
        if isinstance(event, BlockEvent):
            held += {"alloc": 1, "free": -1}.get(event.action, 0)
        if isinstance(event, StepEvent):
            tokens = event.requests[0].num_computed_tokens + event.requests[0].num_tokens
            rejected = len(event.requests[0].draft_ids) - len(event.requests[0].accepted_drafts)
            assert event.kv_blocks_in_use <= -(-(tokens - rejected) // 4)


def test_a_batch_beyond_the_limit_does_not_speculate_and_says_why(make_speculative):
    engine = make_speculative({"method": "draft", "max_batch_size": 2})
    few = engine.generate(["abc", "abd"], GREEDY)
    assert all(result.metrics.num_draft_tokens for result in few)
    subscription = engine.events.subscribe()
    many = engine.generate(["abc", "abd", "abe", "abf"], GREEDY)
    # Requests come one by one: the first two may draft while the third still runs its prompt.
    prompt = max(len(result.prompt_token_ids) for result in many)
    steps = [
        event for event in told(engine, subscription)
        if isinstance(event, StepEvent) and sum(one.num_computed_tokens >= prompt for one in event.requests) > 2
    ]  # fmt: skip
    assert steps and not any(step.num_draft_tokens for step in steps)
    off = [result.metrics.speculation for result in many if result.metrics.speculation.state == "off"]
    assert off and all("max_batch_size=2" in state.reason for state in off)


def test_catching_up_with_a_prompt_does_not_count_as_the_cost_of_drafting(make_speculative, tiny_model, monkeypatch):
    engine = make_speculative({"method": "draft", "num_tokens": 3}, draft_model=str(tiny_model))
    controller = engine._core.executor.speculator.controller
    observed = []
    monkeypatch.setattr(controller, "observe_step", observed.append)
    steps = engine.events.subscribe()
    engine.pause()  # so that both come in one step
    handles = [engine.submit(prompt, GREEDY) for prompt in (list(range(3, 3 + 40)), [5, 6, 7])]
    engine.resume()
    assert all(handle.result(timeout=60).error is None for handle in handles)
    drafting = [
        e for e in told(engine, steps) if isinstance(e, StepEvent) and e.num_draft_tokens and not e.num_prefill_tokens
    ]
    assert drafting[0].requests[0].num_computed_tokens == 40
    assert sum(cost.num_draft_tokens > 0 for cost in observed) == len(drafting) - 1 > 0


def test_drafts_count_for_the_number_to_draft_only_as_far_as_they_saved_steps(
    make_speculative, tiny_model, monkeypatch
):
    prompts, params = some_prompts(4), GREEDY.replace(max_tokens=40)
    ends = [result.token_ids[18] for result in make_speculative(None).generate(prompts, params)]
    engine = make_speculative({"method": "draft", "num_tokens": 4}, draft_model=str(tiny_model), max_num_seqs=1)
    saved: list[int] = []
    controller = engine._core.executor.speculator.controller
    monkeypatch.setattr(controller, "observe_drafts", lambda request_id, drafted, accepted: saved.append(accepted))
    results = engine.generate(prompts, [params.replace(stop_token_ids=(end,)) for end in ends])
    assert any(result.metrics.num_accepted_tokens > 4 for result in results)
    num_steps = sum(1 + len(result.metrics.inter_token_latencies) for result in results)
    assert sum(saved) == sum(len(result.token_ids) for result in results) - num_steps
    assert sum(result.metrics.num_accepted_tokens for result in results) > sum(saved)  # some ended with a draft
