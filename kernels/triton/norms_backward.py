"""Gradients of the norms. With h = (x - mean) rstd (no mean in RMSNorm) and g = dy w (dy (1 + w) in Gemma's form),

  dx = rstd (g - mean(g) - h mean(g h))    without mean(g) in RMSNorm
  dw = sum over rows of dy h,  db = sum over rows of dy

A fixed number of programs walk over the rows, each with its own sums for dw and db in float32; torch adds those up.
No atomics: the same input gives the same gradient. Statistics are recomputed, because the row is read anyway.
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
def _norm_backward_kernel(
    grad_ptr,  # [T, N]
    x_ptr,  # [T, N]
    weight_ptr,  # [N]
    dx_ptr,  # [T, N]
    dw_ptr,  # float32 [programs, N]
    db_ptr,  # float32 [programs, N] or None
    rows,  # T
    rows_per_program,
    stride_gt,
    stride_xt,
    eps,
    SIZE: tl.constexpr,
    KIND: tl.constexpr,  # "rms", "gemma" or "layer"
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    offs_n = tl.arange(0, BLOCK_N)
    mask_n = offs_n < SIZE
    weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    if KIND == "gemma":
        weight += 1.0
    dw = tl.zeros([BLOCK_N], tl.float32)
    db = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, rows_per_program, BLOCK_R):
        offs_r = start + tl.arange(0, BLOCK_R)
        row = program * rows_per_program + offs_r
        mask = ((offs_r < rows_per_program) & (row < rows))[:, None] & mask_n[None, :]
        x = tl.load(x_ptr + row[:, None] * stride_xt + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(grad_ptr + row[:, None] * stride_gt + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
        if KIND == "layer":
            x = tl.where(mask, x - (tl.sum(x, 1) / SIZE)[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / SIZE + eps)
        h = x * rstd[:, None]
        g = dy * weight
        dx = g - h * (tl.sum(g * h, 1) / SIZE)[:, None]
        if KIND == "layer":
            dx -= (tl.sum(g, 1) / SIZE)[:, None]
        dx_ptrs = dx_ptr + row[:, None] * SIZE + offs_n[None, :]
        tl.store(dx_ptrs, to_dtype(dx * rstd[:, None], dx_ptr.dtype.element_ty), mask=mask)
        dw += tl.sum(dy * h, 0)
        db += tl.sum(dy, 0)
    tl.store(dw_ptr + program * SIZE + offs_n, dw, mask=mask_n)
    if db_ptr is not None:
        tl.store(db_ptr + program * SIZE + offs_n, db, mask=mask_n)


def pick_config(arch: Arch, size: int) -> dict[str, int]:
    """Rows of a step, and warps: twice the forward's, since a row is held three times (x, dy and the sum)."""
    block_n = triton.next_power_of_2(size)
    warps = 4 if arch.interpreted else min(32, max(4, block_n // 256))
    return {"BLOCK_R": max(1, min(8, 1024 // block_n)), "BLOCK_N": block_n, "num_warps": warps}


def norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, kind: str, with_bias: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx, dw and db (None without a bias) for x and grad [T, N]; `kind` is "rms", "gemma" or "layer"."""
    rows, size = x.shape
    arch = current(x.device)
    config = pick_config(arch, size)
    programs = max(1, min(triton.cdiv(rows, config["BLOCK_R"]), 2 * arch.num_sms))
    dx = torch.empty(rows, size, dtype=x.dtype, device=x.device)
    dw = torch.empty(programs, size, dtype=torch.float32, device=x.device)
    db = torch.empty_like(dw) if with_bias else None
    launch(
        _norm_backward_kernel, (programs,), grad, x, weight, dx, dw, db, rows, triton.cdiv(rows, programs),
        grad.stride(0), x.stride(0), float(eps), SIZE=size, KIND=kind, **config,
    )  # fmt: skip
    return dx, dw.sum(0).to(weight.dtype), None if db is None else db.sum(0).to(weight.dtype)


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    def meta(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16, device="meta")

    for size, kind in ((576, "rms"), (4096, "rms"), (8192, "gemma"), (4096, "layer")):
        x = meta(4096, size)
        yield f"{kind} {size}", partial(norm_backward, x, x, meta(size), 1e-6, kind, kind == "layer")
