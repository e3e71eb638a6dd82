"""Drives the scheduler and the block tables with a model that is pure arithmetic, and checks every rule every step.

The "KV" of a token is a hash of the whole prefix that ends in it, kept in simulated physical slots. Whatever goes wrong
with blocks (a stale hit, a missed copy, a slot off by one) makes a request read a slot with another prefix's hash, and
is found in that very step, not only when a token happens to differ.

With `overlap` a step runs on the simulated device as soon as it is scheduled, but what it drew is told one step later:
the device knows every request's tokens, the host only those that were read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import xxhash

from playground.engine.block_tables import BlockTables
from playground.engine.request import Request, RequestStatus
from playground.engine.scheduler import Scheduler, SchedulerConfig, SchedulerOutput
from playground.sampling_params import SamplingParams

VOCABULARY = 3  # tiny, so that prompts and continuations collide often
START = 7


class RuleBroken(AssertionError):
    """A rule of the engine does not hold."""


def check(holds: bool, rule: str) -> None:
    if not holds:
        raise RuleBroken(rule)


def extend(content: int, token_id: int) -> int:
    """KV of a token, given the KV of the one before it."""
    return xxhash.xxh64_intdigest(content.to_bytes(8, "little") + token_id.to_bytes(8, "little"))


def contents(token_ids: list[int]) -> list[int]:
    result, content = [], START
    for token_id in token_ids:
        content = extend(content, token_id)
        result.append(content)
    return result


def next_token(content: int, seed: int) -> int:
    return (content ^ seed * 0x9E37) % VOCABULARY


def isolated_output(prompt: list[int], num_output: int, seed: int) -> list[int]:
    """What the request must produce, whatever runs beside it."""
    token_ids = list(prompt)
    for _ in range(num_output):
        token_ids.append(next_token(contents(token_ids)[-1], seed))
    return token_ids[len(prompt) :]


@dataclass
class Arrival:
    step: int
    prompt: list[int]
    num_output: int
    abort_after: int | None = None
    """Steps after arrival at which the caller goes away."""
    salt: str | None = None
    n: int = 1
    breakpoints: tuple[int, ...] | None = None
    stop_after: int | None = None
    """Output tokens after which a stop string ends it, which nobody can know before they are read."""


@dataclass
class InFlight:
    """A step that the device has run and the host has not read."""

    output: SchedulerOutput
    drawn: dict[int, int]


@dataclass
class Simulation:
    config: SchedulerConfig
    num_blocks: int = 16
    block_size: int = 2
    prefix_caching: bool = True
    window: int | None = None
    overlap: bool = False
    tables: BlockTables | None = None
    outputs: dict[int, list[int]] = field(default_factory=dict)
    steps: int = 0
    num_copies: int = 0

    def __post_init__(self) -> None:
        if not self.config.recompute:
            self.tables = self.make_tables()
        self.scheduler = Scheduler(self.config, self.tables)
        self.memory: dict[tuple[int, int], tuple[int, int]] = {}  # (block, offset) -> (content, token id)
        self.requests: list[Request] = []
        self.device_tokens: dict[int, list[int]] = {}  # by request id: prompt and all that was drawn, read or not
        self.stops: dict[int, int] = {}  # by request id: number of output tokens at which it stops
        self.in_flight: InFlight | None = None
        self.num_surplus = 0

    def make_tables(self) -> BlockTables:
        return BlockTables(self.num_blocks, self.block_size, prefix_caching=self.prefix_caching, window=self.window)

    # Running

    def add(self, arrival: Arrival) -> list[Request]:
        first: Request | None = None
        made = []
        for index in range(arrival.n):
            params = self.params_of(arrival)
            total = len(arrival.prompt) + arrival.num_output
            request = Request(len(self.requests) + 1, list(arrival.prompt), params, index, total, fork_of=first)
            first = first or request
            self.requests.append(request)
            self.device_tokens[request.request_id] = list(arrival.prompt)
            if arrival.stop_after is not None:
                self.stops[request.request_id] = arrival.stop_after
            self.scheduler.add(request)
            made.append(request)
        return made

    def params_of(self, arrival: Arrival) -> SamplingParams:
        return SamplingParams(
            max_tokens=arrival.num_output, cache_salt=arrival.salt, cache_breakpoints=arrival.breakpoints
        )

    def fits(self, arrival: Arrival) -> bool:
        """The check that `Engine.submit` makes."""
        needed = self.scheduler.max_blocks(len(arrival.prompt) + arrival.num_output - 1)
        return self.tables is None or needed <= self.num_blocks

    def run(self, arrivals: list[Arrival], max_steps: int = 3000) -> None:
        """Play all arrivals to their end and check that everybody was answered correctly."""
        waiting = sorted((a for a in arrivals if self.fits(a)), key=lambda a: a.step)
        aborts: list[tuple[int, Request]] = []
        while waiting or self.scheduler.has_work or self.in_flight:
            while waiting and waiting[0].step <= self.steps:
                arrival = waiting.pop(0)
                for request in self.add(arrival):
                    if arrival.abort_after is not None:
                        aborts.append((self.steps + arrival.abort_after, request))
            for when, request in aborts:
                if when <= self.steps and not request.finished:
                    self.collect()
                    self.scheduler.finish(request, "abort")
                    self.scheduler.finish(request, "abort")  # twice does nothing
            self.step()
            check(self.steps < max_steps, "every request ends")
        self.check_end()

    def step(self) -> None:
        """One step as `EngineCore` makes it: with overlap, the step before is read after this one is launched."""
        before = self.in_flight
        output = self.schedule(may_preempt=before is None)
        self.check_decision(output)
        check(not (before and output.preempted), "nobody loses blocks that a step in flight still writes")
        if output.scheduled:
            launched = InFlight(output, self.run_on_device(output))
            self.scheduler.advance(output)
            self.collect()
            self.in_flight = launched
            if not self.overlap or output.out_of_blocks:
                self.collect()
        else:
            self.collect()
        self.steps += 1
        self.num_copies += len(output.copies)
        self.check_blocks()

    def schedule(self, *, may_preempt: bool) -> SchedulerOutput:
        return self.scheduler.schedule(may_preempt=may_preempt)

    def run_on_device(self, output: SchedulerOutput) -> dict[int, int]:
        """Copies, reads, writes and draws of a step, with the tokens that the device knows."""
        for source, destination in output.copies:
            for offset in range(self.block_size):
                if (source, offset) in self.memory:
                    self.memory[destination, offset] = self.memory[source, offset]
        for one in output.scheduled:
            self.check_visible(one.request, one.start)
        drawn = {}
        for one in output.scheduled:
            token_ids = self.device_tokens[one.request.request_id]
            check(one.end <= len(token_ids), "no token runs before it is drawn")
            own = contents(token_ids)
            if self.tables is not None:
                for position in range(one.start, one.end):
                    self.memory[self.slot(one.request, position)] = (own[position], token_ids[position])
            if one.produces_token:
                drawn[one.request.request_id] = next_token(own[one.end - 1], one.request.seed)
        for request_id, token_id in drawn.items():
            self.device_tokens[request_id].append(token_id)
        return drawn

    def collect(self) -> None:
        """Read the step in flight, if there is one, and account for it."""
        step, self.in_flight = self.in_flight, None
        if step is None:
            return
        self.num_surplus += sum(one.request.finished for one in step.output.scheduled)
        self.scheduler.update(step.output, {request_id: [token] for request_id, token in step.drawn.items()})
        for one in step.output.scheduled:
            request = one.request
            if request.num_output_tokens >= self.stops.get(request.request_id, request.max_total_tokens):
                self.scheduler.finish(request, "stop")
            if request.num_tokens >= request.max_total_tokens:
                self.scheduler.finish(request, "length")

    def slot(self, request: Request, position: int) -> tuple[int, int]:
        index = position // self.block_size
        check(index < len(request.block_table), "every scheduled token has a block")
        block_id = request.block_table[index]
        check(block_id != 0, "nothing is written to or read from the null block")
        return block_id, position % self.block_size

    # Rules

    def check_decision(self, output: SchedulerOutput) -> None:
        check(output.num_tokens <= self.config.max_num_batched_tokens, "the token budget holds")
        check(len(self.scheduler.running) <= self.config.max_num_seqs, "max_num_seqs holds")
        check(all(one.num_tokens > 0 for one in output.scheduled), "nobody is scheduled for nothing")
        check(not (output.preempted and output.admitted), "nobody is admitted in a step that preempts")
        ids = [one.request.request_id for one in output.scheduled]
        check(len(ids) == len(set(ids)), "a request runs once a step")
        for one in output.scheduled:
            check(one.end < one.request.max_total_tokens, "nothing runs beyond what the request may still produce")
            check(one.request.status is RequestStatus.RUNNING, "only running requests run")
            if self.config.recompute or not self.config.chunked_prefill:
                check(one.produces_token, "whole prompts are not cut")

    def check_visible(self, request: Request, start: int) -> None:
        """Everything the attention would read holds the KV of this very prefix. Checked before the step writes."""
        if self.tables is None:
            check(start == 0, "recompute starts at the first token")
            return
        own = contents(self.device_tokens[request.request_id])
        first = 0 if self.window is None else max(0, start - self.window + 1)
        for position in range(first, start):
            held = self.memory.get(self.slot(request, position))
            check(held is not None and held[0] == own[position], "a request reads only the KV of its own prefix")

    def check_blocks(self) -> None:
        if self.tables is None:
            return
        pool = self.tables.pool
        check(pool.num_in_use + pool.num_cached + pool.num_empty == self.num_blocks, "free + cached + in use = total")
        holders: Counter[int] = Counter()
        for request in self.requests:
            holders.update(set(request.block_table) - {0})
            check(not (request.finished and request.block_table), "a finished request holds no block")
        for block_id in range(1, self.num_blocks + 1):
            check(pool.ref_count(block_id) == holders[block_id], "a block's ref count is the number of its holders")
            key = pool.key(block_id)
            if key is not None:
                held = [self.memory.get((block_id, offset)) for offset in range(self.block_size)]
                written = [None if h is None else h[1] for h in held]
                check(written == list(key.token_ids), "a hashed block is full and holds the tokens of its key")
            if holders[block_id] > 1 and key is None:
                self.check_pending_copy(block_id)
        check(pool.num_in_use == sum(1 for count in holders.values() if count), "in use = held by somebody")
        for one in self.in_flight.output.scheduled if self.in_flight else ():
            for position in range(one.start, one.end) if not one.request.finished else ():
                block_id, _ = self.slot(one.request, position)
                check(pool.key(block_id) is None, "a block is hashed only when the step that filled it was read")

    def check_pending_copy(self, block_id: int) -> None:
        """Part-filled and shared: fine only while no sharer's next token falls into it without a copy being made."""
        inside = [r for r in self.requests if block_id in r.block_table and self.writes_next_into(r, block_id)]
        untouched = [r for r in inside if r.num_output_tokens + r.num_pending_tokens == 0]
        check(
            len(inside) == len(untouched),
            "two requests share a block only if it is full and hashed, or a copy is pending",
        )

    def writes_next_into(self, request: Request, block_id: int) -> bool:
        return request.block_table.index(block_id) == request.num_computed_tokens // self.block_size

    def check_end(self) -> None:
        for request in self.requests:
            check(request.finished, "every request ends")
            check(request.num_pending_tokens == 0, "nothing is pending at the end")
            expected = isolated_output(request.prompt_token_ids, request.num_output_tokens, request.seed)
            check(request.output_token_ids == expected, "output equals the isolated run")
            if request.finish_reason == "stop":
                check(request.num_output_tokens == self.stops[request.request_id], "nothing comes after a stop")
            if request.finish_reason == "length":
                check(request.num_tokens == request.max_total_tokens, "nothing is cut short")
        if self.tables is not None:
            check(self.tables.pool.num_in_use == 0, "after the last request nothing is in use")
        check(self.scheduler.num_waiting == 0 and not self.scheduler.running, "nobody is left behind")
