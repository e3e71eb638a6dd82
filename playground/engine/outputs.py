"""What a caller gets back: deltas while a request runs, a `Generation` when it ended, a snapshot of the engine.

Plain data. Times are seconds on one monotonic clock (`time.perf_counter_ns`); absent values are None, never 0.
"""

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of one token under the target's unmodified distribution, and of its best rivals."""

    token_id: int
    logprob: float
    rank: int
    """1 for the most probable token."""
    top: tuple[tuple[int, float], ...] = ()
    """The k most probable `(token_id, logprob)`, best first."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one sample of a request."""

    text: str
    token_ids: tuple[int, ...]
    index: int = 0
    """Which of the `n` samples this belongs to."""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Measured by the engine. TPOT excludes the first token; ITL is the gap between steps that emitted tokens.

    The prompt's tokens are of three kinds, each counted once whatever preemptions do: read from the prefix cache
    (`num_cached_tokens`), computed and written to it (`num_cache_write_tokens`), and the rest: computed without being
    written. That rest is the part-filled last block, what `cache_breakpoints` keeps out, and what was there already but
    had to be computed all the same.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was found, in the pool, in host memory or on disk; hosted APIs call them cached_tokens."""
    num_cache_write_tokens: int = 0
    """Prompt tokens in full blocks that this request was the first to put into the cache: cache_write_tokens."""
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    acceptance_rate: float | None = None
    kv_blocks_peak: int = 0
    queue_time: float | None = None
    time_to_first_token: float | None = None
    time_per_output_token: float | None = None
    inter_token_latencies: tuple[float, ...] = ()
    e2e_latency: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One of the `n` continuations of a prompt."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """The result of one request. With `n` above 1 the plain fields are those of the first sample."""

    request_id: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    metrics: RequestMetrics
    prompt_token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    outputs: list[Sample] = field(default_factory=list)
    error: str | None = None
    """Why, where `finish_reason` is "error"."""


@dataclass(frozen=True, slots=True)
class PinnedPrefix:
    """A prefix that stays in the prefix cache until it is unpinned or its time is over."""

    pin_id: int
    num_tokens: int
    """Tokens of its full blocks; what the last, part-filled one would hold is not pinned."""
    num_blocks: int
    expires_in: float | None
    """Seconds from when this was asked for; None for no limit."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot after the latest step. Rates cover the last `RATE_WINDOW_SECONDS`; None where nothing was measured.

    `kv_blocks_in_use + kv_blocks_cached + kv_blocks_empty == kv_blocks_total`. Counts of tokens are since the start.
    """

    kv_blocks_total: int = 0
    kv_blocks_in_use: int = 0
    kv_blocks_cached: int = 0
    kv_blocks_empty: int = 0
    kv_blocks_pinned: int = 0
    """Blocks of pinned prefixes: in use while a request uses them, cached otherwise."""
    kv_block_size: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_preemptions: int = 0
    prompt_tokens_per_second: float | None = None
    generated_tokens_per_second: float | None = None
    prefix_cache_hit_rate: float | None = None
    prefix_cache_device_tokens: int = 0
    """Prompt tokens that were found in the KV pool."""
    prefix_cache_host_tokens: int = 0
    """Prompt tokens that were found in host memory."""
    prefix_cache_disk_tokens: int = 0
    """Prompt tokens that were found on disk."""
    prefix_cache_write_tokens: int = 0
    """Prompt tokens that requests put into the prefix cache."""
    prefix_cache_host_blocks: int = 0
    """Blocks that host memory holds now."""
    acceptance_rate: float | None = None
    memory_weights_bytes: int = 0
    memory_kv_bytes: int = 0
    steps: int = 0
