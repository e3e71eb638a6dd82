"""The Requests page's HTTP routes: lists, replays, files. Thin: they read the address, ask the store, write JSON.

What changes something is a POST with a header that another site's page cannot send without being asked first.
"""

import asyncio
import gzip
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from playground.errors import PlaygroundError
from playground.sessions.recorder import RunRecorder
from playground.sessions.run_file import MAX_FILE_BYTES, SUFFIX, RunFileError, pack, unpack
from playground.sessions.run_records import RunQuery
from playground.sessions.run_store import RunStore
from playground.ui import run_views
from playground.ui.tours import tours

logger = logging.getLogger(__name__)

HEADER = "x-inference-playground"
PAGE_ROWS = 50
GZIP_BYTES = 2048
FAULT = "That failed because of a fault in the playground; its log says more."
BROKEN = "This recording cannot be played: events are missing from it. Its figures are saved."

Handler = Callable[[Request], Awaitable[Any]]


class RunRoutes:
    """The routes over one store of runs."""

    def __init__(self, runs: RunStore, recorder: RunRecorder) -> None:
        self._runs = runs
        self._recorder = recorder

    def routes(self) -> list[Route]:
        return [
            Route("/runs", self._answer(self._page)),
            Route("/runs/import", self._answer(self._import, changes=True), methods=["POST"]),
            Route("/runs/clear", self._answer(self._clear, changes=True), methods=["POST"]),
            Route("/runs/limit", self._answer(self._limit, changes=True), methods=["POST"]),
            Route("/runs/tours", self._answer(self._tours)),
            Route("/runs/tours/{name}", self._answer(self._tour)),
            Route("/runs/{id:int}", self._answer(self._run)),
            Route("/runs/{id:int}/export", self._export),
            Route("/runs/{id:int}/delete", self._answer(self._delete, changes=True), methods=["POST"]),
        ]

    # Answers

    async def _page(self, request: Request) -> dict[str, Any]:
        wish = _query(request)

        def read() -> dict[str, Any]:
            found = self._runs.find(wish)
            return run_views.page(found, self._runs.configs(), self._runs.storage(), self._recorder.num_lost)

        return await asyncio.to_thread(read)

    async def _run(self, request: Request) -> dict[str, Any]:
        request_id = int(request.path_params["id"])

        def read() -> dict[str, Any]:
            info = self._runs.request(request_id)
            if not info.has_recording:  # it may have ended this very moment
                self._recorder.flush()
                info = self._runs.request(request_id)
            if not info.has_recording:
                return run_views.plain(info, writing=self._recorder.is_writing(request_id))
            run = self._runs.run(request_id)
            try:
                return run_views.replay(run)
            except Exception:
                logger.exception("run %d cannot be played", request_id)
                return run_views.plain(info) | {"problem": BROKEN}

        return await asyncio.to_thread(read)

    async def _tours(self, request: Request) -> list[dict[str, Any]]:
        found = await asyncio.to_thread(tours)
        return [
            {"name": name, "title": one.tour.title, "text": one.tour.captions[0].text if one.tour.captions else ""}
            for name, one in found.items()
        ]

    async def _tour(self, request: Request) -> dict[str, Any]:
        one = (await asyncio.to_thread(tours)).get(str(request.path_params["name"]))
        if one is None:
            raise RunFileError("There is no such tour: go back to the list of requests.")
        run = replace(one.run, request=replace(one.run.request, origin="tour"))
        return await asyncio.to_thread(run_views.replay, run, one.tour)

    async def _import(self, request: Request) -> dict[str, Any]:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_FILE_BYTES:
                raise RunFileError(f"This file is too large: a run has at most {MAX_FILE_BYTES // 2**20} MiB.")

        def store() -> int:
            run, _ = unpack(bytes(data))
            return self._runs.add(run)

        return {"id": await asyncio.to_thread(store)}

    async def _clear(self, request: Request) -> dict[str, Any]:
        await asyncio.to_thread(self._runs.clear_raw)
        return {}

    async def _limit(self, request: Request) -> dict[str, Any]:
        value = str(request.query_params.get("bytes", ""))
        await asyncio.to_thread(self._runs.set_limit, int(value) if value.isascii() and value.isdecimal() else -1)
        return {}

    async def _delete(self, request: Request) -> dict[str, Any]:
        await asyncio.to_thread(self._runs.delete, int(request.path_params["id"]))
        return {}

    async def _export(self, request: Request) -> Response:
        request_id = int(request.path_params["id"])
        try:
            data = await asyncio.to_thread(lambda: pack(self._runs.run(request_id)))
        except PlaygroundError as problem:
            return Response(str(problem), 404, media_type="text/plain")
        headers = {"Content-Disposition": f'attachment; filename="run-{request_id}{SUFFIX}"'}
        return Response(data, media_type="application/zstd", headers=headers)

    # How they are sent

    def _answer(self, handle: Handler, *, changes: bool = False) -> Callable[[Request], Awaitable[Response]]:
        async def route(request: Request) -> Response:
            if changes and HEADER not in request.headers:
                return _json(request, {"error": f"This needs the header {HEADER}."}, 403)
            try:
                return _json(request, await handle(request))
            except PlaygroundError as problem:  # said in place, like any other answer
                return _json(request, {"error": str(problem)})
            except Exception:
                logger.exception("%s failed", request.url.path)
                return _json(request, {"error": FAULT})

        return route


def _json(request: Request, value: Any, status: int = 200) -> Response:
    data = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    headers = {"Cache-Control": "no-store"}
    if len(data) > GZIP_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        data = gzip.compress(data, 5)
        headers["Content-Encoding"] = "gzip"
    return Response(data, status, media_type="application/json", headers=headers)


def _query(request: Request) -> RunQuery:
    asked = request.query_params
    page = asked.get("page", "0")
    number = int(page) if page.isascii() and page.isdecimal() and len(page) < 9 else 0
    return RunQuery(
        search=asked.get("search", "")[:200],
        finish=asked.get("finish", ""),
        config_id=asked.get("config", ""),
        origin=asked.get("origin", ""),
        sort=asked.get("sort", "created_ms"),
        descending=asked.get("order", "down") != "up",
        limit=PAGE_ROWS,
        offset=number * PAGE_ROWS,
    )
