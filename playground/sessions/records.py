"""What the chat store hands out: frozen, plain data that outlives any database session.

Times are integers of milliseconds since 1970; metrics keep the engine's own names and seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["user", "assistant"]
RunStatus = Literal["done", "stopped", "error"]


@dataclass(frozen=True, slots=True)
class ChatInfo:
    """One saved chat. `head_message_id` is the end of its current branch, None while it is empty."""

    id: int
    title: str
    system_prompt: str
    head_message_id: int | None
    created_ms: int
    updated_ms: int
    num_tokens: int | None = None
    """Of the model's context that the newest reply was written in, itself included; None without a reply."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """How a reply was made: how it ended, what was measured, and with which configuration and parameters."""

    id: int
    status: RunStatus
    seed: int | None
    metrics: Mapping[str, Any]
    """`RequestMetrics` as a dict (seconds), and whatever else was given."""
    params: Mapping[str, Any]
    config: Mapping[str, Any]
    config_id: str
    """Hash of the configuration: equal for runs that can be compared directly."""


@dataclass(frozen=True, slots=True)
class MessageInfo:
    """One message of a chat; replies carry the run that made them. Edits and retries are siblings, not overwrites."""

    id: int
    chat_id: int
    parent_id: int | None
    role: Role
    content: str
    created_ms: int
    run: RunInfo | None = None


@dataclass(frozen=True, slots=True)
class ComparisonInfo:
    """One saved comparison of configurations, without its data."""

    id: int
    title: str
    created_ms: int
    vote: str | None
    """What a blind comparison was decided for; None where there was no vote."""
