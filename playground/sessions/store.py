"""`SessionStore`: what the interface may do with saved chats. One writer thread, short reads, no object with a session.

Each writing call is one transaction and returns when it is stored, or raises `StorageError`; call it off the event
loop. Nothing is overwritten: a message appended anywhere but at the head begins a branch.
"""

import atexit
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, get_args

from sqlalchemy import Connection

from playground.sessions import comparisons, queries
from playground.sessions.codec import DEFAULT_TITLE, clean_text, title_from
from playground.sessions.database import MEMORY, open_database
from playground.sessions.errors import StorageError, explained
from playground.sessions.records import ChatInfo, ComparisonInfo, MessageInfo, RunStatus
from playground.sessions.schema import prepare
from playground.sessions.writer import LOCK_WAIT_SECONDS, Writer

T = TypeVar("T")


class SessionStore:
    """The saved chats of one database file, or of memory (`":memory:"`: gone when closed). Thread-safe."""

    def __init__(self, path: str | Path = MEMORY, *, lock_wait: float = LOCK_WAIT_SECONDS) -> None:
        """Create or upgrade the database. `lock_wait`: seconds a change may wait for another program's lock."""
        self.path = str(path) if str(path) == MEMORY else str(Path(path).expanduser().absolute())
        if self.path != MEMORY:
            _make_folder(Path(self.path).parent)
        self._engine = open_database(self.path)
        try:
            with explained(self.path):
                prepare(self._engine, self.path)
        except BaseException:
            self._engine.dispose()
            raise
        self._writer = Writer(self._engine, self.path, lock_wait)
        atexit.register(self.close)  # a process that ends without closing still stores what it queued

    def __enter__(self) -> "SessionStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Store what is queued, fold the write-ahead log into the file, end the thread. May be called twice."""
        atexit.unregister(self.close)
        self._writer.close()
        if self.path != MEMORY:
            try:
                with explained(self.path), self._engine.connect() as connection:
                    driver: Any = connection.connection.driver_connection
                    driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except StorageError:
                pass  # everything is in the log, which the next start reads
        self._engine.dispose()

    # Chats

    def create_chat(self, title: str = DEFAULT_TITLE, system_prompt: str = "") -> ChatInfo:
        return self._write(lambda connection: queries.create_chat(connection, title, system_prompt))

    def list_chats(self, search: str = "", limit: int = 50, offset: int = 0) -> list[ChatInfo]:
        """Newest first. `search` is plain text, looked for in titles and in all messages, in any case."""
        return self._read(lambda connection: queries.search_chats(connection, search, limit, max(0, offset)))

    def get_chat(self, chat_id: int) -> ChatInfo | None:
        """The chat, or None where it does not exist (any more)."""
        return self._read(lambda connection: queries.find_chat(connection, chat_id))

    def rename_chat(self, chat_id: int, title: str) -> ChatInfo:
        """Name a chat: one line of at most 60 characters. A blank name lets the next question name it."""
        name = title_from(title)
        values = {"title": name, "title_is_automatic": name == DEFAULT_TITLE}
        return self._write(lambda connection: queries.update_chat(connection, chat_id, **values))

    def set_system_prompt(self, chat_id: int, system_prompt: str) -> ChatInfo:
        text = clean_text(system_prompt)
        return self._write(lambda connection: queries.update_chat(connection, chat_id, system_prompt=text))

    def set_head(self, chat_id: int, message_id: int | None) -> ChatInfo:
        """Where the chat ends from now on (undo, edit, another branch); None is before its first message."""

        def unit(connection: Connection) -> ChatInfo:
            queries.require_chat(connection, chat_id)
            if message_id is not None:
                queries.require_message(connection, chat_id, message_id)
            return queries.update_chat(connection, chat_id, head_message_id=message_id)

        return self._write(unit)

    def delete_chat(self, chat_id: int) -> None:
        """Delete the chat with all its branches; a chat that does not exist is not an error."""
        self._write(lambda connection: queries.delete_chat(connection, chat_id))

    # Messages

    def messages(self, chat_id: int) -> list[MessageInfo]:
        """The current branch, oldest first; empty where the chat is empty or does not exist."""
        return self._read(lambda connection: queries.branch_messages(connection, chat_id))

    def siblings(self, message_id: int) -> list[MessageInfo]:
        """The message and its alternatives (edits, retries), oldest first."""
        return self._read(lambda connection: queries.sibling_messages(connection, message_id))

    def newest_leaf(self, message_id: int) -> int:
        """The end of the newest branch through the message: what to give `set_head` to switch to it."""
        return self._read(lambda connection: queries.newest_leaf(connection, message_id))

    def versions(self, chat_id: int) -> dict[int | None, list[int]]:
        """Where the branches of a chat part: what follows each message (None: the beginning), if more than one does."""
        return self._read(lambda connection: queries.versions(connection, chat_id))

    def all_messages(self, chat_id: int) -> list[MessageInfo]:
        """Every message of every branch, oldest first."""
        return self._read(lambda connection: queries.all_messages(connection, chat_id))

    def find_message(self, message_id: int) -> MessageInfo | None:
        return self._read(lambda connection: queries.find_message(connection, message_id))

    def append_user_message(self, chat_id: int, *, parent_id: int | None, text: str) -> MessageInfo:
        """Store a question as soon as it is sent. It becomes the head; elsewhere than at the head it is a branch."""
        return self._write(lambda connection: queries.add_user_message(connection, chat_id, parent_id, text))

    def append_reply(
        self,
        chat_id: int,
        *,
        parent_id: int | None,
        text: str,
        status: RunStatus,
        metrics: Mapping[str, Any],
        config: Mapping[str, Any],
        params: Mapping[str, Any],
        seed: int | None = None,
        message_id: int | None = None,
    ) -> MessageInfo:
        """Store a reply with its run. It becomes the head unless the chat has gone on elsewhere meanwhile.

        With `message_id` it is more of a reply that was stored before it had ended, and takes its place.
        """
        return self.append_reply_soon(
            chat_id,
            parent_id=parent_id,
            text=text,
            status=status,
            metrics=metrics,
            config=config,
            params=params,
            seed=seed,
            message_id=message_id,
        ).result()

    def append_reply_soon(
        self,
        chat_id: int,
        *,
        parent_id: int | None,
        text: str,
        status: RunStatus,
        metrics: Mapping[str, Any],
        config: Mapping[str, Any],
        params: Mapping[str, Any],
        seed: int | None = None,
        message_id: int | None = None,
    ) -> "Future[MessageInfo]":
        """`append_reply` for whoever cannot wait; a failure is also logged."""
        run = queries.run_values(_checked(status), metrics, params, seed)
        if message_id is not None:
            return self._writer.submit(
                lambda connection: queries.grow_reply(connection, chat_id, message_id, text, run)
            )
        return self._writer.submit(
            lambda connection: queries.add_reply(connection, chat_id, parent_id, text, run, config)
        )

    def append_turn(
        self,
        chat_id: int,
        *,
        parent_id: int | None,
        user_text: str,
        reply_text: str,
        status: RunStatus,
        metrics: Mapping[str, Any],
        config: Mapping[str, Any],
        params: Mapping[str, Any],
        seed: int | None = None,
    ) -> MessageInfo:
        """Store question, reply and run together, all or nothing; returns the reply."""
        run = queries.run_values(_checked(status), metrics, params, seed)

        def unit(connection: Connection) -> MessageInfo:
            question = queries.add_user_message(connection, chat_id, parent_id, user_text)
            return queries.add_reply(connection, chat_id, question.id, reply_text, run, config)

        return self._write(unit)

    # Comparisons

    def save_comparison(self, title: str, data: Mapping[str, Any]) -> ComparisonInfo:
        return self._write(lambda connection: comparisons.add(connection, title, data))

    def list_comparisons(self, limit: int = 50) -> list[ComparisonInfo]:
        """Newest first."""
        return self._read(lambda connection: comparisons.newest(connection, limit))

    def get_comparison(self, comparison_id: int) -> tuple[ComparisonInfo, dict[str, Any]]:
        """The comparison and its data as JSON types. Raises `StorageError` where it does not exist (any more)."""
        return self._read(lambda connection: comparisons.read(connection, comparison_id))

    def vote_on_comparison(self, comparison_id: int, vote: str) -> None:
        """Keep the vote of a blind comparison; one that has a vote keeps that."""
        self._write(lambda connection: comparisons.vote(connection, comparison_id, vote))

    def delete_comparison(self, comparison_id: int) -> None:
        """A comparison that does not exist is not an error."""
        self._write(lambda connection: comparisons.remove(connection, comparison_id))

    # How reads and writes run

    def _write(self, unit: Callable[[Connection], T]) -> T:
        return self._writer.submit(unit).result()

    def _read(self, query: Callable[[Connection], T]) -> T:
        if self.path == MEMORY:  # its only connection belongs to the writer
            return self._writer.submit(query).result()
        with explained(self.path), self._engine.connect() as connection, connection.begin():
            return query(connection)


def _checked(status: RunStatus) -> RunStatus:
    if status not in get_args(RunStatus):
        raise StorageError(f"status={status!r} is not allowed: give 'done', 'stopped' or 'error'.")
    return status


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder {folder} for the chat database cannot be made ({error.strerror}): choose another with --db."
        ) from error
