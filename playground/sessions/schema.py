"""Brings a chat database to the current schema before anybody uses it, or refuses it with one sentence.

Alembic runs in one transaction under SQLite's write lock, so that two processes cannot upgrade at once; an older file
is first copied next to itself. A file of a newer playground or of another program is never touched.
"""

import contextlib
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, inspect, text

from playground.sessions.database import MEMORY, WRITE_WAIT_MS
from playground.sessions.errors import StorageError

SCHEMA_REVISION = "0004"
"""The newest revision in `migrations/versions`; a test holds them equal. Saves importing Alembic at every start."""
APPLICATION_ID = 0x50_4C_47_44  # "PLGD" in the file's header: what `file` and other tools show
MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_WAIT_MS = 10_000

_alembic_lock = threading.Lock()  # Alembic's `op` and `context` are one per process


def prepare(engine: Engine, path: str) -> None:
    """Create or upgrade the database behind `engine`. Raises `StorageError`; database errors pass to the caller."""
    with engine.connect() as connection:
        revision = _revision(connection, path)
        _use_wal(connection)
    if revision != SCHEMA_REVISION:
        with engine.connect().execution_options(**{WRITE_WAIT_MS: MIGRATION_WAIT_MS}) as connection:
            _upgrade(connection, path)


def _revision(connection: Connection, path: str) -> str | None:
    """The revision in the file, None for an empty one; refuses files that are not ours or too new."""
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return None
    found = None
    if {"alembic_version", "chat", "message"} <= tables:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if found is None:
        raise StorageError(f"{path} is a database of another program: choose another file with --db.")
    revision = str(found)
    if revision not in known_revisions():
        raise StorageError(
            f"The chat database {path} is from a newer playground (schema {revision}, not {SCHEMA_REVISION}): "
            "upgrade the playground, or choose another file with --db."
        )
    return revision


def _use_wal(connection: Connection) -> None:
    """Readers and the writer side by side. Where a file system or a read-only file refuses, it works without."""
    driver: Any = connection.connection.driver_connection
    connection.rollback()  # the mode cannot change inside a transaction
    with contextlib.suppress(sqlite3.OperationalError):
        driver.execute("PRAGMA journal_mode=WAL")


def known_revisions() -> set[str]:
    """Revisions are numbered, so that this needs no look at the migration files: 0001 up to the current one."""
    return {f"{number:04d}" for number in range(1, int(SCHEMA_REVISION) + 1)}


def _copy(path: str, revision: str) -> None:
    """Copy the database, WAL included, to `<path>.schema-<revision>.bak`; replaces an earlier one."""
    target = Path(f"{path}.schema-{revision}.bak")
    unfinished = Path(f"{target}.part")
    unfinished.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(unfinished)) as copy:
        source.backup(copy)
    unfinished.replace(target)


def alembic_config(connection: Connection | None = None) -> Any:
    """Alembic's configuration for the migrations shipped in this package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("file_template", "r%%(rev)s_%%(slug)s")
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection, path: str) -> None:
    """All missing revisions in one transaction that holds the write lock: the old schema or the new, never between."""
    from alembic import command

    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")  # rebuilding a table would otherwise delete what refers to it
    try:
        with _alembic_lock, connection.begin():
            revision = _revision(connection, path)
            if revision == SCHEMA_REVISION:
                return  # another process was faster
            if revision is not None and path != MEMORY:
                _copy(path, revision)
            command.upgrade(alembic_config(connection), "head")
            if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                raise StorageError(f"The chat database {path} is damaged: restore a copy of it.")
            connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
            connection.exec_driver_sql(f"PRAGMA user_version={int(SCHEMA_REVISION)}")
    finally:
        driver.execute("PRAGMA foreign_keys=ON")
