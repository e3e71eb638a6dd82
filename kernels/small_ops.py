"""Norms, rotary embedding, gated activations and weight-only linear layers: one function an op, on any device.

Each runs the implementation that `kernels.dispatch` names: Triton on an NVIDIA GPU, torch elsewhere, or the definition.
All of them have gradients. Tensors may have any leading dimensions where the docstring writes "...".
"""

from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference
from kernels.dispatch import choose
from kernels.quant_pack import PackedWeight, dequantize


@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: None = None, *, gemma: bool = False, backend: str = "auto"
) -> Tensor: ...


@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor, *, gemma: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor]: ...


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, *, gemma: bool = False, backend: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """x [..., N] / sqrt(mean(x^2) + eps) * weight [N]; Gemma's form multiplies by 1 + weight, all in float32.

    With `residual` [..., N], it becomes residual + x in place, that sum is normed, and (out, residual) is returned.
    """
    return _norm(x, weight, None, eps, residual, "gemma" if gemma else "rms", backend)


@overload
def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: None = None, *, backend: str = "auto"
) -> Tensor: ...


@overload
def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]: ...


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension; `residual` as in `rms_norm`."""
    return _norm(x, weight, bias, eps, residual, "layer", backend)


def _norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None, kind: str, backend: str
) -> Tensor | tuple[Tensor, Tensor]:
    if weight.shape != x.shape[-1:] or (bias is not None and bias.shape != weight.shape):
        raise ValueError(f"weight {list(weight.shape)} does not fit x {list(x.shape)}: give [{x.shape[-1]}].")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(f"residual is {list(residual.shape)} of {residual.dtype}: give it like x, {list(x.shape)}.")
    chosen = _choose(backend, x)
    grad = _wants_grad(x, weight, bias, residual)
    if residual is not None and (chosen != "triton" or grad):
        x = residual.add_(x)
    if chosen == "triton":
        out = _triton_norm(x, weight, bias, eps, None if grad else residual, kind, grad)
    elif chosen == "reference" and kind == "layer":
        out = reference.layer_norm(x, weight, bias, eps)
    elif chosen == "reference":
        out = reference.rms_norm(x, weight, eps, kind == "gemma")
    else:
        out = _torch_norm(x, weight, bias, eps, kind)
    return out if residual is None else (out, residual)


def _triton_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None, kind: str, grad: bool
) -> Tensor:
    if grad:
        from kernels.triton.differentiable import Norm

        rows = x.reshape(-1, x.shape[-1]).contiguous()
        return Norm.apply(rows, weight, bias, eps, kind).view(x.shape)
    from kernels.triton import norms

    shape = x.shape
    if x.ndim not in (2, 3):
        x = x.reshape(-1, shape[-1])
        residual = None if residual is None else residual.view(x.shape)
    if kind == "layer":
        return norms.layer_norm(x, weight, bias, eps, residual).view(shape)
    return norms.rms_norm(x, weight, eps, residual, gemma=kind == "gemma").view(shape)


def _torch_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: str) -> Tensor:
    if kind == "layer":
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    y = reference.wide(x)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    if kind == "gemma":
        return (y * (1 + reference.wide(weight))).to(x.dtype)
    return (y.to(x.dtype) * weight).to(x.dtype)


def rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    *,
    interleaved: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Rotates q [T, Hq, D] and k [T, Hkv, D] in place (new tensors where a gradient is wanted) and returns them.

    cos and sin are float32 tables [P, R/2], gathered by the integer positions [T]: scaling of the frequencies is
    theirs. The first R dimensions are turned in pairs (i, i + R/2), or (2 i, 2 i + 1) when interleaved.
    """
    if q.ndim != 3 or k.ndim != 3 or q.shape[::2] != k.shape[::2] or not 2 <= 2 * cos.shape[-1] <= q.shape[-1]:
        shapes = f"{list(q.shape)}, {list(k.shape)} and {list(cos.shape)}"
        raise ValueError(f"q, k and cos are {shapes}: give [T, Hq, D], [T, Hkv, D] and [P, R/2] with R <= D.")
    grad = _wants_grad(q, k)
    if _choose(backend, q) == "triton":
        if grad:
            from kernels.triton.differentiable import Rope

            return Rope.apply(q, k, cos, sin, positions, interleaved)
        from kernels.triton.rope import rope as run

        return run(q, k, cos, sin, positions, interleaved=interleaved)
    turned = [reference.rope(x, cos[positions], sin[positions], interleaved) for x in (q, k)]
    return (turned[0], turned[1]) if grad else (q.copy_(turned[0]), k.copy_(turned[1]))


def gated_activation(gate_up: Tensor, activation: str = "silu", *, backend: str = "auto") -> Tensor:
    """act(gate) * up for gate_up [..., 2 N], gates first; `activation` is "silu" or "gelu" (its tanh form)."""
    if activation not in ("silu", "gelu") or gate_up.shape[-1] % 2:
        raise ValueError(f"{activation!r} of {list(gate_up.shape)}: give 'silu' or 'gelu' and [..., 2 N].")
    size = gate_up.shape[-1] // 2
    if _choose(backend, gate_up) == "triton":
        rows = gate_up.reshape(-1, 2 * size)
        rows = rows if rows.stride(-1) == 1 else rows.contiguous()
        if _wants_grad(gate_up):
            from kernels.triton.differentiable import GatedActivation

            return GatedActivation.apply(rows, activation).view(*gate_up.shape[:-1], size)
        from kernels.triton.activation import gated_activation as run

        return run(rows, activation).view(*gate_up.shape[:-1], size)
    if backend == "reference":
        return reference.gated_activation(gate_up, activation)
    gate, up = gate_up[..., :size], gate_up[..., size:]
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up


def swiglu(gate_up: Tensor, *, backend: str = "auto") -> Tensor:
    """silu(gate) * up for gate_up [..., 2 N], gates first."""
    return gated_activation(gate_up, "silu", backend=backend)


def quant_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """x [..., K] times the packed weight [N, K], transposed, plus bias [N]: [..., N] in the dtype of x.

    Torch writes the weight out and multiplies; Triton decodes it as it goes for up to 64 rows. Raises ValueError where
    shapes do not fit and where the GPU cannot decode fp8: it never falls back on its own.
    """
    if x.ndim == 0 or x.shape[-1] != packed.shape[1]:
        raise ValueError(
            f"x {list(x.shape)} does not fit a weight {list(packed.shape)}: give [..., {packed.shape[1]}]."
        )
    chosen = _choose(backend, x)
    if chosen != "triton":
        dtype = reference.wide(x).dtype if chosen == "reference" else x.dtype
        weight = dequantize(packed, dtype)
        return F.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype)).to(x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    if _wants_grad(x, bias):
        from kernels.triton.differentiable import QuantLinear

        out = QuantLinear.apply(rows, packed, bias)
    else:
        from kernels.triton.quant_gemm import quant_linear as run

        out = run(rows, packed, bias)
    return out.view(*x.shape[:-1], packed.shape[0])


def _choose(backend: str, x: Tensor) -> str:
    """As `choose`; "auto" leaves to torch what the kernels are not written for: float64."""
    chosen = choose(backend, x.device)
    return "torch" if backend == "auto" and x.dtype == torch.float64 else chosen


def _wants_grad(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
