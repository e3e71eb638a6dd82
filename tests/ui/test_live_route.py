"""The stream of live frames over HTTP, with a real server and real sockets: what comes, and what is left at the end."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import uvicorn
from starlette.applications import Starlette

from playground import Engine, SamplingParams
from playground.telemetry import FrameFeed, TelemetryHub
from playground.ui.host import EngineHost
from playground.ui.live_route import live_routes

PATIENCE_SECONDS = 15.0


@dataclass
class HostOf:
    """What the route reads of a host: one feed, and nothing that changes."""

    feed: FrameFeed
    revision: int = 1
    serving: None = None
    busy: None = None
    task: None = None

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


class Bell:
    """A source that says "1", "2" and "3" to every reader after `ring`, one after another without another wake."""

    name = "bell"

    def __init__(self) -> None:
        self.readers: list[BellReader] = []

    def read(self, wake: Callable[[], None]) -> "BellReader":
        self.readers.append(BellReader(self, wake))
        return self.readers[-1]

    def ring(self) -> None:
        for reader in self.readers:
            reader.said = 0
            reader.wake()


@dataclass
class BellReader:
    bell: Bell
    wake: Callable[[], None]
    said: int = 3

    @property
    def wait(self) -> float | None:
        return 0.01 if self.said < 3 else None

    def take(self) -> list[str]:
        if self.said == 3:
            return []
        self.said += 1
        return [str(self.said)]

    def close(self) -> None:
        self.bell.readers.remove(self)


@dataclass
class Server:
    port: int
    feed: FrameFeed
    left: list[str]
    bell: Bell

    def open(self, path: str = "/live/frames", method: str = "GET") -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        connection.request(method, path)
        return connection.getresponse()


@pytest.fixture
def server(engine: Engine) -> Iterator[Server]:
    with TelemetryHub(engine) as hub:
        feed = FrameFeed(engine, hub, linger_seconds=0.1)
        left: list[str] = []
        source = Bell()
        routes, end_streams = live_routes(cast(EngineHost, HostOf(feed)), [left.append], [source])
        app = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=app.run, daemon=True)
        thread.start()
        wait_until(lambda: app.started)
        yield Server(app.servers[0].sockets[0].getsockname()[1], feed, left, source)
        end_streams()
        app.should_exit = True
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), "an open stream keeps nobody from ending"
        assert feed.num_readers == 0, "and none is left behind"
        feed.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.01)


def next_frame(stream: http.client.HTTPResponse) -> dict[str, Any]:
    event = ""
    while not (line := stream.readline().decode()).startswith("data: ") or event == "host":
        assert line, "the stream has ended"
        if line.startswith("event: "):
            event = line.removeprefix("event: ").strip()
        elif line == "\n":
            event = ""
    frame: dict[str, Any] = json.loads(line[6:])
    return frame


def test_the_stream_tells_what_the_engine_does(server: Server, engine: Engine) -> None:
    stream = server.open()
    assert stream.getheader("Content-Type", "").startswith("text/event-stream")
    assert stream.getheader("Cache-Control") == "no-store"
    opening = next_frame(stream)
    assert opening["facts"]["num_blocks"] == engine.stats().kv_blocks_total
    engine.generate("Once upon a time", SamplingParams(max_tokens=30, temperature=0))
    emitted, ended, seq = 0, False, opening["seq"]
    columns = opening["columns"]
    while not ended:
        frame = next_frame(stream)
        assert frame["seq"] == seq + 1
        seq = frame["seq"]
        emitted += sum(step[columns["step"].index("emitted_tokens")] for step in frame["steps"])
        ended = any(row[columns["request"].index("state")] == "finished" for row in frame["requests"])
    assert emitted == 30
    stream.close()


def feed_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "frame-feed"}


def test_a_browser_that_goes_away_leaves_no_reader_and_no_thread(server: Server) -> None:
    others = feed_threads()  # of tests before this one
    for _ in range(10):
        streams = [server.open() for _ in range(3)]
        for stream in streams:
            next_frame(stream)
        assert server.feed.num_readers >= 3
        for stream in streams:
            stream.close()
        wait_until(lambda: server.feed.num_readers == 0)
    wait_until(lambda: feed_threads() <= others)


def test_the_stream_ends_when_the_app_does(server: Server) -> None:
    stream = server.open()
    next_frame(stream)
    server.feed.close()
    assert stream.read().strip() == b""
    assert server.open().read().startswith(b"retry: "), "a stream that is opened too late ends at once"


def test_the_worker_that_tabs_share_is_served_as_script(server: Server) -> None:
    answer = server.open("/live/worker.js")
    assert answer.status == 200 and answer.getheader("Content-Type", "").startswith("text/javascript")
    assert b"EventSource" in answer.read()


def test_what_a_page_adds_to_the_stream_reaches_every_browser(server: Server) -> None:
    streams = [server.open() for _ in range(2)]
    for stream in streams:
        next_frame(stream)
    server.bell.ring()
    for stream in streams:
        said = []
        while len(said) < 3:
            if stream.readline() == b"event: bell\n":
                said.append(stream.readline())
        assert said == [b"data: 1\n", b"data: 2\n", b"data: 3\n"]
        stream.close()
    wait_until(lambda: not server.bell.readers)


def test_a_page_without_a_stream_counts_as_closed_after_a_while(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("playground.ui.live_route.GONE_SECONDS", 0.2)
    first, second = server.open("/live/frames?page=a&page=b&page=c"), server.open("/live/frames?page=b")
    for stream in (first, second):
        next_frame(stream)
    first.close()
    again = server.open("/live/frames?page=c")  # as when the connection was only lost
    next_frame(again)
    wait_until(lambda: server.left == ["a"])
    for stream in (second, again):
        stream.close()
    wait_until(lambda: sorted(server.left) == ["a", "b", "c"])


def test_a_page_that_says_it_is_closed_is_heard(server: Server) -> None:
    assert server.open("/live/leave?page=abc", "POST").status == 204
    assert server.open("/live/leave", "GET").status == 405
    assert server.left == ["abc"]
