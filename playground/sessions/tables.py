"""The tables of the chat database; `migrations/` builds exactly these (a test compares them).

A chat is a tree of messages with a head; undo, retry and edit move the head and add siblings, they never overwrite.
Times are integers: milliseconds since 1970 for the wall clock, nanoseconds for what the engine measured.
"""

from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)
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
    num_cache_write_tokens: int | None = None
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


class EngineRecording(Base, table=True):
    """One engine that was watched, from its loading to its end; or a file of runs that was imported."""

    __tablename__ = "recording"
    __table_args__: Any = (
        CheckConstraint("origin IN ('here', 'imported')", name="origin"),
        Index(None, "config_id"),
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, primary_key=True)
    origin: str = Field(sa_column=Column(Text, nullable=False))
    created_ms: int
    """When its time 0 was, or that of the engine in an imported file."""
    config_id: str = Field(sa_column=Column(Text, ForeignKey("config.id"), nullable=False))
    model: str = Field(sa_column=Column(Text, nullable=False))
    environment: str = Field(sa_column=Column(Text, nullable=False))
    """JSON: the machine and the versions."""
    facts: str = Field(sa_column=Column(Text, nullable=False))
    """JSON: `EngineFacts`."""


class Segment(Base, table=True):
    """A stretch of a recording that can be played by itself: it begins with the state of all blocks and requests.

    Raw events belong to one, in the order of `seq`, which all kinds of them share; deleting it deletes them.
    """

    __tablename__ = "segment"
    __table_args__: Any = (
        PrimaryKeyConstraint("recording_id", "number"),
        ForeignKeyConstraint(["recording_id"], ["recording.id"], ondelete="CASCADE"),
    )

    recording_id: int
    number: int
    created_ms: int
    num_bytes: int
    """Roughly what its events take in the file."""
    keyframe: str = Field(sa_column=Column(Text, nullable=False))
    """JSON of a `KVSnapshot`."""


class RecordedRequest(Base, table=True):
    """One request that an engine served (of several samples: one of them). It outlives its raw events. NULL: not
    measured; `finish` NULL: it has not ended, or nobody saw its end."""

    __tablename__ = "request"
    __table_args__: Any = (
        UniqueConstraint("recording_id", "engine_id"),
        ForeignKeyConstraint(["recording_id"], ["recording.id"], ondelete="CASCADE"),
        Index(None, "chat_id"),
        Index(None, "message_id"),
        Index(None, "config_id"),
        Index(None, "created_ms"),
        CheckConstraint("finish IN ('stop', 'length', 'abort', 'error')", name="finish"),
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, primary_key=True)
    recording_id: int | None = None
    engine_id: int | None = None
    """The engine's number for it."""
    first_segment: int | None = None
    last_segment: int | None = None
    """NULL while it runs."""
    chat_id: int | None = Field(default=None, sa_column=Column(Integer, ForeignKey("chat.id", ondelete="CASCADE")))
    message_id: int | None = Field(
        default=None, sa_column=Column(Integer, ForeignKey("message.id", ondelete="CASCADE"))
    )
    """The reply that it made."""
    config_id: str = Field(sa_column=Column(Text, ForeignKey("config.id"), nullable=False))
    model: str = Field(sa_column=Column(Text, nullable=False))
    created_ms: int
    prompt: str = Field(sa_column=Column(Text, nullable=False))
    params: str = Field(default="{}", sa_column=Column(Text, nullable=False))
    finish: str | None = Field(default=None, sa_column=Column(Text))
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_cache_write_tokens: int | None = None
    num_preemptions: int | None = None
    num_draft_tokens: int | None = None
    num_accepted_tokens: int | None = None
    kv_blocks_peak: int | None = None
    queue_ns: int | None = None
    time_to_first_token_ns: int | None = None
    time_per_output_token_ns: int | None = None
    e2e_latency_ns: int | None = None
    gaps: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """Inter-token latencies: float32, seconds, in order."""


def _of_segment(*more: Any) -> Any:
    """Of the tables of raw events: the key they share, and no row id beside it."""
    return (
        PrimaryKeyConstraint("recording_id", "segment", "seq"),
        ForeignKeyConstraint(
            ["recording_id", "segment"], ["segment.recording_id", "segment.number"], ondelete="CASCADE"
        ),
        *more,
        {"sqlite_with_rowid": False},
    )


class RecordedStep(Base, table=True):
    """A `StepEvent`; times on the clock of its recording."""

    __tablename__ = "step"
    __table_args__: Any = _of_segment()

    recording_id: int
    segment: int
    seq: int
    step: int
    time_ns: int
    schedule_ns: int
    draft_ns: int
    prepare_ns: int
    forward_ns: int
    sample_ns: int
    post_ns: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_emitted_tokens: int
    num_running: int
    num_waiting: int
    num_preempted: int
    kv_blocks_in_use: int
    kv_blocks_cached: int
    kv_blocks_empty: int
    kv_slots_in_use: int
    slices: str = Field(sa_column=Column(Text, nullable=False))
    """JSON: the shares of its requests, without the ids of tokens, which are in `token`."""


class RecordedChange(Base, table=True):
    """A `RequestEvent`."""

    __tablename__ = "request_event"
    __table_args__: Any = _of_segment()

    recording_id: int
    segment: int
    seq: int
    time_ns: int
    request_id: int
    state: str = Field(sa_column=Column(Text, nullable=False))
    reason: str | None = Field(default=None, sa_column=Column(Text))
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_cache_write_tokens: int


class RecordedBlock(Base, table=True):
    """A `BlockEvent`."""

    __tablename__ = "block_event"
    __table_args__: Any = _of_segment()

    recording_id: int
    segment: int
    seq: int
    time_ns: int
    action: str = Field(sa_column=Column(Text, nullable=False))
    block_id: int
    ref_count: int
    request_id: int | None = None
    source_block_id: int | None = None
    logical_index: int | None = None


class RecordedSample(Base, table=True):
    """A `MemorySample`."""

    __tablename__ = "sample"
    __table_args__: Any = _of_segment()

    recording_id: int
    segment: int
    seq: int
    time_ns: int
    source: str = Field(sa_column=Column(Text, nullable=False))
    used_bytes: int | None = None
    total_bytes: int | None = None
    reserved_bytes: int | None = None


class RecordedGpuSample(Base, table=True):
    """A `GpuSample`."""

    __tablename__ = "gpu_sample"
    __table_args__: Any = _of_segment()

    recording_id: int
    segment: int
    seq: int
    time_ns: int
    busy: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: int | None = None
    clock_limit_mhz: int | None = None
    slowed: bool | None = None


class Token(Base, table=True):
    """A `RecordedToken`. Belongs to its request too, so that deleting a chat leaves none of its text."""

    __tablename__ = "token"
    __table_args__: Any = _of_segment(
        ForeignKeyConstraint(
            ["recording_id", "request"], ["request.recording_id", "request.engine_id"], ondelete="CASCADE"
        ),
        Index(None, "recording_id", "request"),
        CheckConstraint("origin IN ('target', 'accepted', 'bonus', 'rejected')", name="origin"),
    )

    recording_id: int
    segment: int
    seq: int
    request: int
    step: int
    position: int | None = None
    token_id: int
    text: str = Field(sa_column=Column(Text, nullable=False))
    logprob: float | None = None
    origin: str = Field(sa_column=Column(Text, nullable=False))
    draft_position: int | None = None


class Setting(Base, table=True):
    """What a user chose for this installation, as JSON."""

    __tablename__ = "setting"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    value: str = Field(sa_column=Column(Text, nullable=False))


def table(model: type[Base]) -> Table:
    """The Core table behind a model: statements are built from these, rows never hold a session."""
    found = Base.metadata.tables[str(model.__tablename__)]
    return found
