"""The physical KV blocks: per layer K and V tensors [num_blocks, num_kv_heads, block_size, head_dim].

Owns memory only: who holds which block is the block pool's business. Block 0 is the null block: zeros, never written.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.host import to_device
from playground.models.config import DecoderConfig


class KVCache:
    """Keys and values of all layers. `k[layer]` and `v[layer]` are views of one buffer a layer.

    Each layer is a flat list of rows of head_dim, with one spare row at the end: tokens whose slot is -1 are written
    there, so that a batch with padding needs no selection (and, on a GPU, no wait).
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.num_kv_heads, self.head_dim = config.num_kv_heads, config.head_dim
        self.dtype, self.device = dtype, torch.device(device)
        self.rows_per_side = num_blocks * config.num_kv_heads * block_size
        shape = (config.num_layers, 2 * self.rows_per_side + 1, config.head_dim)
        self._storage = torch.zeros(shape, dtype=dtype, device=self.device)
        self.rows: list[Tensor] = list(self._storage.unbind(0))
        """Per layer [2 * rows_per_side + 1, head_dim]: K rows, V rows, the spare row."""
        k_offsets = torch.arange(config.num_kv_heads, device=self.device) * block_size
        self._head_offsets = torch.cat((k_offsets, k_offsets + self.rows_per_side))
        blocks = (num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self.kv: list[Tensor] = [rows[:-1].view(2, *blocks) for rows in self.rows]
        """Per layer [2, num_blocks, num_kv_heads, block_size, head_dim]."""
        self.pages: list[Tensor] = [
            rows[:-1].view(2 * num_blocks * config.num_kv_heads, block_size * config.head_dim) for rows in self.rows
        ]
        """Per layer [2 * num_blocks * num_kv_heads, block_size * head_dim]: what one gather of K and V reads."""
        self._blocks = self._storage[:, :-1].view(config.num_layers, 2, *blocks)
        self.k: list[Tensor] = [kv[0] for kv in self.kv]
        self.v: list[Tensor] = [kv[1] for kv in self.kv]

    @property
    def num_layers(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        return self._storage.numel() * self._storage.itemsize

    @classmethod
    def bytes_per_block(cls, config: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one more block takes over all layers."""
        return block_size * config.kv_bytes_per_token(dtype)

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """[num_layers, 2 (K, V), num_kv_heads, block_size, head_dim]."""
        return (self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)

    @property
    def block_bytes(self) -> int:
        return math.prod(self.block_shape) * self.dtype.itemsize

    def block(self, block_id: int) -> Tensor:
        """A view of one block's content in all layers, of `block_shape`; not contiguous."""
        return self._blocks[:, :, block_id]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks (source, destination) in every layer; all sources are read before any is written."""
        if not pairs:
            return
        sources = to_device(torch.tensor([source for source, _ in pairs]), self.device)
        targets = to_device(torch.tensor([target for _, target in pairs]), self.device)
        for kv in self.kv:
            kv.index_copy_(1, targets, kv.index_select(1, sources))

    def move(self, pairs: Sequence[tuple[int, int]] | Tensor) -> None:
        """Copy the keys and values of token slots (source, destination) in every layer, as in `slot_mapping`.

        All sources are read before any destination is written. Pairs on the host, or int64 [N, 2] on the device, which
        is not waited for; a pair with -1 moves nothing. Makes the accepted branch of a verified tree contiguous.
        """
        if len(pairs) == 0:
            return
        slots = pairs if isinstance(pairs, Tensor) else to_device(torch.tensor(pairs), self.device)
        rows = self.write_rows(slots.masked_fill((slots < 0).any(1, keepdim=True), -1).t().flatten())
        sources, targets = rows.flatten().chunk(2)
        self._storage.index_copy_(1, targets, self._storage.index_select(1, sources))

    def zero_blocks(self, ids: Sequence[int]) -> None:
        """Overwrite these blocks with zeros in every layer."""
        if not ids:
            return
        index = to_device(torch.tensor(list(ids)), self.device)
        for kv in self.kv:
            kv.index_fill_(1, index, 0)

    def write_rows(self, slot_mapping: Tensor) -> Tensor:
        """int64 [T, 2 * num_kv_heads]: the rows that each token's K heads and V heads go to, the spare for slot -1."""
        size = self.block_size
        # block * size * heads + offset, with the slot itself as block * size + offset
        first = torch.add(slot_mapping, slot_mapping // size, alpha=size * (self.num_kv_heads - 1))
        rows = first[:, None] + self._head_offsets
        return rows.masked_fill_((slot_mapping < 0)[:, None], 2 * self.rows_per_side)

    def write(self, layer: int, rows: Tensor, kv: Tensor) -> None:
        """Write kv [T, 2 * num_kv_heads, head_dim] (K heads, then V heads) to the rows from `write_rows`."""
        if kv.dtype != self.dtype:
            kv = kv.to(self.dtype)
        self.rows[layer].index_put_((rows,), kv)
