"""Paged attention for any mix of query lengths: softmax(q k^T scale) v over a paged cache, tile by tile of queries.

A program takes BLOCK_M // G query tokens with all heads of their group, finds its sequence by binary search (the grid
is an upper bound, so the host waits for nothing) and runs three loops: tiles that the window's edge crosses, tiles that
every row sees (no mask), tiles that the diagonal or the end crosses. Bound by tensor cores for long queries, by
bandwidth for short ones; there a split along the keys helps, as it does for many queries over one shared prefix.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.launch import launch
from kernels.triton.merge import merge_splits
from kernels.triton.paged_common import (
    PagedShape,
    aot_case,
    architecture,
    attend_tile,
    dot_dtype,
    inspect,
    kv_arguments,
    page_ids,
    score_scale,
    softmax_start,
    store_rows,
)
from kernels.triton.paged_decode import pick_splits, split_buffers


@triton.jit
def _sequence_of(cu_ptr, block, num_seqs, BLOCK_Q: tl.constexpr):
    """The last sequence i with cu[i] // BLOCK_Q + i <= block, -1 where none: no sequence has more tiles than that."""
    low = 0
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        if tl.load(cu_ptr + middle) // BLOCK_Q + middle <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _paged_prefill_kernel(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [num_blocks, Hkv, PAGE, D]
    v_ptr,
    k_scale_ptr,  # [num_blocks, Hkv, PAGE] or None
    v_scale_ptr,
    out_ptr,  # [T, Hq, splits, D]
    lse_ptr,  # [T, Hq, splits] or None
    table_ptr,  # [S, max_blocks]
    cu_ptr,  # [S + 1]
    kv_lens_ptr,  # [S]
    sinks_ptr,  # [Hq] or None
    tree_ptr,  # [T] or None
    qk_scale,
    softcap,
    window,
    splits,
    num_seqs,
    stride_qt, stride_qh, stride_kb, stride_kh, stride_kt, stride_sb, stride_sh,
    stride_ot, stride_oh, stride_os, stride_lt, stride_lh, stride_table,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    FP8_BITS: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows of a causal batch first: a shorter tail
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    seq = _sequence_of(cu_ptr, block, num_seqs, BLOCK_Q)
    if seq < 0:
        return
    q_start = tl.load(cu_ptr + seq)
    q_len = tl.load(cu_ptr + seq + 1) - q_start
    first_token = (block - (q_start // BLOCK_Q + seq)) * BLOCK_Q
    if first_token >= q_len:
        return
    kv_len = tl.load(kv_lens_ptr + seq)
    context = kv_len - q_len
    offs_m = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    token = first_token + offs_m // GROUP
    head = kv_head * GROUP + offs_m % GROUP
    row_ok = (token < q_len) & (offs_m < BLOCK_Q * GROUP)
    rows = (q_start + token).to(tl.int64)
    q_ptrs = q_ptr + rows[:, None] * stride_qt + head[:, None] * stride_qh + offs_d[None, :]
    q = tl.load(q_ptrs, mask=row_ok[:, None] & (offs_d < D)[None, :], other=0.0).to(DOT)
    tree = None
    if tree_ptr is not None:
        tree = tl.load(tree_ptr + rows, mask=row_ok, other=0)

    # Keys [kv_begin, kv_end) matter to some row, [full_begin, full_end) are seen by every row.
    last_token = tl.minimum(first_token + BLOCK_Q, q_len) - 1
    kv_end = kv_len
    full_end = kv_len
    if CAUSAL:
        if tree_ptr is None:
            kv_end = tl.maximum(context + last_token + 1, 0)
            full_end = tl.maximum(context + first_token + 1, 0)
        else:
            full_end = tl.maximum(context, 0)
    kv_begin = 0
    full_begin = 0
    if WINDOWED:
        shallowest = context if tree_ptr is not None else context + first_token
        kv_begin = tl.maximum(shallowest - window + 1, 0) // BLOCK_N * BLOCK_N
        full_begin = tl.cdiv(tl.maximum(context + last_token - window + 1, 0), BLOCK_N) * BLOCK_N
    if splits > 1:
        tiles = tl.cdiv(tl.cdiv(kv_end - kv_begin, BLOCK_N), splits)
        kv_begin += split * tiles * BLOCK_N
        kv_end = tl.minimum(kv_end, kv_begin + tiles * BLOCK_N)
        if (split > 0) & (kv_begin >= kv_end):
            if lse_ptr is not None:
                nothing = tl.full([BLOCK_M], float("-inf"), tl.float32)
                tl.store(lse_ptr + rows * stride_lt + head * stride_lh + split, nothing, mask=row_ok)
            return
    full_begin = tl.minimum(tl.maximum(full_begin, kv_begin), kv_end)
    full_end = tl.maximum(tl.minimum(full_end, kv_end) // BLOCK_N * BLOCK_N, full_begin)

    acc, m_i, l_i = softmax_start(sinks_ptr, head, row_ok, split == 0, BLOCK_M, BLOCK_D)
    k_ptr += kv_head.to(tl.int64) * stride_kh
    v_ptr += kv_head.to(tl.int64) * stride_kh
    if k_scale_ptr is not None:
        k_scale_ptr += kv_head.to(tl.int64) * stride_sh
        v_scale_ptr += kv_head.to(tl.int64) * stride_sh
    table_ptr += seq.to(tl.int64) * stride_table
    page = page_ids(table_ptr, kv_begin, kv_end, PAGE, BLOCK_N)
    if WINDOWED:
        for start in range(kv_begin, full_begin, BLOCK_N):
            next_page = page_ids(table_ptr, start + BLOCK_N, kv_end, PAGE, BLOCK_N)
            acc, m_i, l_i = attend_tile(
                acc, m_i, l_i, q, page, start, kv_end, context, q_len, token, tree, k_ptr, v_ptr, k_scale_ptr,
                v_scale_ptr, stride_kb, stride_kt, stride_sb, qk_scale, softcap, window,
                D, PAGE, BLOCK_N, BLOCK_D, DOT, FP8_BITS, CAUSAL, WINDOWED, SOFTCAP, True,
            )  # fmt: skip
            page = next_page
    for start in range(full_begin, full_end, BLOCK_N):
        next_page = page_ids(table_ptr, start + BLOCK_N, kv_end, PAGE, BLOCK_N)
        acc, m_i, l_i = attend_tile(
            acc, m_i, l_i, q, page, start, kv_end, context, q_len, token, tree, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr,
            stride_kb, stride_kt, stride_sb, qk_scale, softcap, window,
            D, PAGE, BLOCK_N, BLOCK_D, DOT, FP8_BITS, CAUSAL, WINDOWED, SOFTCAP, False,
        )  # fmt: skip
        page = next_page
    for start in range(full_end, kv_end, BLOCK_N):
        next_page = page_ids(table_ptr, start + BLOCK_N, kv_end, PAGE, BLOCK_N)
        acc, m_i, l_i = attend_tile(
            acc, m_i, l_i, q, page, start, kv_end, context, q_len, token, tree, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr,
            stride_kb, stride_kt, stride_sb, qk_scale, softcap, window,
            D, PAGE, BLOCK_N, BLOCK_D, DOT, FP8_BITS, CAUSAL, WINDOWED, SOFTCAP, True,
        )  # fmt: skip
        page = next_page
    store_rows(
        acc, m_i, l_i, out_ptr, lse_ptr, rows, head, split, row_ok,
        stride_ot, stride_oh, stride_os, stride_lt, stride_lh, D, BLOCK_D,
    )  # fmt: skip


def pick_config(shape: PagedShape) -> dict[str, int]:
    """Tile sizes: 64 rows and 4 warps reach warpgroup matmuls, 128 rows and 8 warps read the keys half as often."""
    if shape.arch.interpreted:
        return {"BLOCK_M": max(32, triton.next_power_of_2(shape.group)), "BLOCK_N": 32, "num_warps": 4, "num_stages": 1}
    stages = 3 if shape.arch.large_shared else 2
    if shape.itemsize == 4:  # float32 has no tensor cores at full precision, and its products want many registers
        block_m = max(32 if shape.block_d <= 128 else 16, triton.next_power_of_2(shape.group))
        return {"BLOCK_M": block_m, "BLOCK_N": 16, "num_warps": 8, "num_stages": 2}
    if shape.fp8_bits:  # so does decoding float8 by hand
        return {"BLOCK_M": 64, "BLOCK_N": 64 if shape.block_d <= 128 else 32, "num_warps": 8, "num_stages": 2}
    if shape.block_d > 128:
        return {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": stages}
    rows = shape.tokens * shape.group // max(1, shape.sequences)
    block_m = 128 if rows >= 512 else 64
    if shape.arch.large_shared and shape.arch.cc < 90:  # A100: smaller tiles, more of them in flight; 64 keys spill
        return {"BLOCK_M": block_m, "BLOCK_N": 32, "num_warps": block_m // 16, "num_stages": 4}
    return {"BLOCK_M": block_m, "BLOCK_N": 64, "num_warps": block_m // 16, "num_stages": stages}


def paged_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    kv_lens: Tensor,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scales: tuple[Tensor, Tensor] | None = None,
    sinks: Tensor | None = None,
    tree_mask: Tensor | None = None,
    num_splits: int | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """Attention of sequences of any number of query tokens; fills `lse` [T, Hq] where given.

    Not causal: every query sees all kv_len keys. Rows of no sequence are left as they are, and cu_seqlens_q may begin
    above zero. See `kernels.paged_attention` for shapes.
    """
    shape = inspect(q, k_cache, v_cache, block_table, scales, architecture(q))
    config = pick_config(shape)
    blocks = shape.tokens // (config["BLOCK_M"] // shape.group) + shape.sequences
    splits = num_splits or _pick_splits(shape, blocks, block_table.shape[1] * shape.page, config["BLOCK_N"])
    out = torch.empty_like(q) if out is None else out
    target, target_lse, strides = split_buffers(q, out, lse, splits)
    k, v, k_scale, v_scale, scale_strides = kv_arguments(shape, k_cache, v_cache, scales)
    qk_scale, cap = score_scale(scale, softcap)
    launch(
        _paged_prefill_kernel, (blocks if shape.tokens else 0, shape.kv_heads, splits),
        q, k, v, k_scale, v_scale, target, target_lse, block_table, cu_seqlens_q, kv_lens, sinks, tree_mask,
        qk_scale, cap, window or 0, splits, shape.sequences,
        *q.stride()[:2], *k.stride()[:3], *scale_strides, *strides, block_table.stride(0),
        GROUP=shape.group, D=shape.dim, PAGE=shape.page, CAUSAL=causal, WINDOWED=window is not None,
        SOFTCAP=softcap is not None, FP8_BITS=shape.fp8_bits, DOT=dot_dtype(q), BLOCK_D=shape.block_d, **config,
    )  # fmt: skip
    if splits > 1:
        assert target_lse is not None
        merge_splits(target, target_lse, cu_seqlens_q, out, lse)
    return out


def _pick_splits(shape: PagedShape, blocks: int, max_kv_len: int, block_n: int) -> int:
    """No split where there are programs enough, or where parts in float32 would be larger than the keys."""
    if blocks * shape.kv_heads >= shape.arch.num_sms or shape.tokens * shape.group > max_kv_len:
        return 1
    return min(8, pick_splits(shape, max_kv_len, block_n, 4))


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    def case(name: str, sequences: int = 4, tokens: int = 4096, **options: Any) -> tuple[str, Callable[[], object]]:
        return aot_case(paged_prefill, name, tokens=tokens, sequences=sequences, **options)

    yield case("d128 g4")
    yield case("d128 g4 mixed", sequences=128)
    yield case("d128 g4 page 16", page=16)
    yield case("d64 g3", dim=64, group=3)
    yield case("d80 g1 short", dim=80, group=1, sequences=64)
    yield case("d128 g4 window", window=4096)
    yield case("d256 g2 window softcap", dim=256, group=2, window=4096, softcap=50.0)
    yield case("d128 g4 int8", kv_dtype=torch.int8)
    yield case("d128 g4 fp8", kv_dtype=torch.float8_e4m3fn)
    yield case("d128 g4 fp32", kv_dtype=torch.float32)
    yield case("d256 g2 fp32", dim=256, group=2, kv_dtype=torch.float32)
    yield case("d128 g4 shared prefix", sequences=1, tokens=128, causal=False, num_splits=8)
    tree = torch.empty(4096, dtype=torch.int64, device="meta")
    yield case("d128 g4 tree", sequences=128, tree_mask=tree)
