"""The block pool alone: order of reuse, expiry, refusals."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from playground.engine.block_pool import BlockKey, BlockPool


def key(name: int) -> BlockKey:
    return BlockKey(name, 0, (name,))


def cached_block(pool: BlockPool, name: int) -> int:
    block_id = pool.allocate()
    pool.register(block_id, key(name))
    pool.release([block_id])
    return block_id


def test_empty_blocks_are_taken_before_cached_ones():
    pool = BlockPool(3)
    kept = cached_block(pool, 1)
    assert kept not in (pool.allocate(), pool.allocate())
    assert pool.find(key(1)) == kept


def test_the_cached_block_released_longest_ago_is_evicted_first():
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    for name, block_id in enumerate((first, second)):
        pool.register(block_id, key(name))
    pool.release([second, first])
    assert pool.allocate() == second
    assert pool.find(key(1)) is None and pool.find(key(0)) == first


def test_a_hit_makes_a_cached_block_young_again():
    pool = BlockPool(2)
    old, young = cached_block(pool, 0), None
    young = cached_block(pool, 1)
    pool.share(old)
    pool.release([old])
    assert pool.allocate() == young


def test_a_hash_collision_is_no_hit():
    pool = BlockPool(2)
    block_id = pool.allocate()
    pool.register(block_id, BlockKey(5, 0, (1, 2)))
    assert pool.find(BlockKey(5, 0, (1, 3))) is None
    assert pool.find(BlockKey(5, 1, (1, 2))) is None
    assert pool.find(BlockKey(5, 0, (1, 2))) == block_id


def test_cached_blocks_expire_after_the_ttl_and_reading_renews_them():
    now = [0.0]
    pool = BlockPool(2, ttl=10, clock=lambda: now[0])
    block_id = cached_block(pool, 1)
    now[0] = 9
    assert pool.find(key(1)) == block_id
    pool.share(block_id)
    now[0] = 25
    assert pool.find(key(1)) == block_id, "a block in use does not expire"
    pool.release([block_id])
    now[0] = 36
    assert pool.find(key(1)) is None
    pool.expire()
    assert (pool.num_cached, pool.num_empty) == (0, 2)


def test_releasing_more_often_than_taking_is_an_error():
    pool = BlockPool(1)
    block_id = pool.allocate()
    pool.release([block_id])
    with pytest.raises(AssertionError):
        pool.release([block_id])


def test_flushing_empties_cached_blocks_but_not_those_in_use():
    pool = BlockPool(3)
    held = pool.allocate()
    pool.register(held, key(7))
    cached_block(pool, 1)
    pool.flush()
    assert pool.num_cached == 0 and pool.find(key(7)) == held


class PoolMachine(RuleBasedStateMachine):
    """Any sequence of calls keeps the three states apart and the counts right."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(5)
        self.held: list[int] = []

    @precondition(lambda self: self.pool.num_free > 0)
    @rule()
    def allocate(self):
        block_id = self.pool.allocate()
        assert block_id not in self.held and self.pool.key(block_id) is None
        self.held.append(block_id)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        block_id = data.draw(st.sampled_from(self.held))
        self.held.remove(block_id)
        self.pool.release([block_id])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), name=st.integers(0, 3))
    def register(self, data, name):
        block_id = data.draw(st.sampled_from(self.held))
        if self.pool.key(block_id) is None:
            self.pool.register(block_id, key(name))

    @rule(name=st.integers(0, 3))
    def hit(self, name):
        block_id = self.pool.find(key(name))
        if block_id is not None:
            assert self.pool.key(block_id) == key(name)
            self.pool.share(block_id)
            self.held.append(block_id)

    @rule()
    def flush(self):
        self.pool.flush()

    @invariant()
    def counts_agree(self):
        assert self.pool.num_in_use + self.pool.num_cached + self.pool.num_empty == 5
        assert self.pool.num_in_use == len(set(self.held))
        for block_id in range(1, 6):
            assert self.pool.ref_count(block_id) == self.held.count(block_id)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=100, deadline=None)
