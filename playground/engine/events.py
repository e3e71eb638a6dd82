"""What the engine tells whoever watches: typed, small, and never able to slow the step loop.

`EventStream` is the only way out: each subscriber owns a bounded queue that drops its oldest events when its reader
falls behind, and counts the drops. The engine appends and never waits.
"""

import threading
from collections import deque
from typing import Literal, NamedTuple


class ScheduledSlice(NamedTuple):
    """One request's share of one step."""

    request_id: int
    num_computed_tokens: int
    """Tokens whose KV existed before the step."""
    num_tokens: int
    """Tokens run in the step."""
    num_emitted: int
    """Output tokens that came out of it."""
    draft_ids: tuple[int, ...] = ()
    """Draft tokens that the step verified."""
    accepted_drafts: tuple[int, ...] = ()
    """Which of them stayed (indices, in order): the first `len(accepted_drafts)` of the emitted tokens."""
    token_ids: tuple[int, ...] = ()
    """The emitted tokens: accepted drafts, then the target's own."""
    has_bonus: bool = False
    """Whether the last emitted token came on top of drafts that were all accepted; else it replaced a rejected one."""


class StepEvent(NamedTuple):
    """One engine step; durations in nanoseconds, `time_ns` on the `perf_counter_ns` clock at the step's start.

    Where the next step is launched before this one's tokens are read (on a GPU), steps overlap in time.
    """

    step: int
    time_ns: int
    schedule_ns: int
    draft_ns: int
    """Time spent on making drafts."""
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
    """Token slots of the in-use blocks that hold a token: fill level = slots / (blocks * block_size)."""
    requests: tuple[ScheduledSlice, ...]

    @property
    def duration_ns(self) -> int:
        return self.schedule_ns + self.draft_ns + self.prepare_ns + self.forward_ns + self.sample_ns + self.post_ns


RequestState = Literal["queued", "running", "first_token", "preempted", "finished"]


class RequestEvent(NamedTuple):
    """A request changed state. `reason` is the finish reason, or why it was preempted."""

    time_ns: int
    request_id: int
    state: RequestState
    reason: str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_cache_write_tokens: int = 0
    prompt_token_ids: tuple[int, ...] = ()
    """With "queued" only: the prompt, for whoever records requests."""


BlockAction = Literal["alloc", "share", "copy", "release", "free", "evict", "cache"]


class BlockEvent(NamedTuple):
    """A physical KV block changed hands. `ref_count` is the count afterwards.

    "alloc" and "share" give a request one more hold on the block, "copy" says that the block it was just given is the
    copy of another. "release", "free" and "cache" take one hold away: others hold it still, nobody does, or nobody does
    but its content is kept. "evict" empties a kept block, as does a "free" of a block that nobody held; neither has
    anything to do with the request that happened to be served at that moment.
    """

    time_ns: int
    action: BlockAction
    block_id: int
    ref_count: int
    request_id: int | None = None
    source_block_id: int | None = None
    """For "copy": the block it was copied from."""
    logical_index: int | None = None
    """For "alloc" and "share": which logical block of the request it is from now on."""


Event = StepEvent | RequestEvent | BlockEvent


class Subscription:
    """One reader's bounded queue of events, oldest dropped first."""

    def __init__(self, maxlen: int, ready: threading.Event | None = None) -> None:
        self._events: deque[Event] = deque()
        self._maxlen = maxlen
        self._lock = threading.Lock()
        self._ready = ready or threading.Event()
        self.num_dropped = 0
        """Events lost because this reader was too slow."""

    def _put(self, events: list[Event]) -> None:
        with self._lock:
            self._events.extend(events)
            excess = len(self._events) - self._maxlen
            for _ in range(excess):
                self._events.popleft()
            self.num_dropped += max(0, excess)
        self._ready.set()

    def drain(self) -> list[Event]:
        """Everything that came since the last call, oldest first; never waits."""
        with self._lock:
            events = list(self._events)
            self._events.clear()
            self._ready.clear()
        return events

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is something to drain; False on timeout (seconds)."""
        return self._ready.wait(timeout)


class EventStream:
    """Fans the engine's events out to subscribers. `emit` is called by the engine thread only."""

    def __init__(self) -> None:
        self._subscriptions: tuple[Subscription, ...] = ()
        self._lock = threading.Lock()

    @property
    def active(self) -> bool:
        """Whether anybody listens: with nobody there the engine need not build events."""
        return bool(self._subscriptions)

    def subscribe(self, maxlen: int = 65_536, ready: threading.Event | None = None) -> Subscription:
        """A queue for one reader. `ready` is set when there is something in it, for who waits for other things too."""
        subscription = Subscription(maxlen, ready)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)

    def emit(self, events: list[Event]) -> None:
        for subscription in self._subscriptions:
            subscription._put(events)
