"""How one batch attends, in every layer: queries, keys and values of a layer in, attended values out.

Three ways with one face: over gathered pages in torch calls, over pages in place in Triton, and without a cache over
the batch's own keys. Each norms, rotates and writes what its layer gives it; none owns weights or the cache.
"""

import itertools
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cache_ops import rope_and_write
from kernels.cpu import rope_
from kernels.cpu_attention import Piece, varlen_attention, varlen_pieces
from kernels.cpu_paged import PagedPlan, Workspace, arrange, token_order
from kernels.flash import flash_attention_varlen
from kernels.host import to_device
from kernels.paged import DECODE_ROWS, paged_attention
from playground.models.batch import ModelBatch
from playground.models.config import DecoderConfig
from playground.models.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """What attention needs to know of one layer."""

    number: int
    qk_norm: Tensor | None
    """[Hq + Hkv, D]: the norm weight of each query and key head."""
    window: int | None


class BatchAttention(Protocol):
    """The attention of one batch, ready to be called for each layer in turn."""

    @property
    def order(self) -> Tensor | None:
        """int64 [T]: the order in which it wants the batch's tokens; None is the batch's own."""

    def __call__(self, layer: LayerAttention, qkv: Tensor) -> Tensor:
        """qkv [T, Hq + 2 Hkv, D], which is overwritten -> [T, Hq, D]."""


class RopeTable:
    """cos and sin by position, grown by doubling."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._inverse = config.rope.inverse_frequencies(config.head_dim)
        self._dtype, self._device = dtype, device
        self._doubled: tuple[Tensor, Tensor] | None = None
        self._halves: tuple[Tensor, Tensor] | None = None

    def at(self, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """cos and sin [T, 1, D] of positions below `longest`, in the model's dtype; sin carries the rotation's sign."""
        if self._doubled is None or self._doubled[0].shape[0] < longest:
            cos, sin = self._build(longest)
            both = torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)
            self._doubled = both[0].to(self._device, self._dtype), both[1].to(self._device, self._dtype)
        cos, sin = self._doubled
        return cos.index_select(0, positions)[:, None, :], sin.index_select(0, positions)[:, None, :]

    def whole(self, longest: int) -> tuple[Tensor, Tensor]:
        """float32 cos and sin [at least `longest`, D / 2]."""
        if self._halves is None or self._halves[0].shape[0] < longest:
            cos, sin = self._build(longest)
            self._halves = cos.to(self._device, torch.float32), sin.to(self._device, torch.float32)
        return self._halves

    def _build(self, longest: int) -> tuple[Tensor, Tensor]:
        length = max(1024, 1 << (max(longest, 1) - 1).bit_length())
        angles = torch.arange(length, dtype=torch.float64)[:, None] * self._inverse[None, :]
        return angles.cos(), angles.sin()


class GatheredAttention:
    """Pages of a group of sequences are gathered, then attended to in one torch call: any device, fast on a CPU."""

    def __init__(
        self,
        config: DecoderConfig,
        batch: ModelBatch,
        kv_cache: KVCache,
        rope: RopeTable | None,
        workspace: Workspace,
        *,
        dtype: torch.dtype,
        naive: bool,
    ) -> None:
        self._config, self._cache, self._workspace, self._naive = config, kv_cache, workspace, naive
        groups = arrange(batch.query_lens, batch.kv_lens_list, kv_cache.block_size, config.sliding_window)
        order = token_order(groups, batch.query_lens)
        self.order = None if order is None else to_device(torch.tensor(order), batch.positions.device)
        positions, slots = batch.positions, batch.slot_mapping
        if self.order is not None:
            positions, slots = positions[self.order], slots[self.order]
        self._rotation = None if rope is None else rope.at(positions, max(batch.kv_lens_list, default=0))
        self._rows = kv_cache.write_rows(slots)
        shape = kv_cache.k[0].shape
        self._plans = {
            window: PagedPlan(groups, batch.query_lens, batch.kv_lens_list, batch.block_table, shape, window, dtype)
            for window in set(config.layer_windows)
        }

    def __call__(self, layer: LayerAttention, qkv: Tensor) -> Tensor:
        num_q = self._config.num_heads
        norm_and_rotate(self._config, layer, qkv, self._rotation)
        self._cache.write(layer.number, self._rows, qkv[:, num_q:])
        return self._plans[layer.window].attend(
            qkv[:, :num_q],
            self._cache.k[layer.number],
            self._cache.v[layer.number],
            scale=self._config.head_dim**-0.5,
            workspace=self._workspace,
            pages=self._cache.pages[layer.number],
            naive=self._naive,
        )


class OwnKeysAttention:
    """No cache: the batch holds whole sequences, and each attends to its own keys."""

    order: Tensor | None = None

    def __init__(
        self, config: DecoderConfig, batch: ModelBatch, rope: RopeTable | None, *, dtype: torch.dtype, kind: str
    ) -> None:
        """`kind` is "triton", "sdpa" or "naive"."""
        self._config, self._batch, self._kind = config, batch, kind
        self._rotation = None if rope is None else rope.at(batch.positions, max(batch.kv_lens_list, default=0))
        self._pieces: dict[int | None, list[list[Piece]]] = {
            window: varlen_pieces(batch.query_lens, window, dtype, batch.positions)
            for window in set(config.layer_windows)
            if kind != "triton"
        }

    def __call__(self, layer: LayerAttention, qkv: Tensor) -> Tensor:
        config, batch = self._config, self._batch
        norm_and_rotate(config, layer, qkv, self._rotation)
        q, k, v = qkv.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)
        if self._kind == "triton":
            starts, longest = batch.cu_seqlens_q, max(batch.query_lens, default=0)
            out = flash_attention_varlen(
                q, k, v, starts, starts, longest, longest, window=layer.window, backend="triton"
            )
            assert isinstance(out, Tensor)
            return out
        pieces = self._pieces[layer.window]
        return varlen_attention(q, k, v, pieces, batch.query_lens, config.head_dim**-0.5, self._kind == "naive")


class TritonAttention:
    """Pages are read in place; norm, rotation and cache write are one launch. Nothing here waits for the GPU."""

    order: Tensor | None = None

    def __init__(self, config: DecoderConfig, batch: ModelBatch, kv_cache: KVCache, rope: RopeTable | None) -> None:
        self._config, self._cache, self._batch = config, kv_cache, batch
        # Decodes stand before prompts: the first few tokens of a sequence take the split kernel, long chunks the other.
        few = DECODE_ROWS // (config.num_heads // config.num_kv_heads)
        short = list(itertools.takewhile(lambda length: length <= few, batch.query_lens))
        self._num_short, self._max_query_len = len(short), max(short, default=0)
        self._tables = None if rope is None else rope.whole(config.max_position_embeddings)

    def __call__(self, layer: LayerAttention, qkv: Tensor) -> Tensor:
        batch, config = self._batch, self._config
        cos, sin = self._tables or (None, None)
        k_cache, v_cache = self._cache.k[layer.number], self._cache.v[layer.number]
        q = rope_and_write(
            qkv,
            k_cache,
            v_cache,
            batch.slot_mapping,
            positions=None if cos is None else batch.positions,
            cos=cos,
            sin=sin,
            qk_norm=layer.qk_norm,
            norm_eps=config.norm_eps,
            backend="triton",
        )
        out = paged_attention(
            q,
            k_cache,
            v_cache,
            batch.block_table,
            batch.cu_seqlens_q,
            batch.kv_lens,
            window=layer.window,
            max_query_len=self._max_query_len,
            num_short=self._num_short,
            backend="triton",
        )
        assert isinstance(out, Tensor)
        return out


def norm_and_rotate(
    config: DecoderConfig, layer: LayerAttention, qkv: Tensor, rotation: tuple[Tensor, Tensor] | None
) -> None:
    """The query and key heads of qkv [T, Hq + 2 Hkv, D], in place."""
    qk = qkv[:, : config.num_heads + config.num_kv_heads]
    if layer.qk_norm is not None:
        qk.copy_(F.rms_norm(qk, (config.head_dim,), None, config.norm_eps).mul_(layer.qk_norm))
    if rotation is not None:
        rope_(qk, *rotation)
