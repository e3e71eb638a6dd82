"""A decoder as plain torch over a checkpoint's own tensors, one residual block at a time, in float32.

What calibration needs and serving does not: every matrix as the file has it, and what each of them reads. One block
(attention or MLP with its norm) is in memory at a time. Whole sequences only, no KV cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from playground.models.config import DecoderConfig
from playground.models.families import linear_bias, linear_parts, tensor_shapes
from playground.models.linear import ACTIVATIONS
from playground.models.weights import TensorSource

Role = Literal["qkv", "out", "up", "down"]
BlockKind = Literal["attention", "mlp"]
BLOCK_KINDS: tuple[BlockKind, BlockKind] = ("attention", "mlp")
_BLOCK_ROLES: dict[BlockKind, tuple[Role, Role]] = {"attention": ("qkv", "out"), "mlp": ("up", "down")}


class PlainDecoder:
    """Reads what a step needs of a checkpoint, as it is needed."""

    def __init__(self, config: DecoderConfig, source: TensorSource, device: torch.device | str = "cpu") -> None:
        self.config, self.source, self.device = config, source, torch.device(device)

    def stored(self, name: str) -> Tensor:
        """A copy of a tensor as the file has it."""
        kept: list[Tensor] = []
        self.source.read(name, lambda tensor: kept.append(tensor.clone()))
        return kept[0]

    def tensor(self, name: str) -> Tensor:
        """A tensor in float32, as it is stored otherwise."""
        return self.stored(name).to(self.device, torch.float32)

    def layer_names(self, layer: int) -> list[str]:
        """The tensors of one layer."""
        prefix = self.config.family.names.attn_norm.partition("{}")[0] + f"{layer}."
        return [name for name in tensor_shapes(self.config) if name.startswith(prefix)]

    def outside_names(self) -> list[str]:
        """The tensors that belong to no layer."""
        prefix = self.config.family.names.attn_norm.partition("{}")[0]
        return [name for name in tensor_shapes(self.config) if not name.startswith(prefix)]

    def embed(self, ids: Tensor) -> Tensor:
        """ids int64 [S, L], whole sequences -> [S, L, H]."""
        names = self.config.family.names
        x = F.embedding(ids.to(self.device), self.tensor(f"{names.embed}.weight"))
        if self.config.positions == "learned":
            x += self.tensor(f"{names.positions}.weight")[: ids.shape[1]]
        return x

    def blocks(self) -> Iterator["ResidualBlock"]:
        """Attention and MLP of each layer in turn, each read when it is asked for."""
        for layer in range(self.config.num_layers):
            yield from (self.block(layer, kind) for kind in BLOCK_KINDS)

    def block(self, layer: int, kind: BlockKind) -> "ResidualBlock":
        config, names = self.config, self.config.family.names
        norm = (names.attn_norm if kind == "attention" else names.mlp_norm).format(layer)
        wanted = [f"{norm}.weight"] + ([f"{norm}.bias"] if config.norm == "layer" else [])
        if kind == "attention" and config.qk_norm:
            wanted += [f"{name.format(layer)}.weight" for name in (names.q_norm, names.k_norm)]
        matrices = []
        for role in _BLOCK_ROLES[kind]:
            for name, _ in linear_parts(config, role):
                matrices.append(f"{name.format(layer)}.weight")
                wanted += [f"{name.format(layer)}.bias"] if linear_bias(config, role) else []
        stored = {name: self.stored(name) for name in [*wanted, *matrices]}
        tensors = {name: tensor.to(self.device, torch.float32) for name, tensor in stored.items()}
        if config.family.transposed:
            tensors |= {name: tensors[name].t().contiguous() for name in matrices}
        dtypes = {name: tensor.dtype for name, tensor in stored.items()}
        return ResidualBlock(config, layer, kind, norm, tensors, dtypes)

    def logits(self, x: Tensor) -> Tensor:
        """[..., H] behind the last block -> [..., vocab]."""
        config, names = self.config, self.config.family.names
        bias = self.tensor(f"{names.final_norm}.bias") if config.norm == "layer" else None
        head = names.embed if config.tie_embeddings else names.head
        normed = _norm(config, x, self.tensor(f"{names.final_norm}.weight"), bias)
        return F.linear(normed, self.tensor(f"{head}.weight"))


@dataclass
class ResidualBlock:
    """y = x + second(between(first(norm(x)))): attention with its projections, or an MLP.

    `tensors` holds everything learned, float32, by its name in the checkpoint; matrices are [outputs, inputs] whatever
    the file has. They may be replaced: what is computed next, is computed with what is there.
    """

    config: DecoderConfig
    layer: int
    kind: BlockKind
    norm: str
    tensors: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]
    """What the file has the tensors in."""

    @property
    def roles(self) -> tuple[Role, Role]:
        """The linears that read the norm, and those that write to the residual."""
        return _BLOCK_ROLES[self.kind]

    @property
    def device(self) -> torch.device:
        return self.tensors[f"{self.norm}.weight"].device

    def parts(self, role: Role) -> list[tuple[str, int]]:
        """The matrices of a role: the checkpoint's name without `.weight`, and how many outputs."""
        return [(name.format(self.layer), outputs) for name, outputs in linear_parts(self.config, role)]

    def names(self, role: Role) -> list[str]:
        """The checkpoint's names of the matrices in a role, without `.weight`."""
        return [name for name, _ in self.parts(role)]

    def weight(self, role: Role) -> Tensor:
        """The matrices of a role, which all read the same, one below the other: [outputs of all, inputs]."""
        return torch.cat([self.tensors[f"{name}.weight"] for name in self.names(role)])

    def set_weight(self, role: Role, weight: Tensor) -> None:
        """Replace the matrices of a role by what `weight` gives for them."""
        parts = self.parts(role)
        for (name, _), own in zip(parts, weight.split([outputs for _, outputs in parts]), strict=True):
            self.tensors[f"{name}.weight"] = own

    def inputs(self, role: Role, x: Tensor) -> Tensor:
        """What the linears of a role read, where the block reads x [S, L, H]."""
        normed = _norm(self.config, x, self.tensors[f"{self.norm}.weight"], self.tensors.get(f"{self.norm}.bias"))
        return normed if role == self.roles[0] else self.between(self.linear(self.roles[0], normed))

    def branch(self, normed: Tensor) -> Tensor:
        """What the block adds to the residual, from what its norm gives."""
        first, second = self.roles
        return self.linear(second, self.between(self.linear(first, normed)))

    def __call__(self, x: Tensor) -> Tensor:
        """x [S, L, H] -> [S, L, H]."""
        return x + self.branch(self.inputs(self.roles[0], x))

    def linear(self, role: Role, x: Tensor) -> Tensor:
        """x through all matrices of a role, their outputs side by side."""
        parts = [
            F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")) for name in self.names(role)
        ]
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def between(self, y: Tensor) -> Tensor:
        """Attention of queries, keys and values, or the activation: what the second linears read."""
        if self.kind == "attention":
            return self._attend(y)
        act = ACTIVATIONS[self.config.activation]
        if not self.config.gated_mlp:
            return act(y)
        gate, up = y.chunk(2, dim=-1)
        return act(gate) * up

    def _attend(self, qkv: Tensor) -> Tensor:
        config, names = self.config, self.config.family.names
        sequences, length, _ = qkv.shape
        heads = qkv.view(sequences, length, -1, config.head_dim).transpose(1, 2)
        q, k, v = heads.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=1)
        if config.qk_norm:
            q = _norm(config, q, self.tensors[f"{names.q_norm.format(self.layer)}.weight"], None)
            k = _norm(config, k, self.tensors[f"{names.k_norm.format(self.layer)}.weight"], None)
        if config.positions == "rope":
            angles = torch.arange(length)[:, None] * config.rope.inverse_frequencies(config.head_dim)
            cos, sin = angles.cos().to(qkv), angles.sin().to(qkv)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (t.repeat_interleave(config.group_size, dim=1) for t in (k, v))
        window = config.layer_windows[self.layer]
        mask = None
        if window is not None and window < length:
            mask = torch.ones(length, length, dtype=torch.bool, device=qkv.device).tril().triu(1 - window)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return out.transpose(1, 2).reshape(sequences, length, -1)


def _norm(config: DecoderConfig, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if config.norm == "layer":
        return F.layer_norm(x, (x.shape[-1],), weight, bias, config.norm_eps)
    return F.rms_norm(x, (x.shape[-1],), weight, config.norm_eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
