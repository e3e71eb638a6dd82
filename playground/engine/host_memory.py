"""Host memory for KV blocks, and the copies between it and the pool.

Everything on a GPU is ordered by its stream: a block is read after the steps that wrote it and before the step that
will overwrite it, because the copies are enqueued between the two. Only a reader on the CPU has to wait.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from playground.engine.host_tier import Transfer
from playground.errors import ConfigError
from playground.models.kv_cache import KVCache

PIECE_BYTES = 1 << 26
"""Pinned memory is handed out in powers of two: pieces just below one waste little."""


class HostMemory:
    """Slots of one KV block each, of all layers, in the pool's own type; pinned where the pool is on a GPU."""

    def __init__(self, kv_cache: KVCache, num_slots: int) -> None:
        """Raises `ConfigError` where the memory cannot be had."""
        self.num_slots = num_slots
        self.layout, self.dtype = kv_cache.layout, kv_cache.layout.stored
        self.shape, self.block_bytes = kv_cache.block_shape, kv_cache.block_bytes
        self._per_piece = max(1, PIECE_BYTES // self.block_bytes)
        self._on_gpu = kv_cache.device.type == "cuda"
        self._copied: torch.cuda.Event | None = torch.cuda.Event() if self._on_gpu else None
        self._pieces: list[Tensor] = []
        try:
            for first in range(0, num_slots, self._per_piece):
                count = min(self._per_piece, num_slots - first)
                self._pieces.append(torch.empty((count, *self.shape), dtype=self.dtype, pin_memory=self._on_gpu))
        except (RuntimeError, MemoryError):  # the allocator's own errors are RuntimeErrors
            raise ConfigError(
                f"prefix_cache_host_memory={num_slots * self.block_bytes} bytes cannot be allocated on this machine: "
                "lower it."
            ) from None

    @torch.inference_mode()
    def carry_out(self, transfers: Sequence[Transfer], kv_cache: KVCache) -> None:
        """Copy the blocks in the given order; on a GPU the copies are only enqueued."""
        for transfer in transfers:
            block, slot = kv_cache.block(transfer.block_id), self._slot(transfer.slot)
            if transfer.to_host:
                slot.copy_(block, non_blocking=True)
            else:
                block.copy_(slot, non_blocking=True)
        if transfers and self._copied is not None:
            self._copied.record(torch.cuda.current_stream(kv_cache.device))

    def slot(self, index: int) -> Tensor:
        """One slot's memory, of `shape`, for the CPU to read or write: no copy is under way any more."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._slot(index)

    def free(self) -> None:
        """Give the memory back; nothing may be asked of it afterwards."""
        if self._copied is not None:
            self._copied.synchronize()
        self._pieces.clear()

    def _slot(self, index: int) -> Tensor:
        return self._pieces[index // self._per_piece][index % self._per_piece]
