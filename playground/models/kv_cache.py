"""The physical KV blocks: per layer K and V tensors [num_blocks, num_kv_heads, block_size, head_dim].

Owns memory only: who holds which block is the block pool's business. Block 0 is the null block: zeros, never written.
Quantized keys and values have their scales in the same pages, so that a block is one thing whatever its type.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.host import to_device
from kernels.kv_codes import PageLayout, quantize_kv
from playground.models.config import DecoderConfig

Places = tuple[Tensor, ...]
"""Index tensors [T, 2 * num_kv_heads]: where tokens' K heads and V heads go."""


def kv_dtype(name: str) -> torch.dtype:
    """The type that a resolved `kv_cache_dtype` names."""
    return torch.float8_e4m3fn if name == "fp8" else getattr(torch, name)


class KVCache:
    """Keys and values of all layers. `k[layer]` and `v[layer]` are views of one buffer a layer.

    Each layer is a row of pages, one for each of K and V, block and head, and at the end a spare row of head_dim, or a
    spare page where rows have scales: tokens whose slot is -1 are written there, so that a batch with padding needs no
    selection (and, on a GPU, no wait).
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
        self.layout = layout = PageLayout(block_size, config.head_dim, dtype)
        self.rows_per_side = num_blocks * config.num_kv_heads * block_size
        num_pages = 2 * num_blocks * config.num_kv_heads
        used, spare = num_pages * layout.width, layout.width if layout.quantized else config.head_dim
        self._storage = torch.zeros((config.num_layers, used + spare), dtype=layout.stored, device=self.device)
        k_offsets = torch.arange(config.num_kv_heads, device=self.device) * block_size
        self._head_offsets = torch.cat((k_offsets, k_offsets + self.rows_per_side))
        pages = self._storage[:, :used].view(config.num_layers, num_pages, layout.width)
        self.pages: list[Tensor] = list(pages.unbind(0))
        """Per layer [2 * num_blocks * num_kv_heads, page]: what one gather of K and V, and of scales, reads."""
        self._blocks = pages.view(config.num_layers, 2, num_blocks, config.num_kv_heads, layout.width)
        numbers, scales = layout.numbers(self._blocks), layout.scales(self._blocks)
        self.kv: list[Tensor] = list(numbers.unbind(0))
        """Per layer [2, num_blocks, num_kv_heads, block_size, head_dim]."""
        self.k: list[Tensor] = [kv[0] for kv in self.kv]
        self.v: list[Tensor] = [kv[1] for kv in self.kv]
        self.scales: list[tuple[Tensor, Tensor] | None] = [None] * config.num_layers
        """Per layer those of K and of V, uint8 [num_blocks, num_kv_heads, block_size] as in `kernels.kv_codes`."""
        self._cells: tuple[Tensor, ...]
        """What `Places` index in each layer [num_layers, ...]: rows, or the codes and the scales of pages."""
        if scales is None:
            self._blocks = numbers
            self._cells = (self._storage.view(config.num_layers, -1, config.head_dim),)
        else:
            self.scales = [(one[0], one[1]) for one in scales.unbind(0)]
            with_spare = self._storage.view(config.num_layers, num_pages + 1, layout.width)
            codes, bytes_of_scales = layout.numbers(with_spare).view(torch.int8), layout.scales(with_spare)
            assert bytes_of_scales is not None
            self._cells = codes, bytes_of_scales
        self._layer_cells = list(zip(*(cells.unbind(0) for cells in self._cells), strict=True))

    @property
    def num_layers(self) -> int:
        return len(self.kv)

    @property
    def nbytes(self) -> int:
        return self._storage.numel() * self._storage.itemsize

    @classmethod
    def bytes_per_block(cls, config: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one more block takes over all layers."""
        return block_size * config.kv_bytes_per_token(dtype)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """[num_layers, 2 (K, V), num_kv_heads, block_size, head_dim], or a page in place of the last two."""
        return (*self._blocks.shape[:2], *self._blocks.shape[3:])

    @property
    def block_bytes(self) -> int:
        return math.prod(self.block_shape) * self._blocks.itemsize

    def block(self, block_id: int) -> Tensor:
        """A view of one block's content in all layers, of `block_shape`; not contiguous."""
        return self._blocks[:, :, block_id]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks (source, destination) in every layer; all sources are read before any is written."""
        if not pairs:
            return
        sources = to_device(torch.tensor([source for source, _ in pairs]), self.device)
        targets = to_device(torch.tensor([target for _, target in pairs]), self.device)
        for blocks in self._blocks.unbind(0):
            blocks.index_copy_(1, targets, blocks.index_select(1, sources))

    def move(self, pairs: Sequence[tuple[int, int]] | Tensor) -> None:
        """Copy the keys and values of token slots (source, destination) in every layer, as in `slot_mapping`.

        All sources are read before any destination is written. Pairs on the host, or int64 [N, 2] on the device, which
        is not waited for; a pair with -1 moves nothing. Makes the accepted branch of a verified tree contiguous.
        """
        if len(pairs) == 0:
            return
        slots = pairs if isinstance(pairs, Tensor) else to_device(torch.tensor(pairs), self.device)
        places = self.places(slots.masked_fill((slots < 0).any(1, keepdim=True), -1).t().flatten())
        sources, targets = zip(*(index.chunk(2) for index in places), strict=True)
        for cells in self._cells:
            cells[:, *targets] = cells[:, *sources]

    def zero_blocks(self, ids: Sequence[int]) -> None:
        """Overwrite these blocks with zeros in every layer."""
        if not ids:
            return
        index = to_device(torch.tensor(list(ids)), self.device)
        for blocks in self._blocks.unbind(0):
            blocks.index_fill_(1, index, 0)

    def places(self, slot_mapping: Tensor) -> Places:
        """Where the heads of tokens go, the spare place for slot -1; made once for all layers."""
        size = self.block_size
        # block * size * heads + offset, with the slot itself as block * size + offset
        first = torch.add(slot_mapping, slot_mapping // size, alpha=size * (self.num_kv_heads - 1))
        rows = first[:, None] + self._head_offsets
        rows.masked_fill_((slot_mapping < 0)[:, None], 2 * self.rows_per_side)
        return (rows // size, rows % size) if self.layout.quantized else (rows,)

    def write(self, layer: int, places: Places, kv: Tensor) -> None:
        """Write kv [T, 2 * num_kv_heads, head_dim] (K heads, then V heads) to `places`, as codes where quantized."""
        cells = self._layer_cells[layer]
        if self.layout.quantized:
            codes, scales = quantize_kv(kv, self.dtype)
            cells[0].index_put_(places, codes.view(torch.int8))
            cells[1].index_put_(places, scales)
        else:
            cells[0].index_put_(places, kv if kv.dtype == self.dtype else kv.to(self.dtype))
