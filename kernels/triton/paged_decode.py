"""Paged attention for few query tokens per sequence: softmax(q k^T scale) v over a paged cache, split along the keys.

One program takes all query rows of one sequence and KV head (query tokens times the heads of the group, padded to the
rows of a tensor core) over one split of the keys; `merge` combines the splits. Bound by bandwidth: every key and value
is read once, and the arithmetic intensity is 2 G / bytes. One masked loop: splitting off the tile that needs the mask
would drain the pipeline, and the mask costs nothing here.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.paged import DECODE_ROWS
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

_MAX_SPLITS = 64


@triton.jit
def _paged_decode_kernel(
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
    stride_qt, stride_qh, stride_kb, stride_kh, stride_kt, stride_sb, stride_sh,
    stride_ot, stride_oh, stride_os, stride_lt, stride_lh, stride_table,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    MIN_TILES: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    FP8_BITS: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    q_start = tl.load(cu_ptr + seq)
    q_len = tl.load(cu_ptr + seq + 1) - q_start
    if q_len <= 0:
        return
    kv_len = tl.load(kv_lens_ptr + seq)
    context = kv_len - q_len
    offs_m = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    token = offs_m // GROUP
    head = kv_head * GROUP + offs_m % GROUP
    row_ok = token < q_len
    rows = (q_start + token).to(tl.int64)

    kv_begin = 0
    if WINDOWED:
        kv_begin = tl.maximum(context - window + 1, 0) // BLOCK_N * BLOCK_N
    # A split is at least MIN_TILES tiles and depends on this sequence alone, not on the rest of the batch.
    tiles = tl.maximum(tl.cdiv(tl.cdiv(kv_len - kv_begin, BLOCK_N), splits), MIN_TILES)
    kv_begin += split * tiles * BLOCK_N
    kv_end = tl.minimum(kv_len, kv_begin + tiles * BLOCK_N)
    if (split > 0) & (kv_begin >= kv_end):
        if lse_ptr is not None:
            nothing = tl.full([BLOCK_M], float("-inf"), tl.float32)
            tl.store(lse_ptr + rows * stride_lt + head * stride_lh + split, nothing, mask=row_ok)
        return

    q_ptrs = q_ptr + rows[:, None] * stride_qt + head[:, None] * stride_qh + offs_d[None, :]
    q = tl.load(q_ptrs, mask=row_ok[:, None] & (offs_d < D)[None, :], other=0.0).to(DOT)
    tree = None
    if tree_ptr is not None:
        tree = tl.load(tree_ptr + rows, mask=row_ok, other=0)
    acc, m_i, l_i = softmax_start(sinks_ptr, head, row_ok, split == 0, BLOCK_M, BLOCK_D)
    k_ptr += kv_head.to(tl.int64) * stride_kh
    v_ptr += kv_head.to(tl.int64) * stride_kh
    if k_scale_ptr is not None:
        k_scale_ptr += kv_head.to(tl.int64) * stride_sh
        v_scale_ptr += kv_head.to(tl.int64) * stride_sh
    table_ptr += seq.to(tl.int64) * stride_table
    page = page_ids(table_ptr, kv_begin, kv_end, PAGE, BLOCK_N)
    for start in range(kv_begin, kv_end, BLOCK_N):
        next_page = page_ids(table_ptr, start + BLOCK_N, kv_end, PAGE, BLOCK_N)
        acc, m_i, l_i = attend_tile(
            acc, m_i, l_i, q, page, start, kv_end, context, q_len, token, tree, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr,
            stride_kb, stride_kt, stride_sb, qk_scale, softcap, window,
            D, PAGE, BLOCK_N, BLOCK_D, DOT, FP8_BITS, True, WINDOWED, SOFTCAP, True,
        )  # fmt: skip
        page = next_page
    store_rows(
        acc, m_i, l_i, out_ptr, lse_ptr, rows, head, split, row_ok,
        stride_ot, stride_oh, stride_os, stride_lt, stride_lh, D, BLOCK_D,
    )  # fmt: skip


def pick_config(shape: PagedShape, max_query_len: int) -> dict[str, int]:
    """Tile sizes. Two programs a multiprocessor with 48 KiB on the way each: 4.8 TB/s and 1 us take 36 KiB together."""
    block_m = max(16, triton.next_power_of_2(max_query_len * shape.group))
    if shape.arch.interpreted:
        return {"BLOCK_M": block_m, "BLOCK_N": 32, "MIN_TILES": 1, "num_warps": 4, "num_stages": 1}
    block_n = min(64, max(16, 16384 // (shape.block_d * max(2, shape.itemsize))))
    if 32 <= shape.page < block_n and block_n % shape.page == 0:
        block_n = shape.page  # one page id a tile; with pages of 16 a tile gathers
    tile_bytes = 2 * block_n * shape.block_d * shape.itemsize
    stages = 1 + min(4, max(2, triton.cdiv(48 * 1024, tile_bytes)))
    if block_m >= 64 and not shape.arch.large_shared:
        stages = 2
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "MIN_TILES": 2, "num_warps": 4, "num_stages": stages}


def pick_splits(shape: PagedShape, max_kv_len: int, block_n: int, min_tiles: int) -> int:
    """Splits of the keys from upper bounds alone, so that nothing waits for the GPU and a captured grid stays right.

    Enough programs for two a multiprocessor; none of fewer than `min_tiles` tiles.
    """
    programs = max(1, shape.sequences * shape.kv_heads)
    wanted = triton.cdiv(2 * shape.arch.num_sms, programs) if programs < 1.6 * shape.arch.num_sms else 1
    return max(1, min(wanted, max_kv_len // (block_n * min_tiles), _MAX_SPLITS))


def split_buffers(
    q: Tensor, out: Tensor, lse: Tensor | None, splits: int
) -> tuple[Tensor, Tensor | None, tuple[int, int, int, int, int]]:
    """Where programs write, with strides: the result itself, or one float32 part a split."""
    if splits == 1:
        lse_strides = (0, 0) if lse is None else (lse.stride(0), lse.stride(1))
        return out, lse, (out.stride(0), out.stride(1), 0, *lse_strides)
    tokens, heads, dim = q.shape
    parts = torch.empty(tokens, heads, splits, dim, dtype=torch.float32, device=q.device)
    parts_lse = torch.empty(tokens, heads, splits, dtype=torch.float32, device=q.device)
    return parts, parts_lse, (heads * splits * dim, splits * dim, dim, heads * splits, splits)


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    kv_lens: Tensor,
    *,
    scale: float,
    max_query_len: int = 1,
    window: int | None = None,
    softcap: float | None = None,
    scales: tuple[Tensor, Tensor] | None = None,
    sinks: Tensor | None = None,
    tree_mask: Tensor | None = None,
    num_splits: int | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """Causal attention of sequences of at most `max_query_len` query tokens; fills `lse` [T, Hq] where given.

    Rows of no sequence are left as they are. See `kernels.paged_attention` for shapes.
    """
    shape = inspect(q, k_cache, v_cache, block_table, scales, architecture(q))
    if max_query_len * shape.group > DECODE_ROWS:
        raise ValueError(f"{max_query_len} query tokens of {shape.group} heads a group exceed {DECODE_ROWS} rows.")
    config = pick_config(shape, max_query_len)
    splits = num_splits or pick_splits(shape, block_table.shape[1] * shape.page, config["BLOCK_N"], config["MIN_TILES"])
    out = torch.empty_like(q) if out is None else out
    target, target_lse, strides = split_buffers(q, out, lse, splits)
    k, v, k_scale, v_scale, scale_strides = kv_arguments(shape, k_cache, v_cache, scales)
    qk_scale, cap = score_scale(scale, softcap)
    launch(
        _paged_decode_kernel, (shape.sequences, shape.kv_heads, splits),
        q, k, v, k_scale, v_scale, target, target_lse, block_table, cu_seqlens_q, kv_lens, sinks, tree_mask,
        qk_scale, cap, window or 0, splits,
        *q.stride()[:2], *k.stride()[:3], *scale_strides, *strides, block_table.stride(0),
        GROUP=shape.group, D=shape.dim, PAGE=shape.page, WINDOWED=window is not None, SOFTCAP=softcap is not None,
        FP8_BITS=shape.fp8_bits, DOT=dot_dtype(q), BLOCK_D=shape.block_d, **config,
    )  # fmt: skip
    if splits > 1:
        assert target_lse is not None
        merge_splits(target, target_lse, cu_seqlens_q, out, lse)
    return out


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    def case(name: str, max_query_len: int = 1, **options: Any) -> tuple[str, Callable[[], object]]:
        tokens = 64 * max_query_len
        return aot_case(paged_decode, name, tokens=tokens, sequences=64, max_query_len=max_query_len, **options)

    yield case("d128 g4 split", num_splits=8)
    yield case("d128 g4 page 16", page=16)
    yield case("d64 g1 page 32", dim=64, group=1, page=32)
    yield case("d80 g8", dim=80, group=8)
    yield case("d256 g2 window", dim=256, group=2, window=4096)
    yield case("d128 g8 window sinks", group=8, window=128, sinks=torch.empty(64, dtype=torch.bfloat16, device="meta"))
    yield case("d128 g4 softcap", softcap=50.0)
    yield case("d128 g4 int8", kv_dtype=torch.int8)
    yield case("d128 g4 fp8", kv_dtype=torch.float8_e4m3fn)
    yield case("d128 g4 fp32", kv_dtype=torch.float32)
    tree = torch.empty(64 * 8, dtype=torch.int64, device="meta")
    yield case("d128 g4 tree of 8", max_query_len=8, tree_mask=tree)
    yield case("d128 g4 verify 16", max_query_len=16)
