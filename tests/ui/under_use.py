"""Using the page hard, without a browser: many tabs that stream at once, and tabs that come and go.

The handlers and the stream of live frames are driven as the server drives them. Also a script that prints what it saw:

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
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
from starlette.requests import Request

from playground import EngineConfig
from playground.sessions import SessionStore
from playground.ui.handlers import ChatHandlers
from playground.ui.host import EngineHost
from playground.ui.live_route import _events
from tests.ui.endless import ENDLESS, write_endless_model

KEPT = ("frame-feed",)
"""The one thread that builds frames outlives its last reader by half a minute, for pages that are reloaded."""


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

    threads: int
    blocks: int
    readers: int
    resident: int

    @classmethod
    def now(cls, host: EngineHost) -> "Left":
        gc.collect()
        stats = host.require().stats()
        threads = [one for one in threading.enumerate() if one.name not in KEPT]
        resident = psutil.Process().memory_info().rss
        return cls(len(threads), stats.kv_blocks_in_use, host.feed.num_readers, resident)


class Browser:
    """One tab's connection: what the server is told of it."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    def close(self) -> None:
        self._gone.set()

    def stream(self, host: EngineHost) -> AsyncGenerator[str, None]:
        async def receive() -> dict[str, str]:
            await self._gone.wait()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "GET", "path": "/live/frames", "headers": [], "query_string": b""}
        return _events(host, Request(scope, receive))  # type: ignore[return-value]


def _tab(number: int) -> Any:
    return SimpleNamespace(session_hash=f"tab-{number}", query_params={})


def _event(**data: Any) -> Any:
    return SimpleNamespace(_data=data)


async def _watch_frames(host: EngineHost, browser: Browser, seen: TabSeen) -> None:
    async with aclosing(browser.stream(host)) as stream:
        async for text in stream:
            if text.startswith("data: "):
                json.loads(text[6:])
                seen.frames += 1


async def _watch_reply(handlers: ChatHandlers, number: int, seen: TabSeen, until: float) -> None:
    sent = _event(text=f"Tell me story number {number}.", settings=ENDLESS, page=f"page{number}")
    last = None
    async with aclosing(handlers.send(sent, _tab(number))) as frames:
        async for _, live, _ in frames:
            now = time.perf_counter()
            if isinstance(live, dict) and live.get("text"):
                seen.text_frames += 1
                seen.characters = max(seen.characters, live["at"] + len(live["text"]))
                seen.longest_gap = max(seen.longest_gap, 0.0 if last is None else now - last)
                last = now
            if now >= until:
                return  # the tab is closed in mid-reply


async def stream_at_once(host: EngineHost, handlers: ChatHandlers, tabs: int, seconds: float) -> list[TabSeen]:
    """So many tabs write and watch for some seconds; then all are closed in mid-reply."""
    seen = [TabSeen() for _ in range(tabs)]
    browsers = [Browser() for _ in range(tabs)]
    until = time.perf_counter() + seconds
    watching = [
        asyncio.create_task(_watch_frames(host, browser, one)) for browser, one in zip(browsers, seen, strict=True)
    ]
    await asyncio.gather(*(_watch_reply(handlers, number, one, until) for number, one in enumerate(seen)))
    for number, browser in enumerate(browsers):
        browser.close()
        handlers.leave(f"page{number}")
    await asyncio.gather(*watching)
    return seen


async def open_and_close(host: EngineHost, handlers: ChatHandlers, cycles: int) -> None:
    """A tab comes, reads its first frame, begins a reply every fourth time, and goes in the middle of it."""
    for number in range(cycles):
        browser, tab = Browser(), _tab(number)
        stream = browser.stream(host)
        async with aclosing(stream), aclosing(handlers.load(tab)) as loading:
            await anext(loading)
            while not (await anext(stream)).startswith("data: "):
                pass
            if number % 4 == 0:
                async with aclosing(
                    handlers.send(_event(text="Hello", settings=ENDLESS, page=f"page{number}"), tab)
                ) as frames:
                    async for _, live, _ in frames:
                        if isinstance(live, dict) and live.get("text"):
                            break
            browser.close()
            handlers.leave(f"page{number}")


async def settle(host: EngineHost, threads: int, seconds: float = 20.0) -> Left:
    """What is left once the engine rests; threads end a moment after their work."""
    until = time.monotonic() + seconds
    while True:
        left = Left.now(host)
        stats = host.require().stats()
        rests = not stats.num_running and not stats.num_waiting
        if (rests and left.threads <= threads) or time.monotonic() > until:
            return left
        await asyncio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tabs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--cycles", type=int, default=200)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    with ExitStack() as stack:
        folder = write_endless_model(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "endless")
        host = stack.enter_context(EngineHost())
        host.load(EngineConfig(model=str(folder), device="cpu", dtype="float32", num_kv_blocks=2048)).result()
        store = stack.enter_context(SessionStore())
        handlers = ChatHandlers(host, store)
        stack.callback(handlers.runs.close)

        async def use() -> None:
            for number, one in enumerate(await stream_at_once(host, handlers, options.tabs, options.seconds)):
                print(f"tab {number}: {asdict(one)}")
            await open_and_close(host, handlers, 20)
            before = await settle(host, 0, 3.0)
            print(f"before the cycles: {asdict(before)}")
            for _ in range(4):
                await open_and_close(host, handlers, options.cycles // 4)
                print(f"after {options.cycles // 4} more: {asdict(await settle(host, before.threads))}")

        asyncio.run(use())


if __name__ == "__main__":
    main()
