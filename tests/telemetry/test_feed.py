"""The feed builds frames once for all readers, only while something happens, and leaves nothing behind."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from playground import EngineConfig
from playground.engine.events import BlockEvent, EventStream, RequestEvent
from playground.engine.kv_snapshot import KVSnapshot, RequestBlocks
from playground.engine.outputs import EngineStats
from playground.errors import RequestError
from playground.telemetry import FrameFeed, FrameReader, TelemetryHub
from playground.telemetry.feed import QUEUED_FRAMES

PATIENCE_SECONDS = 10.0


class Source:
    """What the hub and the feed read of an engine, with a real event stream."""

    def __init__(self, num_blocks: int = 16) -> None:
        self.events = EventStream()
        self.config = EngineConfig(model="somewhere/a-model")
        self.model_config = None
        self.snapshot = KVSnapshot(time.perf_counter_ns(), num_blocks, 4, (), ())
        self.num_snapshots = 0
        self.closed = False
        self.num_blocks = num_blocks

    def stats(self) -> EngineStats:
        return EngineStats(kv_blocks_total=self.num_blocks, kv_block_size=4, memory_kv_bytes=1700)

    def kv_snapshot(self) -> KVSnapshot:
        if self.closed:
            raise RequestError("the engine was closed: make a new one.")
        self.num_snapshots += 1
        return self.snapshot

    def cache(self, *block_ids: int) -> None:
        self.events.emit([BlockEvent(time.perf_counter_ns(), "cache", block_id, 0) for block_id in block_ids])


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def hub(source: Source) -> Iterator[TelemetryHub]:
    with TelemetryHub(source) as hub:
        yield hub


@pytest.fixture
def feed(source: Source, hub: TelemetryHub) -> Iterator[FrameFeed]:
    feed = FrameFeed(source, hub, linger_seconds=0.2)
    yield feed
    feed.close()


def wait_until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.01)
    return value


def next_frame(reader: FrameReader) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(wait_until(reader.take))
    return frame


def feed_threads() -> int:
    return sum(thread.name == "frame-feed" for thread in threading.enumerate())


def test_a_reader_starts_from_an_opening_frame_and_goes_on_without_a_gap(source: Source, feed: FrameFeed) -> None:
    reader = feed.read()
    opening = next_frame(reader)
    assert "history" in opening and opening["facts"]["block_bytes"] == 100 and opening["facts"]["num_blocks"] == 16
    source.cache(3, 4)
    following = next_frame(reader)
    assert following["seq"] == opening["seq"] + 1 and following["blocks"] == [[3, 2, 4, []]]


def test_an_idle_engine_gives_no_frames(source: Source, feed: FrameFeed) -> None:
    reader = feed.read()
    next_frame(reader)
    source.cache(1)
    next_frame(reader)
    time.sleep(0.4)
    while reader.take():
        pass
    built = feed.num_frames
    time.sleep(1.2)
    assert reader.take() is None and feed.num_frames == built


def test_time_goes_on_in_the_frames_while_a_request_waits(source: Source, feed: FrameFeed) -> None:
    reader = feed.read()
    next_frame(reader)
    source.events.emit([RequestEvent(time.perf_counter_ns(), 1, "queued")])
    times = [next_frame(reader)["t"] for _ in range(4)]
    assert times == sorted(set(times))


def test_frames_are_built_once_whoever_reads_them(source: Source, feed: FrameFeed) -> None:
    readers = [feed.read() for _ in range(8)]
    for reader in readers:
        next_frame(reader)
    built = feed.num_frames
    source.cache(5)
    texts = [wait_until(reader.take) for reader in readers]
    assert all(text is texts[0] for text in texts), "one text for all, written once"
    assert feed.num_frames - built <= 2 and feed_threads() == 1


def test_a_reader_that_falls_behind_loses_frames_counted_and_starts_anew(source: Source, feed: FrameFeed) -> None:
    slow, quick = feed.read(), feed.read()
    next_frame(slow)
    next_frame(quick)
    source.events.emit([RequestEvent(time.perf_counter_ns(), 1, "queued")])  # waits for ever: a frame every 250 ms

    def quick_only() -> bool:
        source.cache(1 + feed.num_frames % 8)
        quick.take()
        return slow.num_dropped > 0

    wait_until(quick_only)
    assert slow.num_dropped > QUEUED_FRAMES and quick.num_dropped == 0
    assert "history" in next_frame(slow)


def test_events_lost_on_the_way_are_counted_and_the_state_is_read_anew(source: Source, feed: FrameFeed) -> None:
    reader = feed.read()
    next_frame(reader)
    held = RequestBlocks(1, True, 3, 0, 0, 3, 0, (2,))
    source.snapshot = KVSnapshot(time.perf_counter_ns() + 10**12, 16, 4, (7,), (held,))
    source.events.emit([BlockEvent(0, "release", 1, 1) for _ in range(70_000)])
    frame = wait_until(lambda: next((one for one in [next_frame(reader)] if one["dropped"]), None))
    assert frame["full"] and frame["dropped"] >= 70_000 - 65_536
    assert sorted(frame["blocks"]) == [[2, 1, 3, [1]], [7, 1, 4, []]]
    assert source.num_snapshots == 2


def test_after_the_last_reader_everything_is_let_go_and_the_next_one_finds_the_engine(
    source: Source, hub: TelemetryHub, feed: FrameFeed
) -> None:
    for _ in range(20):
        readers = [feed.read() for _ in range(3)]
        next_frame(readers[0])
        for reader in readers:
            reader.close()
            reader.close()
    wait_until(lambda: feed_threads() == 0)
    assert feed.num_readers == 0 and not hub._out.active
    assert "history" in next_frame(feed.read())


def test_another_engine_starts_every_reader_anew(source: Source, feed: FrameFeed) -> None:
    reader = feed.read()
    before = next_frame(reader)
    other = Source(num_blocks=99)
    with TelemetryHub(other) as hub:
        feed.watch(other, hub)
        after = wait_until(lambda: next((one for one in [next_frame(reader)] if "history" in one), None))
        assert after["facts"]["num_blocks"] == 99 and after["epoch"] != before["epoch"]
        other.cache(98)
        assert next_frame(reader)["blocks"] == [[98, 1, 4, []]]
        source.cache(1)
        assert feed_threads() == 1
        feed.close()


def test_closing_ends_the_readers_and_the_thread(feed: FrameFeed) -> None:
    woken = threading.Event()
    reader = feed.read(woken.set)
    next_frame(reader)
    woken.clear()
    feed.close()
    feed.close()
    assert reader.ended and woken.is_set() and feed_threads() == 0
    assert feed.read().ended, "nobody waits for frames that will not come"


def test_an_engine_that_is_closed_ends_the_frames_and_breaks_nothing(source: Source, feed: FrameFeed) -> None:
    source.closed = True
    reader = feed.read()
    wait_until(lambda: feed_threads() == 0)
    assert reader.take() is None and not reader.ended
