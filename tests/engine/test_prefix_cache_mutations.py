"""Faults planted in the prefix cache: each must be caught by the simulation that its property tests use."""

import random

import pytest

from playground.engine import block_tables
from playground.engine.block_pool import BlockPool
from playground.engine.block_tables import TO_RESTORE, BlockTables
from playground.engine.host_tier import HostTier
from playground.engine.pins import PinnedPrefixes
from playground.engine.scheduler import Scheduler, SchedulerConfig
from tests.engine.cache_simulation import CacheSimulation, PinEvent, SimulatedFiles
from tests.engine.simulation import VOCABULARY, Arrival


def random_case(rng: random.Random) -> tuple[list[Arrival], list[PinEvent]]:
    stems = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(2, 12))] for _ in range(2)]
    arrivals = []
    for _ in range(rng.randint(3, 9)):
        prompt = rng.choice(stems) + [rng.randrange(VOCABULARY) for _ in range(rng.randint(0, 3))]
        arrivals.append(
            Arrival(
                step=rng.randint(0, 25),
                prompt=prompt,
                num_output=rng.randint(1, 8),
                abort_after=rng.choice([None, None, rng.randint(0, 10)]),
                breakpoints=rng.choice([None, None, (), (rng.randint(1, len(prompt)),)]),
            )
        )
    pins = [
        PinEvent(rng.randint(0, 20), rng.choice(stems), None, rng.choice([None, 5]), rng.choice([None, None, 4, 9]))
        for _ in range(rng.randint(0, 3))
    ]
    return arrivals, pins


def run_suite(num_rounds: int = 150) -> None:
    """The rules of the property tests over seeded random cases."""
    for seed in range(num_rounds):
        rng = random.Random(seed)
        arrivals, pins = random_case(rng)
        simulation = CacheSimulation(
            SchedulerConfig(rng.randint(1, 6), rng.randint(1, 16)),
            num_blocks=rng.randint(6, 20),
            block_size=rng.choice([1, 2, 3]),
            window=rng.choice([None, None, None, 5]),
            overlap=seed % 2 == 1,
            ttl=rng.choice([None, None, 4, 9]),
            max_cached=rng.choice([None, None, 0, 3]),
            host_slots=rng.choice([0, 2, 5, 30]),
            files=SimulatedFiles(),
            max_pinned=rng.choice([0.5, 1.0]),
            pin_events=pins,
        )
        simulation.run(arrivals, max_steps=1500)
        simulation.check_without_pins()


def restored_from_the_wrong_slot(monkeypatch):
    whole = HostTier.restore

    def restore(self, key, block_id):
        tier = whole(self, key, block_id)
        transfer = self._transfers[-1]
        self._transfers[-1] = transfer._replace(slot=(transfer.slot + 1) % self.num_slots)
        return tier

    monkeypatch.setattr(HostTier, "restore", restore)


def restored_block_registered_as_its_neighbour(monkeypatch):
    whole = BlockTables.take

    def take(self, request, hit):
        key = self._key
        self._key = lambda request, index: key(request, max(0, index - 1))
        try:
            return whole(self, request, hit)
        finally:
            del self._key

    monkeypatch.setattr(BlockTables, "take", take)


def restores_carried_out_before_saves(monkeypatch):
    whole = HostTier.drain
    monkeypatch.setattr(HostTier, "drain", lambda self: sorted(whole(self), key=lambda transfer: transfer.to_host))


def transfers_carried_out_a_step_late(monkeypatch):
    whole = BlockTables.drain_transfers

    def drain(self):
        late, self.late = getattr(self, "late", []), whole(self)
        return late

    monkeypatch.setattr(BlockTables, "drain_transfers", drain)


def slot_reused_while_the_step_still_needs_it(monkeypatch):
    monkeypatch.setattr(HostTier, "_touch", lambda self, key: self._held.move_to_end(key))


def host_memory_ignores_the_time_to_live(monkeypatch):
    monkeypatch.setattr(HostTier, "_expired", lambda self, held: False)


def pool_ignores_the_time_to_live(monkeypatch):
    monkeypatch.setattr(BlockPool, "_expired", lambda self, block_id: False)


def hit_taken_in_order_so_that_it_can_evict_itself(monkeypatch):
    def take(self, request, hit):
        whole = list(hit)
        restored = block_tables.Counter()
        for index, block_id in enumerate(hit):
            if block_id == TO_RESTORE:
                key = self._key(request, index)
                whole[index] = self.pool.allocate()
                self.pool.register(whole[index], key)
                restored[self.tier.restore(key, whole[index])] += self.block_size
            elif block_id:
                self.pool.share(block_id)
        request.block_table = whole
        request.num_computed_tokens = len(hit) * self.block_size
        request.num_registered_blocks = request.num_found_blocks = len(hit)
        request.num_accounted_blocks = max(request.num_accounted_blocks, len(hit))
        return restored

    monkeypatch.setattr(BlockTables, "take", take)


def pinned_block_counted_as_free(monkeypatch):
    monkeypatch.setattr(
        BlockTables,
        "num_free_after",
        lambda self, hit: self.pool.num_free - sum(self.pool.ref_count(b) == 0 for b in hit if b > 0) + 1,
    )


def limit_off_by_one(monkeypatch):
    def limit(self):
        while self._max_cached is not None and len(self._cached) > self._max_cached + 1:
            self._evict()

    monkeypatch.setattr(BlockPool, "_limit_cached", limit)


def limit_forgotten_when_a_pin_ends(monkeypatch):
    whole, limit = BlockPool.unpin, BlockPool._limit_cached

    def unpin(self, key):
        BlockPool._limit_cached = lambda self: None
        try:
            whole(self, key)
        finally:
            BlockPool._limit_cached = limit

    monkeypatch.setattr(BlockPool, "unpin", unpin)


def pin_released_early(monkeypatch):
    monkeypatch.setattr(
        PinnedPrefixes, "_lasts", lambda self, one: one.expires_at is None or self._clock() < one.expires_at - 1
    )


def pin_that_never_ends(monkeypatch):
    monkeypatch.setattr(PinnedPrefixes, "_lasts", lambda self, one: True)


def second_pin_of_a_prefix_ends_with_the_first(monkeypatch):
    whole = BlockPool.unpin

    def unpin(self, key):
        if key in self._pins:
            self._pins[key].count = 1
            whole(self, key)

    monkeypatch.setattr(BlockPool, "unpin", unpin)


def pinned_block_left_among_the_evictable(monkeypatch):
    def bind(self, key):
        pin = self._pins.get(key)
        if pin is not None and pin.block_id is None:
            pin.block_id = self.find(key)

    monkeypatch.setattr(BlockPool, "_bind", bind)


def pins_do_not_look_at_requests_in_progress(monkeypatch):
    monkeypatch.setattr(Scheduler, "unfinished", property(lambda self: []))


def requests_do_not_look_at_pins(monkeypatch):
    monkeypatch.setattr(PinnedPrefixes, "_num_beside", lambda self, prompt, params, reserved: 0)


def writes_counted_again_after_a_preemption(monkeypatch):
    def count(self, request, index, key):
        if (index + 1) * self.block_size <= request.num_prompt_tokens and not self.holds(key):
            request.num_cache_write_tokens += self.block_size

    monkeypatch.setattr(BlockTables, "_count_write", count)


def breakpoint_rounded_up(monkeypatch):
    whole = BlockTables.register

    def register(self, request, num_tokens):
        breakpoints = request.params.cache_breakpoints
        if breakpoints:
            up = tuple(-(-one // self.block_size) * self.block_size for one in breakpoints)
            object.__setattr__(request.params, "cache_breakpoints", up)
        whole(self, request, num_tokens)
        object.__setattr__(request.params, "cache_breakpoints", breakpoints)

    monkeypatch.setattr(BlockTables, "register", register)


def no_breakpoint_taken_for_automatic(monkeypatch):
    whole = BlockTables.register

    def register(self, request, num_tokens):
        breakpoints = request.params.cache_breakpoints
        object.__setattr__(request.params, "cache_breakpoints", breakpoints or None)
        whole(self, request, num_tokens)
        object.__setattr__(request.params, "cache_breakpoints", breakpoints)

    monkeypatch.setattr(BlockTables, "register", register)


FAULTS = [
    restored_from_the_wrong_slot,
    restored_block_registered_as_its_neighbour,
    restores_carried_out_before_saves,
    transfers_carried_out_a_step_late,
    slot_reused_while_the_step_still_needs_it,
    host_memory_ignores_the_time_to_live,
    pool_ignores_the_time_to_live,
    hit_taken_in_order_so_that_it_can_evict_itself,
    pinned_block_counted_as_free,
    limit_off_by_one,
    limit_forgotten_when_a_pin_ends,
    pin_released_early,
    pin_that_never_ends,
    second_pin_of_a_prefix_ends_with_the_first,
    pinned_block_left_among_the_evictable,
    pins_do_not_look_at_requests_in_progress,
    requests_do_not_look_at_pins,
    writes_counted_again_after_a_preemption,
    breakpoint_rounded_up,
    no_breakpoint_taken_for_automatic,
]


def test_the_suite_passes_without_a_fault():
    run_suite()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, IndexError, KeyError)):
        run_suite()
