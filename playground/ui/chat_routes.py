"""What the chat page fetches beside its events: a reply's tokens, its recorded run, and a chat as a file."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from playground.errors import PlaygroundError
from playground.sessions import SessionStore
from playground.sessions.recorder import RunRecorder
from playground.sessions.run_store import RunStore
from playground.telemetry.token_trace import unpack
from playground.ui.exporting import chat_json, chat_markdown, file_name

T = TypeVar("T")
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def chat_routes(store: SessionStore, recorder: RunRecorder | None = None) -> list[Route]:
    """Routes for `launch(app_kwargs={"routes": ...})`. `recorder` records the runs of the replies."""
    runs = RunStore(store)

    async def tokens(request: Request) -> Response:
        message_id = int(request.path_params["message_id"])
        return await _answer(lambda: _tokens(store, message_id))

    async def export(request: Request) -> Response:
        chat_id, suffix = int(request.path_params["chat_id"]), str(request.path_params["suffix"])
        return await _answer(lambda: _export(store, chat_id, suffix))

    async def run(request: Request) -> Response:
        message_id = int(request.path_params["message_id"])
        return await _answer(lambda: _run(runs, recorder, message_id))

    return [
        Route("/chats/run/{message_id:int}", run),
        Route("/chats/tokens/{message_id:int}", tokens),
        Route("/chats/{chat_id:int}/export.{suffix}", export),
    ]


async def _answer(make: Callable[[], Response]) -> Response:
    try:
        return await asyncio.to_thread(make)
    except PlaygroundError as problem:
        return PlainTextResponse(str(problem), 503, HEADERS)


def _tokens(store: SessionStore, message_id: int) -> Response:
    """The rows of `TracedToken`; an empty list where none are stored."""
    message = store.find_message(message_id) if message_id < 2**63 else None
    if message is None:
        return PlainTextResponse("There is no such message.", 404, HEADERS)
    return JSONResponse(unpack(message.run.metrics.get("tokens")) if message.run is not None else [], headers=HEADERS)


def _run(runs: RunStore, recorder: RunRecorder | None, message_id: int) -> Response:
    """The id of the recorded run that made a reply; null where there is none."""
    if message_id >= 2**63:
        return JSONResponse(None, headers=HEADERS)
    found = runs.of_message(message_id)
    if found is None and recorder is not None:  # the reply may have ended this very moment
        recorder.flush()
        found = runs.of_message(message_id)
    return JSONResponse(found, headers=HEADERS)


def _export(store: SessionStore, chat_id: int, suffix: str) -> Response:
    chat = store.get_chat(chat_id) if chat_id < 2**63 else None
    if chat is None or suffix not in ("md", "json"):
        return PlainTextResponse("There is no such chat, or no such format: md or json.", 404, HEADERS)
    if suffix == "md":
        text, kind = chat_markdown(chat, store.messages(chat_id)), "text/markdown"
    else:
        text, kind = chat_json(chat, store.all_messages(chat_id)), "application/json"
    headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{file_name(chat, suffix)}"'}
    return Response(text, headers=headers, media_type=f"{kind}; charset=utf-8")
