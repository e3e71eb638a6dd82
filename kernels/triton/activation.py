"""Gated activations: y[t, i] = act(gate[t, i]) * up[t, i], for gate_up [T, 2 N] with the gates first.

act is silu (SwiGLU, arXiv 2002.05202) or the tanh form of gelu (GeGLU, as Gemma has it). Bound by bandwidth: two loads
and one store an element, all arithmetic in float32. Columns are tiled, because one program for a whole wide row leaves
too few programs at small T. The backward recomputes act from the gates: nothing is saved but the input.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.arch import Arch, current
from kernels.triton.common import to_dtype
from kernels.triton.launch import launch


@triton.jit
def gelu_argument(gate):
    """What gelu's tanh form is a sigmoid of: x (1 + tanh u) / 2 = x sigmoid(2 u)."""
    return 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)


@triton.jit
def _gated_activation_kernel(
    gate_up_ptr,  # [T, 2 N]
    out_ptr,  # [T, N]
    size,  # N
    stride_gt,
    stride_ot,
    GELU: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = offs_n < size
    gate = tl.load(gate_up_ptr + row * stride_gt + offs_n, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride_gt + size + offs_n, mask=mask, other=0.0).to(tl.float32)
    act = gate * tl.sigmoid(gelu_argument(gate) if GELU else gate)
    tl.store(out_ptr + row * stride_ot + offs_n, to_dtype(act * up, out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gated_activation_backward_kernel(
    grad_ptr,  # [T, N]
    gate_up_ptr,  # [T, 2 N]
    out_ptr,  # [T, 2 N]: gradients of gate, then of up
    size,  # N
    stride_dt,
    stride_gt,
    stride_ot,
    GELU: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = offs_n < size
    grad = tl.load(grad_ptr + row * stride_dt + offs_n, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_up_ptr + row * stride_gt + offs_n, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride_gt + size + offs_n, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        s = tl.sigmoid(gelu_argument(gate))
        # 1 - s as a sigmoid of its own: the subtraction would lose what a large gate multiplies.
        turn = tl.sigmoid(-gelu_argument(gate)) * 1.5957691216057308 * (1.0 + 0.134145 * gate * gate)
    else:
        s = tl.sigmoid(gate)
        turn = tl.sigmoid(-gate)
    act = gate * s
    slope = s * (1.0 + gate * turn)
    out_ptrs = out_ptr + row * stride_ot + offs_n
    tl.store(out_ptrs, to_dtype(grad * up * slope, out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptrs + size, to_dtype(grad * act, out_ptr.dtype.element_ty), mask=mask)


def pick_config(arch: Arch, size: int) -> dict[str, int]:
    """Columns per program and warps: 8 elements (16 bytes of bf16) a thread."""
    if arch.interpreted:
        return {"BLOCK_N": min(256, triton.next_power_of_2(size)), "num_warps": 4}
    return {"BLOCK_N": min(1024, triton.next_power_of_2(size)), "num_warps": 4}


def gated_activation(gate_up: Tensor, activation: str = "silu", out: Tensor | None = None) -> Tensor:
    """act(gate) * up for gate_up [T, 2 N] -> [T, N]; `activation` is "silu" or "gelu" (tanh form)."""
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    if activation not in ("silu", "gelu"):
        raise ValueError(f"activation={activation!r} is not known: use 'silu' or 'gelu'.")
    if out is None:
        out = torch.empty(tokens, size, dtype=gate_up.dtype, device=gate_up.device)
    config = pick_config(current(gate_up.device), size)
    grid = (tokens, triton.cdiv(size, config["BLOCK_N"]))
    launch(
        _gated_activation_kernel, grid, gate_up, out, size, gate_up.stride(0), out.stride(0),
        GELU=activation == "gelu", **config,
    )  # fmt: skip
    return out


def gated_activation_backward(grad: Tensor, gate_up: Tensor, activation: str = "silu") -> Tensor:
    """Gradient of gate_up [T, 2 N] for the gradient [T, N] of the output."""
    tokens, size = grad.shape
    out = torch.empty(tokens, 2 * size, dtype=gate_up.dtype, device=gate_up.device)
    config = pick_config(current(gate_up.device), size)
    launch(
        _gated_activation_backward_kernel, (tokens, triton.cdiv(size, config["BLOCK_N"])), grad, gate_up, out, size,
        grad.stride(0), gate_up.stride(0), out.stride(0), GELU=activation == "gelu", **config,
    )  # fmt: skip
    return out


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    for activation in ("silu", "gelu"):
        gate_up = torch.empty(64, 2 * 14336, dtype=torch.bfloat16, device="meta")
        yield f"{activation} bf16", partial(gated_activation, gate_up, activation)
        yield f"{activation} bf16 backward", partial(gated_activation_backward, gate_up[:, :14336], gate_up, activation)
