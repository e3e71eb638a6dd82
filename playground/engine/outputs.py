"""What a caller gets back: deltas while a request runs, a `Generation` when it ended, a snapshot of the engine.

Plain data. Times are seconds on one monotonic clock (`time.perf_counter_ns`); absent values are None, never 0.
"""

from dataclasses import dataclass, field
from typing import Literal

from playground.engine.speculation.controller import SpeculationState

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
    """Which of the `n` samples this belongs to; with beams, the rank."""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Measured by the engine. TPOT excludes the first token; ITL is the gap between steps that emitted tokens.

    In a beam search a token counts as emitted when the search has selected, although the caller hears of it at the end.

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
    num_bonus_tokens: int = 0
    """Tokens that came on top of drafts that were all accepted."""
    acceptance_rate: float | None = None
    """Accepted of all drafted tokens. It falls with the number drafted at once: see `drafts_reached` for more."""
    drafts_reached: tuple[int, ...] = ()
    """By position in the draft: how often it was looked at, because everything before it was accepted."""
    drafts_accepted: tuple[int, ...] = ()
    """By position in the draft: how often it was accepted then."""
    draft_time: float | None = None
    """Seconds spent on drafting in this request's steps, other requests' drafts in the same steps included."""
    verify_time: float | None = None
    """Seconds of the target's forwards that verified them, other requests' tokens in the same steps included."""
    speculation: SpeculationState | None = None
    """What speculation did last, and why; None without speculation."""
    kv_blocks_peak: int = 0
    """The most distinct physical KV blocks that all samples of the request (or beams) held at one time."""
    kv_blocks_private: int = 0
    """What they would have held at that moment with a cache each: every shared block counted once for each holder."""
    queue_time: float | None = None
    time_to_first_token: float | None = None
    time_per_output_token: float | None = None
    inter_token_latencies: tuple[float, ...] = ()
    e2e_latency: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One of the `n` continuations of a prompt, or one of the sequences that a beam search found."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    cumulative_logprob: float | None = None
    """Sum of the tokens' log-probabilities under the model's own distribution; None without `logprobs` or beams."""
    logprobs: list[TokenLogprob] | None = None
    score: float | None = None
    """With beams: what they are ranked by, the sum after token rules divided by length ** length_penalty."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The result of one request. The plain fields are those of the first of `outputs`, where there are any.

    `outputs` has the samples if `n` is above 1, and the best sequences, best first, if `beam_width` is: `n` of them, or
    as many as there are beams; fewer where the vocabulary that is left has no more.
    """

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
    """A snapshot after the latest step. Rates are of the last seconds of work (`step_rates`); None: not measured.

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
    step_weights_bytes: int = 0
    """Weights that every step of the model reads: all of it but the table of embeddings, and not a draft model's."""
    steps: int = 0
