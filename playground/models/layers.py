"""Decoder layers in a row over one ragged batch: what a decoder, a part of one and a draft head have in common.

Inference only, few and large torch calls. Owns scratch buffers and the rotation table; knows nothing of embeddings or
logits, and leaves the KV cache to `attention`.
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
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
    check_trees,
)
from playground.models.batch import ModelBatch, one_token_steps
from playground.models.config import DecoderConfig
from playground.models.kv_cache import KVCache
from playground.models.linear import ACTIVATIONS, AnyLinear, GatedLinear

AttentionName = Literal["sdpa", "naive", "triton"]
Norm = RMSNorm | LayerNorm
# A step whose layers take fewer multiply-adds each than this runs on one thread: waking a second one some 150 times a
# step costs more than it gives. Bundled model, batch 1, bfloat16 on two AMX cores: 9.3 ms on two threads, 3.0 on one.
_SERIAL_MULTIPLY_ADDS = 2_500_000


@dataclass(slots=True)
class Layer:
    """Weights of one layer; `up` holds gate, activation and up where the MLP is gated."""

    attn_norm: Norm | None
    """None where attention reads the layer's input as it is."""
    qkv: AnyLinear
    attention: LayerAttention
    out: AnyLinear
    mlp_norm: Norm
    up: AnyLinear | GatedLinear
    down: AnyLinear


class LayerStack:
    """Layers, and how they attend. One thread at a time may run them."""

    def __init__(
        self,
        config: DecoderConfig,
        layers: Sequence[Layer],
        *,
        dtype: torch.dtype,
        device: torch.device,
        attention: AttentionName,
    ) -> None:
        self.config, self.layers = config, list(layers)
        self._windows = {layer.attention.window for layer in layers}
        self.dtype, self.device, self.attention = dtype, device, attention
        self._rope = RopeTable(config, dtype, device) if config.positions == "rope" else None
        self._workspace = Workspace()
        self._activation = ACTIVATIONS[config.activation]
        self._layer_size = _parameters(layers[0]) if layers else 0

    def part(self, keep: Sequence[int]) -> "LayerStack":
        """These of the layers alone; weights, tables and buffers are shared."""
        other = copy.copy(self)
        other.layers = [self.layers[number] for number in keep]
        other._windows = {layer.attention.window for layer in other.layers}
        return other

    def threads(self, tokens: int) -> AbstractContextManager[object]:
        """A context in which a step of this many tokens runs on as many threads as are of use to it."""
        threads = torch.get_num_threads()
        small = tokens * self._layer_size < _SERIAL_MULTIPLY_ADDS
        return nullcontext() if self.device.type != "cpu" or threads == 1 or not small else _OneThread(threads)

    def begin(self, batch: ModelBatch, kv_cache: KVCache | None) -> BatchAttention:
        """The attention of a batch over the cache, or over its own keys. ValueError where its trees cannot be."""
        if batch.prepared is not None:
            return batch.prepared
        if batch.tree_mask is not None:
            check_trees(batch, self._windows, own_keys=kv_cache is None)
        if kv_cache is None:
            return OwnKeysAttention(
                self.config, batch, self._rope, self._windows, dtype=self.dtype, kind=self.attention
            )
        if self.attention == "triton":
            return TritonAttention(self.config, batch, kv_cache, self._rope)
        return self._gathered([batch], kv_cache)[0]

    @torch.inference_mode()
    def steps_ahead(self, batch: ModelBatch, slots: Tensor, kv_cache: KVCache) -> list[ModelBatch]:
        """`one_token_steps` with what does not change from step to step worked out once for all of them."""
        batches = one_token_steps(batch, slots)
        if self.attention != "triton":
            for one, prepared in zip(batches, self._gathered(batches, kv_cache), strict=True):
                one.prepared = prepared
        return batches

    def _gathered(self, batches: Sequence[ModelBatch], kv_cache: KVCache) -> list[GatheredAttention]:
        naive = self.attention == "naive"
        return GatheredAttention.of_steps(
            self.config, batches, kv_cache, self._rope, self._workspace, self._windows, dtype=self.dtype, naive=naive
        )

    def run(self, x: Tensor, attention: BatchAttention) -> Tensor:
        """x [T, H], which may be overwritten, in the order that `attention` wants -> [T, H]."""
        for layer in self.layers:
            x = self._attend(layer, x, attention)
            x = self._mlp(layer, x)
        return x

    def _attend(self, layer: Layer, x: Tensor, attention: BatchAttention) -> Tensor:
        heads = self.config.num_heads + 2 * self.config.num_kv_heads
        normed = x if layer.attn_norm is None else layer.attn_norm(x)
        qkv = layer.qkv(normed).view(x.shape[0], heads, self.config.head_dim)
        return layer.out.plus(attention(layer.attention, qkv).reshape(x.shape[0], -1), x)

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        normed = layer.mlp_norm(x)
        return layer.down.plus(layer.up(normed) if self.config.gated_mlp else self._activation(layer.up(normed)), x)


class _OneThread:
    """One torch thread inside, as many as before outside."""

    def __init__(self, before: int) -> None:
        self._before = before

    def __enter__(self) -> None:
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def _parameters(layer: Layer) -> int:
    """Elements of a layer's matrices: the multiply-adds that one token takes in them."""
    return sum(matrix.num_elements for matrix in (layer.qkv, layer.out, layer.up, layer.down))
