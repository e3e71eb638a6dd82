"""Gradients of attention by recomputation: p = exp2(score - lse2) comes back from q, k and the stored lse2.

    dV = P^T dO    dP = dO V^T    dS = P * (dP - delta)    dQ = scale dS K    dK = scale dS^T Q

with delta = rowsum(out * dO) - log2 e * d(lse2), so that a gradient of the lse costs nothing extra. Three launches:
delta; dK and dV, where a program owns a tile of keys and walks over the query rows of every head of its group; dQ,
where a program owns a tile of query rows. Every output element is written once by one program, in a fixed order of
sums: no atomics, and the same bits every time. Bound by matmuls: 2.5 times the flops of the forward pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.arch import Arch, current
from kernels.triton.common import LOG2E, compute_dtype, rounded_through, tanh, to_dtype
from kernels.triton.flash_forward import key_bounds, load_rows, score_constants, seen, sequence
from kernels.triton.launch import launch


@triton.jit
def _delta_kernel(
    out_ptr,  # [B, Sq, Hq, D]
    grad_out_ptr,  # [B, Sq, Hq, D]
    grad_lse_ptr,  # [B, Hq, Sq] or None
    delta_ptr,  # [B, Hq, Sq] float32
    q_len,
    stride_ob, stride_ot, stride_oh,
    stride_gb, stride_gt, stride_gh,
    stride_lb, stride_lh,
    stride_db, stride_dh,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    start_m, head, batch = tl.program_id(0) * BLOCK_M, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    offs_m = start_m + tl.arange(0, BLOCK_M)
    out_ptr += batch * stride_ob + head * stride_oh
    grad_out_ptr += batch * stride_gb + head * stride_gh
    out = load_rows(out_ptr, start_m, q_len, stride_ot, True, BLOCK_M, D, BLOCK_D).to(tl.float32)
    grad = load_rows(grad_out_ptr, start_m, q_len, stride_gt, True, BLOCK_M, D, BLOCK_D).to(tl.float32)
    delta = tl.sum(out * grad, 1)
    if grad_lse_ptr is not None:
        grad_lse_ptr += batch * stride_lb + head * stride_lh
        delta -= LOG2E * tl.load(grad_lse_ptr + offs_m, mask=offs_m < q_len, other=0.0)
    tl.store(delta_ptr + batch * stride_db + head * stride_dh + offs_m, delta, mask=offs_m < q_len)


@triton.jit
def _query_bounds(
    start_n, q_len, kv_len, window,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(begin, full_begin, full_end, end): the query rows that see keys from start_n; the full ones see all of them."""
    first = start_n + q_len - kv_len
    last = tl.minimum(start_n + BLOCK_N, kv_len) - 1 + q_len - kv_len
    begin, full_begin, full_end, end = 0, 0, q_len, q_len
    if CAUSAL:
        begin = tl.maximum(first, 0) // BLOCK_M * BLOCK_M
        full_begin = tl.cdiv(tl.maximum(last, 0), BLOCK_M) * BLOCK_M
    if WINDOW:
        full_end = tl.maximum(tl.minimum(first + window, q_len), 0)
        end = tl.maximum(tl.minimum(last + window, q_len), 0)
    full_end = tl.maximum(full_end // BLOCK_M * BLOCK_M, full_begin)
    return begin, full_begin, full_end, end


@triton.jit
def _add_to_dk_dv(
    dk, dv, k, v, keys, q_ptr, grad_ptr, lse_ptr, delta_ptr, begin, tiles, far, far_tiles, q_len, kv_len,
    stride_qt, stride_qh, stride_gt, stride_gh, stride_lh, qk_scale, cap, window,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """What some query rows of the heads of a group add to dK (without its scale) and dV. Tiles are [keys, rows].

    The rows are `tiles` tiles from `begin` and `far_tiles` from `far`. All of it is one loop: a loop over heads around
    it would empty the pipeline of loads at every head, and a loop for either edge would hold registers.
    """
    all_tiles = tiles + far_tiles
    for step in range(GROUP * all_tiles):
        member, tile = tl.cast(step // all_tiles, tl.int64), step % all_tiles
        start_m = tl.where(tile < tiles, begin + tile * BLOCK_M, far + (tile - tiles) * BLOCK_M)
        offs_m = start_m + tl.arange(0, BLOCK_M)
        rows = member * stride_lh + offs_m
        q = load_rows(q_ptr + member * stride_qh, start_m, q_len, stride_qt, MASKED, BLOCK_M, D, BLOCK_D).to(DOT)
        grad_head = grad_ptr + member * stride_gh
        grad = load_rows(grad_head, start_m, q_len, stride_gt, MASKED, BLOCK_M, D, BLOCK_D).to(DOT)
        if MASKED:  # rows past the end have p = 0, and keys past the end are not stored: neither needs the mask
            lse = tl.load(lse_ptr + rows, mask=offs_m < q_len, other=float("inf"))
            delta = tl.load(delta_ptr + rows, mask=offs_m < q_len, other=0.0)
        else:
            lse = tl.load(lse_ptr + rows)
            delta = tl.load(delta_ptr + rows)
        qk = tl.dot(k, tl.trans(q), input_precision="ieee")
        if SOFTCAP:
            capped = tanh(qk * qk_scale)
            p = tl.exp2(cap * capped - lse[None, :])
        else:
            p = tl.exp2(qk * qk_scale - lse[None, :])
        if MASKED and (CAUSAL or WINDOW):
            position = offs_m[None, :] + (kv_len - q_len)
            p = tl.where(seen(position, keys[:, None], window, CAUSAL, WINDOW), p, 0.0)
        dv = tl.dot(rounded_through(p, grad_ptr.dtype.element_ty, DOT), grad, dv, input_precision="ieee")
        ds = p * (tl.dot(v, tl.trans(grad), input_precision="ieee") - delta[None, :])
        if SOFTCAP:
            ds = ds * (1.0 - capped * capped)
        dk = tl.dot(rounded_through(ds, q_ptr.dtype.element_ty, DOT), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def _flash_backward_kv_kernel(
    q_ptr,  # [B, Sq, Hq, D], or [1, T, Hq, D] with cu_seqlens
    k_ptr,  # [B, Sk, Hkv, D]
    v_ptr,  # [B, Sk, Hkv, D]
    grad_out_ptr,  # [B, Sq, Hq, D]
    lse_ptr,  # [B, Hq, Sq]
    delta_ptr,  # [B, Hq, Sq]
    dk_ptr,  # [B, Sk, Hkv, D]
    dv_ptr,  # [B, Sk, Hkv, D]
    cu_seqlens_q_ptr,  # [S + 1] or None
    cu_seqlens_k_ptr,  # [S + 1] or None
    q_len,
    kv_len,
    stride_qb, stride_qt, stride_qh,
    stride_kb, stride_kt, stride_kh,
    stride_vb, stride_vt, stride_vh,
    stride_gb, stride_gt, stride_gh,
    stride_lb, stride_lh,
    stride_db, stride_dt, stride_dh,
    scale,
    qk_scale,  # scale * log2 e; scale / softcap with a soft cap
    cap,  # softcap * log2 e
    window,
    GROUP: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # The first keys are seen by most rows when causal: in this order the long programs start first.
    start_n, kv_head = tl.program_id(0) * BLOCK_N, tl.program_id(1).to(tl.int64)
    batch, q_first, q_len = sequence(cu_seqlens_q_ptr, tl.program_id(2), q_len)
    _, k_first, kv_len = sequence(cu_seqlens_k_ptr, tl.program_id(2), kv_len)
    if start_n >= kv_len:
        return
    k_ptr += batch * stride_kb + k_first * stride_kt + kv_head * stride_kh
    v_ptr += batch * stride_vb + k_first * stride_vt + kv_head * stride_vh
    head = kv_head * GROUP
    q_ptr += batch * stride_qb + q_first * stride_qt + head * stride_qh
    grad_out_ptr += batch * stride_gb + q_first * stride_gt + head * stride_gh
    lse_ptr += batch * stride_lb + head * stride_lh + q_first
    delta_ptr += batch * stride_lb + head * stride_lh + q_first
    k = load_rows(k_ptr, start_n, kv_len, stride_kt, True, BLOCK_N, D, BLOCK_D).to(DOT)
    v = load_rows(v_ptr, start_n, kv_len, stride_vt, True, BLOCK_N, D, BLOCK_D).to(DOT)
    offs_n = start_n + tl.arange(0, BLOCK_N)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    begin, full_begin, full_end, end = _query_bounds(start_n, q_len, kv_len, window, CAUSAL, WINDOW, BLOCK_M, BLOCK_N)
    near_tiles = tl.cdiv(tl.maximum(tl.minimum(full_begin, end) - begin, 0), BLOCK_M)
    far_tiles = tl.cdiv(tl.maximum(end - full_end, 0), BLOCK_M)
    dk, dv = _add_to_dk_dv(
        dk, dv, k, v, offs_n, q_ptr, grad_out_ptr, lse_ptr, delta_ptr,
        begin, near_tiles, full_end, far_tiles,
        q_len, kv_len, stride_qt, stride_qh, stride_gt, stride_gh, stride_lh, qk_scale, cap, window,
        True, CAUSAL, WINDOW, SOFTCAP, GROUP, D, BLOCK_D, BLOCK_M, DOT,
    )  # fmt: skip
    dk, dv = _add_to_dk_dv(
        dk, dv, k, v, offs_n, q_ptr, grad_out_ptr, lse_ptr, delta_ptr,
        full_begin, (full_end - full_begin) // BLOCK_M, full_end, 0,
        q_len, kv_len, stride_qt, stride_qh, stride_gt, stride_gh, stride_lh, qk_scale, cap, window,
        False, CAUSAL, WINDOW, SOFTCAP, GROUP, D, BLOCK_D, BLOCK_M, DOT,
    )  # fmt: skip
    offs_d = tl.arange(0, BLOCK_D)
    mask = (offs_n[:, None] < kv_len) & (offs_d[None, :] < D)
    base = batch * stride_db + k_first * stride_dt + kv_head * stride_dh
    offsets = base + offs_n.to(tl.int64)[:, None] * stride_dt + offs_d[None, :]
    tl.store(dk_ptr + offsets, to_dtype(dk * scale, dk_ptr.dtype.element_ty), mask=mask)
    tl.store(dv_ptr + offsets, to_dtype(dv, dv_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _add_to_dq(
    dq, q, grad, lse, delta, position, k_ptr, v_ptr, begin, end, kv_len, stride_kt, stride_vt, qk_scale, cap, window,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """What keys [begin, end) add to dQ (without its scale)."""
    for start_n in range(begin, end, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        k = load_rows(k_ptr, start_n, kv_len, stride_kt, MASKED, BLOCK_N, D, BLOCK_D).to(DOT)
        v = load_rows(v_ptr, start_n, kv_len, stride_vt, MASKED, BLOCK_N, D, BLOCK_D).to(DOT)
        qk = tl.dot(q, tl.trans(k), input_precision="ieee")
        if SOFTCAP:
            capped = tanh(qk * qk_scale)
            p = tl.exp2(cap * capped - lse[:, None])
        else:
            p = tl.exp2(qk * qk_scale - lse[:, None])
        if MASKED:
            mask = seen(position[:, None], offs_n[None, :], window, CAUSAL, WINDOW) & (offs_n[None, :] < kv_len)
            p = tl.where(mask, p, 0.0)
        ds = p * (tl.dot(grad, tl.trans(v), input_precision="ieee") - delta[:, None])
        if SOFTCAP:
            ds = ds * (1.0 - capped * capped)
        dq = tl.dot(rounded_through(ds, k_ptr.dtype.element_ty, DOT), k, dq, input_precision="ieee")
    return dq


@triton.jit
def _flash_backward_q_kernel(
    q_ptr,  # [B, Sq, Hq, D], or [1, T, Hq, D] with cu_seqlens
    k_ptr,  # [B, Sk, Hkv, D]
    v_ptr,  # [B, Sk, Hkv, D]
    grad_out_ptr,  # [B, Sq, Hq, D]
    lse_ptr,  # [B, Hq, Sq]
    delta_ptr,  # [B, Hq, Sq]
    dq_ptr,  # [B, Sq, Hq, D]
    cu_seqlens_q_ptr,  # [S + 1] or None
    cu_seqlens_k_ptr,  # [S + 1] or None
    q_len,
    kv_len,
    stride_qb, stride_qt, stride_qh,
    stride_kb, stride_kt, stride_kh,
    stride_vb, stride_vt, stride_vh,
    stride_gb, stride_gt, stride_gh,
    stride_lb, stride_lh,
    stride_db, stride_dt, stride_dh,
    scale,
    qk_scale,
    cap,
    window,
    GROUP: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    pid_m, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if CAUSAL:
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
    grad_out_ptr += batch * stride_gb + q_first * stride_gt + head * stride_gh
    row = batch * stride_lb + head * stride_lh + q_first

    offs_m = start_m + tl.arange(0, BLOCK_M)
    position = offs_m + (kv_len - q_len)
    q = load_rows(q_ptr, start_m, q_len, stride_qt, True, BLOCK_M, D, BLOCK_D).to(DOT)
    grad = load_rows(grad_out_ptr, start_m, q_len, stride_gt, True, BLOCK_M, D, BLOCK_D).to(DOT)
    lse = tl.load(lse_ptr + row + offs_m, mask=offs_m < q_len, other=float("inf"))
    delta = tl.load(delta_ptr + row + offs_m, mask=offs_m < q_len, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    begin, full_begin, full_end, end = key_bounds(start_m, q_len, kv_len, window, CAUSAL, WINDOW, BLOCK_M, BLOCK_N)
    if WINDOW:
        dq = _add_to_dq(
            dq, q, grad, lse, delta, position, k_ptr, v_ptr, begin, tl.minimum(full_begin, end), kv_len,
            stride_kt, stride_vt, qk_scale, cap, window, True, CAUSAL, WINDOW, SOFTCAP, D, BLOCK_D, BLOCK_N, DOT,
        )  # fmt: skip
    dq = _add_to_dq(
        dq, q, grad, lse, delta, position, k_ptr, v_ptr, full_begin, full_end, kv_len,
        stride_kt, stride_vt, qk_scale, cap, window, False, CAUSAL, WINDOW, SOFTCAP, D, BLOCK_D, BLOCK_N, DOT,
    )  # fmt: skip
    dq = _add_to_dq(
        dq, q, grad, lse, delta, position, k_ptr, v_ptr, full_end, end, kv_len,
        stride_kt, stride_vt, qk_scale, cap, window, True, CAUSAL, WINDOW, SOFTCAP, D, BLOCK_D, BLOCK_N, DOT,
    )  # fmt: skip
    offs_d = tl.arange(0, BLOCK_D)
    base = batch * stride_db + q_first * stride_dt + head * stride_dh
    offsets = base + offs_m.to(tl.int64)[:, None] * stride_dt + offs_d[None, :]
    dq = to_dtype(dq * scale, dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + offsets, dq, mask=(offs_m[:, None] < q_len) & (offs_d[None, :] < D))


# (query rows, keys, warps, stages) by padded head size, of dK and dV ("kv") and of dQ ("q"). Chosen by compiling for
# every architecture: two accumulators of [keys, head size] leave few registers, and smaller tiles are what keeps them
# from spilling. float32 has no tensor cores to feed.
_KV_TILES = {64: (64, 128, 8, 3), 128: (64, 128, 8, 2), 256: (32, 32, 8, 2)}
_KV_TILES_SMALL = _KV_TILES | {128: (64, 64, 8, 2)}  # 99 KiB of shared memory, or masks that need registers
_Q_TILES = {64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2)}
_Q_TILES_SMALL = {64: (128, 64, 8, 3), 128: (64, 64, 8, 2), 256: (32, 32, 8, 2)}
_KV_TILES_FLOAT32 = {64: (16, 32, 4, 2), 128: (16, 16, 4, 2), 256: (16, 16, 8, 2)}
_Q_TILES_FLOAT32 = {64: (32, 32, 4, 2), 128: (32, 16, 4, 2), 256: (16, 16, 8, 2)}


def pick_config(arch: Arch, dim: int, dtype: torch.dtype, plain: bool) -> dict[str, dict[str, int]]:
    """Tiles of the launches "delta", "kv" (dK and dV) and "q" (dQ); `plain` is without window and soft cap."""
    block_d = max(16, triton.next_power_of_2(dim))
    size = max(64, block_d)
    if arch.interpreted:
        kv = q = (32, 32, 4, 2)
    elif dtype == torch.float32:
        kv, q = _KV_TILES_FLOAT32[size], _Q_TILES_FLOAT32[size]
    else:
        kv = (_KV_TILES if arch.large_shared and plain else _KV_TILES_SMALL)[size]
        q = (_Q_TILES if arch.large_shared else _Q_TILES_SMALL)[size]
    names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")
    return {
        "delta": {"BLOCK_D": block_d, "BLOCK_M": 32, "num_warps": 4},
        "kv": {"BLOCK_D": block_d, **dict(zip(names, kv, strict=True))},
        "q": {"BLOCK_D": block_d, **dict(zip(names, q, strict=True))},
    }


def flash_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sinks: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and sinks (none: an empty tensor) from those of out [B, Sq, Hq, D] and lse [B, Hq, Sq]."""
    batch, q_len, heads, dim = q.shape
    sequences = batch if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    make = torch.empty if cu_seqlens_q is None else torch.zeros  # rows of no sequence are written by no program
    dq, dk, dv = (make(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    configs = pick_config(current(q.device), dim, q.dtype, window is None and softcap is None)
    launch(
        _delta_kernel, (triton.cdiv(q_len, configs["delta"]["BLOCK_M"]), heads, batch),
        out, grad_out, grad_lse, delta, q_len, *out.stride()[:3], *grad_out.stride()[:3],
        *((0, 0) if grad_lse is None else grad_lse.stride()[:2]), *delta.stride()[:2], D=dim, **configs["delta"],
    )  # fmt: skip
    scores, flags = score_constants(scale, softcap, window)
    lengths = (q_len, k.shape[1])
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grad_out.stride()[:3], *lse.stride()[:2])
    constants = {"GROUP": heads // k.shape[2], "CAUSAL": causal, "D": dim, "DOT": compute_dtype(q.dtype), **flags}
    launch(
        _flash_backward_kv_kernel, (triton.cdiv(max_seqlen_k, configs["kv"]["BLOCK_N"]), k.shape[2], sequences),
        q, k, v, grad_out, lse, delta, dk, dv, cu_seqlens_q, cu_seqlens_k, *lengths, *strides, *dk.stride()[:3],
        scale, *scores, **constants, **configs["kv"],
    )  # fmt: skip
    launch(
        _flash_backward_q_kernel, (triton.cdiv(max_seqlen_q, configs["q"]["BLOCK_M"]), heads, sequences),
        q, k, v, grad_out, lse, delta, dq, cu_seqlens_q, cu_seqlens_k, *lengths, *strides, *dq.stride()[:3],
        scale, *scores, **constants, **configs["q"],
    )  # fmt: skip
    return dq, dk, dv, q.new_empty(0) if sinks is None else _sinks_gradient(sinks, lse, delta)


def _sinks_gradient(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """-sum over rows of p_sink * delta: a sink has probability exp2(sink - lse2) and a value of zero."""
    p = torch.exp2(sinks.float()[None, :, None] * LOG2E.value - lse)
    p = torch.where(lse == float("-inf"), 0.0, p)  # rows of no sequence
    return -(p * delta).sum((0, 2)).to(sinks.dtype)
