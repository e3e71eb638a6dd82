"""`LiveBlocks`: the KV blocks as the engine's events tell of them. Who holds each, how many tokens are in it, and what
of that the readers of frames do not know yet."""

from collections.abc import Iterable
from typing import Any

from playground.engine.block_pool import NULL_BLOCK
from playground.engine.events import BlockEvent
from playground.telemetry.live_sequence import LiveSequence


class LiveBlocks:
    """All blocks that are not empty. Keeps the block tables of the sequences that hold them."""

    def __init__(self, block_size: int) -> None:
        """`block_size` in tokens; 0 where there is no KV cache."""
        self.num_shared = 0
        """Blocks that more than one holds."""
        self._block_size = block_size
        self._holders: dict[int, list[LiveSequence]] = {}
        self._fill: dict[int, int] = {}  # of every block that is not empty
        self._stale: set[int] = set()  # whose fill may be another by now
        self._changed: set[int] = set()  # since `forget_changes`

    # Events

    def resync(self, cached: Iterable[int], sequences: Iterable[tuple[LiveSequence, Iterable[int]]]) -> None:
        """Begin anew: with the blocks that nobody holds, and sequences that hold none yet, with their block tables."""
        self._holders, self._fill = {}, dict.fromkeys(cached, self._block_size)
        for sequence, block_table in sequences:
            for index, block_id in enumerate(block_table):
                if block_id != NULL_BLOCK:
                    sequence.place(index, block_id)
                    self._holders.setdefault(block_id, []).append(sequence)
        self._stale = set(self._holders)
        self._settle()
        self.num_shared = sum(len(holders) > 1 for holders in self._holders.values())

    def give(self, event: BlockEvent, sequence: LiveSequence) -> None:
        """An "alloc" or a "share": the sequence holds the block from now on."""
        block_id, index = event.block_id, event.logical_index
        assert index is not None, "a block is given for a place in a table"
        holders = self._holders.setdefault(block_id, [])
        holders.append(sequence)
        self.num_shared += len(holders) == 2
        sequence.place(index, block_id)
        if event.action == "share":
            self._settle()
            # What is in it counts as computed until the first step of the request says how much of it is its own.
            found = index * self._block_size + self._fill.get(block_id, 0)
            sequence.num_found = max(sequence.num_found, found)
        self._fill.setdefault(block_id, 0)
        self._stale.add(block_id)
        self._changed.add(block_id)

    def take(self, event: BlockEvent, sequence: LiveSequence | None) -> None:
        """A "release", "free", "cache" or "evict": a sequence holds the block no more, or nobody did before."""
        block_id = event.block_id
        holders = self._holders.get(block_id, [])
        if sequence is not None and sequence in holders:
            holders.remove(sequence)
            self.num_shared -= len(holders) == 1
            if sequence not in holders:  # a beam can hold a block twice while it changes tables
                sequence.remove(block_id)
        if event.action == "release":  # what only the one that left had written there is of no use to the others
            self._stale.add(block_id)
        elif event.action == "cache":
            self._fill[block_id] = self._block_size
        else:
            self._fill.pop(block_id, None)
        if not holders:
            self._holders.pop(block_id, None)
        self._changed.add(block_id)

    def compute(self, sequence: LiveSequence, num_tokens: int) -> None:
        """So many tokens of the sequence are in the cache now."""
        low, high = sorted((num_tokens, sequence.num_computed))
        sequence.compute(num_tokens)
        if self._block_size and low != high:
            touched = range(low // self._block_size, (high - 1) // self._block_size + 1)
            self._stale.update(sequence.table[index] for index in touched if index in sequence.table)

    def _settle(self) -> None:
        """Work out the fill of stale blocks: as many tokens as the furthest of its holders has computed in it."""
        size = self._block_size
        for block_id in self._stale:
            fills = [
                max(0, min(size, one.num_in_cache - one.place_of[block_id] * size))
                for one in self._holders.get(block_id, ())
                if block_id in one.place_of  # else it is about to let go of the block
            ]
            if fills and self._fill.get(block_id) != max(fills):
                self._fill[block_id] = max(fills)
                self._changed.add(block_id)
        self._stale.clear()

    # State

    @property
    def num_in_use(self) -> int:
        return len(self._holders)

    @property
    def num_cached(self) -> int:
        return len(self._fill) - len(self._holders)

    @property
    def num_slots_in_use(self) -> int:
        """Tokens in the blocks in use."""
        self._settle()
        return sum(self._fill[block_id] for block_id in self._holders)

    @property
    def cached(self) -> tuple[int, ...]:
        """Blocks that nobody holds but whose content is kept, ascending."""
        return tuple(sorted(block_id for block_id in self._fill if block_id not in self._holders))

    def all(self) -> dict[int, tuple[int, list[int]]]:
        """Every block that is not empty: how many tokens it holds, and the ids of the requests that hold it."""
        self._settle()
        return {block_id: (fill, self._holder_ids(block_id)) for block_id, fill in self._fill.items()}

    def _holder_ids(self, block_id: int) -> list[int]:
        return [sequence.id for sequence in self._holders.get(block_id, ())]

    # Frames

    def runs(self) -> list[list[Any]]:
        """Every block that is not empty, as a frame has them: see `telemetry.frames`."""
        self._settle()
        return self._runs(sorted(self._fill))

    def changed_runs(self) -> list[list[Any]]:
        """The blocks that changed since `forget_changes`, those too that are empty now."""
        self._settle()
        return self._runs(sorted(self._changed))

    def forget_changes(self) -> None:
        self._changed.clear()

    def _runs(self, block_ids: Iterable[int]) -> list[list[Any]]:
        """The blocks, in order of their ids, with neighbours that are alike put together."""
        runs: list[list[Any]] = []
        for block_id in block_ids:
            fill, holders = self._fill.get(block_id, 0), self._holder_ids(block_id)
            if runs:
                first, count, run_fill, run_holders = runs[-1]
                if first + count == block_id and run_fill == fill and run_holders == holders:
                    runs[-1][1] = count + 1
                    continue
            runs.append([block_id, 1, fill, holders])
        return runs
