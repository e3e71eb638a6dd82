"""The trainable Llama: plain tensors under Hugging Face parameter names, float32 master weights, bf16 compute.

It exists to be fast at training lengths on a CPU (matmul attention with the query group folded into the rows, fused
QKV and gate/up projections); on a GPU its attention is the flash kernel, forward and backward. It never generates
with a KV cache and is not the decoder that the engine runs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import flash_attention

IGNORE_INDEX = -100


@dataclass(frozen=True)
class ModelShape:
    """Everything that decides parameter shapes and the forward pass."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 1024

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


class TrainableLlama(nn.Module):
    """Decoder-only transformer with tied embeddings; `forward` gives logits, `loss` the mean cross-entropy."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: ModelShape, compute_dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.shape = shape
        self.compute_dtype = compute_dtype
        self.weights = nn.ParameterDict()
        for name, size in parameter_shapes(shape).items():
            self.weights[_key(name)] = nn.Parameter(torch.empty(size))
        cos, sin = rope_tables(shape, shape.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initialise(self, seed: int) -> None:
        """Normal(0, 0.02), with the projections that write into the residual stream scaled down by depth."""
        generator = torch.Generator().manual_seed(seed)
        residual_std = 0.02 / math.sqrt(2 * self.shape.num_layers)
        with torch.no_grad():
            for name in parameter_shapes(self.shape):
                weight = self.weights[_key(name)]
                if weight.ndim == 1:
                    weight.fill_(1.0)
                    continue
                std = residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Parameters by their Hugging Face names, in a fixed order."""
        return {name: self.weights[_key(name)] for name in parameter_shapes(self.shape)}

    def load_named_weights(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.named_weights().items():
                parameter.copy_(weights[name])

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def w(self, name: str) -> Tensor:
        return self.weights[_key(name)]

    def hidden_states(self, ids: Tensor) -> Tensor:
        """Final normed hidden states [batch, length, hidden] in the compute dtype."""
        shape, dtype = self.shape, self.compute_dtype
        length = ids.shape[1]
        cos, sin = self.cos[:length].to(dtype), self.sin[:length].to(dtype)
        x = F.embedding(ids, self.w("model.embed_tokens.weight")).to(dtype)
        for layer in range(shape.num_layers):
            p = f"model.layers.{layer}."
            x = x + self._attention(rms_norm(x, self.w(p + "input_layernorm.weight"), shape.rms_norm_eps), p, cos, sin)
            h = rms_norm(x, self.w(p + "post_attention_layernorm.weight"), shape.rms_norm_eps)
            gate_up = torch.cat([self.w(p + "mlp.gate_proj.weight"), self.w(p + "mlp.up_proj.weight")]).to(dtype)
            gate, up = F.linear(h, gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, self.w(p + "mlp.down_proj.weight").to(dtype))
        return rms_norm(x, self.w("model.norm.weight"), shape.rms_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.hidden_states(ids), self.w("model.embed_tokens.weight").to(self.compute_dtype)).float()

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the labels that are not IGNORE_INDEX (labels are already shifted)."""
        hidden = self.hidden_states(ids).flatten(0, 1)
        logits = F.linear(hidden, self.w("model.embed_tokens.weight").to(self.compute_dtype))
        return F.cross_entropy(logits.float(), labels.flatten(), ignore_index=IGNORE_INDEX)

    def _attention(self, x: Tensor, p: str, cos: Tensor, sin: Tensor) -> Tensor:
        shape, dtype = self.shape, self.compute_dtype
        batch, length, _ = x.shape
        kv, group, dim = shape.num_kv_heads, shape.num_heads // shape.num_kv_heads, shape.head_dim
        names = ("q_proj", "k_proj", "v_proj")
        qkv_weight = torch.cat([self.w(f"{p}self_attn.{n}.weight") for n in names]).to(dtype)
        q, k, v = F.linear(x, qkv_weight).split([kv * group * dim, kv * dim, kv * dim], dim=-1)
        q = rotate(q.view(batch, length, kv * group, dim), cos, sin) * (dim**-0.5)
        k = rotate(k.view(batch, length, kv, dim), cos, sin)
        out = grouped_attention(q, k, v.view(batch, length, kv, dim)).reshape(batch, length, -1)
        return F.linear(out, self.w(p + "self_attn.o_proj.weight").to(dtype))


def grouped_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax(q k^T) v of q [batch, length, heads, dim] over k and v [batch, length, kv heads, dim]."""
    if q.is_cuda:
        attended = flash_attention(q, k, v, scale=1.0)
        assert isinstance(attended, Tensor)
        return attended
    batch, length, kv, dim = k.shape
    group = q.shape[2] // kv
    q = q.view(batch, length, kv, group, dim).permute(0, 2, 3, 1, 4)  # batch, kv, group, length, dim
    k = k.permute(0, 2, 1, 3).reshape(batch * kv, length, dim)
    v = v.permute(0, 2, 1, 3).reshape(batch * kv, length, dim)
    out = causal_attention(q.reshape(batch * kv, group, length, dim), k, v)
    return out.view(batch, kv, group, length, dim).permute(0, 3, 1, 2, 4).reshape(batch, length, kv * group, dim)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, block: int = 128) -> Tensor:
    """softmax(q k^T) v over the causal triangle; q is [n, group, length, dim], k and v are [n, length, dim].

    The group is folded into the rows of one matmul per query block, and a block only meets the keys at or before
    it: at length 256 this skips a quarter of the square, at 1024 nearly half.
    """
    n, group, length, dim = q.shape
    outs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        rows = q[:, :, start:end].reshape(n, group * (end - start), dim)
        # The matmul adds to the mask: a masked_fill would take four more passes there and back (5 % of a step).
        mask = torch.full((end - start, end), float("-inf"), dtype=q.dtype, device=q.device).triu(start + 1)
        scores = torch.baddbmm(mask.repeat(group, 1), rows, k[:, :end].transpose(1, 2))
        probs = torch.softmax(scores.float(), dim=-1).to(v.dtype)
        out = torch.bmm(probs, v[:, :end])
        outs.append(out.view(n, group, end - start, dim))
    return torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * weight.float()).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout of Hugging Face Llama; x is [batch, length, heads, dim]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def rope_tables(shape: ModelShape, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency, [length, head_dim / 2], in float32."""
    half = shape.head_dim // 2
    frequencies = shape.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies[None, :]
    return angles.cos().float(), angles.sin().float()


def parameter_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Hugging Face parameter names of a tied Llama and their sizes, in storage order."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.num_layers):
        p = f"model.layers.{layer}."
        sizes[p + "input_layernorm.weight"] = (hidden,)
        sizes[p + "self_attn.q_proj.weight"] = (q_size, hidden)
        sizes[p + "self_attn.k_proj.weight"] = (kv_size, hidden)
        sizes[p + "self_attn.v_proj.weight"] = (kv_size, hidden)
        sizes[p + "self_attn.o_proj.weight"] = (hidden, q_size)
        sizes[p + "post_attention_layernorm.weight"] = (hidden,)
        sizes[p + "mlp.gate_proj.weight"] = (inner, hidden)
        sizes[p + "mlp.up_proj.weight"] = (inner, hidden)
        sizes[p + "mlp.down_proj.weight"] = (hidden, inner)
    sizes["model.norm.weight"] = (hidden,)
    return sizes


def _key(name: str) -> str:
    return name.replace(".", "/")  # ParameterDict refuses dots in keys
