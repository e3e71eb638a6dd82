"""Faults planted on purpose: each must be caught by the simulation that the property tests use.

A suite that stays green with a broken hash or a block edge off by one would prove nothing; this keeps it honest.
"""

import random

import pytest

from playground.engine import block_tables, scheduler
from playground.engine.block_pool import BlockKey, BlockPool
from playground.engine.block_tables import BlockTables
from playground.engine.request import RequestStatus
from playground.engine.scheduler import Scheduler, SchedulerConfig
from tests.engine.simulation import VOCABULARY, Arrival, Simulation


def random_arrivals(rng: random.Random) -> list[Arrival]:
    stems = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 12))] for _ in range(2)]
    return [
        Arrival(
            step=rng.randint(0, 10),
            prompt=rng.choice(stems) + [rng.randrange(VOCABULARY) for _ in range(rng.randint(0, 3))],
            num_output=rng.randint(1, 10),
            abort_after=rng.choice([None, None, rng.randint(0, 10)]),
            n=rng.choice([1, 1, 2, 3]),
        )
        for _ in range(rng.randint(2, 8))
    ]


def run_suite(num_rounds: int = 150) -> None:
    """The rules of the property tests over seeded random cases (hypothesis would shrink and cache them)."""
    for seed in range(num_rounds):
        rng = random.Random(seed)
        config = SchedulerConfig(rng.randint(1, 6), rng.randint(1, 16))
        simulation = Simulation(
            config,
            num_blocks=rng.randint(6, 24),
            block_size=rng.choice([1, 2, 3]),
            window=rng.choice([None, None, 3, 5]),
        )
        simulation.run(random_arrivals(rng), max_steps=1500)


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
    def register(self, request):
        for index in range(request.num_registered_blocks, (request.num_computed_tokens + 1) // self.block_size):
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

    def schedule(self):
        output = whole(self)
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

    def schedule(self):
        output = whole(self)
        if output.preempted:
            self._admit_waiting(output, self.config.max_num_batched_tokens - output.num_tokens)
        return output

    monkeypatch.setattr(Scheduler, "schedule", schedule)


def budget_overrun_by_one(monkeypatch):
    whole = Scheduler._share_of
    monkeypatch.setattr(Scheduler, "_share_of", lambda self, gap, budget: whole(self, gap, budget + 1))


def token_of_an_unfinished_chunk_is_kept(monkeypatch):
    monkeypatch.setattr(scheduler.ScheduledRequest, "produces_token", property(lambda self: True))


FAULTS = [
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
]


def test_the_suite_passes_without_a_fault():
    run_suite()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, IndexError, KeyError)):
        run_suite()
