"""A saved chat as a file: Markdown for reading, JSON for programs. Pure functions; texts go in as they are."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from playground.sessions import ChatInfo, MessageInfo
from playground.telemetry.token_trace import TracedToken, unpack
from playground.ui.wording import model_name, reply_figures

FORMAT = "inference-playground-chat"
FORMAT_VERSION = 1


def chat_markdown(chat: ChatInfo, branch: Sequence[MessageInfo]) -> str:
    """The current branch: who said what, and the figures of each reply."""
    parts = [f"# {chat.title}", f"{_time(chat.created_ms)}"]
    if chat.system_prompt.strip():
        parts += ["## System prompt", chat.system_prompt.strip()]
    for message in branch:
        parts += [f"## {_speaker(message)}", message.content.strip() or "(no text)"]
        if message.run is not None:
            figures = " · ".join(text for text, _ in reply_figures(message.run.metrics))
            ended = "" if message.run.status == "done" else f"{message.run.status} · "
            parts.append(f"*{ended}{figures}*")
    return "\n\n".join(parts) + "\n"


def chat_json(chat: ChatInfo, messages: Sequence[MessageInfo]) -> str:
    """Everything of the chat: all branches, with the runs that made the replies and their tokens."""
    document = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "title": chat.title,
        "system_prompt": chat.system_prompt,
        "head_message_id": chat.head_message_id,
        "created_ms": chat.created_ms,
        "updated_ms": chat.updated_ms,
        "token_columns": list(TracedToken._fields),
        "messages": [_message(message) for message in messages],
    }
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def file_name(chat: ChatInfo, suffix: str) -> str:
    """The chat's title as a plain ASCII file name: "A fox who could not sleep.md"."""
    words = re.sub(r"[^A-Za-z0-9 _-]+", " ", chat.title)
    return f"{' '.join(words.split())[:60].strip() or f'chat {chat.id}'}.{suffix}"


def _message(message: MessageInfo) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": message.id,
        "parent_id": message.parent_id,
        "role": message.role,
        "content": message.content,
        "created_ms": message.created_ms,
    }
    if message.run is not None:
        metrics = {name: one for name, one in message.run.metrics.items() if name != "tokens"}
        value["run"] = {
            "status": message.run.status,
            "seed": message.run.seed,
            "metrics": metrics,
            "params": message.run.params,
            "config": message.run.config,
            "tokens": unpack(message.run.metrics.get("tokens")),
        }
    return value


def _speaker(message: MessageInfo) -> str:
    if message.role == "user":
        return "You"
    model = message.run.config.get("model") if message.run is not None else None
    return model_name(str(model)) if model else "Model"


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
