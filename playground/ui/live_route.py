"""What pages hear over HTTP while they are open: one server-sent event stream, and its shared worker.

The stream carries the live frames, which model is loaded, and what pages add, as the chat page its replies. A browser
opens at most six connections to one address, for all of its tabs together; a stream a tab would use them up. So the
tabs share one through a `SharedWorker`, where there are such, and only else have a stream each. It is also how the
server knows which pages are open: one that is closed says so, and one that could not has no stream any more.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from playground.telemetry import FrameReader
from playground.ui.components import STATIC
from playground.ui.host import EngineHost
from playground.ui.host_view import host_view

QUIET_SECONDS = 15.0
"""An idle stream says so this often, or proxies would take it for dead."""
RETRY_MS = 1000
GONE_SECONDS = 10.0
"""How long a page may be without a stream, as while its browser connects anew, before it counts as closed."""
MOST_PAGES = 256
"""That one stream may name."""


class SourceReader(Protocol):
    """What one browser reads of a source."""

    @property
    def wait(self) -> float | None:
        """Seconds until there may be something new without a wake; None: there will be none."""

    def take(self) -> Iterable[str]:
        """The data of the events that are new to this reader."""
        ...

    def close(self) -> None: ...


class Source(Protocol):
    """Something that a page adds to the stream of every browser."""

    @property
    def name(self) -> str:
        """Of its events."""
        ...

    def read(self, wake: Callable[[], None]) -> SourceReader:
        """`wake` may be called on any thread."""
        ...


class OpenPages:
    """The streams there are, and the pages that they name. Used on the server's event loop only, but for `close`."""

    def __init__(self, on_leave: Sequence[Callable[[str], None]]) -> None:
        self.closed = False
        """Whether every stream is to end."""
        self._on_leave = on_leave
        self._streams: Counter[str] = Counter()
        self._wakes: tuple[Callable[[], None], ...] = ()

    def close(self) -> None:
        """End all streams, and those to come."""
        self.closed = True
        for wake in self._wakes:
            wake()

    def come(self, pages: Iterable[str], wake: Callable[[], None]) -> None:
        """`wake` has their stream look whether it is to end."""
        self._streams.update(pages)
        self._wakes = (*self._wakes, wake)

    def go(self, pages: Iterable[str], wake: Callable[[], None]) -> None:
        """Their stream has ended: pages that have no other one soon were closed."""
        self._wakes = tuple(one for one in self._wakes if one is not wake)
        self._streams.subtract(pages)
        self._streams += Counter()  # drops those that are at 0
        for page in pages:
            if page not in self._streams:
                asyncio.get_running_loop().call_later(GONE_SECONDS, self._look, page)

    def _look(self, page: str) -> None:
        if page not in self._streams:
            self.leave(page)

    def leave(self, page: str) -> None:
        """The page says that it is being closed."""
        for listener in self._on_leave:
            listener(page)


def live_routes(
    host: EngineHost, on_leave: Sequence[Callable[[str], None]] = (), sources: Sequence[Source] = ()
) -> tuple[list[Route], Callable[[], None]]:
    """Routes for `launch(app_kwargs={"routes": ...})`, and what ends their streams. `on_leave` hears the names of pages
    that were closed."""
    pages = OpenPages(on_leave)

    async def frames(request: Request) -> Response:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            _events(host, pages, sources, request), media_type="text/event-stream", headers=headers
        )

    async def worker(request: Request) -> Response:
        code = (STATIC / "live" / "worker.js").read_text(encoding="utf-8")
        return Response(code, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    async def leave(request: Request) -> Response:
        pages.leave(request.query_params.get("page", ""))
        return Response(status_code=204)

    routes = [
        Route("/live/frames", frames),
        Route("/live/worker.js", worker),
        Route("/live/leave", leave, methods=["POST"]),
    ]
    return routes, pages.close


async def _events(
    host: EngineHost, pages: OpenPages, sources: Sequence[Source], request: Request
) -> AsyncIterator[str]:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(ready.set)
        except RuntimeError:  # the server's loop has ended, and its streams with it
            reader.close()

    reader = host.feed.read(wake)
    others = [(source.name, source.read(wake)) for source in sources]
    stop_listening = host.on_change(wake)
    names = set(request.query_params.getlist("page")[:MOST_PAGES])
    pages.come(names, wake)
    told = -1
    gone = asyncio.create_task(_gone(request))
    gone.add_done_callback(lambda _: ready.set())
    try:
        yield f"retry: {RETRY_MS}\n\n"
        while not gone.done() and not pages.closed:
            if host.revision != told:  # before the frames, which may be of the new engine
                told = host.revision
                yield f"event: host\ndata: {json.dumps(host_view(host), allow_nan=False)}\n\n"
            async for text in _ready_frames(reader):
                yield f"data: {text}\n\n"
            for name, other in others:
                for text in other.take():
                    yield f"event: {name}\ndata: {text}\n\n"
            if reader.ended:
                return
            waits = [wait for _, other in others if (wait := other.wait) is not None]
            try:
                await asyncio.wait_for(ready.wait(), min(waits, default=QUIET_SECONDS))
            except TimeoutError:
                if not waits:
                    yield ": nothing new\n\n"
            ready.clear()
    finally:
        gone.cancel()
        stop_listening()
        reader.close()
        for _, other in others:
            other.close()
        pages.go(names, wake)


async def _ready_frames(reader: FrameReader) -> AsyncIterator[str]:
    while (text := reader.take()) is not None:
        yield text


async def _gone(request: Request) -> None:
    """Until the browser has closed the connection."""
    message: Any = {}
    while message.get("type") != "http.disconnect":
        message = await request.receive()
