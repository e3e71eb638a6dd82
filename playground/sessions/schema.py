"""Brings a chat database to the current schema before anybody uses it, or refuses it with one sentence.

Alembic runs under a file lock, on a copy-protected file: an older database is copied next to itself first. A file of a
newer playground or of another program is never touched.
"""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, inspect, text

from playground.sessions.database import MEMORY
from playground.sessions.errors import StorageError

SCHEMA_REVISION = "0001"
"""The newest revision in `migrations/versions`; a test holds them equal. Saves importing Alembic at every start."""
APPLICATION_ID = 0x50_4C_47_44  # "PLGD" in the file's header: what `file` and other tools show
MIGRATION_WAIT_SECONDS = 30.0

_alembic_lock = threading.Lock()  # Alembic's `op` and `context` are one per process


def prepare(engine: Engine, path: str) -> None:
    """Create or upgrade the database behind `engine`. Raises `StorageError`; database errors pass to the caller."""
    if path == MEMORY:
        with engine.connect() as connection:
            _upgrade(connection)
        return
    if _revision(engine, path) == SCHEMA_REVISION:
        return
    try:
        with FileLock(f"{path}.lock", timeout=MIGRATION_WAIT_SECONDS):
            revision = _revision(engine, path)  # another process may have been faster
            if revision == SCHEMA_REVISION:
                return
            with engine.connect() as connection:
                connection.connection.driver_connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[union-attr]
            if revision is not None:
                _copy(path, revision)
            with engine.connect() as connection:
                _upgrade(connection)
    except Timeout:
        raise StorageError(
            f"The chat database {path} is being upgraded by another playground: wait until that one has started."
        ) from None


def _revision(engine: Engine, path: str) -> str | None:
    """The revision in the file, None for an empty one; refuses files that are not ours or too new."""
    with engine.connect() as connection:
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
            f"The chat database {path} is from a newer playground (schema {revision}, this one knows {SCHEMA_REVISION}): "
            "upgrade the playground, or choose another file with --db."
        )
    return revision


def known_revisions() -> set[str]:
    """Revisions are numbered, so that this needs no look at the migration files: 0001 up to the current one."""
    return {f"{number:04d}" for number in range(1, int(SCHEMA_REVISION) + 1)}


def _copy(path: str, revision: str) -> None:
    """Copy the database, WAL included, to `<path>.before-<next>`; an older copy of the same step is replaced."""
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
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("file_template", "r%%(rev)s_%%(slug)s")
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    """All missing revisions in one transaction: it is either the old schema or the new one, never between."""
    from alembic import command

    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")  # rebuilding a table would otherwise delete what refers to it
    try:
        with _alembic_lock, connection.begin():
            command.upgrade(alembic_config(connection), "head")
            if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                raise StorageError("The chat database has messages without a chat: restore a copy of it.")
            connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
            connection.exec_driver_sql(f"PRAGMA user_version={int(SCHEMA_REVISION)}")
    finally:
        driver.execute("PRAGMA foreign_keys=ON")
