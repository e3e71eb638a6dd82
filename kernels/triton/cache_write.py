"""Writing keys and values to pages, fused with what comes before: y = rope(x / sqrt(mean(x^2) + eps) * w).

One program takes one token and a few heads of one kind: query heads are rotated in place, key and value heads go to the
token's slot, quantized where the cache is: codes = round(y / s), s >= max|y| / largest code, one s a token and head.
Each number is read once. Bound by bandwidth, and at few tokens by the launch, which is why it is one launch. Slots
below zero are padding: nothing is written for them. Arithmetic is float32.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.kv_codes import LARGEST_CODE
from kernels.triton.arch import current
from kernels.triton.common import e4m3_encode, kv_scale_decode, kv_scale_encode, round_half_even, to_dtype
from kernels.triton.launch import launch

_KINDS = {torch.int8: 1, torch.float8_e4m3fn: 2}
_COPY_BYTES = 8192


@triton.jit
def _encode(x, scale, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """float32 [H, n] with scale [H] -> what the cache holds: 0 a floating type, 1 int8, 2 the bits of float8 e4m3."""
    if KIND == 0:
        return to_dtype(x, DTYPE)
    else:
        codes = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))  # correctly rounded: the same codes everywhere
        if KIND == 1:
            return round_half_even(tl.minimum(tl.maximum(codes, -127.0), 127.0)).to(tl.int8)
        else:
            return e4m3_encode(codes)


@triton.jit
def _rotate(a, b, norm_ptrs, cos_ptr, sin_ptr, eps, rest, first, second, tail, mask, mask_tail,
            D: tl.constexpr, ROPE: tl.constexpr, TAIL: tl.constexpr, PAIRS: tl.constexpr):  # fmt: skip
    """Norm over the head, then the rotation of the pairs (a, b); `rest` holds the dimensions that do not rotate."""
    if norm_ptrs is not None:
        squares = tl.sum(a * a, 1) + tl.sum(b * b, 1)
        if TAIL:
            squares += tl.sum(rest * rest, 1)
        root = tl.rsqrt(squares / D + eps)[:, None]
        a = a * root * tl.load(norm_ptrs + first[None, :], mask=mask, other=0.0).to(tl.float32)
        b = b * root * tl.load(norm_ptrs + second[None, :], mask=mask, other=0.0).to(tl.float32)
        if TAIL:
            rest = rest * root * tl.load(norm_ptrs + tail[None, :], mask=mask_tail, other=0.0).to(tl.float32)
    if ROPE:
        pair = tl.arange(0, a.shape[1])
        cos = tl.load(cos_ptr + pair, mask=pair < PAIRS, other=0.0).to(tl.float32)[None, :]
        sin = tl.load(sin_ptr + pair, mask=pair < PAIRS, other=0.0).to(tl.float32)[None, :]
        rotated = a * cos - b * sin
        b = b * cos + a * sin
        a = rotated
    return a, b, rest


@triton.jit
def _write_kernel(
    q_ptr,  # [T, Q_HEADS, D], in place
    k_ptr,  # [T, KV_HEADS, D]
    v_ptr,
    k_cache_ptr,  # [num_blocks, KV_HEADS, PAGE, D]
    v_cache_ptr,
    k_scale_ptr,  # [num_blocks, KV_HEADS, PAGE] or None
    v_scale_ptr,
    slots_ptr,  # [T]
    positions_ptr,  # [T] or None
    cos_ptr,  # [max_position, PAIRS] or None
    sin_ptr,
    norm_ptr,  # [Q_HEADS + KV_HEADS, D] or None
    eps,
    stride_qt, stride_qh, stride_xt, stride_xh, stride_kb, stride_kh, stride_kt, stride_sb, stride_sh, stride_ct,
    stride_nh,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    PAGE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    KIND: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
):  # fmt: skip
    Q_BLOCKS: tl.constexpr = (Q_HEADS + BLOCK_H - 1) // BLOCK_H
    KV_BLOCKS: tl.constexpr = (KV_HEADS + BLOCK_H - 1) // BLOCK_H
    TAIL: tl.constexpr = 2 * PAIRS < D
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    is_q = block < Q_BLOCKS
    is_v = block >= Q_BLOCKS + KV_BLOCKS
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if (slot < 0) & (block >= Q_BLOCKS):
        return
    if is_q:
        x_ptr = q_ptr + token * stride_qt
        stride_h = stride_qh
        heads = Q_HEADS
        head = block * BLOCK_H + tl.arange(0, BLOCK_H)
    else:
        x_ptr = k_ptr + token * stride_xt
        stride_h = stride_xh
        heads = KV_HEADS
        head = (block - Q_BLOCKS) % KV_BLOCKS * BLOCK_H + tl.arange(0, BLOCK_H)
    if is_v:
        x_ptr = v_ptr + token * stride_xt
        cache_ptr = v_cache_ptr
    else:
        cache_ptr = k_cache_ptr

    # A thread holds both numbers of a pair, so that it may overwrite them in place.
    pair = tl.arange(0, BLOCK_PAIRS)
    first = 2 * pair if INTERLEAVED else pair
    second = 2 * pair + 1 if INTERLEAVED else pair + PAIRS
    tail = 2 * PAIRS + tl.arange(0, BLOCK_TAIL)
    mask = (head < heads)[:, None] & (pair < PAIRS)[None, :]
    mask_tail = (head < heads)[:, None] & (tail < D)[None, :]
    x_ptrs = x_ptr + head[:, None] * stride_h
    a = tl.load(x_ptrs + first[None, :], mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_ptrs + second[None, :], mask=mask, other=0.0).to(tl.float32)
    rest = tl.zeros([BLOCK_H, BLOCK_TAIL], tl.float32)
    if TAIL:
        rest = tl.load(x_ptrs + tail[None, :], mask=mask_tail, other=0.0).to(tl.float32)
    if block < Q_BLOCKS + KV_BLOCKS:
        norm_ptrs = None
        if norm_ptr is not None:
            norm_ptrs = norm_ptr + (head + tl.where(is_q, 0, Q_HEADS))[:, None] * stride_nh
        angles = 0
        if cos_ptr is not None:
            angles = tl.load(positions_ptr + token).to(tl.int64) * stride_ct
        a, b, rest = _rotate(
            a, b, norm_ptrs, cos_ptr + angles if cos_ptr is not None else None,
            sin_ptr + angles if cos_ptr is not None else None, eps, rest, first, second, tail, mask, mask_tail,
            D, cos_ptr is not None, TAIL, PAIRS,
        )  # fmt: skip
    if is_q:
        dtype: tl.constexpr = q_ptr.dtype.element_ty
        tl.store(x_ptrs + first[None, :], to_dtype(a, dtype), mask=mask)
        tl.store(x_ptrs + second[None, :], to_dtype(b, dtype), mask=mask)
        if TAIL and norm_ptr is not None:
            tl.store(x_ptrs + tail[None, :], to_dtype(rest, dtype), mask=mask_tail)
        return
    page = slot // PAGE
    offset = slot % PAGE
    scale = tl.full([BLOCK_H], 1.0, tl.float32)
    if k_scale_ptr is not None:
        largest = tl.maximum(tl.max(tl.abs(a), 1), tl.maximum(tl.max(tl.abs(b), 1), tl.max(tl.abs(rest), 1)))
        byte = kv_scale_encode(largest, LARGEST)
        if is_v:
            scale_ptr = v_scale_ptr
        else:
            scale_ptr = k_scale_ptr
        tl.store(scale_ptr + page * stride_sb + head * stride_sh + offset, byte, mask=head < heads)
        scale = kv_scale_decode(byte)
    cache_dtype: tl.constexpr = k_cache_ptr.dtype.element_ty
    out_ptrs = cache_ptr + page * stride_kb + head[:, None].to(tl.int64) * stride_kh + offset * stride_kt
    tl.store(out_ptrs + first[None, :], _encode(a, scale, KIND, cache_dtype), mask=mask)
    tl.store(out_ptrs + second[None, :], _encode(b, scale, KIND, cache_dtype), mask=mask)
    if TAIL:
        tl.store(out_ptrs + tail[None, :], _encode(rest, scale, KIND, cache_dtype), mask=mask_tail)


@triton.jit
def _copy_blocks_kernel(
    k_ptr,  # [num_blocks, ELEMENTS]
    v_ptr,
    source_ptr,  # [N]
    target_ptr,  # [N]
    stride_b,
    ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    source = tl.load(source_ptr + tl.program_id(0)).to(tl.int64)
    target = tl.load(target_ptr + tl.program_id(0)).to(tl.int64)
    if (source < 0) | (target < 0):
        return
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(2) == 0:
        base_ptr = k_ptr
    else:
        base_ptr = v_ptr
    x = tl.load(base_ptr + source * stride_b + offs, mask=offs < ELEMENTS, other=0)
    tl.store(base_ptr + target * stride_b + offs, x, mask=offs < ELEMENTS)


def pick_config(interpreted: bool, kv_heads: int, pairs: int, tail: int) -> dict[str, int]:
    """About a thousand numbers a program: 8 heads of 128, 16 bytes a thread."""
    blocks = {"BLOCK_PAIRS": triton.next_power_of_2(pairs), "BLOCK_TAIL": triton.next_power_of_2(max(tail, 1))}
    heads = 16 if interpreted else max(1, 1024 // (2 * blocks["BLOCK_PAIRS"]))
    return {"BLOCK_H": min(heads, triton.next_power_of_2(kv_heads)), "num_warps": 4} | blocks


def write_kv(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    scales: tuple[Tensor, Tensor] | None = None,
    rope: tuple[Tensor, Tensor, Tensor] | None = None,
    interleaved: bool = False,
    qk_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
) -> None:
    """Write k, v [T, Hkv, D] to their slots; with `rope` = (positions, cos, sin) or `qk_norm`, q [T, Hq, D] in place.

    See `kernels.write_kv` and `kernels.rope_and_write` for the rest. A floating cache ignores no scales: give none.
    """
    tokens, kv_heads, dim = k.shape
    if k.stride() != v.stride() or k_cache.stride() != v_cache.stride() or k_cache.stride(-1) != 1:
        raise ValueError("k and v, and both caches, need the same strides and a last dimension without gaps.")
    dtype, kind = k_cache.dtype, _KINDS.get(k_cache.dtype, 0)
    positions, cos, sin = (None, None, None) if rope is None else rope
    pairs = dim // 2 if cos is None else cos.shape[1]
    if kind == 2:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    k_scale, v_scale = (None, None) if scales is None else scales
    if q is None or (cos is None and qk_norm is None):
        q = k[:, :0]
    config = pick_config(current(k.device).interpreted, kv_heads, pairs, dim - 2 * pairs)
    blocks = triton.cdiv(q.shape[1], config["BLOCK_H"]) + 2 * triton.cdiv(kv_heads, config["BLOCK_H"])
    launch(
        _write_kernel, (tokens, blocks), q, k, v, k_cache, v_cache, k_scale, v_scale, slot_mapping, positions, cos, sin,
        qk_norm, norm_eps, *q.stride()[:2], *k.stride()[:2], *k_cache.stride()[:3],
        *(k_scale.stride()[:2] if k_scale is not None else (0, 0)), 0 if cos is None else cos.stride(0),
        0 if qk_norm is None else qk_norm.stride(0),
        Q_HEADS=q.shape[1], KV_HEADS=kv_heads, D=dim, PAIRS=pairs, PAGE=k_cache.shape[2], INTERLEAVED=interleaved,
        KIND=kind, LARGEST=LARGEST_CODE.get(dtype, 1.0), **config,
    )  # fmt: skip


def copy_blocks(k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor) -> None:
    """Copy blocks source[i] -> target[i] (int [N]) of both caches [num_blocks, ...]; a pair below zero is padding."""
    if k_cache.stride() != v_cache.stride() or not k_cache[:1].is_contiguous():
        raise ValueError("both caches need the same strides and blocks without gaps.")
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[k_cache.itemsize]
    k_cache, v_cache = k_cache.view(words), v_cache.view(words)
    elements = k_cache[:1].numel()
    block = min(triton.next_power_of_2(elements), _COPY_BYTES // k_cache.itemsize)
    grid = (source.shape[0], triton.cdiv(elements, block), 2)
    launch(
        _copy_blocks_kernel, grid, k_cache, v_cache, source, target, k_cache.stride(0), ELEMENTS=elements, BLOCK=block
    )


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    def case(name: str, dim: int, rotary: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
        qkv, cache = empty(64, 48, dim), empty(4096, 8, 64, dim, dtype=dtype)
        if dtype != torch.bfloat16:
            options["scales"] = (empty(4096, 8, 64, dtype=torch.uint8),) * 2
        if rotary:
            tables = (empty(8192, rotary // 2, dtype=torch.float32),) * 2
            options["rope"] = (empty(64, dtype=torch.int64), *tables)
        heads = qkv[:, :32], qkv[:, 32:40], qkv[:, 40:]
        return name, partial(write_kv, *heads, cache, cache, empty(64, dtype=torch.int64), **options)

    yield case("rope", 128, 128)
    yield case("norm rope int8", 128, 128, torch.int8, qk_norm=empty(40, 128))
    yield case("partial interleaved fp8", 96, 64, torch.float8_e4m3fn, interleaved=True)
    yield case("write alone", 80, 0)
    blocks = empty(4096, 8, 64, 128), empty(4096, 8, 64, 128)
    index = empty(16, dtype=torch.int64)
    yield "copy blocks", partial(copy_blocks, *blocks, index, index)
