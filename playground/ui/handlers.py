"""What happens when the page asks for something: each event's handler, with one answer.

Handlers keep no conversation and nothing of a tab: the truth is the store, a reply being written belongs to its
`ChatRun`, and every event says which chat the tab shows. How a reply grows reaches the browser through its one live
stream (`replies`), and not from here: an answer that took as long as the reply would hold a connection of the browser,
which has six for all of its tabs.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr

from playground.errors import PlaygroundError
from playground.sessions import SessionStore
from playground.sessions.recorder import RunRecorder
from playground.ui import views
from playground.ui.host import EngineHost
from playground.ui.reply_stream import LiveReplies
from playground.ui.runs import ChatRun, RunRegistry
from playground.ui.trash import Trash
from playground.ui.turns import Turns, Wish
from playground.ui.wording import PAGE_NAME

logger = logging.getLogger(__name__)

Outputs = tuple[Any, Any, Any]
"""Transcript, live reply, list of chats; `gr.skip()` where nothing changes."""
CHATS_SHOWN = 200
PROBABILITIES_VIEW = "confidence"
"""The view of a reply's tokens that shows their probabilities: they are asked for where a tab has chosen it."""
MOST_PAGE_NAME = 64
MODEL_CHANGED = "the model was changed"
FAULT = f"{PAGE_NAME} could not do that because of a fault of its own; its log says more. Try again."


class ChatHandlers:
    """The handlers of one page over the engine of the moment and one store."""

    def __init__(self, host: EngineHost, store: SessionStore, recorder: RunRecorder | None = None) -> None:
        self._store = store
        self.runs = RunRegistry()
        self.replies = LiveReplies(self.runs, host)
        self.trash = Trash(self._delete)
        self._turns = Turns(host, store, self.runs, self.trash, recorder)
        self._stop_following = host.follow(leaves=lambda serving: self.runs.end_all(MODEL_CHANGED))

    # Events that start or show a reply

    async def load(self, request: gr.Request) -> Outputs:
        """The page was opened or reloaded: the chat of its address, or an empty one."""
        wanted = str(dict(request.query_params).get("chat", ""))
        chat_id = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 16 else None
        return *await self._chat(chat_id), await self._chats()

    async def open(self, event: gr.EventData) -> Outputs:
        return *await self._chat(_chat_id(event._data, "id")), gr.skip()

    async def again(self, event: gr.EventData) -> Outputs:
        """The chat that the tab shows has a new reply, or may have."""
        return *await self._chat(_chat_id(event._data)), await self._chats()

    async def send(self, event: gr.EventData) -> Outputs:
        data = event._data
        text, chat_id = str(data.get("text", "")), _chat_id(data)
        return await self._start(
            chat_id, text, lambda: self._turns.ask(chat_id, text, _wish(data), _page(data), _seen(data))
        )

    async def edit(self, event: gr.EventData) -> Outputs:
        data = event._data
        text, chat_id, message_id = str(data.get("text", "")), _chat_id(data) or 0, _chat_id(data, "message")
        return await self._start(
            chat_id, text, lambda: self._turns.edit(chat_id, text, _wish(data), _page(data), _seen(data), message_id)
        )

    async def retry(self, event: gr.EventData) -> Outputs:
        data, chat_id = event._data, _chat_id(event._data) or 0
        return await self._start(
            chat_id, None, lambda: self._turns.retry(chat_id, _wish(data), _page(data), _seen(data))
        )

    async def extend(self, event: gr.EventData) -> Outputs:
        data, chat_id = event._data, _chat_id(event._data) or 0
        return await self._start(
            chat_id, None, lambda: self._turns.extend(chat_id, _wish(data), _page(data), _seen(data))
        )

    async def stop(self, event: gr.EventData) -> None:
        """Stops the engine's work; every tab that shows the reply hears of its end."""
        run = self.runs.get(_chat_id(event._data))
        if run is not None:
            run.cancel()

    # Other events

    async def undo(self, event: gr.EventData) -> tuple[Any, Any]:
        chat_id = _chat_id(event._data) or 0
        restore = error = None
        try:
            restore = await asyncio.to_thread(self._turns.undo, chat_id, _seen(event._data))
        except PlaygroundError as problem:
            error = str(problem)
        run = self.runs.get(chat_id)
        return await self._transcript(chat_id, run=run, error=error, restore=restore), await self._chats()

    async def switch(self, event: gr.EventData) -> Any:
        """Another version of a message, with what followed it."""
        chat_id = _chat_id(event._data) or 0
        error = await self._try(self._turns.switch, chat_id, _chat_id(event._data, "message") or 0)
        return await self._transcript(chat_id, run=self.runs.get(chat_id), error=error)

    async def new(self) -> tuple[Any, Any]:
        return views.transcript(None), views.NO_REPLY

    async def rename(self, event: gr.EventData) -> tuple[Any, Any]:
        data = event._data
        error = await self._try(self._store.rename_chat, _chat_id(data, "id") or 0, str(data.get("title", "")))
        shown = _chat_id(data)
        again = await self._transcript(shown, run=self.runs.get(shown)) if shown == _chat_id(data, "id") else gr.skip()
        return again, await self._chats(str(data.get("query", "")), error)

    async def delete(self, event: gr.EventData) -> Outputs:
        """The chat is gone from the page at once, and from the store when it can no longer be brought back."""
        data = event._data
        chat_id = _chat_id(data, "id") or 0
        self.trash.put(chat_id)
        await asyncio.to_thread(self._turns.silence, chat_id)
        chats = await self._chats(str(data.get("query", "")))
        if _chat_id(data) == chat_id:
            return *await self.new(), chats
        return gr.skip(), gr.skip(), chats

    async def restore(self, event: gr.EventData) -> Outputs:
        """Bring a deleted chat back, and open it where the tab showed it."""
        data = event._data
        chat_id = _chat_id(data, "id") or 0
        error = None if self.trash.restore(chat_id) else "It is too late to bring the chat back: it has been deleted."
        chats = await self._chats(str(data.get("query", "")), error)
        if error is None and data.get("open"):
            return *await self._chat(chat_id), chats
        return gr.skip(), gr.skip(), chats

    async def search(self, event: gr.EventData) -> Any:
        return await self._chats(str(event._data.get("query", "")))

    def leave(self, page: str) -> None:
        """A page was closed or reloaded: nobody reads what it had asked for."""
        if page:
            self.runs.cancel_owned(page)

    # Parts

    async def _start(self, chat_id: int | None, text: str | None, begin: Callable[[], ChatRun]) -> Outputs:
        """Begin a reply; a refusal is said in place, and gives the `text` back."""
        try:
            run = await asyncio.to_thread(begin)
        except PlaygroundError as problem:
            return *await self._chat(chat_id, error=str(problem), restore=text), gr.skip()
        except Exception:
            logger.exception("starting a reply failed")
            return *await self._chat(chat_id, error=FAULT, restore=text), gr.skip()
        return *await self._chat(run.chat_id), await self._chats()

    async def _chat(self, chat_id: int | None, error: str | None = None, restore: str | None = None) -> tuple[Any, Any]:
        """A chat as it is stored, and what there is of the reply that is being written in it."""
        run = self.runs.get(chat_id)
        view = await self._transcript(chat_id, run=run, error=error or self.runs.problem(chat_id), restore=restore)
        live = self.replies.whole(run)
        if run is not None and run.ended:  # while the chat was read
            return await self._chat(chat_id, error, restore)
        return view, live

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
        """Store the replies that are being written, delete what waits for that. May be called twice."""
        self._stop_following()
        self.runs.close()
        self.trash.close()


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
