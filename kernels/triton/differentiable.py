"""The small ops as autograd functions: Triton forward, Triton backward, nothing saved but inputs.

`kernels.small_ops` takes these where a gradient is wanted, and the plain launchers elsewhere.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.quant_pack import PackedWeight
from kernels.triton import activation, norms, norms_backward, quant_gemm
from kernels.triton.rope import rope


class Norm(torch.autograd.Function):
    """`norms.rms_norm` ("rms", "gemma") or `norms.layer_norm` ("layer") of x [T, N]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = eps, kind, bias is not None
        if kind == "layer":
            return norms.layer_norm(x, weight, bias, eps)
        return norms.rms_norm(x, weight, eps, gemma=kind == "gemma")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *norms_backward.norm_backward(grad.contiguous(), x, weight, *ctx.options), None, None


class GatedActivation(torch.autograd.Function):
    """`activation.gated_activation` of gate_up [T, 2 N]."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.name = name
        return activation.gated_activation(gate_up, name)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        return activation.gated_activation_backward(grad.contiguous(), gate_up, ctx.name), None


class Rope(torch.autograd.Function):
    """`rope.rope`, out of place: a rotation's gradient is the rotation back."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin, positions)
        ctx.interleaved = interleaved
        return rope(_copy(q), _copy(k), cos, sin, positions, interleaved=interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        grads = rope(_copy(dq), _copy(dk), *ctx.saved_tensors, interleaved=ctx.interleaved, inverse=True)
        return *grads, None, None, None, None


class QuantLinear(torch.autograd.Function):
    """`quant_gemm.quant_linear` of x [M, K]; the weight is fixed, so only x and the bias have gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return quant_gemm.quant_linear(x, packed, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx = grad @ quant_gemm.dequantize(ctx.packed, grad.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, grad.sum(0) if ctx.needs_input_grad[2] else None


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)
