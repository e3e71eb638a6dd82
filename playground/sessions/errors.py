"""The one error of the chat store, and how SQLite's many errors become one sentence each.

Every sentence says which file, what went wrong and what to do; it never shows SQL or a stack trace.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from playground.errors import PlaygroundError


class StorageError(PlaygroundError):
    """A chat could not be stored or read. What was saved before is still there, and the store stays usable."""


# From SQLite's symbolic error name (its beginning) to what happened and what to do about it.
_ADVICE: tuple[tuple[str, str], ...] = (
    ("SQLITE_BUSY", "is locked by another program: close it and try again."),
    ("SQLITE_LOCKED", "is locked by another program: close it and try again."),
    ("SQLITE_READONLY", "is read-only: make the file and its folder writable, or choose another file with --db."),
    ("SQLITE_PERM", "is read-only: make the file and its folder writable, or choose another file with --db."),
    ("SQLITE_FULL", "cannot grow, the disk is full: free some space and try again."),
    ("SQLITE_IOERR", "could not be read or written, the disk may be full or failing: check it and try again."),
    ("SQLITE_CANTOPEN", "cannot be opened: check that it is a file in a writable folder, or choose another with --db."),
    ("SQLITE_NOTADB", "is not a chat database: choose another file with --db."),
    ("SQLITE_CORRUPT", "is damaged: restore a copy of it, or choose another file with --db."),
    ("SQLITE_TOOBIG", "cannot hold a text this long: shorten the message."),
)


def explain(error: BaseException, path: str) -> StorageError | None:
    """The sentence for a database error, or None where it is not one (then it is a bug and goes on as it is)."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, OverflowError):
        return StorageError(f"The chat database {path} cannot hold a value this large: shorten the message.")
    if not isinstance(cause, sqlite3.Error):
        return None
    name = getattr(cause, "sqlite_errorname", None) or ""
    for prefix, advice in _ADVICE:
        if name.startswith(prefix):
            return StorageError(f"The chat database {path} {advice}")
    reason = " ".join(str(cause).split())
    return StorageError(f"The chat database {path} cannot be used ({reason}): choose another file with --db.")


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn database errors of the block into `StorageError`; others pass."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        sentence = explain(error, path)
        if sentence is None:
            raise
        raise sentence from error
