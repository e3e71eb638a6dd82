"""Builds a decoder's weights, fused and laid out for the device, from any source of named tensors.

One matrix at a time: the tensors it is made of are copied into place, then it is laid out in its own memory.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from kernels.cpu import LayerNorm, RMSNorm
from playground.models.attention import LayerAttention
from playground.models.config import DecoderConfig
from playground.models.decoder import DecoderWeights
from playground.models.families import linear_bias, linear_inputs, linear_parts, tensor_shapes
from playground.models.heap import large_blocks_apart, return_memory_to_system
from playground.models.layers import Layer, Norm
from playground.models.linear import AnyLinear, GatedLinear, Linear, StackedLinear, reorders, worth_a_copy
from playground.quantization.blocks import BlockWeight, join_blocks
from playground.quantization.linear import AnyQuantized, QuantizedLinear
from playground.quantization.weight import QuantizedWeight, join, joinable

OnProgress = Callable[[int, int], None]
"""Called with how many of a model's layers have been built, and of how many."""


class TensorSource(Protocol):
    """Tensors by their checkpoint name. `use` must copy what it keeps."""

    def read(self, name: str, use: Callable[[Tensor], None]) -> None: ...


@runtime_checkable
class QuantizedSource(TensorSource, Protocol):
    """A source some of whose matrices are quantized; the others, norms and biases come from `read` as ever."""

    def quantized(self, name: str) -> AnyQuantized | None:
        """The matrix "`name`.weight" ("model.layers.0.self_attn.q_proj") as [outputs, inputs]; None where it is plain.

        Asked for every matrix of the layers, the output head (not where it is tied) and the embedding. Called once
        each, in the order of use; a weight may be made when it is asked for, and is not kept.
        """
        ...


class DummyTensors:
    """Random weights of a config's shapes: matrices scaled so that activations and logits stay near 1."""

    def __init__(self, config: DecoderConfig, seed: int, device: torch.device) -> None:
        self._device = device  # drawn where they are needed: 8 B numbers take minutes on a CPU
        self._shapes = tensor_shapes(config)
        self._order = {name: number for number, name in enumerate(self._shapes)}
        self._transposed, self._embed = config.family.transposed, f"{config.family.names.embed}.weight"
        self._seed = seed

    def read(self, name: str, use: Callable[[Tensor], None]) -> None:
        shape = self._shapes[name]
        if len(shape) == 1:
            use(torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape))
            return
        generator = torch.Generator(self._device).manual_seed((self._seed * 1_000_003 + self._order[name]) % 2**63)
        inputs = shape[0] if self._transposed and name != self._embed else shape[1]
        # bfloat16 noise halves the memory of the largest temporary and is noise all the same.
        use(
            torch.empty(shape, dtype=torch.bfloat16, device=self._device).normal_(
                0.0, inputs**-0.5, generator=generator
            )
        )


def build_weights(
    config: DecoderConfig,
    source: TensorSource,
    dtype: torch.dtype,
    device: torch.device,
    *,
    int8_activations: bool = False,
    on_progress: OnProgress | None = None,
) -> DecoderWeights:
    """Everything that a `Decoder` of this config needs, from tensors named as in `families`.

    `int8_activations` rounds what goes into int8 matrices of the layers to int8, as files may say that it is.
    `on_progress` hears of every layer that was built; what it raises ends the building.
    """
    is_packed = isinstance(source, QuantizedSource)
    with large_blocks_apart() if is_packed else nullcontext():
        builder = WeightBuilder(config, source, dtype, device, int8_activations=int8_activations)
        names = config.family.names
        shapes = tensor_shapes(config)
        embed = builder.table(names.embed, shapes)
        learned = builder.plain(f"{names.positions}.weight", shapes) if config.positions == "learned" else None
        head: Linear | QuantizedLinear
        if not config.tie_embeddings:  # before the layers: while it is reordered there are two of it
            table = builder.table(names.head, shapes)
            head = table if isinstance(table, QuantizedLinear) else Linear(table, None)
        else:
            head = embed if isinstance(embed, QuantizedLinear) else Linear(embed, None, keep=not worth_a_copy(embed))
        layers = []
        for number in range(config.num_layers):
            layers.append(builder.layer(number, shapes))
            if on_progress is not None:
                on_progress(number + 1, config.num_layers)
            if is_packed:  # unpacked codes lie between packed ones: the heap would stay as large
                return_memory_to_system()
        return DecoderWeights(embed, learned, layers, builder.norm(names.final_norm, shapes), head)


class WeightBuilder:
    """Builds parts of a decoder one after another."""

    def __init__(
        self,
        config: DecoderConfig,
        source: TensorSource,
        dtype: torch.dtype,
        device: torch.device,
        *,
        int8_activations: bool = False,
    ) -> None:
        self.config, self.source, self.dtype, self.device = config, source, dtype, device
        self._int8_activations = int8_activations
        self._staging: Tensor | None = None

    def staged(self, *shape: int) -> Tensor:
        """Memory for a matrix that `Linear` will reorder: always the same, so that the heap stays whole."""
        size = math.prod(shape)
        if self._staging is None or self._staging.numel() < size:
            self._staging = self.empty(size)
        return self._staging[:size].view(shape)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def plain(self, name: str, shapes: dict[str, tuple[int, ...]]) -> Tensor:
        """A tensor as it is stored."""
        target = self.empty(*shapes[name])
        self.source.read(name, lambda tensor: _copy(target, tensor))
        return target

    def norm(self, name: str, shapes: dict[str, tuple[int, ...]]) -> Norm:
        weight = self.plain(f"{name}.weight", shapes)
        if self.config.norm == "rms":
            return RMSNorm(weight, self.config.norm_eps)
        return LayerNorm(weight, self.plain(f"{name}.bias", shapes), self.config.norm_eps)

    def table(self, name: str, shapes: dict[str, tuple[int, ...]]) -> Tensor | QuantizedLinear:
        """A matrix with a row for every token: the embedding, or the output head."""
        weight = self._quantized(name)
        if weight is None:
            return self.plain(f"{name}.weight", shapes)
        return QuantizedLinear(weight, None, dtype=self.dtype, device=self.device)

    def linear(self, role: Literal["qkv", "out", "up", "down"], number: int) -> AnyLinear:
        """One of our matrices, from one or several of the checkpoint, stacked along the outputs."""
        parts = [(name.format(number), outputs) for name, outputs in linear_parts(self.config, role)]
        inputs, biased = linear_inputs(self.config, role), linear_bias(self.config, role)
        weights = [self._quantized(name) for name, _ in parts]
        quantized = [weight for weight in weights if weight is not None]
        if not quantized:
            return self._plain_linear(parts, inputs, biased)
        if len(quantized) == len(parts) and (whole := _joined(quantized)) is not None:
            return self._quantized_linear(whole, self._bias(parts) if biased else None)
        linears: list[Linear | QuantizedLinear] = []
        for part, weight in zip(parts, weights, strict=True):
            if weight is None:
                linears.append(self._plain_linear([part], inputs, biased))
            else:
                linears.append(self._quantized_linear(weight, self._bias([part]) if biased else None))
        return StackedLinear(linears)

    def up(self, number: int) -> AnyLinear | GatedLinear:
        linear = self.linear("up", number)
        return GatedLinear(linear, self.config.activation) if self.config.gated_mlp else linear

    def _plain_linear(self, parts: Sequence[tuple[str, int]], inputs: int, biased: bool) -> Linear:
        make = self.staged if reorders(self.dtype, self.device) else self.empty
        weight = make(sum(outputs for _, outputs in parts), inputs)
        self._stack(parts, "weight", weight)
        return Linear(weight, self._bias(parts) if biased else None)

    def _quantized(self, name: str) -> AnyQuantized | None:
        return self.source.quantized(name) if isinstance(self.source, QuantizedSource) else None

    def _quantized_linear(self, weight: AnyQuantized, bias: Tensor | None) -> QuantizedLinear:
        int8 = self._int8_activations or getattr(weight, "activations", None) == "int8"
        return QuantizedLinear(weight, bias, dtype=self.dtype, device=self.device, int8_activations=int8)

    def _bias(self, parts: Sequence[tuple[str, int]]) -> Tensor:
        bias = self.empty(sum(outputs for _, outputs in parts))
        self._stack(parts, "bias", bias)
        return bias

    def _stack(self, parts: Sequence[tuple[str, int]], kind: str, target: Tensor) -> None:
        """Read tensors of the checkpoint one below the other into one of ours."""
        row = 0
        for name, outputs in parts:
            self._fill(f"{name}.{kind}", target[row : row + outputs])
            row += outputs

    def _fill(self, name: str, target: Tensor) -> None:
        turned = self.config.family.transposed and target.ndim == 2
        self.source.read(name, lambda tensor: _copy(target, tensor.t() if turned else tensor))

    def layer(self, number: int, shapes: dict[str, tuple[int, ...]], *, input_norm: bool = True) -> Layer:
        """A whole layer; without `input_norm` its attention reads its input as it is."""
        config, names = self.config, self.config.family.names
        qk_norm = None
        if config.qk_norm:
            q_weight = self.plain(f"{names.q_norm.format(number)}.weight", shapes)
            k_weight = self.plain(f"{names.k_norm.format(number)}.weight", shapes)
            qk_norm = torch.cat((q_weight.expand(config.num_heads, -1), k_weight.expand(config.num_kv_heads, -1)))
        return Layer(
            attn_norm=self.norm(names.attn_norm.format(number), shapes) if input_norm else None,
            qkv=self.linear("qkv", number),
            attention=LayerAttention(number, qk_norm, config.layer_windows[number]),
            out=self.linear("out", number),
            mlp_norm=self.norm(names.mlp_norm.format(number), shapes),
            up=self.up(number),
            down=self.linear("down", number),
        )


def _joined(parts: Sequence[AnyQuantized]) -> AnyQuantized | None:
    """The matrices one below the other; None where they are quantized in ways that do not join."""
    codes = [part for part in parts if isinstance(part, QuantizedWeight)]
    blocks = [part for part in parts if isinstance(part, BlockWeight)]
    if codes and blocks:
        return None
    if blocks:
        return join_blocks(blocks)
    return join(codes) if joinable(codes) else None


def _copy(target: Tensor, tensor: Tensor) -> None:
    target.copy_(tensor)


def weights_nbytes(weights: DecoderWeights) -> int:
    """Bytes of all weights, a tied head that is the embedding itself counted once."""
    tables = [weights.embed] + ([] if weights.positions is None else [weights.positions])
    shared = weights.head is weights.embed or weights.head.weight is weights.embed
    linears = [] if shared else [weights.head]
    return _nbytes([*tables, *linears], [weights.final_norm]) + sum(layer_nbytes(layer) for layer in weights.layers)


def step_weights_nbytes(weights: DecoderWeights) -> int:
    """Bytes of the weights that every step reads: the tables of embeddings and positions are only looked up in."""
    return _nbytes([weights.head], [weights.final_norm]) + sum(layer_nbytes(layer) for layer in weights.layers)


def layer_nbytes(layer: Layer) -> int:
    """Bytes of the weights of one layer."""
    norms = [layer.mlp_norm] if layer.attn_norm is None else [layer.attn_norm, layer.mlp_norm]
    tensors = [] if layer.attention.qk_norm is None else [layer.attention.qk_norm]
    return _nbytes([*tensors, layer.qkv, layer.out, layer.up, layer.down], norms)


def _nbytes(parts: Sequence[Tensor | AnyLinear | GatedLinear], norms: Sequence[Norm]) -> int:
    tensors = [part for norm in norms for part in (norm.weight, getattr(norm, "bias", None)) if part is not None]
    return sum(part.nbytes for part in (*parts, *tensors))
