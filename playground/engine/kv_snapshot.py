"""`KVSnapshot`: who holds which KV block at one moment, for whoever wants to follow the block events from there.

Plain data, taken on the engine's thread; imports no torch.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple

from playground.engine.block_pool import NULL_BLOCK
from playground.engine.scheduler import Scheduler


class RequestBlocks(NamedTuple):
    """One request that has not ended."""

    request_id: int
    running: bool
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_computed_tokens: int
    num_preemptions: int
    block_table: tuple[int, ...]
    """Physical block of each logical block; 0 where it slid out of the attention window."""


@dataclass(frozen=True, slots=True)
class KVSnapshot:
    """Every block that is not empty: those in some request's table are in use, `cached` ones are kept and idle.

    A block has as many holders as tables name it. Without a KV cache `num_blocks` is 0.
    """

    time_ns: int
    """On the `perf_counter_ns` clock. A `BlockEvent` up to here is contained in it, a later one is not."""
    num_blocks: int
    block_size: int
    cached: tuple[int, ...]
    requests: tuple[RequestBlocks, ...]

    @classmethod
    def of(cls, scheduler: Scheduler) -> "KVSnapshot":
        """On the engine's thread only."""
        tables = scheduler.tables
        requests = tuple(
            RequestBlocks(
                request.request_id,
                request in scheduler.running,
                request.num_prompt_tokens,
                request.num_cached_tokens,
                request.num_output_tokens,
                request.num_computed_tokens,
                request.num_preemptions,
                tuple(request.block_table),
            )
            for request in scheduler.unfinished
        )
        if tables is None:
            return cls(time.perf_counter_ns(), 0, 0, (), requests)
        in_use = {block_id for request in requests for block_id in request.block_table if block_id != NULL_BLOCK}
        ids = range(1, tables.pool.num_blocks + 1)
        cached = tuple(i for i in ids if i not in in_use and tables.pool.key(i) is not None)
        return cls(time.perf_counter_ns(), tables.pool.num_blocks, tables.block_size, cached, requests)
