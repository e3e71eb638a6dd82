"""The hub on the real engine: its figures agree with what the engine itself reports about the same requests."""

import threading
import time
from pathlib import Path

import pytest

from playground import Engine, EngineConfig, SamplingParams
from playground.engine.events import RequestEvent, StepEvent, Subscription
from playground.telemetry import LiveState, TelemetryHub
from playground.telemetry.feed import facts_of
from playground.telemetry.rows import SampleRow

PROMPTS = ["a fox", "a longer prompt about an owl", "x"]
PARAMS = SamplingParams(max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_model: Path):
    with Engine(EngineConfig(model=str(tiny_model), device="cpu", num_kv_blocks=64, block_size=4)) as opened:
        yield opened


def sample_after(state: LiveState, consumer: Subscription) -> SampleRow:
    for event in consumer.drain():
        state.apply(event)
    return SampleRow(*state.frame(time.perf_counter_ns(), final=True)["sample"])


def test_the_events_account_for_every_token_of_every_request(engine: Engine):
    with TelemetryHub(engine) as hub:
        consumer = hub.subscribe()
        generations = engine.generate(PROMPTS, PARAMS)
        engine.kv_snapshot()  # between two steps: the last one has been told, too
    events = consumer.drain()
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert hub.num_events_dropped == consumer.num_dropped == 0
    assert hub.recent_steps() == steps
    assert sum(step.num_emitted_tokens for step in steps) == 40 * len(PROMPTS)
    computed = sum(g.metrics.num_prompt_tokens - g.metrics.num_cached_tokens for g in generations)
    assert sum(step.num_prefill_tokens for step in steps) == computed
    ends = [event for event in events if isinstance(event, RequestEvent) and event.state == "finished"]
    assert sorted(event.request_id for event in ends) == sorted(g.request_id for g in generations)


def test_the_time_to_first_token_is_the_one_in_the_requests_own_metrics(engine: Engine):
    state = LiveState(facts_of(engine), time.perf_counter_ns())
    with TelemetryHub(engine) as hub:
        consumer = hub.subscribe()
        (generation,) = engine.generate(["a time to measure"], PARAMS)
    own = generation.metrics.time_to_first_token
    assert own is not None
    assert sample_after(state, consumer).first_token_ms == pytest.approx(own * 1000, abs=50)


def test_the_live_figures_follow_the_engine_while_it_runs_and_rest_afterwards(engine: Engine):
    state = LiveState(facts_of(engine), time.perf_counter_ns())
    state.resync(engine.kv_snapshot())
    with TelemetryHub(engine) as hub:
        consumer = hub.subscribe()
        handle = engine.submit("a long story", SamplingParams(max_tokens=200, ignore_eos=True))
        busy = []
        while not handle.done:
            busy.append(sample_after(state, consumer))
            time.sleep(0.002)
        handle.result(timeout=10)
    rest = sample_after(state, consumer)
    assert any(one.running == 1 and one.blocks_in_use for one in busy)
    assert (rest.running, rest.waiting, rest.blocks_in_use) == (0, 0, 0)
    assert rest.blocks_cached == engine.stats().kv_blocks_cached


def test_a_hub_that_stops_does_not_stop_the_engine_and_the_other_way_round(tiny_model: Path):
    engine = Engine(EngineConfig(model=str(tiny_model), device="cpu", num_kv_blocks=64))
    before = set(threading.enumerate())
    hub = TelemetryHub(engine)
    hub.start()
    hub.stop()
    assert len(engine.generate(["still there"], PARAMS)[0].token_ids) == 40
    hub.start()
    engine.close()
    hub.stop()
    assert not set(threading.enumerate()) - before
