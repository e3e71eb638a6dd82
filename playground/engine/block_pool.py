"""Owns the physical KV blocks: who holds each, which can be reused for their content, which are empty.

Knows nothing of requests or tensors. Block 0 is the null block: it stands in tables for what is not there and is
never handed out. The pool imports no torch and is driven by property tests.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from playground.engine.events import BlockAction

NULL_BLOCK = 0


class BlockKey(NamedTuple):
    """What a full block holds. The hash finds it; tokens and parent are compared, because hashes collide."""

    hash: int
    parent_hash: int
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class _Block:
    ref_count: int = 0
    key: BlockKey | None = None
    released_at: float = 0.0


class BlockPool:
    """A block is in exactly one of three states.

    In use (`ref_count > 0`), cached (`ref_count == 0`, hashed, waiting in LRU order) or empty (neither). Allocation
    takes empty blocks first, then the cached block that was released longest ago, whose content is evicted.
    """

    def __init__(
        self,
        num_blocks: int,
        *,
        ttl: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        record: Callable[[BlockAction, int, int], None] | None = None,
    ) -> None:
        """`num_blocks` usable blocks with ids 1..num_blocks; `ttl` in seconds of `clock` since the last use;
        `record(action, block_id, ref_count)` hears of every change."""
        self.num_blocks = num_blocks
        self._ttl = ttl
        self._clock = clock
        self._record = record
        self._blocks = [_Block() for _ in range(num_blocks + 1)]
        self._empty: OrderedDict[int, None] = OrderedDict((i, None) for i in range(1, num_blocks + 1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._by_hash: dict[int, list[int]] = {}  # equal content may live in several blocks

    @property
    def num_empty(self) -> int:
        return len(self._empty)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out: empty ones, and cached ones at the price of their content."""
        return len(self._empty) + len(self._cached)

    @property
    def num_in_use(self) -> int:
        return self.num_blocks - self.num_free

    def ref_count(self, block_id: int) -> int:
        return self._blocks[block_id].ref_count

    def key(self, block_id: int) -> BlockKey | None:
        """What the block is registered as, or None."""
        return self._blocks[block_id].key

    def allocate(self) -> int:
        """Hand out one block with `ref_count` 1 and unknown content. The caller has checked `num_free`."""
        if self._empty:
            block_id, _ = self._empty.popitem(last=False)
        else:
            block_id, _ = self._cached.popitem(last=False)
            self._forget(block_id)
            self._tell("evict", block_id)
        self._blocks[block_id].ref_count = 1
        self._tell("alloc", block_id)
        return block_id

    def share(self, block_id: int) -> None:
        """One more holder of a block that is in use or cached."""
        block = self._blocks[block_id]
        if block.ref_count == 0:
            del self._cached[block_id]
        block.ref_count += 1
        self._tell("share", block_id)

    def release(self, block_ids: Iterable[int]) -> None:
        """One holder fewer of each. Pass a sequence's blocks tail first, so that its head is evicted last."""
        now = self._clock()
        for block_id in block_ids:
            if block_id == NULL_BLOCK:
                continue
            block = self._blocks[block_id]
            if block.ref_count < 1:
                raise AssertionError(f"block {block_id} was released more often than it was taken")
            block.ref_count -= 1
            if block.ref_count == 0:
                block.released_at = now
                if block.key is None:
                    self._empty[block_id] = None
                    self._empty.move_to_end(block_id, last=False)
                    self._tell("free", block_id)
                else:
                    self._cached[block_id] = None
                    self._tell("cache", block_id)

    def register(self, block_id: int, key: BlockKey) -> None:
        """Make a full, computed block findable by its content."""
        block = self._blocks[block_id]
        if block.key is not None:
            raise AssertionError(f"block {block_id} is registered already")
        block.key = key
        self._by_hash.setdefault(key.hash, []).append(block_id)

    def find(self, key: BlockKey) -> int | None:
        """A block that holds exactly this content, or None. Does not take it: `share` does."""
        for block_id in self._by_hash.get(key.hash, ()):
            if self._blocks[block_id].key == key and not self._expired(block_id):
                return block_id
        return None

    def unregister(self, block_id: int) -> None:
        """Forget the content of a block (because it is about to change, or was computed wrongly)."""
        if self._blocks[block_id].key is None:
            return
        self._forget(block_id)
        if block_id in self._cached:
            del self._cached[block_id]
            self._empty[block_id] = None
            self._tell("free", block_id)

    def expire(self) -> None:
        """Empty the cached blocks whose last use lies longer than `ttl` ago."""
        if self._ttl is None:
            return
        while self._cached:
            oldest = next(iter(self._cached))
            if not self._expired(oldest):
                return
            self.unregister(oldest)

    def flush(self) -> None:
        """Empty every cached block that nobody holds."""
        for block_id in list(self._cached):
            self.unregister(block_id)

    def _expired(self, block_id: int) -> bool:
        block = self._blocks[block_id]
        return self._ttl is not None and block.ref_count == 0 and self._clock() - block.released_at > self._ttl

    def _forget(self, block_id: int) -> None:
        block = self._blocks[block_id]
        if block.key is None:
            return
        holders = self._by_hash[block.key.hash]
        holders.remove(block_id)
        if not holders:
            del self._by_hash[block.key.hash]
        block.key = None

    def _tell(self, action: BlockAction, block_id: int) -> None:
        if self._record is not None:
            self._record(action, block_id, self._blocks[block_id].ref_count)
