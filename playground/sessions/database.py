"""Opens the chat database: SQLAlchemy engine, pragmas, transactions. Knows nothing of chats.

Transactions are explicit: a writing one takes the write lock when it begins and waits for it as long as its caller may
wait; a reading one never takes it.
"""

import sqlite3
from typing import Any

from sqlalchemy import URL, Connection, Engine, StaticPool, create_engine, event

MEMORY = ":memory:"
BUSY_TIMEOUT_MS = 5000
WRITE_WAIT_MS = "chat_store_write_wait_ms"
"""Execution option of a connection that will write: how long it may wait for the lock."""

_PRAGMAS = (
    f"busy_timeout={BUSY_TIMEOUT_MS}",
    "foreign_keys=ON",
    "synchronous=NORMAL",  # in WAL mode: safe against a crash of the process, and no wait for the disk on every turn
    "temp_store=MEMORY",
    "journal_size_limit=67108864",  # or the WAL would keep its largest size for ever
    "secure_delete=ON",  # a deleted chat is overwritten, not only forgotten
)


def open_database(path: str) -> Engine:
    """An engine for a file, or for a database in memory, which has one connection for the writer thread to use."""
    if path == MEMORY:
        arguments: dict[str, Any] = {"poolclass": StaticPool}
        url = URL.create("sqlite")
    else:
        arguments = {"pool_size": 5, "max_overflow": -1}
        url = URL.create("sqlite", database=path)  # built, not written: a path may hold "?" or "%"
    engine = create_engine(url, connect_args={"check_same_thread": False, "isolation_level": None}, **arguments)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: sqlite3.Connection, _record: Any) -> None:
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    connection.create_function("contains_folded", 2, _contains_folded, deterministic=True)


def _contains_folded(text: str | None, folded_needle: str) -> bool:
    """Whether `text` contains the needle in any case, in any script; SQLite's LIKE folds ASCII only."""
    return text is not None and folded_needle in text.casefold()


def _begin(connection: Connection) -> None:
    wait_ms = connection.get_execution_options().get(WRITE_WAIT_MS)
    if wait_ms is None:
        connection.exec_driver_sql("BEGIN")
        return
    connection.exec_driver_sql(f"PRAGMA busy_timeout={int(wait_ms)}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")
