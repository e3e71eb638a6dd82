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

Rows are defined in `telemetry.rows`. Times are in ms with three decimals, sizes in bytes, durations in ms. null is "not
measured", never 0.
"""

from collections import deque
from dataclasses import asdict
from typing import Any

from playground.engine.events import BlockEvent, Event, RequestEvent, ScheduledSlice, StepEvent
from playground.engine.kv_snapshot import KVSnapshot
from playground.telemetry.gpu import GpuSample
from playground.telemetry.live_blocks import LiveBlocks
from playground.telemetry.live_sequence import LiveSequence
from playground.telemetry.memory import MemorySample
from playground.telemetry.rates import NS_PER_S, FirstTokenTimes, RollingRates
from playground.telemetry.recent import RecentDrafts, RecentGaps
from playground.telemetry.roofline import Share
from playground.telemetry.rows import COLUMNS, NS_PER_MS, EngineFacts, SampleRow, SliceRow, StepRow, as_ms

Frame = dict[str, Any]
LiveEvent = Event | MemorySample | GpuSample

SAMPLES_PER_SECOND = 4
MAX_STEPS = 128
HISTORY_STEPS = 512
HISTORY_SAMPLES = 120 * SAMPLES_PER_SECOND
KEEP_ENDED_MS = 30_000.0
MAX_ENDED = 256


class LiveState:
    """Everything the live views show, as the events so far tell it."""

    def __init__(self, facts: EngineFacts, epoch_ns: int, sample_ns: int = NS_PER_S // SAMPLES_PER_SECOND) -> None:
        """`epoch_ns` is time 0 of the frames, on the events' clock; `sample_ns` the least time between two samples."""
        self.facts = facts
        self.epoch_ns = epoch_ns
        self.num_dropped = 0
        self._blocks = LiveBlocks(facts.block_size)
        self._sequences: dict[int, LiveSequence] = {}
        self._snapshot_ns = -1
        self._rates = RollingRates()
        self._first_tokens = FirstTokenTimes()
        self._gaps = RecentGaps()
        self._drafts = RecentDrafts()
        self._memory: MemorySample | None = None
        self._gpu: GpuSample | None = None
        self._last_step = 0
        # What the next frame has to tell.
        self._seq = 0
        self._changed_requests: set[int] = set()
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
        for one in snapshot.requests:
            sequence = known.pop(one.request_id, None) or LiveSequence(one.request_id, snapshot.time_ns)
            sequence.resync(one)
            self._sequences[one.request_id] = sequence
        self._sequences |= {request_id: one for request_id, one in known.items() if one.ended_ns is not None}
        tables = [(self._sequences[one.request_id], one.block_table) for one in snapshot.requests]
        self._blocks.resync(snapshot.cached, tables)

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
        if event.action in ("alloc", "share"):
            assert event.request_id is not None, "only a request takes blocks"
            self._blocks.give(event, self._sequence(event.request_id, event.time_ns))
        elif event.action == "copy":
            self._new_copies.append([self._ms(event.time_ns), event.source_block_id, event.block_id])
        else:
            self._blocks.take(event, None if event.request_id is None else self._sequences.get(event.request_id))

    def _apply_request(self, event: RequestEvent) -> None:
        self._first_tokens.add(event)
        if event.state == "finished" and event.request_id not in self._sequences:
            return
        self._sequence(event.request_id, event.time_ns).apply(event)
        self._changed_requests.add(event.request_id)

    def _apply_step(self, event: StepEvent) -> None:
        ended_ns = event.time_ns + event.duration_ns
        slices = [self._apply_slice(one, ended_ns) for one in event.requests]
        self._rates.add(event)
        self._last_step = event.step
        work = None if self.facts.work is None else self.facts.work.step(map(_share, slices))
        row = StepRow(
            step=event.step,
            start_ms=self._ms(event.time_ns),
            schedule_ms=as_ms(event.schedule_ns),
            draft_ms=as_ms(event.draft_ns),
            prepare_ms=as_ms(event.prepare_ns),
            forward_ms=as_ms(event.forward_ns),
            sample_ms=as_ms(event.sample_ns),
            post_ms=as_ms(event.post_ns),
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
        num_drafts, num_accepted = len(one.draft_ids), len(one.accepted_drafts)
        kind = sequence.kind_of(one)
        if ended_ns > self._snapshot_ns and sequence.state not in ("finished", "preempted"):
            end = one.num_computed_tokens + one.num_tokens
            kept = end - num_drafts + one.num_emitted - 1 if num_drafts else end  # what was rejected never ran
            self._blocks.compute(sequence, kept)
            sequence.num_output += one.num_emitted
        if one.num_emitted:
            gap_ns = sequence.emit(ended_ns)
            if gap_ns is not None:
                self._gaps.add(ended_ns, gap_ns)
            if num_drafts:
                self._drafts.add(ended_ns, num_drafts, num_accepted, one.num_emitted)
        self._changed_requests.add(one.request_id)
        start, tokens = one.num_computed_tokens, one.num_tokens
        return SliceRow(one.request_id, kind, start, tokens, one.num_emitted, num_drafts, num_accepted)

    def _sequence(self, request_id: int, time_ns: int) -> LiveSequence:
        known = self._sequences.get(request_id)
        if known is None:
            known = self._sequences[request_id] = LiveSequence(request_id, time_ns)
            self._changed_requests.add(request_id)
        return known

    # State

    def blocks(self) -> dict[int, tuple[int, list[int]]]:
        """Every block that is not empty: how many tokens it holds, and the ids of the requests that hold it."""
        return self._blocks.all()

    def block_table(self, request_id: int) -> list[int]:
        """Physical block of each logical block; 0 where it slid out of the window. Empty for who holds none."""
        sequence = self._sequences.get(request_id)
        return [] if sequence is None else sequence.listed()

    def snapshot(self, time_ns: int) -> KVSnapshot:
        """The blocks and the requests that have not ended, from which another state can go on: see `resync`."""
        requests = tuple(one.blocks() for one in self._sequences.values() if one.state != "finished")
        return KVSnapshot(time_ns, self.facts.num_blocks, self.facts.block_size, self._blocks.cached, requests)

    def is_moving(self, now_ns: int) -> bool:
        """Whether a later frame could show something else although no event comes: requests wait, or rates run out."""
        unfinished = any(sequence.state != "finished" for sequence in self._sequences.values())
        return unfinished or self._rates.read(now_ns) != (None, None)

    # Frames

    def frame(self, now_ns: int, *, full: bool = False, final: bool = False) -> Frame:
        """What changed since the frame before, for every reader; with `full`, all there is.

        A `final` frame has a sample in any case, because none may follow for a long time.
        """
        self._forget(now_ns)
        sample = self._due_sample(now_ns, in_any_case=final)
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
        self._blocks.forget_changes()
        self._changed_requests.clear()
        self._new_copies = []
        self._new_steps.clear()
        self._num_new_steps = 0
        return frame

    def opening(self, now_ns: int) -> Frame:
        """Where one reader starts from. The next `frame` goes on from it; readers who are there miss nothing."""
        sample = self._due_sample(now_ns) or self._sample(now_ns)
        return {
            "seq": self._seq,
            "t": self._ms(now_ns),
            "full": True,
            **self._everything(),
            "copies": [],
            "steps": list(self._steps)[: max(0, len(self._steps) - self._num_new_steps)],
            "steps_left_out": 0,
            "sample": sample,
            "dropped": self.num_dropped,
            "history": list(self._history),
        }

    def _due_sample(self, now_ns: int, *, in_any_case: bool = False) -> SampleRow | None:
        """A sample, which the history keeps, where it is time for one."""
        if now_ns < self._next_sample_ns and not in_any_case:
            return None
        sample = self._sample(now_ns)
        self._history.append(sample)
        self._next_sample_ns = now_ns + self._sample_ns
        return sample

    def _changes(self) -> Frame:
        requests = [self._sequences[i] for i in sorted(self._changed_requests) if i in self._sequences]
        changed = [sequence for sequence in self._sequences.values() if sequence.changed_from is not None]
        return {
            "blocks": self._blocks.changed_runs(),
            "tables": [[s.id, *s.changes()] for s in changed],
            "requests": [sequence.row(self.epoch_ns, self.facts.work) for sequence in requests],
        }

    def _everything(self) -> Frame:
        sequences = self._sequences.values()
        return {
            "epoch": self.epoch_ns,
            "facts": asdict(self.facts),
            "columns": COLUMNS,
            "blocks": self._blocks.runs(),
            "tables": [[s.id, 0, s.listed()] for s in sequences if s.table],
            "requests": [sequence.row(self.epoch_ns, self.facts.work) for sequence in sequences],
        }

    def _sample(self, now_ns: int) -> SampleRow:
        generated, prompt = self._rates.read(now_ns)
        first_token = self._first_tokens.latest_seconds
        gaps, drafts = self._gaps.read(now_ns), self._drafts.read(chain=not self.facts.draft_tree)
        paged, blocks = self.facts.num_blocks > 0, self._blocks
        states = [sequence.state for sequence in self._sequences.values()]
        memory, gpu = self._memory, self._gpu
        return SampleRow(
            time_ms=self._ms(now_ns),
            tokens_per_second=_rounded(generated),
            prompt_tokens_per_second=_rounded(prompt),
            first_token_ms=_rounded(None if first_token is None else first_token * 1000),
            gap_p50_ms=_rounded(gaps.p50_ms),
            gap_p95_ms=_rounded(gaps.p95_ms),
            num_gaps=gaps.num_gaps,
            acceptance=_rounded(drafts.acceptance),
            num_drafts=drafts.num_drafts,
            running=states.count("running"),
            waiting=states.count("queued") + states.count("preempted"),
            blocks_in_use=blocks.num_in_use if paged else None,
            blocks_shared=blocks.num_shared if paged else None,
            blocks_cached=blocks.num_cached if paged else None,
            slots_in_use=blocks.num_slots_in_use if paged else None,
            memory_used=memory and memory.used_bytes,
            memory_total=memory and memory.total_bytes,
            memory_reserved=memory and memory.reserved_bytes,
            memory_source=memory and memory.source,
            step=self._last_step,
            num_verified=drafts.num_verified,
            verify_tokens=_rounded(drafts.tokens),
            verify_expected=_rounded(drafts.expected),
            gpu_busy=gpu and gpu.busy,
            gpu_power_w=gpu and gpu.power_w,
            gpu_power_limit_w=gpu and gpu.power_limit_w,
            gpu_clock_mhz=gpu and gpu.clock_mhz,
            gpu_clock_limit_mhz=gpu and gpu.clock_limit_mhz,
            gpu_slowed=gpu and gpu.slowed,
        )

    def _forget(self, now_ns: int) -> None:
        """Let go of requests that ended long ago."""
        ended = [s for s in self._sequences.values() if s.ended_ns is not None and not s.table]
        surplus = max(0, len(ended) - MAX_ENDED)
        oldest = now_ns - KEEP_ENDED_MS * NS_PER_MS
        for position, sequence in enumerate(ended):
            if position < surplus or (sequence.ended_ns or 0) < oldest:
                del self._sequences[sequence.id]

    def _ms(self, time_ns: int) -> float:
        """On the clock of the frames."""
        return as_ms(time_ns - self.epoch_ns)


def _share(one: SliceRow) -> Share:
    return Share(one.start, one.tokens, one.drafts + 1 if one.emitted else 0)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
