"""Using the page hard, without a browser: many tabs that stream at once, and tabs that come and go over real sockets.

Also a script that prints what it saw:

    python -m tests.ui.under_use --tabs 8 --cycles 200
"""

import argparse
import asyncio
import gc
import json
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
from starlette.requests import Request

from playground import EngineConfig
from playground.sessions import SessionStore
from playground.ui.app import App, build_ui
from playground.ui.handlers import ChatHandlers
from playground.ui.host import EngineHost
from playground.ui.live_route import OpenPages, _events
from tests.ui.endless import ENDLESS, write_endless_model

PATIENCE_SECONDS = 30.0
REPLY = "event: reply\ndata: "
KEPT = ("frame-feed",)
"""The one thread that builds frames outlives its last reader by half a minute, for pages that are reloaded."""
POOLS = ("AnyIO worker thread", "asyncio_")
"""Workers stay for the next piece of work: there are as many as were once wanted at the same moment."""


@dataclass
class TabSeen:
    """What one tab was shown."""

    frames: int = 0
    text_frames: int = 0
    longest_gap: float = 0.0
    """Seconds between two frames of the reply, from its first token on."""
    characters: int = 0


@dataclass
class Left:
    """What there is at one moment that must not pile up."""

    threads: list[str]
    """Names of those that are there for one thing, and end with it."""
    pooled: int
    """Threads of the server's pools (`POOLS`)."""
    sockets: int
    blocks: int
    readers: int
    resident: int

    @classmethod
    def now(cls, host: EngineHost) -> "Left":
        gc.collect()
        stats = host.require().stats()
        names = [one.name for one in threading.enumerate()]
        own = [name for name in names if name not in KEPT and not name.startswith(POOLS)]
        pooled = sum(name.startswith(POOLS) for name in names)
        process = psutil.Process()
        sockets, resident = len(process.net_connections("tcp")), process.memory_info().rss
        return cls(own, pooled, sockets, stats.kv_blocks_in_use, host.feed.num_readers, resident)


class Browser:
    """One tab's connection: what the server is told of it."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    def close(self) -> None:
        self._gone.set()

    def stream(self, host: EngineHost, handlers: ChatHandlers, page: str) -> AsyncGenerator[str, None]:
        async def receive() -> dict[str, str]:
            await self._gone.wait()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "GET", "path": "/live/frames", "headers": []}
        request = Request({**scope, "query_string": f"page={page}".encode()}, receive)
        return _events(host, OpenPages([handlers.leave]), [handlers.replies], request)  # type: ignore[return-value]


def _event(**data: Any) -> Any:
    return SimpleNamespace(_data=data)


async def _watch(host: EngineHost, handlers: ChatHandlers, number: int, seen: TabSeen, until: float) -> None:
    """One tab from its opening over its question to its closing in mid-reply."""
    browser, page, last = Browser(), f"page{number}", None
    async with aclosing(browser.stream(host, handlers, page)) as stream:
        _, live, _ = await handlers.send(_event(text=f"Tell me story {number}.", settings=ENDLESS, page=page))
        seen.characters = len(live["text"])
        async for text in stream:
            now = time.perf_counter()
            if text.startswith("data: "):
                json.loads(text[6:])
                seen.frames += 1
            elif text.startswith(REPLY) and (frame := json.loads(text[len(REPLY) :]))["number"] == live["number"]:
                length = frame["at"] + len(frame["text"])
                if frame["at"] <= seen.characters < length:  # else nothing new, or one that a later frame mends
                    seen.text_frames += 1
                    seen.longest_gap = max(seen.longest_gap, 0.0 if last is None else now - last)
                    seen.characters, last = length, now
            if now >= until:
                browser.close()
                handlers.leave(page)


async def stream_at_once(host: EngineHost, handlers: ChatHandlers, tabs: int, seconds: float) -> list[TabSeen]:
    """So many tabs, each with a stream of its own, write and watch for some seconds."""
    seen = [TabSeen() for _ in range(tabs)]
    until = time.perf_counter() + seconds
    await asyncio.gather(*(_watch(host, handlers, number, one, until) for number, one in enumerate(seen)))
    return seen


class HttpTab:
    """One tab over real sockets, as a browser opens and closes it: the page, its stream, its events."""

    def __init__(self, address: str, app: App, number: int) -> None:
        self._address, self._app = address, app
        self._page, self._session = f"page{number}", f"session{number}"
        self._stream = urllib.request.urlopen(f"{address}live/frames?page={self._page}", timeout=PATIENCE_SECONDS)
        with urllib.request.urlopen(address, timeout=PATIENCE_SECONDS) as page:
            assert b"mountTranscript" in page.read()
        for dependency in self._dependencies("load"):
            self._event(dependency)

    def send(self, text: str) -> None:
        """Ask, and wait for the first frame of the reply."""
        (dependency,) = self._dependencies("send")
        self._event(dependency, {"text": text, "settings": ENDLESS, "page": self._page})
        while self._stream.readline() != b"event: reply\n":
            pass

    def close(self, quietly: bool) -> None:
        """`quietly`: without saying so, as when the browser was killed."""
        if not quietly:
            leave = urllib.request.Request(f"{self._address}live/leave?page={self._page}", method="POST")
            urllib.request.urlopen(leave, timeout=PATIENCE_SECONDS).close()
        self._stream.close()

    def _dependencies(self, event: str) -> list[int]:
        return [one["id"] for one in self._app.demo.config["dependencies"] if one["targets"][0][1] == event]

    def _event(self, dependency: int, event_data: Any = None) -> None:
        body = {"data": [], "event_data": event_data, "fn_index": dependency, "session_hash": self._session}
        join = urllib.request.Request(f"{self._address}gradio_api/queue/join", json.dumps(body).encode())
        join.add_header("Content-Type", "application/json")
        urllib.request.urlopen(join, timeout=PATIENCE_SECONDS).close()
        told = f"{self._address}gradio_api/queue/data?session_hash={self._session}"
        with urllib.request.urlopen(told, timeout=PATIENCE_SECONDS) as stream:
            said = [json.loads(line[6:]) for line in stream if line.startswith(b"data: ")]
        assert any(one["msg"] == "process_completed" and one["success"] for one in said), said


def open_and_close(address: str, app: App, cycles: int, first: int = 0) -> None:
    """Tabs come; every fourth begins a reply; all go, in the middle of it, every eighth without a word."""
    for number in range(first, first + cycles):
        tab = HttpTab(address, app, number)
        if number % 4 == 0:
            tab.send("Hello")
        tab.close(quietly=number % 8 == 0)


def settle(host: EngineHost, before: Left | None = None, seconds: float = 20.0) -> Left:
    """What is left once nothing is served and nobody reads; threads and sockets end a moment after their work."""
    until = time.monotonic() + seconds
    while True:
        left = Left.now(host)
        rests = not (left.blocks or left.readers or any(name.startswith("reply-") for name in left.threads))
        if rests and before is not None:
            rests = len(left.threads) <= len(before.threads) and left.sockets <= before.sockets
        if rests or time.monotonic() > until:
            return left
        time.sleep(0.05)


@contextmanager
def launched(host: EngineHost, store: SessionStore) -> Iterator[tuple[str, App]]:
    """The app over a host, which is not closed, served by this process."""
    app = build_ui(host, store)
    _, address, _ = app.demo.launch(prevent_thread_lock=True, quiet=True, **app.launch_options)
    yield address, app
    app.close()
    app.demo.close(verbose=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tabs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--cycles", type=int, default=200)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = write_endless_model(place / "endless")
        host = stack.enter_context(EngineHost())
        host.load(EngineConfig(model=str(folder), device="cpu", dtype="float32", num_kv_blocks=2048)).result()
        store = stack.enter_context(SessionStore(place / "chats.sqlite"))
        handlers = ChatHandlers(host, store)
        stack.callback(handlers.runs.close)
        for number, one in enumerate(asyncio.run(stream_at_once(host, handlers, options.tabs, options.seconds))):
            print(f"tab {number}: {asdict(one)}")
        address, app = stack.enter_context(launched(host, store))
        open_and_close(address, app, 20)
        before = settle(host)
        print(f"before the cycles: {asdict(before)}")
        for part in range(4):
            open_and_close(address, app, options.cycles // 4, 20 + part * options.cycles // 4)
            print(f"after {options.cycles // 4} more: {asdict(settle(host, before))}")


if __name__ == "__main__":
    main()
