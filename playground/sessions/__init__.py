"""Saved chats and comparisons: SQLModel tables, Alembic migrations and `SessionStore`, in one SQLite file.

One thread writes. Knows nothing of the interface or the engine's inside; it stores the plain values it is given.
"""

from playground.sessions.errors import StorageError
from playground.sessions.records import ChatInfo, ComparisonInfo, MessageInfo, Role, RunInfo, RunStatus
from playground.sessions.store import SessionStore

__all__ = ["ChatInfo", "ComparisonInfo", "MessageInfo", "Role", "RunInfo", "RunStatus", "SessionStore", "StorageError"]
