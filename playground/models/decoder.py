"""The one decoder-only model: a ragged batch of tokens in, logits of the rows that ask for them out.

Inference only, few and large torch calls. Owns its weights and scratch buffers; knows nothing of requests, and leaves
the KV cache to `attention`. One thread at a time may call `forward`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu import LayerNorm, RMSNorm
from kernels.cpu_paged import Workspace
from playground.models.attention import (
    BatchAttention,
    GatheredAttention,
    LayerAttention,
    OwnKeysAttention,
    RopeTable,
    TritonAttention,
)
from playground.models.batch import ModelBatch
from playground.models.config import DecoderConfig
from playground.models.kv_cache import KVCache
from playground.models.linear import ACTIVATIONS, GatedLinear, Linear

AttentionName = Literal["sdpa", "naive", "triton"]
Norm = RMSNorm | LayerNorm
# A step whose layers take fewer multiply-adds each than this runs on one thread: waking a second one some 150 times a
# step costs more than it gives. Bundled model, batch 1, bfloat16 on two AMX cores: 9.3 ms on two threads, 3.0 on one.
_SERIAL_MULTIPLY_ADDS = 2_500_000


@dataclass(slots=True)
class Layer:
    """Weights of one layer; `up` holds gate, activation and up where the MLP is gated."""

    attn_norm: Norm
    qkv: Linear
    attention: LayerAttention
    out: Linear
    mlp_norm: Norm
    up: Linear | GatedLinear
    down: Linear


@dataclass(slots=True)
class DecoderWeights:
    """Everything learned, in the layout that the forward wants."""

    embed: Tensor
    positions: Tensor | None
    layers: list[Layer]
    final_norm: Norm
    head: Linear


class Decoder:
    """A loaded model. `forward` is the only thing that it does."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        *,
        dtype: torch.dtype,
        device: torch.device,
        attention: AttentionName = "sdpa",
    ) -> None:
        self.config, self.weights = config, weights
        self.dtype, self.device, self.attention = dtype, device, attention
        self._rope = RopeTable(config, dtype, device) if config.positions == "rope" else None
        self._workspace = Workspace()
        self._gated = config.gated_mlp
        self._activation = ACTIVATIONS[config.activation]
        self._layer_size = _parameters(weights.layers[0]) if weights.layers else 0

    @torch.inference_mode()
    def forward(self, batch: ModelBatch, kv_cache: KVCache | None) -> Tensor:
        """Logits [R, vocab] of `batch.logits_rows`, float32 (float64 for a float64 model).

        Writes the batch's keys and values to `kv_cache`; with None, the batch holds whole sequences and attention
        runs over their own keys and values.
        """
        threads = torch.get_num_threads()
        small = len(batch.token_ids) * self._layer_size < _SERIAL_MULTIPLY_ADDS
        if self.device.type != "cpu" or threads == 1 or not small:
            return self._forward(batch, kv_cache)
        torch.set_num_threads(1)
        try:
            return self._forward(batch, kv_cache)
        finally:
            torch.set_num_threads(threads)

    __call__ = forward

    def _forward(self, batch: ModelBatch, kv_cache: KVCache | None) -> Tensor:
        attention = self._begin(batch, kv_cache)
        token_ids, positions, logits_rows = batch.token_ids, batch.positions, batch.logits_rows
        if attention.order is not None:
            token_ids, positions = token_ids[attention.order], positions[attention.order]
            logits_rows = torch.argsort(attention.order)[logits_rows]
        x = F.embedding(token_ids, self.weights.embed)
        if self.weights.positions is not None:
            x = x + F.embedding(positions, self.weights.positions)
        for layer in self.weights.layers:
            x = self._attend(layer, x, attention)
            x = self._mlp(layer, x)
        return self._logits(x, logits_rows)

    def _begin(self, batch: ModelBatch, kv_cache: KVCache | None) -> BatchAttention:
        if kv_cache is None:
            return OwnKeysAttention(self.config, batch, self._rope, dtype=self.dtype, kind=self.attention)
        if self.attention == "triton":
            return TritonAttention(self.config, batch, kv_cache, self._rope)
        naive = self.attention == "naive"
        return GatheredAttention(
            self.config, batch, kv_cache, self._rope, self._workspace, dtype=self.dtype, naive=naive
        )

    def _attend(self, layer: Layer, x: Tensor, attention: BatchAttention) -> Tensor:
        heads = self.config.num_heads + 2 * self.config.num_kv_heads
        qkv = layer.qkv(layer.attn_norm(x)).view(x.shape[0], heads, self.config.head_dim)
        return layer.out.plus(attention(layer.attention, qkv).reshape(x.shape[0], -1), x)

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
