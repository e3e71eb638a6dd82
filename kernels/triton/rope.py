"""Rotary embedding of queries and keys in place: pairs (a, b) of a head become (a c - b s, b c + a s).

c and s are rows of float32 tables gathered by position, so any scaling of the frequencies is in the tables. The pairs
are (i, i + R/2), or (2 i, 2 i + 1) when interleaved, of the first R dimensions; the rest is not touched. One launch for
queries and keys: a program takes one token and up to 32 heads, and reads its angles once.
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

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _rotate(x_ptr, heads, stride_h, first_head, cos, sin, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
            BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Rotates BLOCK_H heads of one token from `first_head` on; x_ptr is [H, D] at that token."""
    offs_h = first_head + tl.arange(0, BLOCK_H)
    offs_d = tl.arange(0, BLOCK_D)
    mask = (offs_h < heads)[:, None] & (offs_d < HALF)[None, :]
    if INTERLEAVED:
        a_ptrs = x_ptr + offs_h[:, None] * stride_h + 2 * offs_d[None, :]
        b_ptrs = a_ptrs + 1
    else:
        a_ptrs = x_ptr + offs_h[:, None] * stride_h + offs_d[None, :]
        b_ptrs = a_ptrs + HALF
    a = tl.load(a_ptrs, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptrs, mask=mask, other=0.0).to(tl.float32)
    tl.store(a_ptrs, to_dtype(a * cos - b * sin, x_ptr.dtype.element_ty), mask=mask)
    tl.store(b_ptrs, to_dtype(b * cos + a * sin, x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rope_kernel(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    cos_ptr,  # float32 [P, R/2]
    sin_ptr,  # float32 [P, R/2]
    positions_ptr,  # int [T]
    q_heads,
    k_heads,
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    HALF: tl.constexpr,  # R/2
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    offs_d = tl.arange(0, BLOCK_D)
    position = tl.load(positions_ptr + token).to(tl.int64)
    cos = tl.load(cos_ptr + position * HALF + offs_d, mask=offs_d < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + position * HALF + offs_d, mask=offs_d < HALF, other=0.0)[None, :]
    if INVERSE:
        sin = -sin
    q_tiles = tl.cdiv(q_heads, BLOCK_H)
    if tile < q_tiles:
        _rotate(q_ptr + token * stride_qt, q_heads, stride_qh, tile * BLOCK_H, cos, sin,
                HALF, INTERLEAVED, BLOCK_H, BLOCK_D)  # fmt: skip
    else:
        _rotate(k_ptr + token * stride_kt, k_heads, stride_kh, (tile - q_tiles) * BLOCK_H, cos, sin,
                HALF, INTERLEAVED, BLOCK_H, BLOCK_D)  # fmt: skip


def pick_config(arch: Arch, heads: int, half: int) -> dict[str, int]:
    """Up to 32 heads a program: two tiles of 32 x 64 at D = 128, 32 values a thread."""
    block_h = min(8 if arch.interpreted else 32, triton.next_power_of_2(heads))
    return {"BLOCK_H": block_h, "BLOCK_D": triton.next_power_of_2(half), "num_warps": 4}


def rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    *,
    interleaved: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotates q [T, Hq, D] and k [T, Hkv, D] in place and returns them; `inverse` rotates back (and is the gradient).

    cos and sin are float32 [P, R/2] tables, R <= D even; positions, an integer [T], must lie below P (not checked: that
    would wait for the GPU). Raises ValueError for shapes and dtypes that do not fit.
    """
    _check(q, k, cos, sin, positions)
    half = cos.shape[1]
    config = pick_config(current(q.device), max(q.shape[1], k.shape[1], 1), half)
    tiles = triton.cdiv(q.shape[1], config["BLOCK_H"]) + triton.cdiv(k.shape[1], config["BLOCK_H"])
    launch(
        _rope_kernel, (q.shape[0], tiles), q, k, cos, sin, positions, q.shape[1], k.shape[1],
        q.stride(0), q.stride(1), k.stride(0), k.stride(1),
        HALF=half, INTERLEAVED=interleaved, INVERSE=inverse, **config,
    )  # fmt: skip
    return q, k


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    if q.ndim != 3 or k.ndim != 3 or q.shape[0] != k.shape[0] or q.shape[2] != k.shape[2]:
        raise ValueError(f"q {list(q.shape)} and k {list(k.shape)} do not fit: give [T, Hq, D] and [T, Hkv, D].")
    if q.dtype != k.dtype or q.dtype not in _DTYPES:
        raise ValueError(f"q is {q.dtype} and k {k.dtype}: give both as float32, float16 or bfloat16.")
    if q.stride(2) != 1 or k.stride(2) != 1:
        raise ValueError("q and k must be contiguous in their last dimension.")
    if cos.shape != sin.shape or cos.ndim != 2 or not 1 <= cos.shape[1] <= q.shape[2] // 2:
        raise ValueError(
            f"cos {list(cos.shape)} and sin {list(sin.shape)} do not fit D={q.shape[2]}: give [P, R/2], R <= D."
        )
    if cos.dtype != torch.float32 or sin.dtype != torch.float32 or not (cos.is_contiguous() and sin.is_contiguous()):
        raise ValueError("cos and sin must be contiguous float32: angles of late positions need it.")
    if positions.shape != q.shape[:1] or positions.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"positions is {list(positions.shape)} of {positions.dtype}: give int [{q.shape[0]}].")


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    positions = meta(64, dtype=torch.int32)
    for dim, rotary in ((64, 64), (80, 32), (128, 128), (256, 256)):
        table = meta(4096, rotary // 2, dtype=torch.float32)
        for interleaved in (False, True) if dim == 128 else (False,):
            name = f"D {dim} R {rotary}{' interleaved' if interleaved else ''}"
            q, k = meta(64, 32, dim), meta(64, 8, dim)
            yield name, partial(rope, q, k, table, table, positions, interleaved=interleaved)
