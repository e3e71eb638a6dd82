"""The plain values that the page's components draw: transcript, live reply, list of chats. Pure functions.

Texts travel as JSON strings and become text nodes in the browser; no markup is made here. Each value carries a
revision, so that a late one never replaces a newer one.
"""

import itertools
import time
from collections.abc import Sequence
from typing import Any

from playground.sessions import ChatInfo, MessageInfo
from playground.telemetry.format import format_count
from playground.ui.frames import ReplyFrames
from playground.ui.runs import ChatRun
from playground.ui.wording import context_tokens, live_figures, reply_figures

View = dict[str, Any]

_revisions = itertools.count(time.time_ns() // 1_000_000)  # grows over restarts too, for pages that stay open


def transcript(
    chat: ChatInfo | None,
    messages: Sequence[MessageInfo] = (),
    *,
    run: ChatRun | None = None,
    error: str | None = None,
    restore: str | None = None,
) -> View:
    """The stored part of a chat. While a `run` is on, a reply that it will replace is left out."""
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
        "messages": [_message(message) for message in messages],
        "running": run is not None,
        "tokens": context_tokens(last_metrics),
        "left_out": _left_out(left_out),
        "error": error,
        "restore": restore,
    }


def _message(message: MessageInfo) -> View:
    view: View = {"id": message.id, "role": message.role, "text": message.content}
    if message.run is not None:
        view["status"] = message.run.status
        view["error"] = message.run.metrics.get("error")
        view["figures"] = reply_figures(message.run.metrics)
    return view


def _left_out(count: int) -> str | None:
    if not count:
        return None
    subject = "The first message no longer fits" if count == 1 else f"The first {count} messages no longer fit"
    return f"{subject} the model's context and {'was' if count == 1 else 'were'} not read for the latest reply."


NO_REPLY: View = {"run": None}
"""The live view when nothing is being written."""


def live(run: ChatRun, frames: ReplyFrames, num_read: int | None) -> View:
    """One frame of the reply being written. `num_read`: prompt tokens done so far, None while it waits its turn."""
    progress = run.progress()
    seq = frames.seq
    at, text = frames.next(progress.text)
    if progress.num_tokens:
        phase = ""
    elif num_read is None:
        phase = "Waiting for its turn"
    else:
        phase = f"Reading the conversation: {format_count(num_read)} of {format_count(run.num_prompt_tokens)} tokens"
    return {
        "run": run.id,
        "chat": run.chat_id,
        "seq": seq,
        "at": at,
        "text": text,
        "phase": phase,
        "figures": live_figures(progress.num_tokens, progress.seconds_since_first),
        "tokens": run.num_prompt_tokens + progress.num_tokens,
    }


def chat_list(chats: Sequence[ChatInfo], query: str = "", error: str | None = None) -> View:
    sessions = [{"id": chat.id, "title": chat.title, "updated_ms": chat.updated_ms} for chat in chats]
    return {"rev": next(_revisions), "query": query, "sessions": sessions, "error": error}
