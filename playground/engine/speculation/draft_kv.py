"""How far the KV of a draft model reaches, for each request: the draft's counterpart of `num_computed_tokens`.

The draft's KV lies in the same blocks as the target's, so that sharing, copying and freeing need no second bookkeeping.
But a block that the target computed may lack the draft's part (nobody drafted then), so full blocks are remembered with
the content that the draft computed in them, and a prefix hit counts for the draft as far as it is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from playground.engine.block_pool import BlockKey, BlockPool
from playground.engine.request import Request


@dataclass(slots=True)
class _Reach:
    num_preemptions: int
    num_computed: int
    num_recorded_blocks: int


class DraftKV:
    """Which tokens' KV the draft model has."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool, self._block_size = pool, block_size
        self._reach: dict[int, _Reach] = {}
        self._content: dict[int, BlockKey] = {}  # full block -> the content that its draft KV is of

    def num_computed(self, request: Request) -> int:
        """Leading tokens of the request whose draft KV is there."""
        return self._of(request).num_computed

    def wrote(self, request: Request, end: int, num_beyond: int = 0) -> None:
        """The draft has run tokens up to `end`, drafts perhaps among the last ones, and used slots beyond it."""
        reach = self._of(request)
        size = self._block_size
        for index in range(reach.num_computed // size, min(-(-(end + num_beyond) // size), len(request.block_table))):
            self._content.pop(request.block_table[index], None)
        reach.num_recorded_blocks = min(reach.num_recorded_blocks, reach.num_computed // size)
        reach.num_computed = end

    def keep(self, request: Request, num_tokens: int) -> None:
        """What was written beyond these tokens was rejected."""
        reach = self._reach.get(request.request_id)
        if reach is None or reach.num_preemptions != request.num_preemptions:
            return
        reach.num_computed = min(reach.num_computed, num_tokens)
        full = min(reach.num_computed // self._block_size, request.num_registered_blocks)
        for block_id in request.block_table[reach.num_recorded_blocks : full]:
            key = self._pool.key(block_id)
            if key is not None:
                self._content[block_id] = key
        reach.num_recorded_blocks = max(reach.num_recorded_blocks, full)

    def copied(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Blocks were copied (source, destination), with the draft's part."""
        sources = [self._content.get(source) for source, _ in pairs]
        for (_, destination), key in zip(pairs, sources, strict=True):
            if key is None:
                self._content.pop(destination, None)
            else:
                self._content[destination] = key

    def lost(self, block_ids: Sequence[int]) -> None:
        """Blocks were overwritten, with the draft's part."""
        for block_id in block_ids:
            self._content.pop(block_id, None)

    def forget(self, request_id: int) -> None:
        self._reach.pop(request_id, None)

    def _of(self, request: Request) -> _Reach:
        reach = self._reach.get(request.request_id)
        if reach is None or reach.num_preemptions != request.num_preemptions:
            found = self._num_found(request)
            reach = _Reach(request.num_preemptions, found * self._block_size, found)
            self._reach[request.request_id] = reach
        return reach

    def _num_found(self, request: Request) -> int:
        """Leading blocks whose draft KV is of this request's tokens."""
        for index, block_id in enumerate(request.block_table[: request.num_registered_blocks]):
            held = self._content.get(block_id)
            if held is None or held != self._pool.key(block_id):
                return index
        return request.num_registered_blocks
