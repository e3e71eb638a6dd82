"""How one batch attends, in every layer: queries, keys and values of a layer in, attended values out.

Three ways with one face: over gathered pages in torch calls, over pages in place in Triton, and without a cache over
the batch's own keys. Each norms, rotates and writes what its layer gives it; none owns weights or the cache.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cache_ops import rope_and_write
from kernels.cpu import rope_
from kernels.cpu_attention import TREE_TOKENS, Piece, varlen_attention, varlen_pieces
from kernels.cpu_paged import PagedPlan, Workspace, arrange, token_order
from kernels.flash import flash_attention_varlen
from kernels.host import to_device
from kernels.paged import DECODE_ROWS, paged_attention
from playground.models.batch import ModelBatch
from playground.models.config import DecoderConfig
from playground.models.kv_cache import KVCache, Places


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
        self._doubled: Tensor | None = None
        self._halves: tuple[Tensor, Tensor] | None = None

    def at(self, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """cos and sin [T, 1, D] of positions below `longest`, in the model's dtype; sin carries the rotation's sign."""
        if self._doubled is None or self._doubled.shape[0] < longest:
            cos, sin = self._build(longest)
            both = torch.stack((torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)), 1)[:, :, None]
            self._doubled = both.to(self._device, self._dtype)
        cos, sin = self._doubled.index_select(0, positions).unbind(1)
        return cos, sin

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


@dataclass(slots=True)
class GatheredAttention:
    """Pages of a group of sequences are gathered, then attended to in one torch call: any device, fast on a CPU."""

    config: DecoderConfig
    cache: KVCache
    workspace: Workspace
    naive: bool
    order: Tensor | None
    rotation: tuple[Tensor, Tensor] | None
    places: Places
    """Where the batch's keys and values go."""
    plans: dict[int | None, PagedPlan]
    """By window, and for all steps that were prepared together."""
    step: int

    @classmethod
    def of_steps(
        cls,
        config: DecoderConfig,
        batches: Sequence[ModelBatch],
        kv_cache: KVCache,
        rope: RopeTable | None,
        workspace: Workspace,
        windows: Collection[int | None],
        *,
        dtype: torch.dtype,
        naive: bool,
    ) -> list["GatheredAttention"]:
        """One for each of the batches: a single one of any kind, or successive steps of one token a sequence."""
        first, longest, count = batches[0], max(batches[-1].kv_lens_list, default=0), len(batches)
        query_lens, kv_lens = first.query_lens, first.kv_lens_list
        groups = arrange(
            query_lens, kv_lens, kv_cache.block_size, config.sliding_window, config.num_kv_heads * config.head_dim
        )
        numbers = token_order(groups, query_lens)
        order = None if numbers is None else to_device(torch.tensor(numbers), first.positions.device)

        positions = first.positions if count == 1 else torch.stack([batch.positions for batch in batches])
        slots = first.slot_mapping if count == 1 else torch.stack([batch.slot_mapping for batch in batches])
        if order is not None:
            positions, slots = positions[..., order], slots[..., order]
        rotations: list[tuple[Tensor, Tensor] | None] = [None] * count
        if rope is not None:
            cos, sin = rope.at(positions.view(-1), longest)
            rotations = list(zip(_parts(cos, count), _parts(sin, count), strict=True))
        places = [_parts(index, count) for index in kv_cache.places(slots.view(-1))]
        tree_mask = first.tree_mask if order is None or first.tree_mask is None else first.tree_mask[order]
        plans = {
            window: PagedPlan(
                groups, query_lens, kv_lens, first.block_table, kv_cache.k[0], window, dtype, config.num_heads,
                tree_mask=tree_mask, steps=count,
            )
            for window in windows
        }  # fmt: skip
        return [
            cls(config, kv_cache, workspace, naive, order, rotations[step], step_places, plans, step)
            for step, step_places in enumerate(zip(*places, strict=True))
        ]

    def __call__(self, layer: LayerAttention, qkv: Tensor) -> Tensor:
        num_q = self.config.num_heads
        norm_and_rotate(self.config, layer, qkv, self.rotation)
        self.cache.write(layer.number, self.places, qkv[:, num_q:])
        return self.plans[layer.window].attend(
            qkv[:, :num_q],
            self.cache.k[layer.number],
            self.cache.v[layer.number],
            scale=self.config.head_dim**-0.5,
            workspace=self.workspace,
            pages=self.cache.pages[layer.number],
            naive=self.naive,
            scales=self.cache.scales[layer.number],
            step=self.step,
        )


def _parts(x: Tensor, count: int) -> Sequence[Tensor]:
    return [x] if count == 1 else x.chunk(count)


class OwnKeysAttention:
    """No cache: the batch holds whole sequences, and each attends to its own keys.

    A batch with trees runs in torch calls also where the others run in Triton, whose kernel has no trees.
    """

    order: Tensor | None = None

    def __init__(
        self,
        config: DecoderConfig,
        batch: ModelBatch,
        rope: RopeTable | None,
        windows: Collection[int | None],
        *,
        dtype: torch.dtype,
        kind: str,
    ) -> None:
        """`kind` is "triton", "sdpa" or "naive"."""
        if kind == "triton" and batch.tree_mask is not None:
            kind = "sdpa"
        self._config, self._batch, self._kind = config, batch, kind
        self._rotation = None if rope is None else rope.at(batch.positions, max(batch.kv_lens_list, default=0))
        self._pieces: dict[int | None, list[list[Piece]]] = {
            window: varlen_pieces(batch.query_lens, window, dtype, batch.positions, batch.tree_mask, batch.tree_lens)
            for window in windows
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
        count, options = len(short), {"max_query_len": max(short, default=0), "tree_mask": batch.tree_mask}
        table, starts, lens = batch.block_table, batch.cu_seqlens_q, batch.kv_lens
        self._calls: list[tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]]
        self._calls = [((table, starts, lens), options | {"num_short": count})]
        if batch.tree_lens is not None and 0 < count < len(lens) and not any(batch.tree_lens[count:]):
            # With a tree mask the kernel for long chunks cannot skip what causality hides, half of a prompt.
            rest = (table[count:], starts[count:], lens[count:])
            self._calls = [((table[:count], starts[: count + 1], lens[:count]), options), (rest, {})]
        self._tables = None if rope is None else rope.whole(config.max_position_embeddings)

    def __call__(self, layer: LayerAttention, qkv: Tensor) -> Tensor:
        batch, config = self._batch, self._config
        cos, sin = self._tables or (None, None)
        k_cache, v_cache = self._cache.k[layer.number], self._cache.v[layer.number]
        k_scale, v_scale = self._cache.scales[layer.number] or (None, None)
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
            k_scale=k_scale,
            v_scale=v_scale,
            backend="triton",
        )
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for tensors, options in self._calls:
            paged_attention(
                q, k_cache, v_cache, *tensors, window=layer.window, k_scale=k_scale, v_scale=v_scale, backend="triton",
                out=out, **options,
            )  # fmt: skip
        return out


def why_no_trees(windows: Collection[int | None]) -> str | None:
    """The reason why layers with these sliding windows cannot attend to trees of tokens; None where they can."""
    narrow = [window for window in windows if window is not None and window < TREE_TOKENS]
    if not narrow:
        return None
    return f"a window must not be narrower than a tree may be deep, {TREE_TOKENS} tokens, and one is {min(narrow)}"


def check_trees(batch: ModelBatch, windows: Collection[int | None], *, own_keys: bool) -> None:
    """Raises ValueError, one sentence, where a batch with a tree mask cannot be attended to as it says."""
    if (reason := why_no_trees(windows)) is not None:
        raise ValueError(f"this model takes no trees: {reason}.")
    tree_lens = batch.tree_lens
    if tree_lens is None or len(tree_lens) != len(batch.query_lens):
        raise ValueError("a batch with a tree_mask needs tree_lens, one for each sequence.")
    for in_tree, queries in zip(tree_lens, batch.query_lens, strict=True):
        if in_tree not in (0, queries) and not (own_keys and 0 < in_tree < queries):
            where = "at most" if own_keys else "0 or, over a KV cache, all of"
            raise ValueError(f"tree_lens={in_tree} of a sequence must be {where} its {queries} query tokens.")
        if in_tree > TREE_TOKENS:
            raise ValueError(f"a tree of {in_tree} tokens is too large: a mask tells {TREE_TOKENS} apart.")


def norm_and_rotate(
    config: DecoderConfig, layer: LayerAttention, qkv: Tensor, rotation: tuple[Tensor, Tensor] | None
) -> None:
    """The query and key heads of qkv [T, Hq + 2 Hkv, D], in place."""
    qk = qkv[:, : config.num_heads + config.num_kv_heads]
    if layer.qk_norm is not None:
        qk.copy_(F.rms_norm(qk, (config.head_dim,), None, config.norm_eps).mul_(layer.qk_norm))
    if rotation is not None:
        rope_(qk, *rotation)
