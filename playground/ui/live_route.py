"""The live frames over HTTP: one server-sent event stream, which tells of another model too, and its shared worker.

Also where a page says that it is being closed.

A browser opens at most six connections to one address, for all of its tabs together; a stream a tab would use them up.
So the tabs share one through a `SharedWorker`, where there are such, and only else have a stream each.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

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


def live_routes(host: EngineHost, on_leave: Sequence[Callable[[str], None]] = ()) -> list[Route]:
    """Routes for `launch(app_kwargs={"routes": ...})`. `on_leave` hears the names of pages that are being closed."""

    async def frames(request: Request) -> Response:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(host, request), media_type="text/event-stream", headers=headers)

    async def worker(request: Request) -> Response:
        code = (STATIC / "live" / "worker.js").read_text(encoding="utf-8")
        return Response(code, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    async def leave(request: Request) -> Response:
        for listener in on_leave:
            listener(request.query_params.get("page", ""))
        return Response(status_code=204)

    return [
        Route("/live/frames", frames),
        Route("/live/worker.js", worker),
        Route("/live/leave", leave, methods=["POST"]),
    ]


async def _events(host: EngineHost, request: Request) -> AsyncIterator[str]:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(ready.set)
        except RuntimeError:  # the server's loop has ended, and its streams with it
            reader.close()

    reader = host.feed.read(wake)
    stop_listening = host.on_change(wake)
    told = -1
    gone = asyncio.create_task(_gone(request))
    gone.add_done_callback(lambda _: ready.set())
    try:
        yield f"retry: {RETRY_MS}\n\n"
        while not gone.done():
            if host.revision != told:  # before the frames, which may be of the new engine
                told = host.revision
                yield f"event: host\ndata: {json.dumps(host_view(host), allow_nan=False)}\n\n"
            async for text in _ready_frames(reader):
                yield f"data: {text}\n\n"
            if reader.ended:
                return
            try:
                await asyncio.wait_for(ready.wait(), QUIET_SECONDS)
            except TimeoutError:
                yield ": nothing new\n\n"
            ready.clear()
    finally:
        gone.cancel()
        stop_listening()
        reader.close()


async def _ready_frames(reader: FrameReader) -> AsyncIterator[str]:
    while (text := reader.take()) is not None:
        yield text


async def _gone(request: Request) -> None:
    """Until the browser has closed the connection."""
    message: Any = {}
    while message.get("type") != "http.disconnect":
        message = await request.receive()
