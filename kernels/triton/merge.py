"""Merging attention over disjoint sets of keys: out = sum_i 2^(lse_i - lse) out_i, lse = log2 sum_i 2^lse_i.

The operation is associative, so partial results of splits, of a shared prefix and of what follows it combine in any
order. A part with an lse of -inf saw nothing: its weight is zero and what lies in its rows is not read. Bound by
bandwidth.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.arch import current
from kernels.triton.common import to_dtype
from kernels.triton.launch import launch


@triton.jit
def _merge_splits_kernel(
    parts_ptr,  # [T, H, S, D]
    parts_lse_ptr,  # [T, H, S]
    out_ptr,  # [T, H, D]
    lse_ptr,  # [T, H] or None
    cu_ptr,  # [num_seqs + 1]
    num_seqs,
    splits,  # S
    stride_ot,
    stride_oh,
    stride_lt,
    stride_lh,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    if (token < tl.load(cu_ptr)) | (token >= tl.load(cu_ptr + num_seqs)):
        return  # no sequence's token: nobody wrote its parts
    row = token * tl.num_programs(1) + head
    offs_s = tl.arange(0, BLOCK_S)
    offs_d = tl.arange(0, BLOCK_D)
    lse2 = tl.load(parts_lse_ptr + row * splits + offs_s, mask=offs_s < splits, other=float("-inf"))
    m = tl.max(lse2, 0)
    m_safe = tl.where(m == float("-inf"), 0.0, m)
    weights = tl.exp2(lse2 - m_safe)
    total = tl.sum(weights, 0)
    used = (weights > 0.0)[:, None] & (offs_d < D)[None, :]
    parts = tl.load(parts_ptr + (row * splits + offs_s)[:, None] * D + offs_d[None, :], mask=used, other=0.0)
    out = tl.sum(parts * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + token * stride_ot + head * stride_oh + offs_d, to_dtype(out, out_ptr.dtype.element_ty),
             mask=offs_d < D)  # fmt: skip
    if lse_ptr is not None:
        merged = tl.where(total == 0.0, float("-inf"), m_safe + tl.log2(tl.where(total == 0.0, 1.0, total)))
        tl.store(lse_ptr + token * stride_lt + head * stride_lh, merged)


@triton.jit
def _merge_state_kernel(
    a_ptr,  # [R, D]
    a_lse_ptr,  # [R]
    b_ptr,  # [R, D]
    b_lse_ptr,  # [R]
    out_ptr,  # [R, D]
    lse_ptr,  # [R]
    rows,  # R
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offs_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_d = tl.arange(0, BLOCK_D)
    inside = offs_r < rows
    a_lse2 = tl.load(a_lse_ptr + offs_r, mask=inside, other=float("-inf"))
    b_lse2 = tl.load(b_lse_ptr + offs_r, mask=inside, other=float("-inf"))
    m = tl.maximum(a_lse2, b_lse2)
    m_safe = tl.where(m == float("-inf"), 0.0, m)
    a_weight = tl.exp2(a_lse2 - m_safe)
    b_weight = tl.exp2(b_lse2 - m_safe)
    total = a_weight + b_weight
    total_safe = tl.where(total == 0.0, 1.0, total)
    offsets = offs_r[:, None] * D + offs_d[None, :]
    columns = (offs_d < D)[None, :]
    a = tl.load(a_ptr + offsets, mask=(a_weight > 0.0)[:, None] & columns, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + offsets, mask=(b_weight > 0.0)[:, None] & columns, other=0.0).to(tl.float32)
    out = (a * a_weight[:, None] + b * b_weight[:, None]) / total_safe[:, None]
    tl.store(out_ptr + offsets, to_dtype(out, out_ptr.dtype.element_ty), mask=inside[:, None] & columns)
    lse2 = tl.where(total == 0.0, float("-inf"), m_safe + tl.log2(total_safe))
    tl.store(lse_ptr + offs_r, lse2, mask=inside)


def merge_splits(parts: Tensor, parts_lse: Tensor, cu_seqlens_q: Tensor, out: Tensor, lse: Tensor | None) -> None:
    """Merge float32 parts [T, H, S, D] with lse [T, H, S] into out [T, H, D] and lse [T, H], in place.

    Only tokens that `cu_seqlens_q` counts are touched.
    """
    tokens, heads, splits, dim = parts.shape
    block_d = triton.next_power_of_2(dim)
    lse_strides = (0, 0) if lse is None else lse.stride()
    launch(
        _merge_splits_kernel, (tokens, heads), parts, parts_lse, out, lse, cu_seqlens_q,
        cu_seqlens_q.shape[0] - 1, splits, out.stride(0), out.stride(1), *lse_strides, D=dim,
        BLOCK_D=block_d, BLOCK_S=triton.next_power_of_2(splits), num_warps=2,
    )  # fmt: skip


def merge_state(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """out_a, out_b [..., D] with float32 base-2 lse [...] -> merged out in `dtype` (that of out_a) and lse."""
    if out_a.shape != out_b.shape or lse_a.shape != out_a.shape[:-1] or lse_b.shape != lse_a.shape:
        shapes = ", ".join(str(list(t.shape)) for t in (out_a, lse_a, out_b, lse_b))
        raise ValueError(f"shapes {shapes} do not fit together: give out [..., D] and lse [...] of both parts.")
    out = torch.empty(out_a.shape, dtype=dtype or out_a.dtype, device=out_a.device)
    lse = torch.empty(lse_a.shape, dtype=torch.float32, device=out_a.device)
    dim, rows = out.shape[-1], lse.numel()
    block_d = triton.next_power_of_2(dim)
    block_r = 4 if current(out.device).interpreted else max(1, 2048 // block_d)
    inputs = [t.contiguous() for t in (out_a, lse_a.float(), out_b, lse_b.float())]
    launch(
        _merge_state_kernel, (triton.cdiv(rows, block_r),), *inputs, out, lse, rows,
        D=dim, BLOCK_R=block_r, BLOCK_D=block_d,
    )  # fmt: skip
    return out, lse


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    out, starts = empty(64, 32, 128, dtype=torch.bfloat16), empty(65, dtype=torch.int32)
    yield "8 splits", partial(merge_splits, empty(64, 32, 8, 128), empty(64, 32, 8), starts, out, None)
    yield "6 splits lse", partial(merge_splits, empty(64, 32, 6, 128), empty(64, 32, 6), starts, out, empty(64, 32))
    state = empty(64, 32, 128), empty(64, 32)
    yield "states to bf16", partial(merge_state, *state, *state, dtype=torch.bfloat16)
