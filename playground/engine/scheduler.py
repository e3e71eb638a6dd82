"""Decides, once a step, which requests run how many tokens under one token budget.

Every step lets `num_computed_tokens` catch up with `num_tokens_with_spec`: a fresh prompt is a long gap, a prefix hit
starts further along, decoding is a gap of one, a preempted request starts again from zero. Imports no torch; knows
tokens and requests, and leaves blocks to `BlockTables`.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from playground.engine.block_tables import BlockTables, cdiv, num_held
from playground.engine.host_tier import Transfer
from playground.engine.outputs import FinishReason
from playground.engine.request import Request, RequestStatus


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    max_num_seqs: int
    max_num_batched_tokens: int
    chunked_prefill: bool = True
    static_batching: bool = False
    """Admit nobody until the whole batch has ended."""
    recompute: bool = False
    """Keep no KV: every step runs every token of a request again."""


class ScheduledRequest(NamedTuple):
    """Tokens [start, start + num_tokens) of a request run in this step, drafts among them at the end."""

    request: Request
    start: int
    num_tokens: int
    produces_token: bool
    """Whether the slice reaches the last token there is, so that its logits give the next."""
    num_drafts: int = 0
    """How many tokens at its end are drafts: the step tells which of them stay."""

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def num_drawn(self) -> int:
        """Where the first drawn token will stand: the tokens of the slice and before it, drafts not counted."""
        return self.end - self.num_drafts

    def with_drafts(self, num_drafts: int) -> "ScheduledRequest":
        """The slice with fewer drafts than were planned."""
        return self._replace(num_tokens=self.num_tokens - self.num_drafts + num_drafts, num_drafts=num_drafts)


@dataclass(slots=True)
class SchedulerOutput:
    scheduled: list[ScheduledRequest] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    """Blocks (source, destination) to copy before the step writes anything."""
    transfers: list[Transfer] = field(default_factory=list)
    """Blocks to copy from and to host memory, in this order, before that; even if nothing is scheduled."""
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    out_of_blocks: bool = False
    """Somebody should have been preempted but might not: see `Scheduler.schedule`."""

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for s in self.scheduled)

    def drop(self, unit: Sequence[Request]) -> None:
        """Forget what the step was to run for these requests. Call while they still have their blocks."""
        own_blocks = {block_id for request in unit for block_id in request.block_table}
        self.scheduled = [one for one in self.scheduled if one.request not in unit]
        self.copies = [pair for pair in self.copies if pair[1] not in own_blocks]


class Scheduler:
    """Running requests in admission order, waiting requests in arrival order. One thread only.

    The requests of a unit (`Request.unit`: the beams of one search) stand side by side in either queue.
    """

    def __init__(self, config: SchedulerConfig, tables: BlockTables | None) -> None:
        """`tables` is None exactly if `config.recompute`."""
        self.config = config
        self.tables = tables
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self._held_forks: dict[int, list[Request]] = {}  # by the id of the sibling they wait for
        self._promised = 0  # blocks that admitted requests still have coming for the tokens they have
        self.num_preemptions = 0
        self.prefix_tokens_queried = 0
        self.prefix_tokens_hit = 0
        self.prefix_tokens_restored: Counter[str] = Counter()
        """Of the tokens hit, those that came from "host" memory and from "disk"."""

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + sum(len(forks) for forks in self._held_forks.values())

    @property
    def unfinished(self) -> list[Request]:
        """Every request that was added and has not ended."""
        return [*self.running, *self.waiting, *(fork for forks in self._held_forks.values() for fork in forks)]

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self._held_forks)

    def max_blocks(self, num_tokens: int, *, width: int = 1, num_prompt: int = 0) -> int:
        """Most KV blocks that a request of `num_tokens` in the cache ever holds.

        For `width` beams: what they hold together, which share the full blocks of a prompt of `num_prompt` tokens.
        """
        if self.tables is None:
            return 0
        each = self.tables.max_blocks(num_tokens, min(num_tokens, self.config.max_num_batched_tokens))
        shared = num_prompt // self.tables.block_size if self.tables.keeps_all(num_tokens) else 0
        return each if width == 1 else shared + width * (each - shared)

    def add(self, request: Request) -> None:
        """Queue a request. A fork waits until its sibling has computed the prompt they share."""
        if request.fork_of is not None and not request.fork_of.finished and self.tables is not None:
            self._held_forks.setdefault(request.fork_of.request_id, []).append(request)
        else:
            self.waiting.append(request)

    # One step

    def schedule(self, *, may_preempt: bool = True) -> SchedulerOutput:
        """Running requests first, in order; then waiting ones, unless somebody had to be preempted.

        With a step still in flight, call it with `may_preempt=False`: the blocks of a request may go to another only
        once it is known what was written into them. The step then ends where the blocks do.
        """
        output = SchedulerOutput()
        batch_is_open = not self.config.static_batching or not self.running
        if self.tables is not None:
            self.tables.pool.expire()
            self._promised = sum(map(self._owed_blocks, self.running))
        budget = self._schedule_running(output, self.config.max_num_batched_tokens, may_preempt)
        if not output.preempted and not output.out_of_blocks and batch_is_open:
            self._admit_waiting(output, budget)
        if self.tables is not None:
            output.transfers = self.tables.drain_transfers()
        return output

    def _schedule_running(self, output: SchedulerOutput, budget: int, may_preempt: bool) -> int:
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            if request.num_planned_drafts:
                room = 0 if output.preempted else budget - (len(self.running) - index - 1)
                self._limit_drafts(request, room)
            runs = not request.held and not request.awaits_last_token and self._has_joined(request)
            num_tokens = self._share_of(request.num_uncomputed_tokens, budget) if runs else 0
            if num_tokens == 0:  # or whole-prompt prefill that does not fit into what is left of this step
                index += 1
                continue
            copies = self._grow_or_preempt(request, num_tokens, output, may_preempt)
            if copies is None:
                break  # nobody may be preempted, or the request itself was the last one left to preempt
            output.copies.extend(copies)
            output.scheduled.append(_slice(request, num_tokens))
            budget -= num_tokens
            index += 1
        return budget

    def _limit_drafts(self, request: Request, budget: int) -> None:
        """Cut drafts to a budget, and to blocks that nobody else will want: they preempt and delay nobody."""
        room = budget - (request.num_uncomputed_tokens - request.num_planned_drafts)
        request.num_planned_drafts = min(request.num_planned_drafts, max(room, 0))
        if self.tables is None:
            return
        size, held = self.tables.block_size, len(request.block_table)
        wanted = cdiv(request.num_tokens_with_spec, size) - held
        needed = cdiv(request.num_tokens_with_pending, size) - held
        if wanted <= max(needed, 0):
            return
        copies = sum(one.beams is not None for one in self.running)  # each may copy the block it shares the end of
        if wanted + self._promised + copies > self.tables.pool.num_free:
            request.num_planned_drafts = 0

    def _grow_or_preempt(
        self, request: Request, num_tokens: int, output: SchedulerOutput, may_preempt: bool
    ) -> list[tuple[int, int]] | None:
        if self.tables is None:
            return []
        owed = self._owed_blocks(request)
        while (copies := self.tables.grow(request, num_tokens)) is None:
            if not may_preempt:
                output.out_of_blocks = True
                return None
            victims = self.running[-1].unit  # the last admitted; everything before `request` is scheduled already
            self._promised -= sum(map(self._owed_blocks, victims))
            if request in victims:
                output.drop(victims)
            self._preempt(victims)
            output.preempted.extend(victims)
            if request in victims:
                return None
        self._promised -= owed - self._owed_blocks(request)
        return copies

    def _has_joined(self, request: Request) -> bool:
        """Whether a running request may compute: a beam that lost its blocks waits for what its sibling has of them."""
        if self.tables is None or request.beams is None or request.fork_of is None:
            return True
        if self.tables.can_fork(request):
            self.tables.fork(request)
        elif request.fork_of.num_computed_tokens < request.num_shared_tokens:
            return False
        else:  # the sibling has let go of blocks that slid out of its window
            self.tables.take(request, self.tables.find_prefix(request))
        request.fork_of = None
        return True

    def _preempt(self, unit: Sequence[Request]) -> list[int]:
        """Send the requests of a unit from the running back to the queue; returns blocks nobody holds any more."""
        assert self.tables is not None
        freed: list[int] = []
        for victim in reversed(unit):
            assert victim.num_pending_tokens == 0
            self.running.remove(victim)
            freed += self.tables.free(victim)
            victim.status = RequestStatus.PREEMPTED
            victim.num_preemptions += 1
            victim.num_planned_drafts = 0
            victim.fork_of = None
            self.num_preemptions += 1
            self._release_forks(victim)
        first = unit[0]
        if first.beams is not None:
            first.beams.restart()
        self.waiting.extendleft(reversed(first.unit))
        return freed

    def _admit_waiting(self, output: SchedulerOutput, budget: int) -> None:
        if self.waiting and self.tables is not None:
            self._promised = sum(map(self._owed_blocks, self.running))
        while self.waiting and len(self.running) + len(self.waiting[0].unit) <= self.config.max_num_seqs:
            if budget == 0 and not self.config.static_batching:
                return  # a static batch is filled up at once, whatever this step can run of it
            request = self.waiting[0]
            copies = self._admit(request, budget)
            if copies is None:
                return
            for one in request.unit:
                self.waiting.remove(one)
                self.running.append(one)
                one.status = RequestStatus.RUNNING
                output.admitted.append(one)
            num_tokens = self._share_of(request.num_uncomputed_tokens, budget)
            if num_tokens:
                output.copies.extend(copies)
                output.scheduled.append(_slice(request, num_tokens))
                budget -= num_tokens

    def _admit(self, request: Request, budget: int) -> list[tuple[int, int]] | None:
        """Give a waiting request its cached prefix and first blocks, if its whole prompt fits; else change nothing."""
        if self.tables is None:
            return [] if self._share_of(request.num_tokens, budget) or self.config.static_batching else None
        forked = self.tables.can_fork(request)
        hit = [] if forked else self.tables.find_prefix(request)
        num_hit = request.num_forked_tokens if forked else len(hit) * self.tables.block_size
        num_tokens = self._share_of(request.num_tokens - num_hit, budget)
        if num_tokens == 0 and not self.config.static_batching:
            return None
        if self._blocks_wanted(request, forked, hit) > self.tables.num_free_after(hit):
            return None
        restored: Counter[str] = Counter()
        if forked:
            self.tables.fork(request)
        else:
            restored = self.tables.take(request, hit)
        copies = self.tables.grow(request, num_tokens)
        assert copies is not None, "the check above covers what a request needs to start"
        self._promised += sum(map(self._owed_blocks, request.unit))
        if request.num_preemptions == 0:
            self._count_hit(request, num_hit, restored)
        return copies

    def _blocks_wanted(self, request: Request, forked: bool, hit: Sequence[int]) -> int:
        """Blocks that the whole prompt will take from the pool, and those that admitted prompts still have coming.

        Checking only the first chunk would admit long prompts that then evict each other for ever.
        """
        assert self.tables is not None
        promised = self._promised
        promised += sum(self._owed_blocks(r) for r in request.unit if r is not request)
        if forked:
            assert request.fork_of is not None
            shared = cdiv(request.num_forked_tokens, self.tables.block_size)
            held = num_held(request.fork_of.block_table[:shared])
            tail_copy = request.num_forked_tokens % self.tables.block_size != 0
            return promised + self.max_blocks(request.num_tokens) - held + tail_copy
        return promised + self.max_blocks(request.num_tokens) - num_held(hit)

    def _owed_blocks(self, request: Request) -> int:
        """Blocks that the tokens of a running request will yet take from the pool."""
        assert self.tables is not None
        if request.held:
            return 0
        joins = request.fork_of is not None and not request.block_table
        if joins and self.tables.keeps_all(request.num_tokens):
            held = request.num_forked_tokens // self.tables.block_size
        else:
            held = len(request.block_table) if self.tables.window is None else num_held(request.block_table)
        return max(0, self.max_blocks(request.num_tokens) - held)

    def _count_hit(self, request: Request, num_hit: int, restored: Counter[str]) -> None:
        request.num_cached_tokens = num_hit
        if self.tables is not None and self.tables.prefix_caching and request.fork_of is None:
            self.prefix_tokens_queried += request.num_tokens
            self.prefix_tokens_hit += num_hit
            self.prefix_tokens_restored += restored

    def _share_of(self, num_uncomputed: int, budget: int) -> int:
        """Tokens of a gap that this step may run: all or nothing where a prompt may not be cut."""
        whole_only = self.config.recompute or not self.config.chunked_prefill
        if whole_only and num_uncomputed > budget:
            return 0
        return min(num_uncomputed, budget)

    def advance(self, output: SchedulerOutput) -> None:
        """Note that a step is on its way to the device: from here on its KV counts as computed, its tokens as drawn."""
        for one in output.scheduled:
            if self.tables is not None:
                one.request.num_computed_tokens = one.end
            if one.produces_token:
                one.request.num_pending_tokens += 1
            one.request.num_planned_drafts = 0

    def update(self, output: SchedulerOutput, new_tokens: Mapping[int, Sequence[int]]) -> None:
        """Account for the oldest step on its way, now that it has run: new tokens by request id, blocks now full.

        What it did for a request that has ended in the meantime is of no use to anybody.
        """
        for one in output.scheduled:
            request = one.request
            if request.status is not RequestStatus.RUNNING:
                continue
            if one.produces_token:
                request.num_pending_tokens -= 1
                request.token_ids.extend(new_tokens.get(request.request_id, ()))
            if self.tables is not None:
                end = one.end
                if one.num_drafts:  # what was rejected is as if it had never run
                    end = request.num_computed_tokens = request.num_tokens - 1
                self.tables.shrink(request)
                self.tables.register(request, end)
                if self._held_forks and end >= request.num_prompt_tokens:
                    self._release_forks(request)

    def rewind(self, outputs: Iterable[SchedulerOutput]) -> tuple[list[Request], list[int]]:
        """Forget steps on their way whose outcome will never be known: whoever runs in one computes it all again.

        Returns the requests, and the blocks that they held alone and that may now hold anything.
        """
        lost = {one.request.request_id for output in outputs for one in output.scheduled}
        rewound = [request for request in self.running if request.request_id in lost]
        freed: list[int] = []
        for request in rewound:
            request.num_pending_tokens = 0
        for request in reversed(rewound):  # so that they wait in the order in which they ran
            if self.tables is not None and request.status is RequestStatus.RUNNING:
                freed += self._preempt(request.unit)
        return rewound, freed

    # Leaving

    def finish(self, request: Request, reason: FinishReason) -> list[int]:
        """End a request in whatever state it is; ending it twice does nothing. Returns blocks that hold nothing now."""
        if request.finished:
            return []
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
        elif not self._remove_held_fork(request):
            self.waiting.remove(request)
        freed = self.tables.free(request, keep_cached=reason != "error") if self.tables is not None else []
        request.num_pending_tokens = 0
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        self._release_forks(request)
        return freed

    def _release_forks(self, sibling: Request) -> None:
        """Let the forks of a request compete for admission: its prompt is computed, or it never will be."""
        self.waiting.extendleft(reversed(self._held_forks.pop(sibling.request_id, [])))

    def _remove_held_fork(self, request: Request) -> bool:
        if request.fork_of is None:
            return False
        forks = self._held_forks.get(request.fork_of.request_id, [])
        if request not in forks:
            return False
        forks.remove(request)
        if not forks:
            del self._held_forks[request.fork_of.request_id]
        return True


def _slice(request: Request, num_tokens: int) -> ScheduledRequest:
    start = request.num_computed_tokens
    num_drafts = start + num_tokens - request.num_tokens_with_pending
    return ScheduledRequest(request, start, num_tokens, num_drafts >= 0, max(num_drafts, 0))
