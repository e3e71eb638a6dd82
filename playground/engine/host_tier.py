"""The prefix cache's second tier: which blocks that the pool gave up are kept in host memory, and where.

Decides, and moves nothing: what has to be copied is a list of `Transfer`s in the order in which they were decided,
which whoever owns the memory carries out before the next step writes anything. Then a block that was evicted and handed
on in the same step is still read before it is overwritten. Imports no torch.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from playground.engine.block_pool import BlockKey, CachedBlock

LowerTier = Literal["host", "disk"]


class Transfer(NamedTuple):
    """One block's content, of all layers, between the pool and host memory."""

    block_id: int
    slot: int
    to_host: bool


class BlockFiles(Protocol):
    """The third tier: blocks on disk, read into host memory when they are asked for."""

    def __contains__(self, key: BlockKey) -> bool: ...

    def load(self, key: BlockKey, slot: int) -> bool:
        """Read the block into host memory; False, never an exception, where it is not what it should be."""
        ...

    def discard(self, key: BlockKey) -> None:
        """Do not offer this block again."""
        ...

    def clear(self) -> None:
        """Delete everything."""
        ...


class StoredBlock(NamedTuple):
    """A block in host memory, and when it was last used."""

    slot: int
    key: BlockKey
    used_at: float


@dataclass(slots=True)
class _Held:
    slot: int
    used_at: float
    from_disk: bool = False


class HostTier:
    """Slots of host memory in LRU order, filled by evictions and by blocks found on disk.

    A block that is restored keeps its slot: its content is what its key says, so the next eviction copies nothing. What
    was touched since the last `drain` stays, because the transfers decided since then name it.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        ttl: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        files: BlockFiles | None = None,
    ) -> None:
        """`num_slots` blocks of memory; `ttl` in seconds of `clock` since the last use."""
        self.num_slots = num_slots
        self._ttl = ttl
        self._clock = clock
        self._files = files
        self._held: OrderedDict[BlockKey, _Held] = OrderedDict()  # least recently used first
        self._free = list(range(num_slots - 1, -1, -1))
        self._touched: set[BlockKey] = set()
        self._transfers: list[Transfer] = []

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: BlockKey) -> bool:
        """Whether `find` would look for this block, without looking."""
        held = self._held.get(key)
        if held is not None and not self._expired(held):
            return True
        return self._files is not None and key in self._files

    def find(self, key: BlockKey) -> bool:
        """Whether the block can be restored now; one that is on disk is read for it."""
        held = self._held.get(key)
        if held is not None and self._expired(held):
            if key in self._touched:
                return False
            self._drop(key)
            held = None
        if held is None and not self._load(key):
            return False
        self._touch(key)
        return True

    def restore(self, key: BlockKey, block_id: int) -> LowerTier:
        """Have a block that was just found copied into the pool; returns where it came from."""
        held = self._held[key]
        held.used_at = self._clock()
        self._touch(key)
        self._transfers.append(Transfer(block_id, held.slot, to_host=False))
        from_disk, held.from_disk = held.from_disk, False
        return "disk" if from_disk else "host"

    def save(self, evicted: CachedBlock) -> None:
        """Keep what the pool is about to lose, unless all slots are needed by what was decided since `drain`."""
        held = self._held.get(evicted.key)
        if held is None:
            slot = self._take_slot()
            if slot is None:
                return
            held = self._held[evicted.key] = _Held(slot, evicted.used_at)
            self._transfers.append(Transfer(evicted.block_id, slot, to_host=True))
        held.used_at = max(held.used_at, evicted.used_at)
        self._touch(evicted.key)

    def drain(self) -> list[Transfer]:
        """The transfers decided since the last call, to be carried out in this order and at once."""
        transfers, self._transfers = self._transfers, []
        self._touched.clear()
        return transfers

    def discard(self, key: BlockKey) -> None:
        """Forget one block here and on disk: its content is not to be trusted."""
        if key in self._held:
            self._drop(key)
        if self._files is not None:
            self._files.discard(key)

    def forget(self) -> None:
        """Forget everything in host memory."""
        for key in list(self._held):
            self._drop(key)

    def clear(self) -> None:
        """Forget everything, on disk too."""
        self.forget()
        if self._files is not None:
            self._files.clear()

    def contents(self) -> list[StoredBlock]:
        """Everything held, the most recently used first."""
        held = reversed(self._held.items())
        return [StoredBlock(one.slot, key, one.used_at) for key, one in held if not self._expired(one)]

    def _load(self, key: BlockKey) -> bool:
        if self._files is None or key not in self._files or (slot := self._take_slot()) is None:
            return False
        if not self._files.load(key, slot):
            self._free.append(slot)
            return False
        self._held[key] = _Held(slot, self._clock(), from_disk=True)
        return True

    def _take_slot(self) -> int | None:
        """A slot to write to, at the price of the least recently used block; None where all are touched."""
        if not self._free:
            victim = next((key for key in self._held if key not in self._touched), None)
            if victim is None:
                return None
            self._drop(victim)
        return self._free.pop()

    def _touch(self, key: BlockKey) -> None:
        self._held.move_to_end(key)
        self._touched.add(key)

    def _drop(self, key: BlockKey) -> None:
        slot = self._held.pop(key).slot
        self._free.append(slot)
        self._touched.discard(key)
        self._transfers = [transfer for transfer in self._transfers if transfer.slot != slot]

    def _expired(self, held: _Held) -> bool:
        return self._ttl is not None and self._clock() - held.used_at > self._ttl
