"""The hub passes on what the engine emits, keeps up or counts what it lost, and leaves nothing behind."""

import threading
import time
from collections.abc import Callable

import pytest

from playground.engine.events import BlockEvent, EventStream, RequestEvent, StepEvent
from playground.telemetry import TelemetryHub
from playground.telemetry.hub import CONSUMER_EVENTS
from playground.telemetry.rates import MAX_PENDING_REQUESTS, FirstTokenTimes, RollingRates

MS = 1_000_000


class Source:
    """All that the hub reads of an engine: a real event stream."""

    def __init__(self) -> None:
        self.events = EventStream()


def step_event(
    number: int = 0, *, start_ns: int = 0, duration_ns: int = MS, emitted: int = 1, prompt: int = 0
) -> StepEvent:
    return StepEvent(
        step=number,
        time_ns=start_ns,
        schedule_ns=0,
        draft_ns=0,
        prepare_ns=0,
        forward_ns=duration_ns,
        sample_ns=0,
        post_ns=0,
        num_prefill_tokens=prompt,
        num_decode_tokens=emitted,
        num_draft_tokens=0,
        num_accepted_tokens=0,
        num_emitted_tokens=emitted,
        num_running=1,
        num_waiting=0,
        num_preempted=0,
        kv_blocks_in_use=1,
        kv_blocks_cached=0,
        kv_blocks_empty=1,
        kv_slots_in_use=1,
        requests=(),
    )


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the hub did not get there in time"
        time.sleep(0.01)


def hub_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "telemetry-hub"]


def test_every_event_reaches_every_consumer_once_and_in_order():
    source = Source()
    with TelemetryHub(source) as hub:
        consumers = [hub.subscribe(), hub.subscribe()]
        events = []
        for number in range(300):
            batch = [step_event(number), RequestEvent(number, number, "queued"), BlockEvent(number, "alloc", 1, 1)]
            source.events.emit(batch)
            events += batch
    for consumer in consumers:
        assert consumer.drain() == events
        assert consumer.num_dropped == 0


def test_a_slow_consumer_loses_its_oldest_events_alone_and_they_are_counted():
    source = Source()
    with TelemetryHub(source) as hub:
        slow, fast = hub.subscribe(maxlen=10), hub.subscribe()
        source.events.emit([step_event(number) for number in range(100)])
    assert [event.step for event in slow.drain()] == list(range(90, 100))
    assert slow.num_dropped == 90
    assert len(fast.drain()) == 100


def test_an_unsubscribed_consumer_gets_nothing_more():
    source = Source()
    with TelemetryHub(source) as hub:
        consumer = hub.subscribe()
        hub.unsubscribe(consumer)
        source.events.emit([step_event()])
    assert consumer.drain() == []


def test_the_recent_steps_are_the_latest_ones_and_bounded():
    source = Source()
    with TelemetryHub(source, recent_steps=50) as hub:
        source.events.emit([step_event(number) for number in range(120)])
        wait_until(lambda: bool(hub.recent_steps()))
        assert [step.step for step in hub.recent_steps()] == list(range(70, 120))
        assert [step.step for step in hub.recent_steps(limit=3)] == [117, 118, 119]
        assert hub.recent_steps(limit=0) == []


def test_start_and_stop_leave_no_thread_and_no_subscription():
    source = Source()
    hub = TelemetryHub(source)
    others = set(hub_threads())  # of tests before this one
    for _ in range(3):
        hub.start()
        hub.start()
        assert len(set(hub_threads()) - others) == 1
        assert source.events.active
        started = time.monotonic()
        hub.stop()
        hub.stop()
        assert time.monotonic() - started < 5
        assert set(hub_threads()) <= others
        assert not source.events.active


def test_what_was_emitted_just_before_stop_still_arrives():
    source = Source()
    hub = TelemetryHub(source)
    hub.start()
    consumer = hub.subscribe()
    source.events.emit([step_event(7)])
    hub.stop()
    assert [event.step for event in consumer.drain()] == [7]


def test_the_memory_is_read_while_the_hub_runs():
    with TelemetryHub(Source()) as hub:
        wait_until(lambda: hub.memory().used_bytes is not None)
        memory = hub.memory()
    assert memory.source == "process" and 0 < memory.time_ns < time.perf_counter_ns()
    assert 0 < memory.used_bytes < memory.total_bytes


def test_memory_that_was_not_read_yet_is_missing_and_not_zero():
    assert TelemetryHub(Source()).memory().used_bytes is None


def test_who_cannot_wait_for_the_next_round_has_everything_handed_on_at_once_and_in_order():
    source = Source()
    with TelemetryHub(source) as hub:
        consumer = hub.subscribe()
        for number in range(200):
            source.events.emit([step_event(number)])
            hub.hand_on()
            assert [event.step for event in consumer.drain()] == [number]


def test_events_beyond_the_hubs_queue_are_lost_oldest_first_and_counted():
    source = Source()
    with TelemetryHub(source) as hub:
        consumer = hub.subscribe()
        source.events.emit([step_event(number) for number in range(CONSUMER_EVENTS + 100)])
        wait_until(lambda: consumer.wait(0))
        assert hub.num_events_dropped == 100
    assert [event.step for event in consumer.drain()] == list(range(100, CONSUMER_EVENTS + 100))


def test_a_hub_that_cannot_keep_up_does_not_hold_up_the_emitting_thread():
    source = Source()
    source.events.subscribe()  # nobody ever drains this one
    burst = [step_event(number) for number in range(100)]
    with TelemetryHub(source):
        started = time.perf_counter()
        for _ in range(2000):
            source.events.emit(burst)
        assert time.perf_counter() - started < 10


def test_a_rate_is_tokens_over_the_time_from_the_first_step_to_the_end_of_the_last():
    rates = RollingRates(window_seconds=2)
    rates.add(step_event(start_ns=0, duration_ns=100 * MS, emitted=1))
    rates.add(step_event(start_ns=400 * MS, duration_ns=100 * MS, emitted=4))
    generated, prompt = rates.read(now_ns=600 * MS)
    assert generated == pytest.approx(5 / 0.5)
    assert prompt == 0


def test_a_rate_forgets_steps_older_than_its_window_and_is_missing_when_none_is_left():
    rates = RollingRates(window_seconds=2)
    assert rates.read(now_ns=0) == (None, None)
    rates.add(step_event(start_ns=0, duration_ns=100 * MS, emitted=1000))
    rates.add(step_event(start_ns=2000 * MS, duration_ns=500 * MS, emitted=5))
    assert rates.read(now_ns=2500 * MS)[0] == pytest.approx(10)
    assert rates.read(now_ns=10_000 * MS) == (None, None)


def test_a_step_without_duration_gives_no_rate_rather_than_an_infinite_one():
    rates = RollingRates()
    rates.add(step_event(duration_ns=0))
    assert rates.read(now_ns=0) == (None, None)


def test_the_time_to_first_token_counts_from_the_first_queueing_and_needs_both_ends():
    times = FirstTokenTimes()
    times.add(RequestEvent(5 * MS, 9, "first_token"))
    assert times.latest_seconds is None
    times.add(RequestEvent(0, 1, "queued"))
    times.add(RequestEvent(10 * MS, 1, "preempted"))
    times.add(RequestEvent(20 * MS, 1, "queued"))
    times.add(RequestEvent(30 * MS, 1, "first_token"))
    assert times.latest_seconds == pytest.approx(0.030)
    times.add(RequestEvent(0, 2, "queued"))
    times.add(RequestEvent(1 * MS, 2, "finished", "abort"))
    times.add(RequestEvent(2 * MS, 2, "first_token"))
    assert times.latest_seconds == pytest.approx(0.030)


def test_requests_that_never_get_a_token_do_not_fill_the_memory():
    times = FirstTokenTimes()
    for request_id in range(MAX_PENDING_REQUESTS + 500):
        times.add(RequestEvent(0, request_id, "queued"))
    assert len(times._queued_ns) == MAX_PENDING_REQUESTS
