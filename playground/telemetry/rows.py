"""The rows of live frames, and the facts beside them: plain data. The protocol is in `telemetry.frames`."""

from dataclasses import dataclass
from typing import NamedTuple

from playground.telemetry.memory import MemorySource
from playground.telemetry.roofline import Ceilings, ModelWork

NS_PER_MS = 1_000_000

DECODE, PREFILL, RECOMPUTE = 0, 1, 2
"""Kinds of slices: one token (and drafts) after the last, tokens of a prompt, tokens that a preemption threw away."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What does not change while one engine is watched."""

    model: str = ""
    num_blocks: int = 0
    """0: no KV cache, so no blocks."""
    block_size: int = 0
    """Tokens in a block."""
    block_bytes: float = 0
    """Bytes of one block, of all layers and a draft model's too."""
    weights_bytes: int = 0
    max_num_seqs: int = 0
    max_model_len: int = 0
    speculation: str | None = None
    """The method, or None where no drafts are made."""
    draft_tree: bool = False
    """Whether drafts branch, which the formula of the expected tokens is not for."""
    draft_kv_bytes_per_token: float | None = 0
    """What the KV of one token takes beside the model's own, by its draft model's shape; None: not known."""
    work: ModelWork | None = None
    ceilings: Ceilings | None = None
    """None: not measured."""

    def __post_init__(self) -> None:
        """What was written as JSON comes back as plain objects."""
        if isinstance(self.work, dict):
            windows = tuple((window, count) for window, count in self.work["windows"])
            object.__setattr__(self, "work", ModelWork(**{**self.work, "windows": windows}))
        if isinstance(self.ceilings, dict):
            object.__setattr__(self, "ceilings", Ceilings(**self.ceilings))


class RequestRow(NamedTuple):
    """A request as it stands. Times that have not come yet are None."""

    id: int
    state: str
    """ "queued", "running", "preempted" or "finished"."""
    queued_ms: float
    started_ms: float | None
    first_token_ms: float | None
    preempted_ms: float | None
    """The latest preemption."""
    ended_ms: float | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    computed_tokens: int
    """Tokens whose KV is in the cache."""
    preemptions: int
    reason: str | None
    """Why it finished, or was preempted."""
    prompt_flops: float | None = None
    """What its prompt, less the cached tokens, takes to read alone in one step: see `telemetry.roofline`."""
    prompt_bytes: float | None = None


class SliceRow(NamedTuple):
    """One request's share of a step."""

    request: int
    kind: int
    """0 decode, 1 prefill, 2 computed again after a preemption."""
    start: int
    tokens: int
    emitted: int
    drafts: int
    accepted: int


class StepRow(NamedTuple):
    """A step; `start_ms` on the state's clock, the others durations."""

    step: int
    start_ms: float
    schedule_ms: float
    draft_ms: float
    prepare_ms: float
    forward_ms: float
    sample_ms: float
    post_ms: float
    prefill_tokens: int
    decode_tokens: int
    draft_tokens: int
    accepted_tokens: int
    emitted_tokens: int
    running: int
    waiting: int
    preempted: int
    kv_tokens: int
    """Tokens that its queries could see, summed over the requests: what attention had to read."""
    slices: list[SliceRow]
    flops: float | None = None
    """What its forward had to do at least, drafting left out: see `telemetry.roofline`."""
    moved_bytes: float | None = None


class SampleRow(NamedTuple):
    """The figures of one moment, over windows that `telemetry.definitions` gives."""

    time_ms: float
    tokens_per_second: float | None
    prompt_tokens_per_second: float | None
    first_token_ms: float | None
    """Time to first token of the request that last got its first token."""
    gap_p50_ms: float | None
    gap_p95_ms: float | None
    num_gaps: int
    acceptance: float | None
    num_drafts: int
    running: int
    waiting: int
    blocks_in_use: int | None
    blocks_shared: int | None
    blocks_cached: int | None
    slots_in_use: int | None
    """Token slots of the blocks in use that hold a token."""
    memory_used: int | None
    memory_total: int | None
    memory_reserved: int | None
    """On a GPU: what this process took from the device for its tensors."""
    memory_source: MemorySource | None
    step: int
    num_verified: int = 0
    """Requests' steps that verified drafts, of those that `acceptance` is of."""
    verify_tokens: float | None = None
    """Tokens that came out of each of them on average."""
    verify_expected: float | None = None
    """What (1 - α^(K+1)) / (1 - α) gives for them, α the share of drafts accepted of those that were looked at."""
    gpu_busy: float | None = None
    gpu_power_w: float | None = None
    gpu_power_limit_w: float | None = None
    gpu_clock_mhz: float | None = None
    gpu_clock_limit_mhz: float | None = None
    gpu_slowed: bool | None = None


COLUMNS: dict[str, list[str]] = {
    "request": list(RequestRow._fields),
    "step": list(StepRow._fields),
    "slice": list(SliceRow._fields),
    "sample": list(SampleRow._fields),
}


def as_ms(duration_ns: int) -> float:
    """How rows have times and durations: in ms with three decimals."""
    return round(duration_ns / NS_PER_MS, 3)
