"""What is handed out of recorded requests: frozen, plain data that outlives any database session.

Latencies are seconds, moments milliseconds since 1970. None: not measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from playground.telemetry.recording import Recording

Origin = Literal["here", "comparison", "imported", "tour"]
PURPOSE, COMPARISON = "purpose", "comparison"
"""An entry of a recording's environment, and its value for engines that were compared."""
Finish = Literal["stop", "length", "abort", "error"]

SORTS = (
    "created_ms", "chat", "prompt", "model", "num_prompt_tokens", "num_output_tokens", "time_to_first_token",
    "time_per_output_token", "acceptance", "num_cached_tokens", "kv_blocks_peak", "finish",
)  # fmt: skip
ORIGINS = ("here", "comparison", "imported")
FINISHES = ("stop", "length", "abort", "error", "unfinished")


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Which requests, in which order."""

    search: str = ""
    """Plain text: in the prompt, the chat's title or the model's name, in any case."""
    finish: str = ""
    """One of `FINISHES`, or empty for all."""
    config_id: str = ""
    origin: str = ""
    """Where it ran: one of `ORIGINS`, or empty for all."""
    sort: str = "created_ms"
    descending: bool = True
    limit: int = 50
    offset: int = 0


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """One row of the table of requests."""

    id: int
    created_ms: int
    origin: Origin
    chat_id: int | None
    chat_title: str | None
    message_id: int | None
    model: str
    config_id: str
    prompt: str
    question: str | None
    """The chat's message that it answers; None for a request without a chat."""
    finish: Finish | None
    num_prompt_tokens: int | None
    num_output_tokens: int | None
    num_cached_tokens: int | None
    num_cache_write_tokens: int | None
    num_preemptions: int | None
    num_draft_tokens: int | None
    num_accepted_tokens: int | None
    kv_blocks_peak: int | None
    queue_time: float | None
    time_to_first_token: float | None
    time_per_output_token: float | None
    e2e_latency: float | None
    has_recording: bool
    """Its raw events are there: it can be played."""


@dataclass(frozen=True, slots=True)
class RunConfigInfo:
    """One configuration that requests ran with."""

    id: str
    model: str
    num_requests: int


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of all requests of a query, in seconds."""

    time_to_first_token: list[float]
    time_per_output_token: list[float]
    inter_token_latency: list[float]
    e2e_latency: list[float]


@dataclass(frozen=True, slots=True)
class RunPage:
    """A page of requests, of how many, and the latencies of all of them."""

    requests: list[RequestInfo]
    num_found: int
    latencies: Latencies


@dataclass(frozen=True, slots=True)
class StorageInfo:
    """How much room what was recorded takes."""

    file_bytes: int
    """Of the whole database, log included."""
    raw_bytes: int
    """Of raw events, roughly."""
    limit_bytes: int
    num_requests: int
    num_playable: int


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A request with all that is needed to play it."""

    request: RequestInfo
    request_engine_id: int
    recording: Recording
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    params: Mapping[str, Any]
