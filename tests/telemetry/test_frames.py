"""The live state follows the engine: after any sequence of events it says what the block pool says.

And its frames carry that to a reader who has only them.
"""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.engine.events import BlockEvent, RequestEvent, ScheduledSlice, StepEvent
from playground.engine.kv_snapshot import KVSnapshot
from playground.engine.request import Request, RequestStatus
from playground.engine.scheduler import SchedulerConfig, SchedulerOutput
from playground.telemetry.frames import KEEP_ENDED_MS, MAX_STEPS, SAMPLES_PER_SECOND, LiveEvent, LiveState
from playground.telemetry.memory import MemorySample
from playground.telemetry.rows import DECODE, PREFILL, RECOMPUTE, EngineFacts, RequestRow, SampleRow, SliceRow, StepRow
from tests.engine.simulation import VOCABULARY, Arrival, Simulation

MS = 1_000_000


def step_event(number: int, time_ns: int, slices: list[ScheduledSlice], duration_ns: int = MS // 2) -> StepEvent:
    emitted, drafts = sum(one.num_emitted for one in slices), sum(len(one.draft_ids) for one in slices)
    accepted = sum(len(one.accepted_drafts) for one in slices)
    run = sum(one.num_tokens for one in slices)
    parts = {"schedule_ns": 0, "draft_ns": 0, "prepare_ns": 0, "forward_ns": duration_ns, "sample_ns": 0, "post_ns": 0}
    return StepEvent(
        step=number,
        time_ns=time_ns,
        **parts,
        num_prefill_tokens=0,
        num_decode_tokens=run,
        num_draft_tokens=drafts,
        num_accepted_tokens=accepted,
        num_emitted_tokens=emitted,
        num_running=len(slices),
        num_waiting=0,
        num_preempted=0,
        kv_blocks_in_use=0,
        kv_blocks_cached=0,
        kv_blocks_empty=0,
        kv_slots_in_use=0,
        requests=tuple(slices),
    )


class Watched(Simulation):
    """The simulated engine, telling its events as `EngineCore` does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.events: list[LiveEvent] = []
        self.now_ns = 0
        self.known: dict[int, RequestStatus] = {}
        if self.tables is not None:
            self.tables.recording = True

    def step(self) -> None:
        super().step()
        self.note()
        self.after_step()

    def schedule(self, *, may_preempt: bool) -> SchedulerOutput:
        output = super().schedule(may_preempt=may_preempt)
        for request in output.preempted:
            self.tell(request, "preempted")
        for request in output.admitted:
            self.tell(request, "running")
        return output

    def collect(self) -> None:
        step = self.in_flight
        before = {request.request_id: request.num_output_tokens for request in self.requests}
        super().collect()
        if step is None:
            return
        slices = []
        for one in step.output.scheduled:
            request = one.request
            emitted = request.num_output_tokens - before[request.request_id]
            if request.beams is not None:
                emitted = int(one.produces_token)
            drafts = tuple(range(one.num_drafts))
            accepted = tuple(range(emitted - 1)) if one.num_drafts else ()
            slices.append(ScheduledSlice(request.request_id, one.start, one.num_tokens, emitted, drafts, accepted))
        self.events.append(step_event(self.steps, self.tick(), slices))
        self.note()

    def note(self) -> None:
        """What happened to requests and blocks since the last time."""
        for request in self.requests:
            if request.request_id not in self.known:
                self.known[request.request_id] = RequestStatus.WAITING
                self.tell(request, "queued")
            if request.finished and self.known[request.request_id] is not RequestStatus.FINISHED:
                self.known[request.request_id] = RequestStatus.FINISHED
                self.tell(request, "finished")
        if self.tables is not None:
            self.events += [event._replace(time_ns=self.tick()) for event in self.tables.drain_events()]

    def tell(self, request: Request, state: Any) -> None:
        if request.request_id not in self.known:
            self.known[request.request_id] = RequestStatus.WAITING
            self.tell(request, "queued")
        self.events.append(
            RequestEvent(self.tick(), request.request_id, state, num_prompt_tokens=request.num_prompt_tokens)
        )

    def tick(self) -> int:
        self.now_ns += MS
        return self.now_ns

    def after_step(self) -> None:
        """For tests that look at every step."""


class Followed(Watched):
    """Compares the live state with the engine's own after every step, and so for one that began in the middle."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.facts = EngineFacts(num_blocks=self.num_blocks, block_size=self.block_size)
        self.state = LiveState(self.facts, 0)
        self.late: LiveState | None = None
        self.reader = Reader()
        self.reader.take(self.state.opening(0))
        self.compared = 0

    def after_step(self) -> None:
        states = [self.state] if self.late is None else [self.state, self.late]
        for event in self.events:
            for state in states:
                state.apply(event)
        self.events.clear()
        for state in states:
            self.compare(state)
        self.reader.take(self.state.frame(self.now_ns, full=self.steps % 7 == 0))
        self.reader.compare(self.state)
        if self.steps == 5 and self.tables is not None:
            self.late = LiveState(self.facts, 0)
            self.late.resync(replace(KVSnapshot.of(self.scheduler), time_ns=self.tick()))
            if self.in_flight is None:  # else it counts what that step is going to compute
                self.compare(self.late)

    def compare(self, state: LiveState) -> None:
        assert self.tables is not None
        pool, blocks = self.tables.pool, state.blocks()
        holders: dict[int, list[int]] = {}
        fill: Counter[int] = Counter()
        for request in self.requests:
            assert state.block_table(request.request_id) == trimmed(request.block_table)
            for index, block_id in enumerate(request.block_table):
                if block_id:
                    holders.setdefault(block_id, []).append(request.request_id)
                    in_it = min(self.block_size, self.computed(request) - index * self.block_size)
                    fill[block_id] = max(fill[block_id], in_it)
        unread = {one.request.request_id for one in self.in_flight.output.scheduled} if self.in_flight else set()
        unread |= {request.request_id for request in self.requests if request.beams is not None}
        for block_id in range(1, self.num_blocks + 1):
            held = sorted(blocks.get(block_id, (0, []))[1])
            assert held == sorted(holders.get(block_id, [])), "who holds a block"
            assert len(held) == pool.ref_count(block_id)
            cached = pool.ref_count(block_id) == 0 and pool.key(block_id) is not None
            assert (block_id in blocks and not held) == cached, "what is cached, what is empty"
            if held and not unread.isdisjoint(
                held
            ):  # how much of a shared tail is its own, a request's next step tells
                assert 0 <= blocks[block_id][0] <= self.block_size
            elif held:
                assert blocks[block_id][0] == fill[block_id], "how far a block is filled"
            elif cached:
                assert blocks[block_id][0] == self.block_size
        self.compared += 1

    def computed(self, request: Request) -> int:
        """Tokens computed by the steps that were read: a step in flight has told nobody yet."""
        for one in self.in_flight.output.scheduled if self.in_flight else ():
            if one.request is request and not request.finished:
                return one.start
        return request.num_computed_tokens


def trimmed(block_table: list[int]) -> list[int]:
    """A table without the nulls at its end, which stand for nothing."""
    table = list(block_table)
    while table and not table[-1]:
        table.pop()
    return table


class Reader:
    """What a browser makes of the frames, from their JSON alone."""

    def __init__(self) -> None:
        self.seq = -1
        self.blocks: dict[int, tuple[int, list[int]]] = {}
        self.tables: dict[int, list[int]] = {}
        self.requests: dict[int, list[Any]] = {}

    def take(self, frame: dict[str, Any]) -> None:
        frame = json.loads(json.dumps(frame, allow_nan=False))
        assert "history" in frame or frame["seq"] == self.seq + 1
        self.seq = frame["seq"]
        if frame["full"]:
            self.blocks, self.tables, self.requests = {}, {}, {}
        for first, count, fill, holders in frame["blocks"]:
            for block_id in range(first, first + count):
                self.blocks[block_id] = (fill, holders)
        for request_id, start, blocks in frame["tables"]:
            table = self.tables.setdefault(request_id, [])
            table += [0] * (start - len(table))
            table[start:] = blocks
        for row in frame["requests"]:
            self.requests[row[0]] = row

    def compare(self, state: LiveState) -> None:
        known = {block_id: one for block_id, one in self.blocks.items() if one != (0, [])}
        expected = {block_id: one for block_id, one in state.blocks().items() if one != (0, [])}
        assert known == expected
        for request_id, table in self.tables.items():
            assert table == state.block_table(request_id)


prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=14)


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    stems = draw(st.lists(prompts, min_size=1, max_size=3))
    return [
        Arrival(
            step=draw(st.integers(0, 12)),
            prompt=draw(st.sampled_from(stems)) + draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=4)),
            num_output=draw(st.integers(1, 10)),
            abort_after=draw(st.none() | st.integers(0, 12)),
            n=draw(st.sampled_from([1, 1, 2, 3])),
            stop_after=draw(st.none() | st.integers(1, 6)),
            num_drafts=draw(st.sampled_from([0, 0, 1, 2, 5])),
            beam_width=draw(st.sampled_from([1, 1, 2, 3])),
        )
        for _ in range(draw(st.integers(1, 7)))
    ]


pools = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(4, 24),
        "block_size": st.sampled_from([1, 2, 3, 4]),
        "prefix_caching": st.booleans(),
        "window": st.none() | st.integers(1, 9),
        "overlap": st.booleans(),
    }
)


@settings(max_examples=150, deadline=None)
@given(arrivals(), pools, st.integers(1, 24), st.integers(1, 6))
def test_the_state_after_any_events_is_the_block_pools_own(
    some: list[Arrival], pool: dict[str, Any], budget: int, max_num_seqs: int
) -> None:
    simulation = Followed(SchedulerConfig(max_num_seqs, budget), **pool)
    simulation.run(some)
    assert simulation.compared >= simulation.steps > 0 or not simulation.requests


# One request's life, by hand


FACTS = EngineFacts(num_blocks=8, block_size=4, speculation="draft")


def queued(request_id: int, time_ns: int = 0, num_prompt: int = 6) -> RequestEvent:
    return RequestEvent(time_ns, request_id, "queued", num_prompt_tokens=num_prompt)


def alloc(block_id: int, request_id: int, index: int, time_ns: int = 1) -> BlockEvent:
    return BlockEvent(time_ns, "alloc", block_id, 1, request_id, None, index)


def state_of(*events: LiveEvent) -> LiveState:
    state = LiveState(FACTS, 0)
    for event in events:
        state.apply(event)
    return state


def started() -> LiveState:
    """A request of 6 prompt tokens after its first step."""
    return state_of(
        queued(1),
        RequestEvent(MS, 1, "running", num_prompt_tokens=6),
        step_event(1, 2 * MS, [ScheduledSlice(1, 0, 6, 1)]),
        RequestEvent(3 * MS, 1, "first_token", num_prompt_tokens=6, num_output_tokens=1),
        alloc(1, 1, 0),
        alloc(2, 1, 1),
    )


def slices_of(frame: dict[str, Any]) -> list[SliceRow]:
    return [one for step in frame["steps"] for one in StepRow(*step).slices]


def test_a_frame_tells_what_changed_and_the_next_one_nothing() -> None:
    state = started()
    frame = state.frame(4 * MS)
    assert frame["blocks"] == [[1, 1, 4, [1]], [2, 1, 2, [1]]]
    assert frame["tables"] == [[1, 0, [1, 2]]]
    (row,) = (RequestRow(*row) for row in frame["requests"])
    assert (row.state, row.queued_ms, row.started_ms, row.first_token_ms) == ("running", 0, 1, 3)
    assert (row.prompt_tokens, row.output_tokens, row.computed_tokens) == (6, 1, 6)
    assert slices_of(frame) == [SliceRow(1, PREFILL, 0, 6, 1, 0, 0)]
    after = state.frame(5 * MS)
    assert [after[key] for key in ("blocks", "tables", "requests", "steps", "copies", "sample")] == [[]] * 5 + [None]
    assert after["seq"] == frame["seq"] + 1


def test_blocks_that_are_alike_travel_as_one_run() -> None:
    state = state_of(*(BlockEvent(1, "cache", block_id, 0) for block_id in (1, 2, 3, 5)))
    assert state.frame(MS)["blocks"] == [[1, 3, 4, []], [5, 1, 4, []]]


def test_an_opening_frame_gives_a_late_reader_everything_and_takes_nothing_from_the_others() -> None:
    state = started()
    state.frame(4 * MS)
    state.apply(step_event(2, 5 * MS, [ScheduledSlice(1, 6, 1, 1)]))
    opening = state.opening(6 * MS)
    assert opening["full"] and opening["facts"]["num_blocks"] == 8 and opening["columns"]["slice"][0] == "request"
    assert opening["blocks"] == [[1, 1, 4, [1]], [2, 1, 3, [1]]]
    assert [StepRow(*step).step for step in opening["steps"]] == [1], "step 2 comes with the next frame"
    assert len(opening["history"]) == 1
    following = state.frame(7 * MS)
    assert following["seq"] == opening["seq"] + 1 and [StepRow(*step).step for step in following["steps"]] == [2]


def test_rejected_drafts_fill_no_slot_and_are_counted() -> None:
    state = started()
    state.apply(step_event(2, 5 * MS, [ScheduledSlice(1, 6, 4, 2, (5, 6, 7), (0,), (5, 9))]))
    state.apply(alloc(3, 1, 2, 5 * MS))
    state.apply(BlockEvent(6 * MS, "free", 3, 0, 1))
    frame = state.frame(6 * MS, final=True)
    assert state.blocks() == {1: (4, [1]), 2: (4, [1])}
    assert slices_of(frame)[-1] == SliceRow(1, DECODE, 6, 4, 2, 3, 1)
    sample = SampleRow(*frame["sample"])
    assert sample.acceptance == pytest.approx(1 / 3, rel=1e-4) and sample.num_drafts == 3 and sample.slots_in_use == 8


def test_what_a_preemption_threw_away_is_marked_as_computed_again() -> None:
    state = started()
    state.apply(RequestEvent(5 * MS, 1, "preempted", "out of KV blocks", num_prompt_tokens=6, num_output_tokens=1))
    for block_id in (2, 1):
        state.apply(BlockEvent(5 * MS, "free", block_id, 0, 1))
    row = RequestRow(*state.frame(6 * MS)["requests"][0])
    assert (row.state, row.preempted_ms, row.computed_tokens, row.preemptions) == ("preempted", 5, 0, 1)
    state.apply(RequestEvent(7 * MS, 1, "running", num_prompt_tokens=6, num_output_tokens=1))
    state.apply(step_event(2, 8 * MS, [ScheduledSlice(1, 0, 7, 1)]))
    assert slices_of(state.frame(9 * MS))[-1].kind == RECOMPUTE
    state.apply(step_event(3, 10 * MS, [ScheduledSlice(1, 7, 1, 1)]))
    assert slices_of(state.frame(11 * MS))[-1].kind == DECODE


def test_a_copy_on_write_is_told_once_with_both_blocks() -> None:
    state = started()
    state.apply(queued(2))
    for event in (
        BlockEvent(4 * MS, "share", 1, 2, 2, None, 0),
        BlockEvent(4 * MS, "share", 2, 2, 2, None, 1),
        alloc(3, 2, 1, 5 * MS),
        BlockEvent(5 * MS, "copy", 3, 1, 2, 2),
        BlockEvent(5 * MS, "release", 2, 1, 2),
    ):
        state.apply(event)
    frame = state.frame(6 * MS, final=True)
    assert frame["copies"] == [[5, 2, 3]] and state.frame(7 * MS)["copies"] == []
    assert state.block_table(2) == [1, 3] and state.block_table(1) == [1, 2]
    assert SampleRow(*frame["sample"]).blocks_shared == 1


def test_samples_come_at_most_four_times_a_second_and_the_last_frame_has_one() -> None:
    state = started()
    frames = [state.frame(n * 83 * MS) for n in range(1, 25)]
    assert sum(frame["sample"] is not None for frame in frames) <= 2 * SAMPLES_PER_SECOND + 1
    assert state.frame(25 * 83 * MS, final=True)["sample"] is not None


def test_rates_and_gaps_run_out_and_nothing_is_ever_nan_or_a_made_up_zero() -> None:
    state = started()
    for number in range(2, 12):
        state.apply(step_event(number, number * 10 * MS, [ScheduledSlice(1, number + 4, 1, 1)]))
    sample = SampleRow(*state.frame(120 * MS, final=True)["sample"])
    assert sample.gap_p50_ms == pytest.approx(10) and sample.num_gaps == 10 and sample.tokens_per_second > 0
    assert sample.acceptance is None and sample.memory_used is None
    assert state.is_moving(120 * MS)
    state.apply(RequestEvent(121 * MS, 1, "finished", "stop", 6, 0, 11))
    assert state.is_moving(200 * MS), "the rates have not run out"
    assert not state.is_moving(10_000 * MS)
    rested = SampleRow(*state.frame(10_000 * MS, final=True)["sample"])
    assert rested.tokens_per_second is None and rested.gap_p50_ms is None and rested.num_gaps == 0
    assert rested.first_token_ms == 3


def test_steps_are_bounded_and_what_is_left_out_is_counted() -> None:
    state = started()
    state.frame(4 * MS)
    for number in range(MAX_STEPS + 30):
        state.apply(step_event(number, (number + 5) * MS, []))
    frame = state.frame(1000 * MS)
    assert len(frame["steps"]) == MAX_STEPS and frame["steps_left_out"] == 30
    assert StepRow(*frame["steps"][-1]).step == MAX_STEPS + 29


def test_ended_requests_are_forgotten_after_a_while() -> None:
    state = state_of(queued(1), RequestEvent(MS, 1, "finished", "abort"))
    assert len(state.frame(2 * MS)["requests"]) == 1
    assert len(state.opening(3 * MS)["requests"]) == 1
    late = round((KEEP_ENDED_MS + 2) * MS)
    state.frame(late)
    assert state.opening(late)["requests"] == []


def test_without_a_kv_cache_there_are_no_blocks_and_no_counts_of_them() -> None:
    state = LiveState(EngineFacts(), 0)
    state.apply(queued(1))
    state.apply(step_event(1, MS, [ScheduledSlice(1, 0, 6, 1)]))
    frame = state.frame(2 * MS, final=True)
    sample = SampleRow(*frame["sample"])
    assert frame["blocks"] == [] and sample.blocks_in_use is sample.slots_in_use is None


def test_memory_is_what_was_sampled_last() -> None:
    state = state_of(MemorySample(0, "process", 100, 1000), MemorySample(1, "nvml", 200, 1000, 150))
    sample = SampleRow(*state.frame(MS, final=True)["sample"])
    assert (sample.memory_used, sample.memory_reserved, sample.memory_source) == (200, 150, "nvml")
