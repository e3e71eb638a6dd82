"""Many tabs at once, and tabs that come and go: everybody is served, and nothing is left behind."""

import asyncio
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from playground.sessions import SessionStore
from playground.ui.app import App, build_ui
from playground.ui.handlers import ChatHandlers
from playground.ui.host import EngineHost
from tests.ui.under_use import Left, launched, open_and_close, settle, stream_at_once

TABS, SECONDS = 8, 3.0
CYCLES, WARM_UP = 200, 20
MOST_MORE_WORKERS = 4
"""Of 180 cycles. A pool grows by what once fell together; a worker stuck in each tab that was killed would be 22."""
MOST_GROWTH_BYTES = 24 << 20
"""Of 180 cycles. A stream, a reply or a session that stays takes far more than the allocator's noise."""


@pytest.fixture(scope="module")
def served(host: EngineHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, App]]:
    with SessionStore(tmp_path_factory.mktemp("used") / "chats.sqlite") as store, launched(host, store) as served:
        yield served


def test_eight_tabs_stream_at_once_and_none_of_them_starves(host: EngineHost, handlers: ChatHandlers) -> None:
    before = Left.now(host)
    seen = asyncio.run(stream_at_once(host, handlers, TABS, SECONDS))
    for one in seen:
        assert one.characters > 50 and one.text_frames >= 3, one
        assert one.frames >= 3, one
        assert one.longest_gap < 2.0, one
    assert min(one.characters for one in seen) > 0.4 * max(one.characters for one in seen), "all get their share"
    left = settle(host, before)
    assert (left.blocks, left.readers) == (0, 0)


def test_two_hundred_tabs_that_come_and_go_leave_nothing_behind(
    host: EngineHost, served: tuple[str, App], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("playground.ui.live_route.GONE_SECONDS", 0.2)
    open_and_close(*served, WARM_UP)
    before = settle(host)
    open_and_close(*served, CYCLES - WARM_UP, WARM_UP)
    after = settle(host, before)
    assert (after.blocks, after.readers) == (0, 0)
    assert len(after.threads) <= len(before.threads) and after.sockets <= before.sockets, (before, after)
    assert after.pooled <= before.pooled + MOST_MORE_WORKERS
    assert not [name for name in after.threads if name.startswith("reply-")]
    assert after.resident - before.resident < MOST_GROWTH_BYTES
    assert host._listeners == ()


def test_an_app_that_is_closed_leaves_its_host_as_it_was(host: EngineHost) -> None:
    def there_is() -> tuple[object, ...]:
        return host._followers, host._listeners, len(host.hub._out._subscriptions), host.feed.num_readers

    before, threads = there_is(), set(threading.enumerate())
    with SessionStore() as store:
        build_ui(host, store).close()
    assert there_is() == before
    assert set(threading.enumerate()) <= threads
    ready = threading.Event()
    reader = host.feed.read(ready.set)
    assert ready.wait(30) and reader.take() is not None and not reader.ended, "its frames go on"
    reader.close()


def test_pages_metrics_and_health_answer_while_the_engine_is_at_full_load(
    host: EngineHost, handlers: ChatHandlers, served: tuple[str, App]
) -> None:
    address, _ = served
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
