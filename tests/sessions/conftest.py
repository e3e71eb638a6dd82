"""Chat stores on real SQLite files, and an ordinary user's rights for tests that run as root."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from playground.sessions import MessageInfo, SessionStore

NOBODY = 65534


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SessionStore]:
    """An empty store; every test that takes it runs on a file and in memory."""
    with SessionStore(tmp_path / "chats.db" if request.param == "file" else ":memory:") as opened:
        yield opened


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[SessionStore]:
    """A store on a file that an earlier start had made, as it mostly is."""
    SessionStore(tmp_path / "chats.db").close()
    with SessionStore(tmp_path / "chats.db") as opened:
        yield opened


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """File permissions bind inside: root gives up its rights for the time (they would not bind root)."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def reply(store: SessionStore, chat_id: int, parent_id: int | None, text: str, **changes: Any) -> MessageInfo:
    """Append a reply with the run values that the test does not care about."""
    values: dict[str, Any] = {"status": "done", "metrics": {}, "config": {"block_size": 16}, "params": {}} | changes
    return store.append_reply(chat_id, parent_id=parent_id, text=text, **values)


def turn(
    store: SessionStore, chat_id: int, parent_id: int | None, question: str, answer: str, **changes: Any
) -> MessageInfo:
    values: dict[str, Any] = {"status": "done", "metrics": {}, "config": {"block_size": 16}, "params": {}} | changes
    return store.append_turn(chat_id, parent_id=parent_id, user_text=question, reply_text=answer, **values)


def contents(store: SessionStore, chat_id: int) -> list[str]:
    return [message.content for message in store.messages(chat_id)]
