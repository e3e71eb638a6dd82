"""The statements of the chat store: each function runs inside a transaction it is given and returns plain records.

User text only ever travels as a bound value. Nothing here opens, commits or waits.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, insert, literal, or_, select, update

from playground.sessions import run_changes
from playground.sessions.codec import (
    DEFAULT_TITLE,
    canonical_json,
    clean_text,
    join_metrics,
    split_metrics,
    title_from,
)
from playground.sessions.errors import StorageError
from playground.sessions.records import ChatInfo, MessageInfo, RunInfo
from playground.sessions.tables import Chat, Message, Run, RunConfig, table

chats, messages, runs, configs = table(Chat), table(Message), table(Run), table(RunConfig)

_RUN_COLUMNS = [column.label(f"run_{column.name}") for column in runs.c]


def _with_tokens() -> Any:
    """Chats, each with how many tokens its newest reply ends at."""
    newest = (
        select(runs.c.num_prompt_tokens + runs.c.num_output_tokens)
        .join(messages, messages.c.id == runs.c.message_id)
        .where(messages.c.chat_id == chats.c.id)
        .order_by(messages.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    return select(chats, newest.label("num_tokens"))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _chat_info(row: RowMapping) -> ChatInfo:
    return ChatInfo(**{name: row[name] for name in ChatInfo.__dataclass_fields__})


def _message_info(row: RowMapping) -> MessageInfo:
    run = None
    if row["run_id"] is not None:
        columns = {column.name: row[f"run_{column.name}"] for column in runs.c}
        run = RunInfo(
            id=columns["id"],
            status=columns["status"],
            seed=columns["seed"],
            metrics=join_metrics(columns),
            params=json.loads(columns["params"]),
            config=json.loads(row["config_json"]),
            config_id=columns["config_id"],
        )
    fields = {name: row[name] for name in MessageInfo.__dataclass_fields__ if name != "run"}
    return MessageInfo(**fields, run=run)


# Chats


def create_chat(connection: Connection, title: str, system_prompt: str) -> ChatInfo:
    now = now_ms()
    name = title_from(title)
    values = {
        "title": name,
        "title_is_automatic": name == DEFAULT_TITLE,
        "system_prompt": clean_text(system_prompt),
        "created_ms": now,
        "updated_ms": now,
    }
    chat_id = connection.execute(insert(chats).values(**values).returning(chats.c.id)).scalar_one()
    return require_chat(connection, chat_id)


def find_chat(connection: Connection, chat_id: int) -> ChatInfo | None:
    row = connection.execute(_with_tokens().where(chats.c.id == chat_id)).mappings().first()
    return None if row is None else _chat_info(row)


def require_chat(connection: Connection, chat_id: int) -> ChatInfo:
    chat = find_chat(connection, chat_id)
    if chat is None:
        raise StorageError("This chat no longer exists, it may have been deleted in another tab: start a new chat.")
    return chat


def search_chats(connection: Connection, search: str, limit: int, offset: int) -> list[ChatInfo]:
    """Newest first; with a search, those whose title or any message contains it, in any case."""
    query = _with_tokens().order_by(chats.c.updated_ms.desc(), chats.c.id.desc()).limit(limit).offset(offset)
    needle = clean_text(search).strip().casefold()
    if needle:
        in_message = select(literal(1)).where(
            messages.c.chat_id == chats.c.id, func.contains_folded(messages.c.content, needle)
        )
        query = query.where(or_(func.contains_folded(chats.c.title, needle), in_message.exists()))
    return [_chat_info(row) for row in connection.execute(query).mappings()]


def update_chat(connection: Connection, chat_id: int, **values: Any) -> ChatInfo:
    connection.execute(update(chats).where(chats.c.id == chat_id).values(**values))
    return require_chat(connection, chat_id)


def delete_chat(connection: Connection, chat_id: int) -> None:
    """The chat, its messages, runs and recorded requests, and what nothing uses any more."""
    connection.execute(delete(chats).where(chats.c.id == chat_id))
    run_changes.delete_unused(connection)


# Messages


def branch_messages(connection: Connection, chat_id: int) -> list[MessageInfo]:
    """From the head of the chat back through the parents, oldest first."""
    path = (
        select(messages.c.id, messages.c.parent_id, literal(0).label("depth"))
        .join(chats, chats.c.head_message_id == messages.c.id)
        .where(chats.c.id == chat_id)
        .cte("path", recursive=True)
    )
    path = path.union_all(
        select(messages.c.id, messages.c.parent_id, path.c.depth + 1).join(path, messages.c.id == path.c.parent_id)
    )
    query = _with_runs().join(path, path.c.id == messages.c.id).order_by(path.c.depth.desc())
    return [_message_info(row) for row in connection.execute(query).mappings()]


def sibling_messages(connection: Connection, message_id: int) -> list[MessageInfo]:
    """The message and its alternatives (edits of a question, retries of an answer), oldest first."""
    own = select(messages.c.chat_id, messages.c.parent_id).where(messages.c.id == message_id).subquery()
    query = (
        _with_runs()
        .join(own, messages.c.chat_id == own.c.chat_id)
        .where(messages.c.parent_id.is_not_distinct_from(own.c.parent_id))
        .order_by(messages.c.id)
    )
    return [_message_info(row) for row in connection.execute(query).mappings()]


def versions(connection: Connection, chat_id: int) -> dict[int | None, list[int]]:
    """What follows each message of a chat (None: what it begins with), oldest first, where that is more than one."""
    query = select(messages.c.parent_id, messages.c.id).where(messages.c.chat_id == chat_id).order_by(messages.c.id)
    following: dict[int | None, list[int]] = {}
    for parent_id, message_id in connection.execute(query):
        following.setdefault(parent_id, []).append(message_id)
    return {parent_id: ids for parent_id, ids in following.items() if len(ids) > 1}


def all_messages(connection: Connection, chat_id: int) -> list[MessageInfo]:
    """Every message of every branch, oldest first."""
    query = _with_runs().where(messages.c.chat_id == chat_id).order_by(messages.c.id)
    return [_message_info(row) for row in connection.execute(query).mappings()]


def find_message(connection: Connection, message_id: int) -> MessageInfo | None:
    row = connection.execute(_with_runs().where(messages.c.id == message_id)).mappings().first()
    return None if row is None else _message_info(row)


def newest_leaf(connection: Connection, message_id: int) -> int:
    """The end of the newest branch that passes through the message: where switching to it should lead."""
    below = select(messages.c.id).where(messages.c.id == message_id).cte("below", recursive=True)
    below = below.union_all(select(messages.c.id).join(below, messages.c.parent_id == below.c.id))
    return connection.execute(select(func.max(below.c.id))).scalar_one() or message_id


def add_user_message(connection: Connection, chat_id: int, parent_id: int | None, text: str) -> MessageInfo:
    """A question always becomes the head: it is what its sender wants to see. The first one names the chat."""
    chat = require_chat(connection, chat_id)
    message_id = _add_message(connection, chat_id, parent_id, "user", text)
    values: dict[str, Any] = {"head_message_id": message_id, "updated_ms": now_ms()}
    automatic = connection.execute(select(chats.c.title_is_automatic).where(chats.c.id == chat_id)).scalar_one()
    title = title_from(text)
    if automatic and title != DEFAULT_TITLE:
        values |= {"title": title, "title_is_automatic": False}
    update_chat(connection, chat.id, **values)
    return message(connection, message_id)


def add_reply(
    connection: Connection,
    chat_id: int,
    parent_id: int | None,
    text: str,
    run: Mapping[str, Any],
    config: Mapping[str, Any],
) -> MessageInfo:
    """A reply becomes the head where the chat still ends at its question, or at another answer to that question.

    Otherwise somebody has gone on elsewhere (undo, another tab) while it was written: it stays in the tree.
    """
    head_id = require_chat(connection, chat_id).head_message_id
    follows = head_id == parent_id
    if not follows and head_id is not None:
        follows = message(connection, head_id).parent_id == parent_id and message(connection, head_id).role != "user"
    message_id = _add_message(connection, chat_id, parent_id, "assistant", text)
    used = run_changes.add_config(connection, config)
    connection.execute(insert(runs).values(message_id=message_id, config_id=used, created_ms=now_ms(), **run))
    values: dict[str, Any] = {"updated_ms": now_ms()}
    if follows:
        values["head_message_id"] = message_id
    update_chat(connection, chat_id, **values)
    return message(connection, message_id)


def grow_reply(connection: Connection, chat_id: int, message_id: int, text: str, run: Mapping[str, Any]) -> MessageInfo:
    """More of a reply that was added before it had ended."""
    require_chat(connection, chat_id)
    require_message(connection, chat_id, message_id)
    connection.execute(update(messages).where(messages.c.id == message_id).values(content=clean_text(text)))
    connection.execute(update(runs).where(runs.c.message_id == message_id).values(**run))
    update_chat(connection, chat_id, updated_ms=now_ms())
    return message(connection, message_id)


def run_values(status: str, metrics: Mapping[str, Any], params: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """Column values of a run, made before the transaction so that odd values fail at the caller."""
    return {"status": status, "seed": seed, "params": canonical_json(params), **split_metrics(metrics)}


def message(connection: Connection, message_id: int) -> MessageInfo:
    row = connection.execute(_with_runs().where(messages.c.id == message_id)).mappings().one()
    return _message_info(row)


def require_message(connection: Connection, chat_id: int, message_id: int) -> None:
    """Raise where the message is not one of this chat."""
    found = connection.execute(
        select(literal(1)).where(messages.c.id == message_id, messages.c.chat_id == chat_id)
    ).first()
    if found is None:
        raise StorageError(f"Message {message_id} is not in this chat: reload the page to see the chat as it is saved.")


def _add_message(connection: Connection, chat_id: int, parent_id: int | None, role: str, text: str) -> int:
    if parent_id is not None:
        require_message(connection, chat_id, parent_id)
    values = {"chat_id": chat_id, "parent_id": parent_id, "role": role, "content": clean_text(text)}
    query = insert(messages).values(**values, created_ms=now_ms()).returning(messages.c.id)
    return int(connection.execute(query).scalar_one())


def _with_runs() -> Any:
    return (
        select(messages, configs.c.json.label("config_json"), *_RUN_COLUMNS)
        .select_from(messages)
        .outerjoin(runs, runs.c.message_id == messages.c.id)
        .outerjoin(configs, configs.c.id == runs.c.config_id)
    )
