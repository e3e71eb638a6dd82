"""Attention without the score matrix (FlashAttention): out = softmax(q k^T scale) v, tile by tile, in one pass.

Scores live in base 2 (scale * log2 e is folded in once), and so does lse2 = log2 sum exp(score), which the backward
pass starts from. A program owns BLOCK_M query rows of one head and walks over keys in three loops, so that only tiles
on an edge pay for a mask: left edge of the window, tiles that every row sees whole, diagonal and end.

Bound by matmuls: 4 Sq Sk D flops a head, half of that when causal. A tile's result depends on its own rows and keys
only, never on what else is in the batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.arch import Arch, current
from kernels.triton.common import LOG2E, compute_dtype, rounded_through, tanh, to_dtype
from kernels.triton.launch import launch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256


@triton.jit
def sequence(cu_seqlens_ptr, index, length):
    """(batch row, first token, number of tokens) of a sequence: packed where there are cu_seqlens, else dense."""
    if cu_seqlens_ptr is not None:
        first = tl.load(cu_seqlens_ptr + index).to(tl.int64)
        end = tl.load(cu_seqlens_ptr + index + 1).to(tl.int64)
        return first * 0, first, (end - first).to(tl.int32)
    else:
        batch = index.to(tl.int64)
        return batch, batch * 0, length


@triton.jit
def load_rows(
    ptr, start, num_rows, stride,
    BOUNDED: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows [start, start + BLOCK) of a [num_rows, D] matrix as a [BLOCK, BLOCK_D] tile.

    Zero past D, and past num_rows where BOUNDED. Only the start of a tile is 64 bits wide: offsets inside it stay the
    same over a loop.
    """
    rows, offs_d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    ptrs = ptr + tl.cast(start, tl.int64) * stride + (rows[:, None] * stride + offs_d[None, :])
    if BOUNDED:
        return tl.load(ptrs, mask=(rows[:, None] < num_rows - start) & (offs_d[None, :] < D), other=0.0)
    elif D < BLOCK_D:
        return tl.load(ptrs, mask=offs_d[None, :] < D, other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
def seen(position, key, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Whether the query at `position` sees `key`; both broadcast to the tile, in whichever orientation it has."""
    result = key >= 0
    if CAUSAL:
        result = result & (key <= position)
    if WINDOW:
        result = result & (key > position - window)
    return result


@triton.jit
def key_bounds(
    start_m, q_len, kv_len, window,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(begin, full_begin, full_end, end): the keys of query rows from start_m; all rows see all of the full ones.

    The last query stands at the last key. Full tiles may be none, then full_begin == full_end (and may exceed end).
    """
    first = start_m + kv_len - q_len
    last = tl.minimum(start_m + BLOCK_M, q_len) - 1 + kv_len - q_len
    begin, full_begin, full_end, end = 0, 0, kv_len, kv_len
    if CAUSAL:
        full_end = tl.maximum(tl.minimum(first + 1, kv_len), 0)
        end = tl.maximum(tl.minimum(last + 1, kv_len), 0)
    full_end = full_end // BLOCK_N * BLOCK_N
    if WINDOW:
        begin = tl.maximum(first + 1 - window, 0) // BLOCK_N * BLOCK_N
        full_begin = tl.cdiv(tl.maximum(last + 1 - window, 0), BLOCK_N) * BLOCK_N
        full_end = tl.maximum(full_begin, full_end)
    return begin, full_begin, full_end, end


@triton.jit
def _attend(
    acc, l_i, m_i, q, position, k_ptr, v_ptr, begin, end, kv_len, stride_kt, stride_vt, qk_scale, cap, window,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys [begin, end): what has been summed (acc, l_i), at which maximum (m_i)."""
    for start_n in range(begin, end, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        k = load_rows(k_ptr, start_n, kv_len, stride_kt, MASKED, BLOCK_N, D, BLOCK_D).to(DOT)
        qk = tl.dot(q, tl.trans(k), input_precision="ieee")
        if SOFTCAP:
            qk = cap * tanh(qk * qk_scale)
        elif MASKED:
            qk = qk * qk_scale
        if MASKED:
            mask = seen(position[:, None], offs_n[None, :], window, CAUSAL, WINDOW) & (offs_n[None, :] < kv_len)
            qk = tl.where(mask, qk, float("-inf"))
        if MASKED or SOFTCAP:
            m_new = tl.maximum(m_i, tl.max(qk, 1))
            # A row that has seen nothing yet must not compute -inf - -inf.
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
            p = tl.exp2(qk - m_safe[:, None])
        else:
            m_new = tl.maximum(m_i, tl.max(qk, 1) * qk_scale)
            m_safe = m_new
            p = tl.exp2(qk * qk_scale - m_new[:, None])  # one fused multiply-add an element
        alpha = tl.exp2(m_i - m_safe)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v = load_rows(v_ptr, start_n, kv_len, stride_vt, MASKED, BLOCK_N, D, BLOCK_D).to(DOT)
        acc = tl.dot(rounded_through(p, v_ptr.dtype.element_ty, DOT), v, acc, input_precision="ieee")
        m_i = m_new
    return acc, l_i, m_i


@triton.jit
def _flash_forward_kernel(
    q_ptr,  # [B, Sq, Hq, D], or [1, T, Hq, D] with cu_seqlens
    k_ptr,  # [B, Sk, Hkv, D]
    v_ptr,  # [B, Sk, Hkv, D]
    out_ptr,  # [B, Sq, Hq, D]
    lse_ptr,  # [B, Hq, Sq] float32, base 2
    sinks_ptr,  # [Hq] or None
    cu_seqlens_q_ptr,  # [S + 1] or None
    cu_seqlens_k_ptr,  # [S + 1] or None
    q_len,
    kv_len,
    stride_qb, stride_qt, stride_qh,
    stride_kb, stride_kt, stride_kh,
    stride_vb, stride_vt, stride_vh,
    stride_ob, stride_ot, stride_oh,
    stride_lb, stride_lh,
    qk_scale,  # scale * log2 e; scale / softcap with a soft cap
    cap,  # softcap * log2 e
    window,
    GROUP: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    pid_m, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if CAUSAL:  # the rows with most keys first: the tail of the launch is then short programs
        pid_m = tl.num_programs(0) - 1 - pid_m
    start_m = pid_m * BLOCK_M
    batch, q_first, q_len = sequence(cu_seqlens_q_ptr, tl.program_id(2), q_len)
    _, k_first, kv_len = sequence(cu_seqlens_k_ptr, tl.program_id(2), kv_len)
    if start_m >= q_len:
        return
    kv_head = head // GROUP
    q_ptr += batch * stride_qb + q_first * stride_qt + head * stride_qh
    k_ptr += batch * stride_kb + k_first * stride_kt + kv_head * stride_kh
    v_ptr += batch * stride_vb + k_first * stride_vt + kv_head * stride_vh
    out_ptr += batch * stride_ob + q_first * stride_ot + head * stride_oh
    lse_ptr += batch * stride_lb + head * stride_lh + q_first

    offs_m = start_m + tl.arange(0, BLOCK_M)
    position = offs_m + (kv_len - q_len)
    q = load_rows(q_ptr, start_m, q_len, stride_qt, True, BLOCK_M, D, BLOCK_D).to(DOT)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if sinks_ptr is not None:  # a key that was seen first, whose value is zero
        m_i = tl.zeros([BLOCK_M], tl.float32) + tl.load(sinks_ptr + head).to(tl.float32) * LOG2E
        l_i = tl.where(m_i == float("-inf"), 0.0, 1.0)
    begin, full_begin, full_end, end = key_bounds(start_m, q_len, kv_len, window, CAUSAL, WINDOW, BLOCK_M, BLOCK_N)
    if WINDOW:
        acc, l_i, m_i = _attend(
            acc, l_i, m_i, q, position, k_ptr, v_ptr, begin, tl.minimum(full_begin, end), kv_len, stride_kt, stride_vt,
            qk_scale, cap, window, True, CAUSAL, WINDOW, SOFTCAP, D, BLOCK_D, BLOCK_N, DOT,
        )  # fmt: skip
    acc, l_i, m_i = _attend(
        acc, l_i, m_i, q, position, k_ptr, v_ptr, full_begin, full_end, kv_len, stride_kt, stride_vt,
        qk_scale, cap, window, False, CAUSAL, WINDOW, SOFTCAP, D, BLOCK_D, BLOCK_N, DOT,
    )  # fmt: skip
    acc, l_i, m_i = _attend(
        acc, l_i, m_i, q, position, k_ptr, v_ptr, full_end, end, kv_len, stride_kt, stride_vt,
        qk_scale, cap, window, True, CAUSAL, WINDOW, SOFTCAP, D, BLOCK_D, BLOCK_N, DOT,
    )  # fmt: skip

    l_safe = tl.where(l_i == 0.0, 1.0, l_i)  # rows that saw nothing: out 0, lse -inf
    out = to_dtype(acc / l_safe[:, None], out_ptr.dtype.element_ty)
    offs_d = tl.arange(0, BLOCK_D)
    out_ptrs = out_ptr + offs_m.to(tl.int64)[:, None] * stride_ot + offs_d[None, :]
    tl.store(out_ptrs, out, mask=(offs_m[:, None] < q_len) & (offs_d[None, :] < D))
    tl.store(lse_ptr + offs_m, m_i + tl.log2(l_safe), mask=offs_m < q_len)


# (query rows, keys, warps, stages) by padded head size. Chosen by compiling for every architecture: no spills, and on
# consumer parts 99 KiB of shared memory. 64 rows is the least that Hopper's warpgroup matmuls take.
_TILES_DATACENTER = {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (128, 32, 8, 3)}
_TILES_CONSUMER = {64: (128, 64, 4, 3), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2)}
_TILES_SM100 = _TILES_DATACENTER | {64: (128, 64, 8, 3)}  # 4 warps spill there
_TILES_FLOAT32 = {64: (32, 32, 4, 2), 128: (32, 16, 4, 2), 256: (16, 32, 8, 2)}  # no tensor cores: registers decide


def pick_config(arch: Arch, dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Query rows and keys of a tile, warps and pipeline stages. Never by batch size: that would change the bits."""
    block_d = max(16, triton.next_power_of_2(dim))
    if arch.interpreted:
        tiles = (32, 32, 4, 2)
    elif dtype == torch.float32:
        tiles = _TILES_FLOAT32[max(64, block_d)]
    elif arch.cc >= 100 and arch.large_shared:
        tiles = _TILES_SM100[max(64, block_d)]
    else:
        tiles = (_TILES_DATACENTER if arch.large_shared else _TILES_CONSUMER)[max(64, block_d)]
    return {"BLOCK_D": block_d, **dict(zip(("BLOCK_M", "BLOCK_N", "num_warps", "num_stages"), tiles, strict=True))}


def score_constants(
    scale: float, softcap: float | None, window: int | None
) -> tuple[tuple[float, float, int], dict[str, bool]]:
    """The run-time (qk_scale, cap, window) of the kernels, and the constants that say which of them count."""
    if softcap is None:
        qk_scale, cap = scale * LOG2E.value, 0.0
    else:
        qk_scale, cap = scale / softcap, softcap * LOG2E.value
    return (qk_scale, cap, window or 0), {"WINDOW": window is not None, "SOFTCAP": softcap is not None}


def flash_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """q [B, Sq, Hq, D], k and v [B, Sk, Hkv, D] -> out [B, Sq, Hq, D] and the base-2 lse [B, Hq, Sq] (float32).

    With cu_seqlens, B is 1 and S sequences lie one behind the other; rows of no sequence give 0 and -inf.
    """
    batch, q_len, heads, dim = q.shape
    if cu_seqlens_q is None:
        out, sequences = torch.empty(q.shape, dtype=q.dtype, device=q.device), batch
        lse = torch.empty(batch, heads, q_len, dtype=torch.float32, device=q.device)
    else:
        out, sequences = torch.zeros(q.shape, dtype=q.dtype, device=q.device), cu_seqlens_q.shape[0] - 1
        lse = torch.full((batch, heads, q_len), float("-inf"), dtype=torch.float32, device=q.device)
    config = pick_config(current(q.device), dim, q.dtype)
    scores, flags = score_constants(scale, softcap, window)
    launch(
        _flash_forward_kernel, (triton.cdiv(max_seqlen_q, config["BLOCK_M"]), heads, sequences),
        q, k, v, out, lse, sinks, cu_seqlens_q, cu_seqlens_k, q_len, k.shape[1],
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *lse.stride()[:2], *scores,
        GROUP=heads // k.shape[2], CAUSAL=causal, **flags, D=dim, DOT=compute_dtype(q.dtype), **config,
    )  # fmt: skip
    return out, lse
