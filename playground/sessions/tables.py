"""The tables of the chat database; `migrations/` builds exactly these (a test compares them).

A chat is a tree of messages with a head; undo, retry and edit move the head and add siblings, they never overwrite.
Times are integers: milliseconds since 1970 for the wall clock, nanoseconds for what the engine measured.
"""

from typing import Any

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, MetaData, Table, Text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(SQLModel, registry=registry(metadata=MetaData(naming_convention=NAMING))):
    """Own registry, so that no other library's SQLModel tables mix with these."""


class Chat(Base, table=True):
    """`sqlite_autoincrement`: an id is never used twice, so a stale tab cannot write into somebody else's new chat.
    The head is no foreign key: it would make a circle with `message`; the store checks it instead."""

    __tablename__ = "chat"
    __table_args__: Any = (Index(None, "updated_ms", "id"), {"sqlite_autoincrement": True})

    id: int | None = Field(default=None, primary_key=True)
    title: str = Field(sa_column=Column(Text, nullable=False))
    title_is_automatic: bool = Field(default=True)
    """Until the user names the chat or its first message does."""
    system_prompt: str = Field(default="", sa_column=Column(Text, nullable=False))
    head_message_id: int | None = None
    created_ms: int
    updated_ms: int


class Message(Base, table=True):
    """`parent_id` does not cascade: SQLite would recurse along the chat and stop at 1000 messages; deleting the chat
    deletes all of its messages in one statement."""

    __tablename__ = "message"
    __table_args__: Any = (
        Index(None, "chat_id", "parent_id"),
        Index(None, "parent_id"),
        CheckConstraint("role IN ('user', 'assistant')", name="role"),
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, primary_key=True)
    chat_id: int = Field(sa_column=Column(Integer, ForeignKey("chat.id", ondelete="CASCADE"), nullable=False))
    parent_id: int | None = Field(default=None, foreign_key="message.id")
    role: str = Field(sa_column=Column(Text, nullable=False))
    content: str = Field(sa_column=Column(Text, nullable=False))
    created_ms: int


class RunConfig(Base, table=True):
    """One engine configuration as canonical JSON under its SHA-256: stored once however many runs used it."""

    __tablename__ = "config"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    json_text: str = Field(sa_column=Column("json", Text, nullable=False))


class Run(Base, table=True):
    """One generation. What is compared has columns, the rest is in `metrics`. NULL: not measured."""

    __tablename__ = "run"
    __table_args__: Any = (
        Index(None, "message_id", unique=True),
        Index(None, "config_id"),
        CheckConstraint("status IN ('done', 'stopped', 'error')", name="status"),
    )

    id: int | None = Field(default=None, primary_key=True)
    message_id: int = Field(sa_column=Column(Integer, ForeignKey("message.id", ondelete="CASCADE"), nullable=False))
    config_id: str = Field(sa_column=Column(Text, ForeignKey("config.id"), nullable=False))
    status: str = Field(sa_column=Column(Text, nullable=False))
    seed: int | None = None
    created_ms: int
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_preemptions: int | None = None
    num_draft_tokens: int | None = None
    num_accepted_tokens: int | None = None
    kv_blocks_peak: int | None = None
    queue_ns: int | None = None
    time_to_first_token_ns: int | None = None
    time_per_output_token_ns: int | None = None
    e2e_latency_ns: int | None = None
    metrics: str = Field(default="{}", sa_column=Column(Text, nullable=False))
    params: str = Field(default="{}", sa_column=Column(Text, nullable=False))


class Comparison(Base, table=True):
    """One comparison of configurations: what the list of them needs has columns, the rest is JSON. NULL: no vote."""

    __tablename__ = "comparison"
    __table_args__: Any = (Index(None, "created_ms", "id"), {"sqlite_autoincrement": True})

    id: int | None = Field(default=None, primary_key=True)
    title: str = Field(sa_column=Column(Text, nullable=False))
    created_ms: int
    vote: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    data: str = Field(sa_column=Column(Text, nullable=False))


def table(model: type[Base]) -> Table:
    """The Core table behind a model: statements are built from these, rows never hold a session."""
    found = Base.metadata.tables[str(model.__tablename__)]
    return found
