"""What happens when the page asks for something: each event's handler, and how a reply is streamed to a browser tab.

Handlers keep no conversation: the truth is the store, a reply being written belongs to its `ChatRun`, and every event
says which chat the tab shows. What the engine does meanwhile reaches the browser as live frames, and not from here.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import gradio as gr

from playground.errors import PlaygroundError
from playground.sessions import SessionStore
from playground.sessions.recorder import RunRecorder
from playground.telemetry.pace import pause
from playground.ui import views
from playground.ui.host import EngineHost
from playground.ui.runs import ChatRun, RunRegistry
from playground.ui.trash import Trash
from playground.ui.turns import Turns, Wish
from playground.ui.wording import PAGE_NAME

logger = logging.getLogger(__name__)

T = TypeVar("T")
Outputs = tuple[Any, Any, Any]
"""Transcript, live reply, list of chats; `gr.skip()` where nothing changes."""
Frames = AsyncGenerator[Outputs, None]
CHATS_SHOWN = 200
STEPS_LOOKED_AT = 8
PROBABILITIES_VIEW = "confidence"
"""The view of a reply's tokens that shows their probabilities: they are asked for where a tab has chosen it."""
MOST_PAGE_NAME = 64
MODEL_CHANGED = "the model was changed"
FAULT = f"{PAGE_NAME} could not do that because of a fault of its own; its log says more. Try again."


class ChatHandlers:
    """The handlers of one page over the engine of the moment and one store."""

    def __init__(self, host: EngineHost, store: SessionStore, recorder: RunRecorder | None = None) -> None:
        self._store = store
        self._host = host
        self.runs = RunRegistry()
        self.trash = Trash(self._delete)
        self._turns = Turns(host, store, self.runs, self.trash, recorder)
        host.follow(leaves=lambda serving: self.runs.end_all(MODEL_CHANGED))
        self._shown: dict[str, int | None] = {}
        """Which chat each browser tab shows, to end a stream whose tab has moved on."""
        self._pages: dict[str, str] = {}
        """Tabs by what their page calls itself when it says that it is being closed."""

    # Events that start or join a reply

    async def load(self, request: gr.Request) -> Frames:
        """The page was opened or reloaded: the chat of its address, or an empty one."""
        wanted = str(dict(request.query_params).get("chat", ""))
        chat_id = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 16 else None
        async with aclosing(self._show(chat_id, _tab(request), with_list=True)) as frames:
            async for outputs in frames:
                yield outputs

    async def open(self, event: gr.EventData, request: gr.Request) -> Frames:
        async with aclosing(self._show(_chat_id(event._data, "id"), _tab(request))) as frames:
            async for outputs in frames:
                yield outputs

    async def send(self, event: gr.EventData, request: gr.Request) -> Frames:
        data, tab = event._data, _tab(request)
        text = str(data.get("text", ""))
        start = self._starter(lambda: self._turns.ask(_chat_id(data), text, _wish(data), tab, _seen(data)))
        async with aclosing(self._reply(start, _chat_id(data), tab, _page(data), restore=text)) as frames:
            async for outputs in frames:
                yield outputs

    async def edit(self, event: gr.EventData, request: gr.Request) -> Frames:
        data, tab = event._data, _tab(request)
        text, chat_id = str(data.get("text", "")), _chat_id(data) or 0
        message_id = _chat_id(data, "message")
        start = self._starter(lambda: self._turns.edit(chat_id, text, _wish(data), tab, _seen(data), message_id))
        async with aclosing(self._reply(start, chat_id, tab, _page(data), restore=text)) as frames:
            async for outputs in frames:
                yield outputs

    async def retry(self, event: gr.EventData, request: gr.Request) -> Frames:
        data, tab = event._data, _tab(request)
        chat_id = _chat_id(data) or 0
        start = self._starter(lambda: self._turns.retry(chat_id, _wish(data), tab, _seen(data)))
        async with aclosing(self._reply(start, chat_id, tab, _page(data))) as frames:
            async for outputs in frames:
                yield outputs

    async def extend(self, event: gr.EventData, request: gr.Request) -> Frames:
        data, tab = event._data, _tab(request)
        chat_id = _chat_id(data) or 0
        start = self._starter(lambda: self._turns.extend(chat_id, _wish(data), tab, _seen(data)))
        async with aclosing(self._reply(start, chat_id, tab, _page(data))) as frames:
            async for outputs in frames:
                yield outputs

    # Events with one answer

    async def stop(self, event: gr.EventData) -> None:
        """Stops the engine's work; the stream that is watching the run sees it end."""
        run = self.runs.get(_chat_id(event._data))
        if run is not None:
            run.cancel()

    async def undo(self, event: gr.EventData) -> tuple[Any, Any]:
        chat_id = _chat_id(event._data) or 0
        restore = error = None
        try:
            restore = await asyncio.to_thread(self._turns.undo, chat_id, _seen(event._data))
        except PlaygroundError as problem:
            error = str(problem)
        return await self._transcript(chat_id, error=error, restore=restore), await self._chats()

    async def switch(self, event: gr.EventData) -> Any:
        """Another version of a message, with what followed it."""
        chat_id = _chat_id(event._data) or 0
        error = await self._try(self._turns.switch, chat_id, _chat_id(event._data, "message") or 0)
        return await self._transcript(chat_id, run=self.runs.get(chat_id), error=error)

    async def new(self, request: gr.Request) -> tuple[Any, Any]:
        self._shown[_tab(request)] = None
        return views.transcript(None), views.NO_REPLY

    async def rename(self, event: gr.EventData) -> tuple[Any, Any]:
        data = event._data
        error = await self._try(self._store.rename_chat, _chat_id(data, "id") or 0, str(data.get("title", "")))
        shown = _chat_id(data)
        again = await self._transcript(shown) if shown == _chat_id(data, "id") else gr.skip()
        return again, await self._chats(str(data.get("query", "")), error)

    async def delete(self, event: gr.EventData, request: gr.Request) -> tuple[Any, Any, Any]:
        """The chat is gone from the page at once, and from the store when it can no longer be brought back."""
        data = event._data
        chat_id = _chat_id(data, "id") or 0
        self.trash.put(chat_id)
        await asyncio.to_thread(self._turns.silence, chat_id)
        chats = await self._chats(str(data.get("query", "")))
        if _chat_id(data) == chat_id:
            return (*await self.new(request), chats)
        return gr.skip(), gr.skip(), chats

    async def restore(self, event: gr.EventData, request: gr.Request) -> Frames:
        """Bring a deleted chat back, and open it where the tab showed it."""
        data = event._data
        chat_id = _chat_id(data, "id") or 0
        error = None if self.trash.restore(chat_id) else "It is too late to bring the chat back: it has been deleted."
        yield gr.skip(), gr.skip(), await self._chats(str(data.get("query", "")), error)
        if error is None and data.get("open"):
            async with aclosing(self._show(chat_id, _tab(request))) as frames:
                async for outputs in frames:
                    yield outputs

    async def search(self, event: gr.EventData) -> Any:
        return await self._chats(str(event._data.get("query", "")))

    def leave(self, page: str) -> None:
        """A page was closed or reloaded: nobody reads what it had asked for."""
        tab = self._pages.pop(page, None)
        if tab is not None:
            self._shown.pop(tab, None)
            self.runs.cancel_owned(tab)

    # Streaming

    async def _show(self, chat_id: int | None, tab: str, with_list: bool = False) -> Frames:
        """A chat as it is stored; where a reply is being written in it, that too, until its end."""
        chats = await self._chats() if with_list else gr.skip()
        run = self.runs.get(chat_id)
        view = await self._transcript(chat_id, run=run)
        self._shown[tab] = view["chat"]
        yield view, views.NO_REPLY, chats
        if run is not None:
            async with aclosing(self._watch(run, tab)) as frames:
                async for outputs in frames:
                    yield outputs

    async def _reply(
        self, start: Callable[[], Any], chat_id: int | None, tab: str, page: str, restore: str | None = None
    ) -> Frames:
        """Start a run and stream it; a refusal is said in place and gives the text back."""
        self._shown[tab] = chat_id
        if page:
            self._pages[page] = tab
        run, error = await start()
        if run is None:
            other = self.runs.get(chat_id)  # the reason may be that another tab is having a reply written here
            yield (
                await self._transcript(chat_id, run=other, error=error, restore=restore),
                gr.skip(),
                gr.skip(),
            )
            if other is not None:
                async with aclosing(self._watch(other, tab)) as frames:
                    async for outputs in frames:
                        yield outputs
            return
        self._shown[tab] = run.chat_id
        try:
            yield await self._transcript(run.chat_id, run=run), views.NO_REPLY, await self._chats()
            async with aclosing(self._watch(run, tab)) as frames:
                async for outputs in frames:
                    yield outputs
        finally:
            # The tab went away in mid-reply (or its connection did). A tab that only shows another chat keeps its run.
            if not run.ended and self._shown.get(tab) == run.chat_id:
                run.cancel()

    async def _watch(self, run: ChatRun, tab: str) -> Frames:
        """Frames of a run until it is stored or the tab shows another chat; then the transcript with the reply."""
        frames = views.LiveFrames()
        while not run.ended:
            if self._shown.get(tab) != run.chat_id:
                return
            started = time.perf_counter()
            yield gr.skip(), frames.next(run, self._num_before(run), self._num_read(run)), gr.skip()
            await asyncio.sleep(pause(time.perf_counter() - started))
        if self._shown.get(tab) == run.chat_id:
            yield gr.skip(), frames.next(run, None, None), gr.skip()  # the tokens of the last step too
            view = await self._transcript(run.chat_id, error=run.problem)
            yield view, views.NO_REPLY, await self._chats()

    def _num_before(self, run: ChatRun) -> int | None:
        return self._host.hub.num_waiting_before(run.id)

    def _num_read(self, run: ChatRun) -> int | None:
        """How much of a run's prompt the engine's latest steps have computed; None where they had no part of it."""
        for step in reversed(self._host.hub.recent_steps(STEPS_LOOKED_AT)):
            for share in step.requests:
                if share.request_id == run.id:
                    return min(share.num_computed_tokens + share.num_tokens, run.num_prompt_tokens)
        return None

    # Parts

    def _starter(self, begin: Callable[[], ChatRun]) -> Callable[[], Any]:
        async def start() -> tuple[ChatRun | None, str | None]:
            try:
                return await asyncio.to_thread(begin), None
            except PlaygroundError as problem:
                return None, str(problem)
            except Exception:
                logger.exception("starting a reply failed")
                return None, FAULT

        return start

    async def _try(self, action: Callable[..., Any], *arguments: Any) -> str | None:
        """Do it off the event loop; the sentence of what went wrong, or None."""
        try:
            await asyncio.to_thread(action, *arguments)
        except PlaygroundError as problem:
            return str(problem)
        return None

    async def _transcript(self, chat_id: int | None, **more: Any) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            chat = None if chat_id is None or chat_id in self.trash else self._store.get_chat(chat_id)
            if chat is None:
                return views.transcript(None, **more)
            return views.transcript(chat, self._store.messages(chat.id), self._store.versions(chat.id), **more)

        try:
            return await asyncio.to_thread(read)
        except PlaygroundError as problem:
            return views.transcript(None, error=str(problem), restore=more.get("restore"))

    async def _chats(self, query: str = "", error: str | None = None) -> dict[str, Any]:
        try:
            chats = await asyncio.to_thread(self._store.list_chats, query, CHATS_SHOWN)
        except PlaygroundError as problem:
            return views.chat_list([], query, str(problem))
        return views.chat_list([chat for chat in chats if chat.id not in self.trash], query, error)

    def _delete(self, chat_id: int) -> None:
        self._turns.delete(chat_id)

    def close(self) -> None:
        """Store the replies that are being written, delete what waits for that."""
        self.runs.close()
        self.trash.close()


def _tab(request: gr.Request) -> str:
    return str(request.session_hash)


def _page(data: dict[str, Any]) -> str:
    name = data.get("page")
    return name if isinstance(name, str) and len(name) <= MOST_PAGE_NAME else ""


def _chat_id(data: Any, key: str = "chat") -> int | None:
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _wish(data: dict[str, Any]) -> Wish:
    settings = data.get("settings")
    typed = settings if isinstance(settings, dict) else {}
    return Wish(typed, str(data.get("system", "")), data.get("view") == PROBABILITIES_VIEW)


def _seen(data: Any) -> int | None:
    """The last message that the tab shows; 0: none."""
    return _chat_id(data, "head")
