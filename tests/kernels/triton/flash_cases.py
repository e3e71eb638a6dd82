"""Shapes that flash attention gets wrong first, and eager attention in the dtype of its inputs to be compared with."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernels import reference
from tests.kernels.triton.oracle import DEVICE, randn


@dataclass(frozen=True)
class Case:
    """One dense call; tiles are 32 x 32 in the interpreter."""

    name: str
    q_len: int
    kv_len: int
    heads: int = 2
    kv_heads: int = 1
    dim: int = 32
    dtype: torch.dtype = torch.float32
    sinks: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def inputs(self, batch: int = 1) -> dict[str, Tensor]:
        shape = (batch, self.kv_len, self.kv_heads, self.dim)
        tensors = {
            "q": randn(batch, self.q_len, self.heads, self.dim, dtype=self.dtype, seed=1),
            "k": randn(*shape, dtype=self.dtype, seed=2),
            "v": randn(*shape, dtype=self.dtype, seed=3),
        }
        if self.sinks:
            tensors["sinks"] = randn(self.heads, seed=4, scale=2.0)
        return tensors


CASES = (
    Case("one query", 1, 1),
    Case("one query, long context", 1, 70, heads=3, kv_heads=1),
    Case("one off a tile", 33, 65, heads=1),
    Case("whole tiles", 64, 64, dtype=torch.bfloat16),
    Case("more queries than keys", 40, 7),
    Case("no keys", 3, 0),
    Case("not causal", 35, 70, heads=1, options={"causal": False}),
    Case("head size 8", 33, 40, dim=8, heads=1),
    Case("head size 80", 40, 70, dim=80, dtype=torch.float16, heads=1),
    Case("head size 96", 33, 33, dim=96, dtype=torch.bfloat16, heads=1),
    Case("group of 8", 5, 37, heads=8, kv_heads=1, dtype=torch.bfloat16),
    Case("two groups of 3", 9, 33, heads=6, kv_heads=2, dtype=torch.float16),
    Case("window of one", 40, 40, heads=1, options={"window": 1}),
    Case("window inside a tile", 40, 70, heads=1, options={"window": 5}),
    Case("window over tiles", 70, 130, heads=1, options={"window": 64}),
    Case("window that ends on the first row of a tile", 66, 66, heads=1, options={"window": 34}),
    Case("window, not causal", 40, 100, heads=1, options={"window": 33, "causal": False}),
    Case("soft cap", 40, 70, heads=1, options={"softcap": 1.5, "scale": 0.5}),
    Case("sinks", 40, 70, sinks=True, dtype=torch.bfloat16),
    Case("sinks and unseen rows", 9, 4, sinks=True),
    Case("everything", 40, 70, heads=2, kv_heads=1, dim=64, sinks=True, options={"window": 40, "softcap": 2.0}),
)


def definition(tensors: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The definition in float64 on the same, rounded, inputs."""
    return reference.flash_attention(**{name: t.double() for name, t in tensors.items()}, **options)


def eager(tensors: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Attention as plain torch code writes it: every intermediate in the dtype of the inputs, the lse in float32."""
    q, k, v, sinks = (tensors.get(name) for name in ("q", "k", "v", "sinks"))
    assert q is not None and k is not None and v is not None
    k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for t in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * options.get("scale", q.shape[-1] ** -0.5)
    if (softcap := options.get("softcap")) is not None:
        scores = softcap * torch.tanh(scores / softcap)
    seen = reference.visible(q.shape[1], k.shape[1], options.get("causal", True), options.get("window"), DEVICE)
    scores = scores.masked_fill(~seen, -math.inf)
    column = scores[..., :0] if sinks is None else sinks.to(q.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
    joined = torch.cat((scores, column), -1)
    probs = torch.softmax(joined, -1)[..., : k.shape[1]].nan_to_num(0.0)
    lse = torch.logsumexp(joined.float(), -1) / math.log(2)
    return torch.einsum("bhqk,bkhd->bqhd", probs, v), lse.transpose(1, 2)


def gradients(
    attention: Any, tensors: dict[str, Tensor], grad_out: Tensor, grad_lse: Tensor | None = None, **options: Any
) -> list[Tensor]:
    """Gradients of q, k, v (and sinks) of `attention(**tensors, **options) -> out, lse` for given output gradients.

    Rows without an lse (-inf) have no gradient through it.
    """
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    out, lse = attention(leaves, options)
    loss = (out * grad_out.to(out.dtype)).sum()
    if grad_lse is not None:
        loss = loss + (lse.masked_fill(lse == -math.inf, 0.0) * grad_lse.to(lse.dtype)).sum()
    return list(torch.autograd.grad(loss, list(leaves.values())))
