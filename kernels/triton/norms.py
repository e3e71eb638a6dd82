"""RMSNorm, Gemma's form of it and LayerNorm over the last dimension, with the residual sum fused in.

With a residual r: r <- r + x (rounded to its dtype, as storing it does), then
  rms    y = round(r rsqrt(mean(r^2) + eps)) w            Llama: rounds to the input's dtype before the weight
  gemma  y = r rsqrt(mean(r^2) + eps) (1 + w)             all in float32
  layer  y = (r - mean(r)) rsqrt(var(r) + eps) w + b      all in float32
Bound by bandwidth: x is read once, y written once. A row never leaves its program and the tile depends on the width
alone, so a row gives the same bits in any batch. Narrow rows (norms of heads) share a program.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.arch import Arch, current
from kernels.triton.common import rounded_through, to_dtype
from kernels.triton.launch import launch

MAX_SIZE = 65536
"""Widest row: 64 float32 values a thread at 32 warps."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _norm_kernel(
    x_ptr,  # [T, H, N]
    residual_ptr,  # [T, H, N] or None; updated in place
    weight_ptr,  # [N]
    bias_ptr,  # [N] or None
    out_ptr,  # [T, H, N]
    rows,  # T * H
    heads,  # H
    stride_xt,
    stride_xh,
    stride_rt,
    stride_rh,
    stride_ot,
    stride_oh,
    eps,
    SIZE: tl.constexpr,
    KIND: tl.constexpr,  # "rms", "gemma" or "layer"
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    token, head = row // heads, row % heads
    offs_n = tl.arange(0, BLOCK_N)
    mask_n = offs_n < SIZE
    mask = (row < rows)[:, None] & mask_n[None, :]
    x_offs = (token * stride_xt + head * stride_xh)[:, None] + offs_n[None, :]
    x = tl.load(x_ptr + x_offs, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        r_offs = (token * stride_rt + head * stride_rh)[:, None] + offs_n[None, :]
        total = x + tl.load(residual_ptr + r_offs, mask=mask, other=0.0).to(tl.float32)
        tl.store(residual_ptr + r_offs, to_dtype(total, residual_ptr.dtype.element_ty), mask=mask)
        x = rounded_through(total, residual_ptr.dtype.element_ty, tl.float32)
    weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    if KIND == "layer":
        mean = tl.sum(x, 1) / SIZE
        x = tl.where(mask, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / SIZE + eps)
    y = x * rstd[:, None]
    if KIND == "gemma":
        y = y * (1.0 + weight)
    elif KIND == "rms":
        y = rounded_through(y, x_ptr.dtype.element_ty, tl.float32) * weight
    else:
        y = y * weight
    if bias_ptr is not None:
        y += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    o_offs = (token * stride_ot + head * stride_oh)[:, None] + offs_n[None, :]
    tl.store(out_ptr + o_offs, to_dtype(y, out_ptr.dtype.element_ty), mask=mask)


def pick_config(arch: Arch, size: int) -> dict[str, int]:
    """Whole rows, 2048 elements a program where rows are narrow (at most 16 of them), 16 to 64 values a thread."""
    block_n = triton.next_power_of_2(size)
    block_r = max(1, min(16, 2048 // block_n))
    if arch.interpreted:
        return {"BLOCK_R": block_r, "BLOCK_N": block_n, "num_warps": 4}
    return {"BLOCK_R": block_r, "BLOCK_N": block_n, "num_warps": min(32, max(4, block_n // 512))}


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    gemma: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """RMSNorm of x [T, N] or [T, H, N] with weight [N]; `residual`, shaped like x, is added first and updated in place.

    `gemma` multiplies by 1 + weight and rounds once. `out` may be x. Raises ValueError for shapes that do not fit.
    """
    return _norm(x, weight, None, eps, residual, "gemma" if gemma else "rms", out)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """LayerNorm of x [T, N] or [T, H, N]; `residual`, shaped like x, is added first and updated in place."""
    return _norm(x, weight, bias, eps, residual, "layer", out)


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    kind: str,
    out: Tensor | None,
) -> Tensor:
    _check(x, weight, bias, residual, out)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    size = x.shape[-1]
    heads = x.shape[1] if x.ndim == 3 else 1
    rows = x.shape[0] * heads
    config = pick_config(current(x.device), size)
    launch(
        _norm_kernel, (triton.cdiv(rows, config["BLOCK_R"]),), x, residual, weight, bias, out, rows, heads,
        *_row_strides(x), *_row_strides(residual), *_row_strides(out), float(eps), SIZE=size, KIND=kind, **config,
    )  # fmt: skip
    return out


def _row_strides(x: Tensor | None) -> tuple[int, int]:
    if x is None:
        return 0, 0
    return x.stride(0), x.stride(1) if x.ndim == 3 else 0


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None) -> None:
    if x.ndim not in (2, 3) or not 1 <= x.shape[-1] <= MAX_SIZE:
        raise ValueError(f"x has shape {list(x.shape)}: give [T, N] or [T, H, N] with 1 <= N <= {MAX_SIZE}.")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and (vector.shape != x.shape[-1:] or not vector.is_contiguous()):
            raise ValueError(f"{name} has shape {list(vector.shape)}, x needs a contiguous [{x.shape[-1]}].")
    for name, like in (("x", x), ("residual", residual), ("out", out)):
        if like is None:
            continue
        if like.shape != x.shape or like.dtype not in _DTYPES:
            raise ValueError(
                f"{name} is {list(like.shape)} of {like.dtype}: give {list(x.shape)} of float32, float16 or bfloat16."
            )
        if like.stride(-1) != 1 and like.shape[-1] > 1:
            raise ValueError(f"{name} has stride {like.stride(-1)} in its last dimension: it must be contiguous there.")


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    def meta(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16, device="meta")

    for size in (4096, 16384):
        yield f"rms {size} +residual", partial(rms_norm, meta(64, size), meta(size), 1e-6, meta(64, size))
    yield "rms heads of 128", partial(rms_norm, meta(64, 32, 128), meta(128), 1e-6)
    yield "gemma 3584 +residual", partial(rms_norm, meta(64, 3584), meta(3584), 1e-6, meta(64, 3584), gemma=True)
    yield (
        "layer 4096 +bias +residual",
        partial(layer_norm, meta(64, 4096), meta(4096), meta(4096), 1e-5, meta(64, 4096)),
    )
