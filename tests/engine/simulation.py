"""Drives the scheduler and the block tables with a model that is pure arithmetic, and checks every rule every step.

The "KV" of a token is a hash of the whole prefix that ends in it, kept in simulated physical slots. Whatever goes wrong
with blocks (a stale hit, a missed copy, a slot off by one) makes a request read a slot with another prefix's hash, and
is found in that very step, not only when a token happens to differ.

Requests may draft: some drafts are right, some wrong, and what the draft model has seen lies in slots of its own.

With `overlap` a step runs on the simulated device as soon as it is scheduled, but what it drew is told one step later:
the device knows every request's tokens, the host only those that were read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import xxhash

from playground.engine import block_tables
from playground.engine.beam_group import BeamGroup
from playground.engine.beam_search import BeamSearch, Candidate
from playground.engine.block_pool import BlockKey
from playground.engine.block_tables import BlockTables
from playground.engine.holdings import Holdings
from playground.engine.request import Request, RequestStatus
from playground.engine.scheduler import ScheduledRequest, Scheduler, SchedulerConfig, SchedulerOutput
from playground.engine.speculation.draft_kv import DraftKV
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


def candidates(content: int) -> list[Candidate]:
    """What a beam that ends in this KV may go on with: all tokens, each with a score of its own."""
    scores = [-((content >> 8 * token_id) % 1009) / 100 for token_id in range(VOCABULARY)]
    return [Candidate(token_id, score, score) for token_id, score in enumerate(scores)]


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
    num_drafts: int = 0
    """Drafts that each of its steps wants."""
    drafts_every: int = 1
    """It drafts in one of so many steps, so that its draft model falls behind."""
    beam_width: int = 1
    ending: frozenset[int] = frozenset()
    """Tokens that end a beam."""

    def growing(self) -> Arrival:
        """The same with a short prompt and a long output: admitted early, preempted by what grows before it."""
        return replace(self, prompt=self.prompt[:4], num_output=self.num_output + 6)

    def search(self) -> BeamSearch:
        return BeamSearch(self.beam_width, self.num_output, ending_token_ids=self.ending)

    def isolated_search(self) -> BeamSearch:
        """The search as it must end, whatever runs beside it."""
        search = self.search()
        while not search.done:
            ends = [contents([*self.prompt, *beam.token_ids])[-1] for beam in search.beams]
            search.advance([candidates(end) for end in ends])
        return search


@dataclass
class InFlight:
    """A step that the device has run and the host has not read."""

    output: SchedulerOutput
    drawn: dict[int, list[int]]
    reported: dict[int, list[Candidate]]


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
        self.drafting: dict[int, Arrival] = {}  # by request id
        self.draft_memory: dict[tuple[int, int], int] = {}  # (block, offset) -> content, as the draft model left it
        self.draft_kv = DraftKV(self.tables.pool, self.block_size) if self.tables is not None else None
        self.num_rejected = 0
        self.num_accepted = 0
        self.hashed: dict[int, BlockKey | None] = {}  # by block id: what it was found to be hashed as
        self.searches: list[tuple[Arrival, BeamGroup]] = []
        self.in_flight: InFlight | None = None
        self.num_surplus = 0

    def make_tables(self) -> BlockTables:
        return BlockTables(self.num_blocks, self.block_size, prefix_caching=self.prefix_caching, window=self.window)

    # Running

    def add(self, arrival: Arrival) -> list[Request]:
        made: list[Request] = []
        with_beams = arrival.beam_width > 1
        holdings = Holdings()
        for index in range(arrival.beam_width if with_beams else arrival.n):
            params = self.params_of(arrival)
            total = len(arrival.prompt) + arrival.num_output
            request = Request(
                len(self.requests) + 1,
                list(arrival.prompt),
                params,
                index,
                total,
                fork_of=made[0] if made and not with_beams else None,
                holdings=holdings,
            )
            self.requests.append(request)
            self.device_tokens[request.request_id] = list(arrival.prompt)
            if arrival.stop_after is not None and not with_beams:
                self.stops[request.request_id] = arrival.stop_after
            if arrival.num_drafts and not with_beams:
                self.drafting[request.request_id] = arrival
            made.append(request)
        if with_beams:
            self.searches.append((arrival, BeamGroup(made, arrival.search())))
        for request in made:
            self.scheduler.add(request)
        return made

    def params_of(self, arrival: Arrival) -> SamplingParams:
        return SamplingParams(
            max_tokens=arrival.num_output, cache_salt=arrival.salt, cache_breakpoints=arrival.breakpoints
        )

    def fits(self, arrival: Arrival) -> bool:
        """The checks that `Engine.submit` makes."""
        has_blocks = self.tables is None or self.blocks_needed(arrival) <= self.num_blocks
        return has_blocks and arrival.beam_width <= self.config.max_num_seqs

    def blocks_needed(self, arrival: Arrival) -> int:
        length = len(arrival.prompt)
        longest = length + arrival.num_output - 1
        return self.scheduler.max_blocks(longest, width=arrival.beam_width, num_prompt=length)

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
        if any(r.num_pending_tokens and r.draw_needs_ids for r in self.scheduler.running):
            self.collect()
        before = self.in_flight
        self.plan_drafts()
        output = self.schedule(may_preempt=before is None)
        self.check_decision(output)
        check(not (before and output.preempted), "nobody loses blocks that a step in flight still writes")
        if output.scheduled:
            launched = self.run_on_device(output)
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

    def plan_drafts(self) -> None:
        for request in self.scheduler.running:
            arrival = self.drafting.get(request.request_id)
            if arrival is None:
                continue
            request.awaits_drafts = self.steps % arrival.drafts_every == 0
            decodes = request.num_output_tokens > 0 and request.num_uncomputed_tokens == 1
            if request.awaits_drafts and decodes and not request.num_pending_tokens:
                room = request.max_total_tokens - request.num_tokens - 1
                request.num_planned_drafts = min(arrival.num_drafts, room)

    def draft(self, one: ScheduledRequest) -> list[int]:
        """What the draft model says after running all that it has not seen; it sees its own part of the blocks."""
        request = one.request
        known = list(request.token_ids)
        token_ids = list(known)
        for _ in range(one.num_drafts):
            content = contents(token_ids)[-1]
            right = next_token(content, request.seed)
            token_ids.append(right if content % 5 else (right + 1) % VOCABULARY)
        if self.draft_kv is not None:
            own = contents(token_ids)
            start = self.draft_kv.num_computed(request)
            check(start <= one.num_drawn - 1, "the last token is never something the draft model has seen")
            first = 0 if self.window is None else max(0, one.num_drawn - self.window)
            for position in range(first, start):
                held = self.draft_memory.get(self.slot(request, position))
                check(held == own[position], "the draft model reads only the KV of this prefix")
            end = one.end - 1
            held_from = next(i for i, block_id in enumerate(request.block_table) if block_id) * self.block_size
            for position in range(max(start, held_from), end):
                self.draft_memory[self.slot(request, position)] = own[position]
            self.draft_kv.wrote(request, end)
        return token_ids[len(known) :]

    def run_on_device(self, output: SchedulerOutput) -> InFlight:
        """Copies, reads, writes and draws of a step, with the tokens that the device knows."""
        for source, destination in output.copies:
            for offset in range(self.block_size):
                if (source, offset) in self.memory:
                    self.memory[destination, offset] = self.memory[source, offset]
                if (source, offset) in self.draft_memory:
                    self.draft_memory[destination, offset] = self.draft_memory[source, offset]
        if self.draft_kv is not None:
            self.draft_kv.copied(output.copies)
        drafts = {one.request.request_id: self.draft(one) for one in output.scheduled if one.num_drafts}
        if self.steps % 7 == 3:  # a proposer may find fewer than were planned
            drafts = {request_id: ids[: len(ids) // 2] for request_id, ids in drafts.items()}
        output.scheduled[:] = [one.with_drafts(len(drafts.get(one.request.request_id, ()))) for one in output.scheduled]
        for one in output.scheduled:
            self.check_visible(one.request, one.start)
        drawn, reported = {}, {}
        for one in output.scheduled:
            token_ids = self.device_tokens[one.request.request_id] + drafts.get(one.request.request_id, [])
            check(one.end <= len(token_ids), "no token runs before it is drawn")
            own = contents(token_ids)
            if self.tables is not None:
                for position in range(one.start, one.end):
                    slot = self.slot(one.request, position)
                    check(self.tables.pool.ref_count(slot[0]) == 1, "nobody writes into a block that others hold")
                    self.memory[slot] = (own[position], token_ids[position])
            if one.produces_token and one.request.beams is not None:
                reported[one.request.request_id] = candidates(own[one.end - 1])
            elif one.produces_token:
                drawn[one.request.request_id] = self.verify(one, own, drafts.get(one.request.request_id, []))
        for request_id, new in drawn.items():
            self.device_tokens[request_id] += new
        return InFlight(output, drawn, reported)

    def verify(self, one: ScheduledRequest, own: list[int], drafts: list[int]) -> list[int]:
        """Accepted drafts and the token after them; `own` is the content of every token, drafts too."""
        new: list[int] = []
        for position in range(one.num_drawn - 1, one.end):
            new.append(next_token(own[position], one.request.seed))
            if len(new) > len(drafts) or drafts[len(new) - 1] != new[-1]:
                break
        self.num_accepted += len(new) - 1
        self.num_rejected += len(drafts) - (len(new) - 1)
        return new

    def collect(self) -> None:
        """Read the step in flight, if there is one, and account for it."""
        step, self.in_flight = self.in_flight, None
        if step is None:
            return
        self.num_surplus += sum(one.request.finished for one in step.output.scheduled)
        self.scheduler.update(step.output, step.drawn)
        for one in step.output.scheduled:
            if self.draft_kv is not None and not one.request.finished and one.produces_token:
                self.draft_kv.keep(one.request, one.request.num_tokens - 1)
        for request in [one.request for one in step.output.scheduled if one.request.beams is None]:
            if request.num_output_tokens >= self.stops.get(request.request_id, request.max_total_tokens):
                self.scheduler.finish(request, "stop")
            if request.num_tokens >= request.max_total_tokens:
                self.scheduler.finish(request, "length")
        for request in [one.request for one in step.output.scheduled if one.request.request_id in step.reported]:
            self.report(request, step.reported[request.request_id])

    def report(self, request: Request, found: list[Candidate]) -> None:
        """What `EngineCore` does with the candidates of a beam."""
        beams = request.beams
        if request.finished or not beams.report(request, found):
            return
        beams.advance(self.tables)
        for one in beams.members:
            self.device_tokens[one.request_id] = list(one.token_ids)
            if beams.search.done:
                self.scheduler.finish(one, beams.search.hypotheses[0].finish_reason)

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
        if output.preempted:
            for one in output.scheduled:
                needed = -(-one.num_drawn // self.block_size)
                check(len(one.request.block_table) <= needed, "nobody is preempted for blocks that hold only drafts")
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
            if request.request_id in self.drafting and not request.num_pending_tokens:
                needed = -(-request.num_computed_tokens // self.block_size)
                check(len(request.block_table) <= needed, "rejected drafts leave no block behind")
        for block_id in range(1, self.num_blocks + 1):
            check(pool.ref_count(block_id) == holders[block_id], "a block's ref count is the number of its holders")
            key = pool.key(block_id)
            if key is not None:
                held = [self.memory.get((block_id, offset)) for offset in range(self.block_size)]
                written = [None if h is None else h[1] for h in held]
                check(written == list(key.token_ids), "a hashed block is full and holds the tokens of its key")
            if key != self.hashed.get(block_id):
                self.hashed[block_id] = key
                self.check_chain(block_id, key)
            if holders[block_id] > 1 and key is None:
                self.check_pending_copy(block_id)
        check(pool.num_in_use == sum(1 for count in holders.values() if count), "in use = held by somebody")
        self.check_holdings()
        for one in self.in_flight.output.scheduled if self.in_flight else ():
            for position in range(one.start, one.end) if not one.request.finished else ():
                block_id, _ = self.slot(one.request, position)
                check(pool.key(block_id) is None, "a block is hashed only when the step that filled it was read")

    def check_chain(self, block_id: int, key: BlockKey | None) -> None:
        """A newly hashed block that somebody holds is the next in the hash chain of that request's tokens."""
        holder = next((r for r in self.requests if block_id in r.block_table), None)
        if key is None or holder is None:
            return
        own = holder.block_hashes[0]
        for start in range(0, holder.block_table.index(block_id) * self.block_size, self.block_size):
            own = block_tables.chain_hash(own, holder.token_ids[start : start + self.block_size])
        check(key.parent_hash == own, "a block is hashed as what follows the tokens before it")

    def check_holdings(self) -> None:
        tables: dict[Holdings, list[int]] = {}
        for request in self.requests:
            tables.setdefault(request.holdings, []).extend(set(request.block_table) - {0})
        for holdings, held in tables.items():
            check(holdings.num_private == len(held), "a private cache has a block for each that a sample holds")
            check(holdings.num_distinct == len(set(held)), "a block that samples share is counted once")
            check(holdings.peak >= len(set(held)), "the peak is the most there ever was")

    def check_pending_copy(self, block_id: int) -> None:
        """Part-filled and shared: fine only while no sharer's next token falls into it without a copy being made."""
        inside = [r for r in self.requests if block_id in r.block_table and self.writes_next_into(r, block_id)]
        untouched = [r for r in inside if r.beams is not None or r.num_output_tokens + r.num_pending_tokens == 0]
        check(
            len(inside) == len(untouched),
            "two requests share a block only if it is full and hashed, or a copy is pending",
        )

    def writes_next_into(self, request: Request, block_id: int) -> bool:
        return request.block_table.index(block_id) == request.num_computed_tokens // self.block_size

    def check_end(self) -> None:
        for arrival, group in self.searches:
            if group.members[0].finish_reason != "abort":
                expected = arrival.isolated_search().hypotheses
                check(group.search.hypotheses == expected, "a search finds what it finds alone")
        for request in self.requests:
            check(request.finished, "every request ends")
            check(request.num_pending_tokens == 0, "nothing is pending at the end")
            if request.beams is not None:
                continue
            expected = isolated_output(request.prompt_token_ids, request.num_output_tokens, request.seed)
            check(request.output_token_ids == expected, "output equals the isolated run")
            if request.finish_reason == "stop":
                surplus = self.drafting[request.request_id].num_drafts if request.request_id in self.drafting else 0
                stopped_at = self.stops[request.request_id]
                check(0 <= request.num_output_tokens - stopped_at <= surplus, "nothing comes after a stop")
            if request.finish_reason == "length":
                check(request.num_tokens == request.max_total_tokens, "nothing is cut short")
        if self.tables is not None:
            check(self.tables.pool.num_in_use == 0, "after the last request nothing is in use")
        check(self.scheduler.num_waiting == 0 and not self.scheduler.running, "nobody is left behind")
