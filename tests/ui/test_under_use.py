"""Many tabs at once, and tabs that come and go: everybody is served, and nothing is left behind."""

import asyncio
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from playground.sessions import SessionStore
from playground.ui.app import build_ui
from playground.ui.handlers import ChatHandlers
from playground.ui.host import EngineHost
from tests.ui.under_use import Left, open_and_close, settle, stream_at_once

TABS, SECONDS = 8, 3.0
CYCLES, WARM_UP = 200, 20
MOST_GROWTH_BYTES = 24 << 20
"""Of 180 cycles. A stream or a reply that stays takes far more than the allocator's noise."""


def test_eight_tabs_stream_at_once_and_none_of_them_starves(host: EngineHost, handlers: ChatHandlers) -> None:
    before = Left.now(host)
    seen = asyncio.run(stream_at_once(host, handlers, TABS, SECONDS))
    for one in seen:
        assert one.characters > 50 and one.text_frames >= 3, one
        assert one.frames >= 3, one
        assert one.longest_gap < 2.0, one
    assert min(one.characters for one in seen) > 0.4 * max(one.characters for one in seen), "all get their share"
    left = asyncio.run(settle(host, before.threads))
    assert (left.blocks, left.readers) == (0, 0)


def test_two_hundred_tabs_that_come_and_go_leave_nothing_behind(host: EngineHost, handlers: ChatHandlers) -> None:
    async def use() -> tuple[Left, Left]:
        await open_and_close(host, handlers, WARM_UP)
        before = await settle(host, 0, 1.0)
        await open_and_close(host, handlers, CYCLES - WARM_UP)
        return before, await settle(host, before.threads)

    before, after = asyncio.run(use())
    assert (after.blocks, after.readers) == (0, 0)
    assert after.threads <= before.threads
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("reply-")]
    assert after.resident - before.resident < MOST_GROWTH_BYTES
    assert host._listeners == ()


@pytest.fixture
def address(host: EngineHost) -> Iterator[str]:
    with SessionStore() as store:
        app = build_ui(host, store)
        _, url, _ = app.demo.launch(prevent_thread_lock=True, quiet=True, **app.launch_options)
        yield url
        app.on_close.pop_all()  # the host belongs to all tests of the session, and its feed with it
        app.demo.close(verbose=False)


def test_pages_metrics_and_health_answer_while_the_engine_is_at_full_load(
    host: EngineHost, handlers: ChatHandlers, address: str
) -> None:
    answers: dict[str, int] = {}

    def ask() -> None:
        for path in ("", "config", "health", "metrics", "live/worker.js"):
            with urllib.request.urlopen(address + path, timeout=20) as answer:
                answers[path] = answer.status
                assert answer.read()

    async def use() -> None:
        load = asyncio.create_task(stream_at_once(host, handlers, TABS, SECONDS))
        await asyncio.sleep(1.0)
        assert host.require().stats().num_running == TABS
        await asyncio.to_thread(ask)
        await load

    asyncio.run(use())
    assert answers == dict.fromkeys(answers, 200) and len(answers) == 5
