"""The hub on the real engine: its figures agree with what the engine itself reports about the same requests."""

import threading
import time
from pathlib import Path

import pytest

from playground import Engine, EngineConfig, SamplingParams
from playground.engine.events import RequestEvent, StepEvent
from playground.telemetry import TelemetryHub

PROMPTS = ["a fox", "a longer prompt about an owl", "x"]
PARAMS = SamplingParams(max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_model: Path):
    with Engine(EngineConfig(model=str(tiny_model), device="cpu", num_kv_blocks=64, block_size=4)) as opened:
        yield opened


def test_the_events_account_for_every_token_of_every_request(engine: Engine):
    with TelemetryHub(engine) as hub:
        consumer = hub.subscribe()
        generations = engine.generate(PROMPTS, PARAMS)
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
    with TelemetryHub(engine) as hub:
        (generation,) = engine.generate(["a time to measure"], PARAMS)
        own = generation.metrics.time_to_first_token
        deadline = time.monotonic() + 5
        while (seen := hub.frame().time_to_first_token) is None and time.monotonic() < deadline:
            time.sleep(0.01)
    assert own is not None
    assert seen == pytest.approx(own, abs=0.05)


def test_the_frame_follows_the_engine_while_it_runs_and_rests_afterwards(engine: Engine):
    with TelemetryHub(engine) as hub:
        handle = engine.submit("a long story", SamplingParams(max_tokens=200, ignore_eos=True))
        busy = []
        while not handle.done:
            busy.append(hub.frame())
            time.sleep(0.002)
        handle.result(timeout=10)
        frame = hub.frame()
    total = engine.stats().kv_blocks_total
    assert any(one.num_running == 1 and one.kv_blocks_in_use > 0 for one in busy)
    for one in [*busy, frame]:
        assert one.kv_blocks_in_use + one.kv_blocks_cached + one.kv_blocks_empty == one.kv_blocks_total == total
    assert not frame.busy
    assert frame.kv_blocks_in_use == 0


def test_a_hub_that_stops_does_not_stop_the_engine_and_the_other_way_round(tiny_model: Path):
    engine = Engine(EngineConfig(model=str(tiny_model), device="cpu", num_kv_blocks=64))
    before = set(threading.enumerate())
    hub = TelemetryHub(engine)
    hub.start()
    hub.stop()
    assert len(engine.generate(["still there"], PARAMS)[0].token_ids) == 40
    hub.start()
    engine.close()
    assert hub.frame().num_running == 0
    hub.stop()
    assert not set(threading.enumerate()) - before
