"""Owns the physical KV blocks: who holds each, which can be reused for their content, which are empty.

Knows nothing of requests or tensors. Block 0 is the null block: it stands in tables for what is not there and is
never handed out. The pool imports no torch and is driven by property tests.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from playground.engine.events import BlockAction

NULL_BLOCK = 0


class BlockKey(NamedTuple):
    """What a full block holds. The hash finds it; tokens and parent are compared, because hashes collide."""

    hash: int
    parent_hash: int
    token_ids: tuple[int, ...]
    salted: bool = False
    """Whether a `cache_salt` went into the chain: such content never leaves the process."""


@dataclass(slots=True)
class _Block:
    ref_count: int = 0
    key: BlockKey | None = None
    released_at: float = 0.0
    pinned: bool = False


@dataclass(slots=True)
class _Pin:
    count: int = 0
    block_id: int | None = None


class CachedBlock(NamedTuple):
    """A block whose content can be found, and when it was last used."""

    block_id: int
    key: BlockKey
    used_at: float


class BlockPool:
    """A block is in exactly one of three states.

    In use (`ref_count > 0`), cached (`ref_count == 0`, hashed) or empty (neither). Allocation takes empty blocks first,
    then the cached block that was released longest ago, whose content is evicted. A pin is on content, not on a block:
    the first block that holds a pinned key is pinned with it, and is neither evicted nor expired while nobody uses it.
    """

    def __init__(
        self,
        num_blocks: int,
        *,
        ttl: float | None = None,
        max_cached: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        record: Callable[[BlockAction, int, int], None] | None = None,
        on_evict: Callable[[CachedBlock], None] | None = None,
    ) -> None:
        """`num_blocks` usable blocks with ids 1..num_blocks; `ttl` in seconds of `clock` since the last use;
        `max_cached` cached blocks that are not pinned may stay; `record(action, block_id, ref_count)` hears of every
        change, `on_evict` of content that has to make room, while it is still there."""
        self.num_blocks = num_blocks
        self._ttl = ttl
        self._max_cached = max_cached
        self._clock = clock
        self._record = record
        self._on_evict = on_evict
        self._blocks = [_Block() for _ in range(num_blocks + 1)]
        self._empty: OrderedDict[int, None] = OrderedDict((i, None) for i in range(1, num_blocks + 1))
        self._cached: OrderedDict[int, None] = (
            OrderedDict()
        )  # least recently released first, pinned ones not among them
        self._idle_pinned: dict[int, None] = {}
        self._pins: dict[BlockKey, _Pin] = {}
        self.num_pinned = 0
        """Pinned blocks, in use or not."""
        self._by_hash: dict[int, list[int]] = {}  # equal content may live in several blocks

    @property
    def num_empty(self) -> int:
        return len(self._empty)

    @property
    def num_cached(self) -> int:
        """Blocks that only keep their content, pinned ones among them."""
        return len(self._cached) + len(self._idle_pinned)

    @property
    def num_evictable(self) -> int:
        """Cached blocks that may lose their content to somebody else."""
        return len(self._cached)

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out: empty ones, and evictable ones at the price of their content."""
        return len(self._empty) + len(self._cached)

    @property
    def num_in_use(self) -> int:
        return self.num_blocks - self.num_empty - self.num_cached

    def ref_count(self, block_id: int) -> int:
        return self._blocks[block_id].ref_count

    def is_pinned(self, block_id: int) -> bool:
        return self._blocks[block_id].pinned

    def is_evictable(self, block_id: int) -> bool:
        return block_id in self._cached

    def key(self, block_id: int) -> BlockKey | None:
        """What the block is registered as, or None."""
        return self._blocks[block_id].key

    def allocate(self) -> int:
        """Hand out one block with `ref_count` 1 and unknown content. The caller has checked `num_free`."""
        if not self._empty:
            self._evict()
        block_id, _ = self._empty.popitem(last=False)
        self._blocks[block_id].ref_count = 1
        self._tell("alloc", block_id)
        return block_id

    def _evict(self) -> None:
        """Empty the cached block that was released longest ago."""
        block_id, _ = self._cached.popitem(last=False)
        block = self._blocks[block_id]
        if self._on_evict is not None and block.key is not None:
            self._on_evict(CachedBlock(block_id, block.key, block.released_at))
        self._forget(block_id)
        self._empty[block_id] = None
        self._tell("evict", block_id)

    def _limit_cached(self) -> None:
        while self._max_cached is not None and len(self._cached) > self._max_cached:
            self._evict()

    def share(self, block_id: int) -> None:
        """One more holder of a block that is in use or cached."""
        block = self._blocks[block_id]
        if block.ref_count == 0:
            del (self._idle_pinned if block.pinned else self._cached)[block_id]
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
                    (self._idle_pinned if block.pinned else self._cached)[block_id] = None
                    self._tell("cache", block_id)
            else:
                self._tell("release", block_id)
        self._limit_cached()

    def register(self, block_id: int, key: BlockKey) -> None:
        """Make a full, computed block findable by its content."""
        block = self._blocks[block_id]
        if block.key is not None:
            raise AssertionError(f"block {block_id} is registered already")
        block.key = key
        self._by_hash.setdefault(key.hash, []).append(block_id)
        self._bind(key)

    def find(self, key: BlockKey) -> int | None:
        """A block that holds exactly this content, the pinned one first, or None. `share` takes it."""
        pin = self._pins.get(key)
        if pin is not None and pin.block_id is not None:
            return pin.block_id
        for block_id in self._by_hash.get(key.hash, ()):
            if self._blocks[block_id].key == key and not self._expired(block_id):
                return block_id
        return None

    def unregister(self, block_id: int) -> None:
        """Forget the content of a block (because it is about to change, or was computed wrongly)."""
        if self._blocks[block_id].key is None:
            return
        idle = self._cached if block_id in self._cached else self._idle_pinned
        self._forget(block_id)
        if block_id in idle:
            del idle[block_id]
            self._empty[block_id] = None
            self._tell("free", block_id)

    # Pins

    def pin(self, key: BlockKey) -> None:
        """Keep this content, which need not be there yet, until as many `unpin`s have come as `pin`s."""
        self._pins.setdefault(key, _Pin()).count += 1
        self._bind(key)

    def unpin(self, key: BlockKey) -> None:
        """One reason less to keep this content. After the last one it is as young as if it had just been used."""
        pin = self._pins[key]
        pin.count -= 1
        if pin.count > 0:
            return
        del self._pins[key]
        if pin.block_id is None:
            return
        block = self._blocks[pin.block_id]
        block.pinned = False
        self.num_pinned -= 1
        if block.ref_count == 0:
            del self._idle_pinned[pin.block_id]
            self._cached[pin.block_id] = None
            block.released_at = self._clock()
            self._limit_cached()

    def has_pinned(self, key: BlockKey) -> bool:
        """Whether this content is pinned and there."""
        pin = self._pins.get(key)
        return pin is not None and pin.block_id is not None

    def _bind(self, key: BlockKey) -> None:
        """Pin a block that holds this content, if the content is pinned and no block is yet."""
        pin = self._pins.get(key)
        if pin is None or pin.block_id is not None or (block_id := self.find(key)) is None:
            return
        pin.block_id = block_id
        self._blocks[block_id].pinned = True
        self.num_pinned += 1
        if block_id in self._cached:
            del self._cached[block_id]
            self._idle_pinned[block_id] = None

    # Ends of content

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
        """Empty every cached block that nobody holds and that is not pinned."""
        for block_id in list(self._cached):
            self.unregister(block_id)

    def contents(self) -> Iterator[CachedBlock]:
        """Everything that can be found, the most recently used first."""
        now = self._clock()
        busy = [i for i in range(1, self.num_blocks + 1) if i not in self._cached]
        for block_id in (*busy, *reversed(self._cached)):
            block = self._blocks[block_id]
            if block.key is not None and not self._expired(block_id):
                yield CachedBlock(block_id, block.key, block.released_at if block_id in self._cached else now)

    def _expired(self, block_id: int) -> bool:
        block = self._blocks[block_id]
        idle = block.ref_count == 0 and not block.pinned
        return self._ttl is not None and idle and self._clock() - block.released_at > self._ttl

    def _forget(self, block_id: int) -> None:
        block = self._blocks[block_id]
        if block.key is None:
            return
        key, block.key = block.key, None
        holders = self._by_hash[key.hash]
        holders.remove(block_id)
        if not holders:
            del self._by_hash[key.hash]
        if block.pinned:
            block.pinned = False
            self.num_pinned -= 1
            self._pins[key].block_id = None
            self._bind(key)

    def _tell(self, action: BlockAction, block_id: int) -> None:
        if self._record is not None:
            self._record(action, block_id, self._blocks[block_id].ref_count)
