"""Live frames: what the engine's events add up to, and the JSON in which a browser is told of it.

`LiveState` is a pure reducer: events in, frames out, every time given by the caller. It knows no thread, no clock and
no interface, so that a saved recording makes the same frames as a running engine.

A frame is a JSON object:

    seq       counts the frames of one state by one; a reader that misses a number asks for an opening frame
    t         the time it shows, ms since the state's epoch (`epoch` in a full frame tells states apart)
    full      whether `blocks`, `requests` and `tables` are all there is, or what changed since the frame before
    blocks    runs of physical blocks that are alike: [first id, count, tokens in it, [ids of requests that hold it]].
              Held by nobody but with tokens: cached. Neither: empty. A full frame leaves the empty ones out.
    tables    logical block tables: [request id, first index, [physical ids from there on; 0: out of the window]]
              What a reader does not have before the first index is 0.
    copies    copies on write since the frame before: [time, block copied from, block copied to]
    requests  `RequestRow`s as arrays; ended ones stay for `KEEP_ENDED_MS`
    steps     `StepRow`s of the steps that ended since the frame before, with their `SliceRow`s; at most `MAX_STEPS` of
              the latest, `steps_left_out` counts the rest
    sample    a `SampleRow`, at most `SAMPLES_PER_SECOND` times a second, else null
    dropped   events that were lost before they got here; the state was read anew from the engine after that
    facts     full frames: `EngineFacts`
    columns   full frames: the names of the columns of all rows, in order
    history   opening frames, which a reader starts from: the `SampleRow`s until now (`steps` has the latest steps, too)

Times are in ms with three decimals, sizes in bytes, durations in ms. null is "not measured", never 0.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from playground.engine.block_pool import NULL_BLOCK
from playground.engine.events import BlockEvent, Event, RequestEvent, ScheduledSlice, StepEvent
from playground.engine.kv_snapshot import KVSnapshot, RequestBlocks
from playground.engine.speculation.formula import expected_tokens
from playground.telemetry.definitions import ACCEPTANCE_WINDOW_SECONDS, LATENCY_WINDOW_SECONDS
from playground.telemetry.gpu import GpuSample
from playground.telemetry.memory import MemorySample, MemorySource
from playground.telemetry.rates import NS_PER_S, FirstTokenTimes, RollingRates
from playground.telemetry.roofline import Ceilings, ModelWork, Share, Work

Frame = dict[str, Any]
LiveEvent = Event | MemorySample | GpuSample

SAMPLES_PER_SECOND = 4
MAX_STEPS = 128
HISTORY_STEPS = 512
HISTORY_SAMPLES = 120 * SAMPLES_PER_SECOND
KEEP_ENDED_MS = 30_000.0
MAX_ENDED = 256
MAX_GAPS = 8192
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
    """The figures of one moment; rates as `telemetry.definitions` words them."""

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


class _Sequence:
    """A request: its row's values, and its block table with the way back from a block to its place."""

    def __init__(self, request_id: int, queued_ns: int) -> None:
        self.id = request_id
        self.state = "queued"
        self.queued_ns = queued_ns
        self.started_ns: int | None = None
        self.first_token_ns: int | None = None
        self.preempted_ns: int | None = None
        self.ended_ns: int | None = None
        self.last_emitted_ns: int | None = None
        self.num_prompt = self.num_cached = self.num_output = self.num_computed = self.num_preemptions = 0
        self.num_found = 0
        """Tokens in blocks that others computed, which stand in for `num_computed` before the first step."""
        self.furthest = 0
        """Most tokens ever computed: what is computed again is below."""
        self.reason: str | None = None
        self.table: dict[int, int] = {}
        self.place_of: dict[int, int] = {}
        self.stale: set[int] = set()
        """Logical blocks whose fill may have changed."""
        self.changed_from: int | None = None
        """First logical block that the readers' tables do not have yet."""

    def place(self, index: int, block_id: int) -> None:
        displaced = self.table.get(index)
        if displaced is not None and self.place_of.get(displaced) == index:
            del self.place_of[displaced]
        self.table[index] = block_id
        self.place_of[block_id] = index
        self._changed(index)

    def remove(self, block_id: int) -> None:
        index = self.place_of.pop(block_id, None)
        if index is not None:
            del self.table[index]
            self._changed(index)

    def _changed(self, index: int) -> None:
        self.changed_from = index if self.changed_from is None else min(self.changed_from, index)

    def compute(self, num_tokens: int, block_size: int) -> None:
        """So many tokens are in the cache now."""
        if block_size and num_tokens != self.num_computed:
            low, high = sorted((num_tokens, self.num_computed))
            self.stale.update(range(low // block_size, (high - 1) // block_size + 1))
        self.num_computed = num_tokens
        self.furthest = max(self.furthest, num_tokens)

    def listed(self, start: int = 0) -> list[int]:
        """The block table from `start` on."""
        return [self.table.get(index, NULL_BLOCK) for index in range(start, self.table_end)]

    @property
    def table_end(self) -> int:
        return max(self.table, default=-1) + 1

    def changes(self) -> tuple[int, list[int]]:
        """Up to where the readers' tables are right, and what follows."""
        start = min(self.changed_from or 0, self.table_end)
        return start, self.listed(start)


class LiveState:
    """Everything the live views show, as the events so far tell it."""

    def __init__(self, facts: EngineFacts, epoch_ns: int, sample_ns: int = NS_PER_S // SAMPLES_PER_SECOND) -> None:
        """`epoch_ns` is time 0 of the frames, on the events' clock; `sample_ns` the least time between two samples."""
        self.facts = facts
        self.epoch_ns = epoch_ns
        self.num_dropped = 0
        self._holders: dict[int, list[int]] = {}
        self._fill: dict[int, int] = {}  # of every block that is not empty
        self._num_shared = 0
        self._sequences: dict[int, _Sequence] = {}
        self._snapshot_ns = -1
        self._rates = RollingRates()
        self._first_tokens = FirstTokenTimes()
        self._gaps: deque[tuple[int, int]] = deque(maxlen=MAX_GAPS)  # when it ended, how long it was
        self._drafts: deque[tuple[int, int, int]] = deque()  # when the step ended, drafts, accepted
        self._verified: deque[tuple[int, int, int, int]] = deque()  # its end, drafts, accepted, tokens emitted
        self._memory: MemorySample | None = None
        self._gpu: GpuSample | None = None
        self._last_step = 0
        # What the next frame has to tell.
        self._seq = 0
        self._changed_blocks: set[int] = set()
        self._changed_requests: set[int] = set()
        self._stale: set[int] = set()
        self._new_copies: list[list[Any]] = []
        self._new_steps: deque[StepRow] = deque(maxlen=MAX_STEPS)
        self._num_new_steps = 0
        self._sample_ns = sample_ns
        self._next_sample_ns = epoch_ns
        self._steps: deque[StepRow] = deque(maxlen=HISTORY_STEPS)
        self._history: deque[SampleRow] = deque(maxlen=HISTORY_SAMPLES)

    # Events

    def resync(self, snapshot: KVSnapshot) -> None:
        """Begin anew with blocks and requests from here; block events up to `snapshot.time_ns` say nothing new."""
        self._snapshot_ns = snapshot.time_ns
        known, self._sequences = self._sequences, {}
        self._holders, self._fill = {}, dict.fromkeys(snapshot.cached, snapshot.block_size)
        for one in snapshot.requests:
            sequence = known.get(one.request_id) or _Sequence(one.request_id, snapshot.time_ns)
            sequence.state = "running" if one.running else "preempted" if one.num_preemptions else "queued"
            sequence.num_prompt, sequence.num_cached = one.num_prompt_tokens, one.num_cached_tokens
            sequence.num_output, sequence.num_preemptions = one.num_output_tokens, one.num_preemptions
            sequence.table, sequence.place_of = {}, {}
            sequence.compute(one.num_computed_tokens, self.facts.block_size)
            self._sequences[one.request_id] = sequence
            for index, block_id in enumerate(one.block_table):
                if block_id != NULL_BLOCK:
                    sequence.place(index, block_id)
                    self._holders.setdefault(block_id, []).append(one.request_id)
        for request_id, sequence in known.items():
            if request_id not in self._sequences and sequence.ended_ns is not None:
                self._sequences[request_id] = sequence
        for block_id in self._holders:
            self._measure(block_id)
        self._num_shared = sum(len(holders) > 1 for holders in self._holders.values())

    def apply(self, event: LiveEvent) -> None:
        """Take one event, in the order in which they were emitted."""
        if isinstance(event, BlockEvent):
            if event.time_ns > self._snapshot_ns:
                self._apply_block(event)
        elif isinstance(event, StepEvent):
            self._apply_step(event)
        elif isinstance(event, RequestEvent):
            self._apply_request(event)
        elif isinstance(event, GpuSample):
            self._gpu = event
        else:
            self._memory = event

    def _apply_block(self, event: BlockEvent) -> None:
        block_id, request_id = event.block_id, event.request_id
        holders = self._holders.setdefault(block_id, [])
        was_shared = len(holders) > 1
        if event.action in ("alloc", "share"):
            assert request_id is not None and event.logical_index is not None, "only a request takes blocks"
            sequence = self._sequence(request_id, event.time_ns)
            holders.append(request_id)
            sequence.place(event.logical_index, block_id)
            if event.action == "share":
                self._settle()
                # What is in it counts as computed until the first step of the request says how much of it is its own.
                found = event.logical_index * self.facts.block_size + self._fill.get(block_id, 0)
                sequence.num_found = max(sequence.num_found, found)
            self._fill.setdefault(block_id, 0)
            self._mark_stale(request_id, event.logical_index)
        elif event.action == "copy":
            time_ms, source = self._ms(event.time_ns), event.source_block_id
            self._new_copies.append([time_ms, source, block_id])
        else:
            if request_id in holders:
                holders.remove(request_id)
                if request_id not in holders:  # a beam can hold a block twice while it changes tables
                    self._sequences[request_id].remove(block_id)
                    self._changed_requests.add(request_id)
            if event.action == "cache":
                self._fill[block_id] = self.facts.block_size
            elif event.action == "release":  # what only the one that left had written there is of no use to the others
                for other in holders:
                    self._mark_stale(other, self._sequences[other].place_of.get(block_id))
            else:
                self._fill.pop(block_id, None)
        self._num_shared += (len(holders) > 1) - was_shared
        if not holders:
            del self._holders[block_id]
        self._changed_blocks.add(block_id)

    def _apply_request(self, event: RequestEvent) -> None:
        self._first_tokens.add(event)
        if event.state == "finished" and event.request_id not in self._sequences:
            return
        sequence = self._sequence(event.request_id, event.time_ns)
        self._changed_requests.add(event.request_id)
        sequence.num_prompt, sequence.num_cached = event.num_prompt_tokens, event.num_cached_tokens
        sequence.num_output = event.num_output_tokens
        if event.state == "running":
            sequence.state = "running"
            if sequence.started_ns is None:
                sequence.started_ns = event.time_ns
        elif event.state == "first_token":
            sequence.first_token_ns = event.time_ns
        elif event.state == "preempted":
            sequence.state, sequence.reason, sequence.preempted_ns = "preempted", event.reason, event.time_ns
            sequence.num_preemptions += 1
            sequence.num_computed = sequence.num_found = 0
        elif event.state == "finished":
            sequence.state, sequence.reason, sequence.ended_ns = "finished", event.reason, event.time_ns

    def _apply_step(self, event: StepEvent) -> None:
        ended_ns = event.time_ns + event.duration_ns
        slices = [self._apply_slice(one, ended_ns) for one in event.requests]
        self._rates.add(event)
        if event.num_draft_tokens:
            self._drafts.append((ended_ns, event.num_draft_tokens, event.num_accepted_tokens))
        self._last_step = event.step
        work = None if self.facts.work is None else self.facts.work.step(map(_share, slices))
        row = StepRow(
            step=event.step,
            start_ms=self._ms(event.time_ns),
            schedule_ms=_ms(event.schedule_ns),
            draft_ms=_ms(event.draft_ns),
            prepare_ms=_ms(event.prepare_ns),
            forward_ms=_ms(event.forward_ns),
            sample_ms=_ms(event.sample_ns),
            post_ms=_ms(event.post_ns),
            prefill_tokens=event.num_prefill_tokens,
            decode_tokens=event.num_decode_tokens,
            draft_tokens=event.num_draft_tokens,
            accepted_tokens=event.num_accepted_tokens,
            emitted_tokens=event.num_emitted_tokens,
            running=event.num_running,
            waiting=event.num_waiting,
            preempted=event.num_preempted,
            kv_tokens=sum(one.start + one.tokens for one in slices),
            slices=slices,
            flops=work and work.flops,
            moved_bytes=work and work.moved_bytes,
        )
        self._steps.append(row)
        self._new_steps.append(row)
        self._num_new_steps += 1

    def _apply_slice(self, one: ScheduledSlice, ended_ns: int) -> SliceRow:
        sequence = self._sequence(one.request_id, ended_ns)
        end = one.num_computed_tokens + one.num_tokens
        num_drafts = len(one.draft_ids)
        if one.num_computed_tokens < sequence.num_prompt and one.num_computed_tokens >= sequence.furthest:
            kind = PREFILL
        elif one.num_tokens - num_drafts > 1 or one.num_computed_tokens < sequence.furthest:
            kind = RECOMPUTE if sequence.num_preemptions else PREFILL
        else:
            kind = DECODE
        if ended_ns > self._snapshot_ns and sequence.state not in ("finished", "preempted"):
            kept = end - num_drafts + one.num_emitted - 1 if num_drafts else end  # what was rejected never ran
            sequence.compute(kept, self.facts.block_size)
            sequence.num_output += one.num_emitted
            self._stale.add(one.request_id)
        if one.num_emitted:
            if sequence.last_emitted_ns is not None:
                self._gaps.append((ended_ns, ended_ns - sequence.last_emitted_ns))
            sequence.last_emitted_ns = ended_ns
        if num_drafts and one.num_emitted:
            self._verified.append((ended_ns, num_drafts, len(one.accepted_drafts), one.num_emitted))
        self._changed_requests.add(one.request_id)
        return SliceRow(
            one.request_id,
            kind,
            one.num_computed_tokens,
            one.num_tokens,
            one.num_emitted,
            num_drafts,
            len(one.accepted_drafts),
        )

    def _sequence(self, request_id: int, time_ns: int) -> _Sequence:
        known = self._sequences.get(request_id)
        if known is None:
            known = self._sequences[request_id] = _Sequence(request_id, time_ns)
            self._changed_requests.add(request_id)
        return known

    # State

    def blocks(self) -> dict[int, tuple[int, list[int]]]:
        """Every block that is not empty: how many tokens it holds, and the ids of the requests that hold it."""
        self._settle()
        return {block_id: (fill, self._holders.get(block_id, [])) for block_id, fill in self._fill.items()}

    def block_table(self, request_id: int) -> list[int]:
        """Physical block of each logical block; 0 where it slid out of the window. Empty for who holds none."""
        sequence = self._sequences.get(request_id)
        return [] if sequence is None else sequence.listed()

    def snapshot(self, time_ns: int) -> KVSnapshot:
        """The blocks and the requests that have not ended, from which another state can go on: see `resync`."""
        requests = tuple(
            RequestBlocks(
                one.id,
                one.state == "running",
                one.num_prompt,
                one.num_cached,
                one.num_output,
                one.num_computed or one.num_found,
                one.num_preemptions,
                tuple(one.listed()),
            )
            for one in self._sequences.values()
            if one.state != "finished"
        )
        cached = tuple(sorted(block_id for block_id in self._fill if block_id not in self._holders))
        return KVSnapshot(time_ns, self.facts.num_blocks, self.facts.block_size, cached, requests)

    def is_moving(self, now_ns: int) -> bool:
        """Whether a later frame could show something else although no event comes: requests wait, or rates run out."""
        unfinished = any(sequence.state != "finished" for sequence in self._sequences.values())
        return unfinished or self._rates.read(now_ns) != (None, None)

    def _settle(self) -> None:
        """Work out the fill of the blocks of requests that moved on."""
        for request_id in self._stale:
            sequence = self._sequences.get(request_id)
            if sequence is None:
                continue
            for index in sequence.stale:
                block_id = sequence.table.get(index)
                if block_id is not None:
                    self._measure(block_id)
            sequence.stale.clear()
        self._stale.clear()

    def _mark_stale(self, request_id: int, index: int | None) -> None:
        if index is not None:
            self._sequences[request_id].stale.add(index)
            self._stale.add(request_id)

    def _measure(self, block_id: int) -> None:
        """A block holds as many tokens as the furthest of its holders has computed in it."""
        size, fill = self.facts.block_size, 0
        for request_id in self._holders[block_id]:
            sequence = self._sequences[request_id]
            computed = sequence.num_computed or sequence.num_found
            fill = max(fill, min(size, computed - sequence.place_of[block_id] * size))
        if self._fill.get(block_id) != fill:
            self._fill[block_id] = fill
            self._changed_blocks.add(block_id)

    def _slots_in_use(self) -> int:
        return sum(self._fill[block_id] for block_id in self._holders)

    # Frames

    def frame(self, now_ns: int, *, full: bool = False, final: bool = False) -> Frame:
        """What changed since the frame before, for every reader; with `full`, all there is.

        A `final` frame has a sample in any case, because none may follow for a long time.
        """
        self._settle()
        self._forget(now_ns)
        sample = None
        if final or now_ns >= self._next_sample_ns:
            sample = self._sample(now_ns)
            self._history.append(sample)
            self._next_sample_ns = now_ns + self._sample_ns
        self._seq += 1
        frame: Frame = {"seq": self._seq, "t": self._ms(now_ns), "full": full}
        frame |= self._everything() if full else self._changes()
        frame |= {
            "copies": self._new_copies,
            "steps": list(self._new_steps),
            "steps_left_out": self._num_new_steps - len(self._new_steps),
            "sample": sample,
            "dropped": self.num_dropped,
        }
        for sequence in self._sequences.values():
            sequence.changed_from = None
        self._changed_blocks.clear()
        self._changed_requests.clear()
        self._new_copies = []
        self._new_steps.clear()
        self._num_new_steps = 0
        return frame

    def opening(self, now_ns: int) -> Frame:
        """Where one reader starts from. The next `frame` goes on from it; readers who are there miss nothing."""
        self._settle()
        return {
            "seq": self._seq,
            "t": self._ms(now_ns),
            "full": True,
            **self._everything(),
            "copies": [],
            "steps": list(self._steps)[: max(0, len(self._steps) - self._num_new_steps)],
            "steps_left_out": 0,
            "sample": self._sample(now_ns),
            "dropped": self.num_dropped,
            "history": list(self._history),
        }

    def _changes(self) -> Frame:
        requests = [self._sequences[i] for i in sorted(self._changed_requests) if i in self._sequences]
        changed = [sequence for sequence in self._sequences.values() if sequence.changed_from is not None]
        return {
            "blocks": self._runs(sorted(self._changed_blocks)),
            "tables": [[s.id, *s.changes()] for s in changed],
            "requests": [self._row(sequence) for sequence in requests],
        }

    def _everything(self) -> Frame:
        return {
            "epoch": self.epoch_ns,
            "facts": asdict(self.facts),
            "columns": COLUMNS,
            "blocks": self._runs(sorted(self._fill)),
            "tables": [[s.id, 0, s.listed()] for s in self._sequences.values() if s.table],
            "requests": [self._row(sequence) for sequence in self._sequences.values()],
        }

    def _runs(self, block_ids: Iterable[int]) -> list[list[Any]]:
        """The blocks, in order of their ids, with neighbours that are alike put together."""
        runs: list[list[Any]] = []
        for block_id in block_ids:
            fill, holders = self._fill.get(block_id, 0), self._holders.get(block_id, [])
            if runs:
                first, count, run_fill, run_holders = runs[-1]
                if first + count == block_id and run_fill == fill and run_holders == holders:
                    runs[-1][1] = count + 1
                    continue
            runs.append([block_id, 1, fill, list(holders)])
        return runs

    def _row(self, one: _Sequence) -> RequestRow:
        work = self._prompt_work(one)
        return RequestRow(
            one.id,
            one.state,
            self._ms(one.queued_ns),
            self._ms_or_none(one.started_ns),
            self._ms_or_none(one.first_token_ns),
            self._ms_or_none(one.preempted_ns),
            self._ms_or_none(one.ended_ns),
            one.num_prompt,
            one.num_cached,
            one.num_output,
            one.num_computed,
            one.num_preemptions,
            one.reason,
            work and work.flops,
            work and work.moved_bytes,
        )

    def _prompt_work(self, one: _Sequence) -> Work | None:
        tokens = one.num_prompt - one.num_cached
        if self.facts.work is None or tokens < 1:
            return None
        return self.facts.work.prompt(one.num_cached, tokens)

    def _sample(self, now_ns: int) -> SampleRow:
        generated, prompt = self._rates.read(now_ns)
        first_token = self._first_tokens.latest_seconds
        gaps = self._recent_gaps(now_ns)
        num_drafts, num_accepted = self._recent_drafts()
        num_verified, tokens, expected = self._recent_verified()
        paged = self.facts.num_blocks > 0
        states = [sequence.state for sequence in self._sequences.values()]
        memory, gpu = self._memory, self._gpu
        return SampleRow(
            self._ms(now_ns),
            _rounded(generated),
            _rounded(prompt),
            _rounded(None if first_token is None else first_token * 1000),
            _rounded(_percentile(gaps, 0.5)),
            _rounded(_percentile(gaps, 0.95)),
            len(gaps),
            _rounded(num_accepted / num_drafts if num_drafts else None),
            num_drafts,
            states.count("running"),
            states.count("queued") + states.count("preempted"),
            len(self._holders) if paged else None,
            self._num_shared if paged else None,
            len(self._fill) - len(self._holders) if paged else None,
            self._slots_in_use() if paged else None,
            memory.used_bytes if memory else None,
            memory.total_bytes if memory else None,
            memory.reserved_bytes if memory else None,
            memory.source if memory else None,
            self._last_step,
            num_verified,
            _rounded(tokens),
            _rounded(expected),
            *((None,) * 6 if gpu is None else gpu[1:]),
        )

    def _recent_gaps(self, now_ns: int) -> list[float]:
        """Inter-token latencies that ended within the window, in ms, ascending."""
        oldest = now_ns - round(LATENCY_WINDOW_SECONDS * NS_PER_S)
        while self._gaps and self._gaps[0][0] <= oldest:
            self._gaps.popleft()
        return sorted(gap / NS_PER_MS for _, gap in self._gaps)

    def _recent_drafts(self) -> tuple[int, int]:
        """Drafts and accepted ones of the window that ends with the latest step that had any."""
        oldest = self._drafts[-1][0] - round(ACCEPTANCE_WINDOW_SECONDS * NS_PER_S) if self._drafts else 0
        while self._drafts and self._drafts[0][0] <= oldest:
            self._drafts.popleft()
        return sum(drafts for _, drafts, _ in self._drafts), sum(accepted for _, _, accepted in self._drafts)

    def _recent_verified(self) -> tuple[int, float | None, float | None]:
        """How many verifications the same window has, the tokens each gave, and what the formula expects of each."""
        oldest = self._verified[-1][0] - round(ACCEPTANCE_WINDOW_SECONDS * NS_PER_S) if self._verified else 0
        while self._verified and self._verified[0][0] <= oldest:
            self._verified.popleft()
        count = len(self._verified)
        if not count:
            return 0, None, None
        tokens = sum(emitted for *_, emitted in self._verified) / count
        if self.facts.draft_tree:
            return count, tokens, None
        looked_at = sum(min(accepted + 1, drafts) for _, drafts, accepted, _ in self._verified)
        rate = sum(accepted for _, _, accepted, _ in self._verified) / looked_at
        return count, tokens, sum(expected_tokens(rate, drafts) for _, drafts, _, _ in self._verified) / count

    def _forget(self, now_ns: int) -> None:
        """Let go of requests that ended long ago."""
        ended = [s for s in self._sequences.values() if s.ended_ns is not None and not s.table]
        surplus = max(0, len(ended) - MAX_ENDED)
        oldest = now_ns - KEEP_ENDED_MS * NS_PER_MS
        for position, sequence in enumerate(ended):
            if position < surplus or (sequence.ended_ns or 0) < oldest:
                del self._sequences[sequence.id]

    def _ms(self, time_ns: int) -> float:
        return _ms(time_ns - self.epoch_ns)

    def _ms_or_none(self, time_ns: int | None) -> float | None:
        return None if time_ns is None else self._ms(time_ns)


def _share(one: SliceRow) -> Share:
    return Share(one.start, one.tokens, one.drafts + 1 if one.emitted else 0)


def _ms(duration_ns: int) -> float:
    return round(duration_ns / NS_PER_MS, 3)


def _percentile(ascending: list[float], share: float) -> float | None:
    """The smallest value that at least this share of the values do not exceed (nearest rank)."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
