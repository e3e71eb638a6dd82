"""Faults planted on purpose: each must be caught by the simulation that the property tests use.

A suite that stays green with a broken hash or a block edge off by one would prove nothing; this keeps it honest.
"""

import random

import pytest

from playground.engine import beam_group, block_tables, scheduler
from playground.engine.beam_group import BeamGroup
from playground.engine.block_pool import BlockKey, BlockPool
from playground.engine.block_tables import BlockTables
from playground.engine.request import Request, RequestStatus
from playground.engine.scheduler import Scheduler, SchedulerConfig, SchedulerOutput
from playground.engine.speculation.draft_kv import DraftKV
from tests.engine.simulation import VOCABULARY, Arrival, Simulation


def random_arrivals(rng: random.Random, widths: tuple[int, ...] = (1, 1, 2, 3)) -> list[Arrival]:
    stems = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 12))] for _ in range(2)]
    return [
        Arrival(
            step=rng.randint(0, 10),
            prompt=rng.choice(stems) + [rng.randrange(VOCABULARY) for _ in range(rng.randint(0, 3))],
            num_output=rng.randint(1, 10),
            abort_after=rng.choice([None, None, rng.randint(0, 10)]),
            n=rng.choice([1, 1, 2, 3]),
            stop_after=rng.choice([None, None, rng.randint(1, 6)]),
            num_drafts=rng.choice([0, 0, 1, 3]),
            drafts_every=rng.choice([1, 1, 3]),
            beam_width=rng.choice(widths),
            ending=rng.choice([frozenset(), frozenset({1})]),
        )
        for _ in range(rng.randint(2, 8))
    ]


def run_suite(num_rounds: int = 120) -> None:
    """The rules of the property tests over seeded random cases (hypothesis would shrink and cache them)."""
    for seed in range(num_rounds):
        rng = random.Random(seed)
        config = SchedulerConfig(rng.randint(1, 6), rng.randint(1, 16))
        simulation = Simulation(
            config,
            num_blocks=rng.randint(6, 24),
            block_size=rng.choice([1, 2, 3]),
            window=rng.choice([None, None, 3, 5]),
            overlap=seed % 2 == 1,
        )
        simulation.run(random_arrivals(rng), max_steps=1500)
    for seed in range(num_rounds):
        rng = random.Random(-1 - seed)
        arrivals = [one.growing() for _ in range(2) for one in random_arrivals(rng, widths=(1, 2, 3))]
        barely_enough(arrivals, rng).run(arrivals, max_steps=1500)


def barely_enough(arrivals: list[Arrival], rng: random.Random) -> Simulation:
    """A pool that the largest request fills and a small budget, so that searches are preempted at any moment."""
    config = SchedulerConfig(rng.randint(4, 20), rng.choice([2, 3, 4, 6, 16]))
    shape = {"block_size": rng.choice([1, 2, 3]), "window": rng.choice([None, None, 5])}
    shape["prefix_caching"] = rng.random() < 0.5
    needs = Simulation(config, num_blocks=1, **shape).blocks_needed
    return Simulation(config, num_blocks=max(map(needs, arrivals)) + rng.randint(0, 2), **shape)


def hash_that_ignores_the_last_token(monkeypatch):
    whole = block_tables.chain_hash
    monkeypatch.setattr(block_tables, "chain_hash", lambda parent, ids: whole(parent, list(ids)[:-1]))


def hash_and_comparison_that_ignore_the_last_token(monkeypatch):
    hash_that_ignores_the_last_token(monkeypatch)
    monkeypatch.setattr(BlockKey, "__eq__", lambda a, b: a.hash == b.hash, raising=False)


def hash_without_the_parent(monkeypatch):
    whole = block_tables.chain_hash
    monkeypatch.setattr(block_tables, "chain_hash", lambda parent, ids: whole(0, ids))
    monkeypatch.setattr(BlockKey, "__eq__", lambda a, b: a.token_ids == b.token_ids, raising=False)


def block_not_unhashed_on_reuse(monkeypatch):
    def allocate(self):
        queue = self._empty or self._cached
        block_id, _ = queue.popitem(last=False)
        self._blocks[block_id].ref_count = 1
        return block_id

    monkeypatch.setattr(BlockPool, "allocate", allocate)


def one_block_too_few_at_the_edge(monkeypatch):
    monkeypatch.setattr(block_tables, "cdiv", lambda a, b: a // b)


def last_block_counted_as_full_too_early(monkeypatch):
    def register(self, request, num_tokens):
        for index in range(request.num_registered_blocks, (num_tokens + 1) // self.block_size):
            if (index + 1) * self.block_size <= request.num_tokens and index < len(request.block_table):
                block_id = request.block_table[index]
                if block_id and self.pool.key(block_id) is None:
                    self.pool.register(block_id, self._key(request, index))
                request.num_registered_blocks = index + 1

    monkeypatch.setattr(BlockTables, "register", register)


def registered_before_computed(monkeypatch):
    whole = BlockTables.grow

    def grow(self, request, num_tokens):
        copies = whole(self, request, num_tokens)
        if copies is not None:
            for index in range(
                request.num_registered_blocks, (request.num_computed_tokens + num_tokens) // self.block_size
            ):
                if self.pool.key(request.block_table[index]) is None and request.block_table[index]:
                    self.pool.register(request.block_table[index], self._key(request, index))
                request.num_registered_blocks = index + 1
        return copies

    monkeypatch.setattr(BlockTables, "grow", grow)


def no_copy_on_write(monkeypatch):
    whole = BlockTables.grow

    def grow(self, request, num_tokens):
        ref_count = self.pool.ref_count
        self.pool.ref_count = lambda block_id: 1
        try:
            return whole(self, request, num_tokens)
        finally:
            self.pool.ref_count = ref_count

    monkeypatch.setattr(BlockTables, "grow", grow)


def copy_forgotten_by_the_executor(monkeypatch):
    whole = Scheduler.schedule

    def schedule(self, **options):
        output = whole(self, **options)
        output.copies.clear()
        return output

    monkeypatch.setattr(Scheduler, "schedule", schedule)


def window_trimmed_one_block_too_far(monkeypatch):
    whole = BlockTables._trim

    def trim(self, request):
        window, self.window = self.window, self.window and max(1, self.window - self.block_size)
        whole(self, request)
        self.window = window

    monkeypatch.setattr(BlockTables, "_trim", trim)


def blocks_freed_twice_on_abort(monkeypatch):
    whole = Scheduler.finish

    def finish(self, request, reason):
        table = list(request.block_table)
        freed = whole(self, request, reason)
        if reason == "abort" and table:
            self.tables.pool.release(b for b in table if b and self.tables.pool.ref_count(b) > 0)
        return freed

    monkeypatch.setattr(Scheduler, "finish", finish)


def blocks_never_freed_on_abort(monkeypatch):
    whole = BlockTables.free

    def free(self, request, *, keep_cached=True):
        if request.status is RequestStatus.RUNNING and request.num_output_tokens % 2:
            request.block_table = []
            return []
        return whole(self, request, keep_cached=keep_cached)

    monkeypatch.setattr(BlockTables, "free", free)


def hit_on_the_whole_prompt(monkeypatch):
    whole = BlockTables.find_prefix

    def find_prefix(self, request):
        request.token_ids.append(0)
        hit = whole(self, request)
        request.token_ids.pop()
        return hit

    monkeypatch.setattr(BlockTables, "find_prefix", find_prefix)


def admission_of_the_first_chunk_only(monkeypatch):
    monkeypatch.setattr(Scheduler, "_blocks_wanted", lambda self, request, forked, hit: 0)


def admission_in_a_step_that_preempts(monkeypatch):
    whole = Scheduler.schedule

    def schedule(self, **options):
        output = whole(self, **options)
        if output.preempted:
            self._admit_waiting(output, self.config.max_num_batched_tokens - output.num_tokens)
        return output

    monkeypatch.setattr(Scheduler, "schedule", schedule)


def budget_overrun_by_one(monkeypatch):
    whole = Scheduler._share_of
    monkeypatch.setattr(Scheduler, "_share_of", lambda self, gap, budget: whole(self, gap, budget + 1))


def token_of_an_unfinished_chunk_is_kept(monkeypatch):
    whole = scheduler._slice
    monkeypatch.setattr(scheduler, "_slice", lambda request, n: whole(request, n)._replace(produces_token=True))


def block_with_a_pending_token_is_hashed(monkeypatch):
    whole = Scheduler.advance

    def advance(self, output):
        whole(self, output)
        for one in output.scheduled:
            self.tables.register(one.request, one.end)

    monkeypatch.setattr(Scheduler, "advance", advance)


def block_is_hashed_before_its_step_was_read(monkeypatch):
    whole = BlockTables.register
    monkeypatch.setattr(BlockTables, "register", lambda self, r, num_tokens: whole(self, r, r.num_computed_tokens))


def surplus_result_of_a_finished_request_is_accounted(monkeypatch):
    whole = Scheduler.update

    def update(self, output, new_tokens):
        for one in output.scheduled:
            if one.request.finished:
                one.request.token_ids.extend(new_tokens.get(one.request.request_id, ()))
        whole(self, output, new_tokens)

    monkeypatch.setattr(Scheduler, "update", update)


def decode_of_the_last_token_is_scheduled(monkeypatch):
    monkeypatch.setattr(Request, "awaits_last_token", property(lambda self: False))


def preemption_while_a_step_is_in_flight(monkeypatch):
    whole = Scheduler.schedule
    monkeypatch.setattr(Scheduler, "schedule", lambda self, *, may_preempt: whole(self))


def progress_is_only_noted_when_a_step_is_read(monkeypatch):
    advance, update = Scheduler.advance, Scheduler.update

    def late(self, output, new_tokens):
        advance(self, output)
        update(self, output, new_tokens)

    monkeypatch.setattr(Scheduler, "advance", lambda self, output: None)
    monkeypatch.setattr(Scheduler, "update", late)


def rejected_drafts_count_as_computed(monkeypatch):
    whole = Scheduler.update

    def update(self, output, new_tokens):
        output.scheduled[:] = [one._replace(num_drafts=0) for one in output.scheduled]
        whole(self, output, new_tokens)

    monkeypatch.setattr(Scheduler, "update", update)


def rejected_drafts_keep_their_blocks(monkeypatch):
    monkeypatch.setattr(BlockTables, "shrink", lambda self, request: None)


def one_accepted_draft_too_many(monkeypatch):
    whole = Scheduler.update

    def update(self, output, new_tokens):
        kept = {}
        for one in output.scheduled:
            token_ids = list(new_tokens.get(one.request.request_id, ()))
            kept[one.request.request_id] = token_ids + [0] * (1 < len(token_ids) <= one.num_drafts)
        whole(self, output, kept)

    monkeypatch.setattr(Scheduler, "update", update)


def drafts_beyond_the_budget(monkeypatch):
    monkeypatch.setattr(Scheduler, "_limit_drafts", lambda self, request, budget: None)
    whole = Scheduler._share_of
    monkeypatch.setattr(Scheduler, "_share_of", lambda self, gap, budget: max(whole(self, gap, budget), min(gap, 2)))


def drafts_that_take_blocks_from_others(monkeypatch):
    monkeypatch.setattr(Scheduler, "_owed_blocks", lambda self, request: 0)


def rejected_drafts_stay_in_the_drafts_cache(monkeypatch):
    monkeypatch.setattr(DraftKV, "keep", lambda self, request, num_tokens: None)


def drafts_cache_that_takes_any_block_for_its_own(monkeypatch):
    monkeypatch.setattr(DraftKV, "_num_found", lambda self, request: request.num_registered_blocks)


def beam_does_not_count_as_holder_of_its_parents_blocks(monkeypatch):
    def share(self, request, block_ids):
        if request.beams is not None and request.block_table:
            request.block_table = list(block_ids)
        else:
            whole(self, request, block_ids)

    whole = BlockTables._share
    monkeypatch.setattr(BlockTables, "_share", share)


def part_filled_block_of_the_parent_is_not_adopted(monkeypatch):
    whole = BlockTables.adopt

    def adopt(self, request, parent):
        whole(self, request, parent)
        if parent.num_computed_tokens % self.block_size:
            self._release(request, [request.block_table.pop()])

    monkeypatch.setattr(BlockTables, "adopt", adopt)


def part_filled_block_of_the_parent_is_written_uncopied(monkeypatch):
    whole = BlockTables.grow

    def grow(self, request, num_tokens):
        ref_count = self.pool.ref_count
        if request.beams is not None:
            self.pool.ref_count = lambda block_id: 1
        try:
            return whole(self, request, num_tokens)
        finally:
            self.pool.ref_count = ref_count

    monkeypatch.setattr(BlockTables, "grow", grow)


def hash_chain_is_not_adopted(monkeypatch):
    whole = BlockTables.adopt

    def adopt(self, request, parent):
        own = request.block_hashes
        whole(self, request, parent)
        request.block_hashes = own or list(parent.block_hashes)

    monkeypatch.setattr(BlockTables, "adopt", adopt)


def hash_chain_is_shared_with_the_parent(monkeypatch):
    whole = BlockTables.adopt

    def adopt(self, request, parent):
        whole(self, request, parent)
        request.block_hashes = parent.block_hashes

    monkeypatch.setattr(BlockTables, "adopt", adopt)


def given_up_blocks_are_freed_twice(monkeypatch):
    whole = BlockTables.adopt

    def adopt(self, request, parent):
        given_up = [block_id for block_id in request.block_table if block_id]
        whole(self, request, parent)
        self.pool.release(block_id for block_id in given_up if self.pool.ref_count(block_id))

    monkeypatch.setattr(BlockTables, "adopt", adopt)


def given_up_blocks_are_not_freed(monkeypatch):
    whole = BlockTables.adopt

    def adopt(self, request, parent):
        request.block_table = []
        whole(self, request, parent)

    monkeypatch.setattr(BlockTables, "adopt", adopt)


def beams_stay_held_after_a_preemption(monkeypatch):
    whole = BeamGroup.restart

    def restart(self):
        held = [request.held for request in self.members]
        whole(self)
        for request, was_held in zip(self.members, held, strict=True):
            request.held = was_held

    monkeypatch.setattr(BeamGroup, "restart", restart)


def resumed_beam_shares_one_token_too_many(monkeypatch):
    whole = beam_group._num_in_common
    monkeypatch.setattr(beam_group, "_num_in_common", lambda a, b: whole(a, b) + 1)


def resumed_beam_does_not_wait_for_its_sibling(monkeypatch):
    def can_fork(self, request):
        return request.fork_of is not None and not request.fork_of.finished

    monkeypatch.setattr(BlockTables, "can_fork", can_fork)


def slices_of_a_preempted_group_are_kept(monkeypatch):
    monkeypatch.setattr(SchedulerOutput, "drop", lambda self, unit: None)


def group_admitted_into_too_few_slots(monkeypatch):
    monkeypatch.setattr(Request, "unit", property(lambda self: (self,)))


def beam_is_scheduled_before_its_siblings_have_reported(monkeypatch):
    whole = BeamGroup.report

    def report(self, request, candidates):
        complete = whole(self, request, candidates)
        request.held = False
        request.token_ids.append(candidates[0].token_id)
        return complete

    monkeypatch.setattr(BeamGroup, "report", report)


def reports_are_taken_for_those_of_a_sibling(monkeypatch):
    whole = BeamGroup.advance

    def advance(self, tables):
        self._reports = dict(zip(self._reports, reversed(self._reports.values()), strict=True))
        whole(self, tables)

    monkeypatch.setattr(BeamGroup, "advance", advance)


FAULTS = [
    rejected_drafts_count_as_computed,
    rejected_drafts_keep_their_blocks,
    one_accepted_draft_too_many,
    drafts_beyond_the_budget,
    drafts_that_take_blocks_from_others,
    rejected_drafts_stay_in_the_drafts_cache,
    drafts_cache_that_takes_any_block_for_its_own,
    hash_and_comparison_that_ignore_the_last_token,
    hash_that_ignores_the_last_token,
    hash_without_the_parent,
    block_not_unhashed_on_reuse,
    one_block_too_few_at_the_edge,
    last_block_counted_as_full_too_early,
    registered_before_computed,
    no_copy_on_write,
    copy_forgotten_by_the_executor,
    window_trimmed_one_block_too_far,
    blocks_freed_twice_on_abort,
    blocks_never_freed_on_abort,
    hit_on_the_whole_prompt,
    admission_of_the_first_chunk_only,
    admission_in_a_step_that_preempts,
    budget_overrun_by_one,
    token_of_an_unfinished_chunk_is_kept,
    block_with_a_pending_token_is_hashed,
    block_is_hashed_before_its_step_was_read,
    surplus_result_of_a_finished_request_is_accounted,
    decode_of_the_last_token_is_scheduled,
    preemption_while_a_step_is_in_flight,
    progress_is_only_noted_when_a_step_is_read,
    beam_does_not_count_as_holder_of_its_parents_blocks,
    part_filled_block_of_the_parent_is_not_adopted,
    part_filled_block_of_the_parent_is_written_uncopied,
    hash_chain_is_not_adopted,
    hash_chain_is_shared_with_the_parent,
    given_up_blocks_are_freed_twice,
    given_up_blocks_are_not_freed,
    beams_stay_held_after_a_preemption,
    resumed_beam_shares_one_token_too_many,
    resumed_beam_does_not_wait_for_its_sibling,
    slices_of_a_preempted_group_are_kept,
    group_admitted_into_too_few_slots,
    beam_is_scheduled_before_its_siblings_have_reported,
    reports_are_taken_for_those_of_a_sibling,
]


def test_the_suite_passes_without_a_fault():
    run_suite()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, IndexError, KeyError)):
        run_suite()
