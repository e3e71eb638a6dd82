"""The one decoder-only model: a ragged batch of tokens in, logits of the rows that ask for them out.

Inference only, few and large torch calls. Owns its weights and scratch buffers; knows nothing of requests, and of the
KV cache only where to write and what to read. One thread at a time may call `forward`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu import LayerNorm, RMSNorm, rope_
from kernels.cpu_attention import Piece, varlen_attention, varlen_pieces
from kernels.cpu_paged import PagedPlan, Workspace, arrange, token_order
from playground.models.batch import ModelBatch
from playground.models.config import DecoderConfig
from playground.models.kv_cache import KVCache
from playground.models.linear import ACTIVATIONS, GatedLinear, Linear

Norm = RMSNorm | LayerNorm
# A step whose layers take fewer multiply-adds each than this runs on one thread: waking a second one some 150 times a
# step costs more than it gives. Bundled model, batch 1, bfloat16 on two AMX cores: 9.3 ms on two threads, 3.0 on one.
_SERIAL_MULTIPLY_ADDS = 2_500_000


@dataclass(slots=True)
class Layer:
    """Weights of one layer; `up` holds gate, activation and up where the MLP is gated."""

    attn_norm: Norm
    qkv: Linear
    qk_norm: Tensor | None
    """[Hq + Hkv, D]: the norm weight of each query and key head."""
    out: Linear
    mlp_norm: Norm
    up: Linear | GatedLinear
    down: Linear
    window: int | None


@dataclass(slots=True)
class DecoderWeights:
    """Everything learned, in the layout that the forward wants."""

    embed: Tensor
    positions: Tensor | None
    layers: list[Layer]
    final_norm: Norm
    head: Linear


@dataclass(slots=True)
class _Step:
    """What one forward computes once for all layers."""

    cos: Tensor | None
    sin: Tensor | None
    rows: Tensor | None
    """Cache rows to write, None without a cache."""
    plans: dict[int | None, PagedPlan]
    pieces: dict[int | None, list[list[Piece]]]
    query_lens: Sequence[int]


class Decoder:
    """A loaded model. `forward` is the only thing that it does."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        *,
        dtype: torch.dtype,
        device: torch.device,
        attention: Literal["sdpa", "naive"] = "sdpa",
    ) -> None:
        self.config, self.weights = config, weights
        self.dtype, self.device = dtype, device
        self.naive = attention == "naive"
        self._rope = _RopeTable(config, dtype, device) if config.positions == "rope" else None
        self._workspace = Workspace()
        self._scale = config.head_dim**-0.5
        self._windows = sorted(set(config.layer_windows), key=str)
        self._gated = config.gated_mlp
        self._activation = ACTIVATIONS[config.activation]
        self._num_threads = torch.get_num_threads()
        self._layer_size = _parameters(weights.layers[0]) if weights.layers else 0

    @torch.inference_mode()
    def forward(self, batch: ModelBatch, kv_cache: KVCache | None) -> Tensor:
        """Logits [R, vocab] of `batch.logits_rows`, float32 (float64 for a float64 model).

        Writes the batch's keys and values to `kv_cache`; with None, the batch holds whole sequences and attention
        runs over their own keys and values.
        """
        serial = self.device.type == "cpu" and len(batch.token_ids) * self._layer_size < _SERIAL_MULTIPLY_ADDS
        torch.set_num_threads(1 if serial else self._num_threads)
        try:
            return self._forward(batch, kv_cache)
        finally:
            torch.set_num_threads(self._num_threads)

    __call__ = forward

    def _forward(self, batch: ModelBatch, kv_cache: KVCache | None) -> Tensor:
        token_ids, positions, logits_rows = batch.token_ids, batch.positions, batch.logits_rows
        slots = batch.slot_mapping
        groups: list[list[int]] = []
        if kv_cache is not None:
            window = self.config.sliding_window
            groups = arrange(batch.query_lens, batch.kv_lens_list, kv_cache.block_size, window)
            order = token_order(groups, batch.query_lens)
            if order is not None:
                permutation = torch.tensor(order, device=self.device)
                token_ids, positions, slots = token_ids[permutation], positions[permutation], slots[permutation]
                logits_rows = torch.argsort(permutation)[logits_rows]
        step = self._prepare(batch, kv_cache, groups, positions, slots)
        x = F.embedding(token_ids, self.weights.embed)
        if self.weights.positions is not None:
            x = x + F.embedding(positions, self.weights.positions)
        for number, layer in enumerate(self.weights.layers):
            x = self._attention(number, layer, x, step, kv_cache)
            x = self._mlp(layer, x)
        return self._logits(x, logits_rows)

    def _prepare(
        self, batch: ModelBatch, kv_cache: KVCache | None, groups: list[list[int]], positions: Tensor, slots: Tensor
    ) -> _Step:
        cos = sin = rows = None
        if self._rope is not None:
            cos, sin = self._rope.at(positions, max(batch.kv_lens_list, default=0))
        plans: dict[int | None, PagedPlan] = {}
        pieces: dict[int | None, list[list[Piece]]] = {}
        if kv_cache is None:
            for window in self._windows:
                pieces[window] = varlen_pieces(batch.query_lens, window, self.dtype, positions)
        else:
            rows = kv_cache.write_rows(slots)
            for window in self._windows:
                plans[window] = PagedPlan(
                    groups,
                    batch.query_lens,
                    batch.kv_lens_list,
                    batch.block_table,
                    kv_cache.k[0].shape,
                    window,
                    self.dtype,
                )
        return _Step(cos, sin, rows, plans, pieces, batch.query_lens)

    def _attention(self, number: int, layer: Layer, x: Tensor, step: _Step, kv_cache: KVCache | None) -> Tensor:
        config = self.config
        dim, num_q = config.head_dim, config.num_heads
        num_qk = num_q + config.num_kv_heads
        qkv = layer.qkv(layer.attn_norm(x)).view(x.shape[0], num_qk + config.num_kv_heads, dim)
        qk = qkv[:, :num_qk]
        if layer.qk_norm is not None:
            qk.copy_(F.rms_norm(qk, (dim,), None, config.norm_eps).mul_(layer.qk_norm))
        if step.cos is not None and step.sin is not None:
            rope_(qk, step.cos, step.sin)
        q = qkv[:, :num_q]
        if kv_cache is not None and step.rows is not None:
            kv_cache.write(number, step.rows, qkv[:, num_q:])
            out = step.plans[layer.window].attend(
                q,
                kv_cache.k[number],
                kv_cache.v[number],
                scale=self._scale,
                workspace=self._workspace,
                pages=kv_cache.pages[number],
                naive=self.naive,
            )
        else:
            pieces = step.pieces[layer.window]
            k, v = qkv[:, num_q:num_qk], qkv[:, num_qk:]
            out = varlen_attention(q, k, v, pieces, step.query_lens, self._scale, self.naive)
        return layer.out.plus(out.reshape(x.shape[0], num_q * dim), x)

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        normed = layer.mlp_norm(x)
        return layer.down.plus(layer.up(normed) if self._gated else self._activation(layer.up(normed)), x)

    def _logits(self, x: Tensor, rows: Tensor) -> Tensor:
        if rows.shape[0] == 0:
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            return x.new_empty((0, self.config.vocab_size), dtype=dtype)
        logits = self.weights.head(self.weights.final_norm(x.index_select(0, rows)))
        return logits if logits.dtype == torch.float64 else logits.float()


def _parameters(layer: Layer) -> int:
    """Elements of a layer's matrices: the multiply-adds that one token takes in them."""
    return sum(matrix.num_elements for matrix in (layer.qkv, layer.out, layer.up, layer.down))


class _RopeTable:
    """cos and sin by position, in the model's dtype, grown by doubling; the sign of the rotation is inside sin."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._inverse = config.rope.inverse_frequencies(config.head_dim)
        self._dtype, self._device = dtype, device
        self._tables: tuple[Tensor, Tensor] | None = None

    def at(self, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """cos and signed sin [T, 1, D] of these positions, all of them below `longest`."""
        if self._tables is None or self._tables[0].shape[0] < longest:
            self._tables = self._build(max(1024, 1 << (max(longest, 1) - 1).bit_length()))
        cos, sin = self._tables
        return cos.index_select(0, positions)[:, None, :], sin.index_select(0, positions)[:, None, :]

    def _build(self, length: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(length, dtype=torch.float64)[:, None] * self._inverse[None, :]
        cos, sin = angles.cos(), angles.sin()
        tables = torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)
        return tables[0].to(self._device, self._dtype), tables[1].to(self._device, self._dtype)
