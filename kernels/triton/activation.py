"""Gated activations: y[t, i] = act(gate[t, i]) * up[t, i], for gate_up [T, 2 N] with the gates first.

act is silu (SwiGLU, arXiv 2002.05202) or the tanh form of gelu (GeGLU, as Gemma has it). Bound by bandwidth: two loads
and one store an element, all arithmetic in float32. Columns are tiled, because one program for a whole wide row leaves
too few programs at small T.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.arch import Arch, current
from kernels.triton.common import tanh, to_dtype
from kernels.triton.launch import launch


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
    if GELU:
        act = 0.5 * gate * (1.0 + tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)))
    else:
        act = gate * tl.sigmoid(gate)
    tl.store(out_ptr + row * stride_ot + offs_n, to_dtype(act * up, out_ptr.dtype.element_ty), mask=mask)


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


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    for activation in ("silu", "gelu"):
        gate_up = torch.empty(64, 2 * 14336, dtype=torch.bfloat16, device="meta")
        yield f"{activation} bf16", partial(gated_activation, gate_up, activation)
