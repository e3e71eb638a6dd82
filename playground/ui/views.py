"""The plain values that the page's components draw: transcript, live reply, list of chats. Pure functions.

Texts travel as JSON strings and become text nodes in the browser; no markup is made here. Each value carries a
revision, so that a late one never replaces a newer one.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from playground.sessions import ChatInfo, MessageInfo, RunInfo
from playground.ui.frames import TOKENS_FULL_EVERY, ReplyFrames
from playground.ui.runs import ChatRun, Progress
from playground.ui.turns import can_continue
from playground.ui.wording import context_tokens, phase, plural, reply_figures

View = dict[str, Any]

_revisions = itertools.count(time.time_ns() // 1_000_000)  # grows over restarts too, for pages that stay open


def transcript(
    chat: ChatInfo | None,
    messages: Sequence[MessageInfo] = (),
    versions: Mapping[int | None, Sequence[int]] | None = None,
    *,
    run: ChatRun | None = None,
    error: str | None = None,
    restore: str | None = None,
) -> View:
    """The stored part of a chat. While a `run` is on, a reply that it will replace is left out.

    `versions`: where the chat's branches part, as the store tells it.
    """
    if run is not None and messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    replies = [message for message in messages if message.run is not None]
    last_metrics = replies[-1].run.metrics if replies and replies[-1].run is not None else {}
    left_out = run.num_left_out if run is not None else last_metrics.get("num_messages_left_out") or 0
    return {
        "rev": next(_revisions),
        "chat": None if chat is None else chat.id,
        "title": "" if chat is None else chat.title,
        "system": "" if chat is None else chat.system_prompt,
        "messages": [_message(message, (versions or {}).get(message.parent_id)) for message in messages],
        "running": run is not None,
        "tokens": context_tokens(last_metrics),
        "left_out": _left_out(left_out),
        "error": error,
        "restore": restore,
    }


def _message(message: MessageInfo, versions: Sequence[int] | None) -> View:
    view: View = {"id": message.id, "role": message.role, "text": message.content}
    if versions is not None and message.id in versions:
        view["versions"] = list(versions)
    if message.run is not None:
        metrics = message.run.metrics
        view["status"] = message.run.status
        view["error"] = metrics.get("error")
        view["figures"] = reply_figures(metrics)
        view["tokens"] = isinstance(metrics.get("tokens"), str)
        view["speculation"] = _speculation(message.run)
        view["continuable"] = can_continue(message)
        view["cut"] = metrics.get("finish_reason") == "length"
    return view


def _speculation(run: RunInfo) -> str | None:
    """Why a reply has no drafts, for the view that would show them; None where it has some."""
    if run.metrics.get("num_draft_tokens"):
        return None
    if not run.config.get("speculation"):
        return "Speculation was off: every token is the target's own, one a step."
    state = run.metrics.get("speculation")
    reason = state.get("reason") if isinstance(state, Mapping) else None
    return f"No drafts were made for this reply{f': {reason}' if reason else ''}."


def _left_out(count: int) -> str | None:
    if not count:
        return None
    subject = "The first message no longer fits" if count == 1 else f"The first {count} messages no longer fit"
    return f"{subject} the model's context and {'was' if count == 1 else 'were'} not read for the latest reply."


NO_REPLY: View = {"number": None}
"""The live view when nothing is being written."""


class LiveFrames:
    """Cuts what is known of one run into frames: its text and its tokens.

    `num_before`: requests that wait before it, None where it does not wait; `num_read`: prompt tokens done so far, None
    where they are not known.
    """

    def __init__(self, run: ChatRun) -> None:
        self._run = run
        self._text = ReplyFrames()
        self._tokens = ReplyFrames(full_every=TOKENS_FULL_EVERY)

    def next(self, num_before: int | None, num_read: int | None) -> View:
        """What has come since the frame before. After the run's end one with everything, the last."""
        ended = self._run.ended  # asked first: what is read afterwards is all there will be
        progress = self._run.progress()
        at, text = self._text.next(progress.text, full=ended)
        tokens_at, rows = self._tokens.next(progress.tokens, full=ended)
        view = self._view(progress, num_before, num_read)
        return view | {"at": at, "text": text, "tokens_at": tokens_at, "rows": rows, "ended": ended}

    def whole(self, num_before: int | None, num_read: int | None) -> View:
        """Everything until now, for who comes late: the frames that follow go on from it."""
        progress = self._run.progress()
        view = self._view(progress, num_before, num_read)
        return view | {"at": 0, "text": progress.text, "tokens_at": 0, "rows": progress.tokens, "ended": False}

    def _view(self, progress: Progress, num_before: int | None, num_read: int | None) -> View:
        run = self._run
        return {
            "number": run.number,
            "run": run.id,
            "chat": run.chat_id,
            "seq": self._text.seq - 1,
            "phase": phase(progress.num_tokens, num_before, num_read, run.num_prompt_tokens),
            "figures": reply_figures(progress.metrics, ended=False) if progress.num_tokens else [],
            "tokens": run.num_prompt_tokens + progress.num_tokens,
        }


def chat_list(chats: Sequence[ChatInfo], query: str = "", error: str | None = None) -> View:
    sessions = [
        {
            "id": chat.id,
            "title": chat.title,
            "updated_ms": chat.updated_ms,
            "detail": "" if chat.num_tokens is None else plural(chat.num_tokens, "token"),
        }
        for chat in chats
    ]
    return {"rev": next(_revisions), "query": query, "sessions": sessions, "error": error}
