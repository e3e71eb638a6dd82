"""What the two paged attention kernels share: the step over one tile of keys, and the checks of their arguments.

Row m of a program is query token m // G of its tile, head m % G of the KV head's group. Scores are kept in base 2. Page
ids become int64 before they are multiplied: a cache of 2^31 elements is 4 GiB in bfloat16, which is an ordinary one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.paged import why_not_paged
from kernels.triton.arch import Arch, current
from kernels.triton.common import LOG2E, compute_dtype, e4m3_decode, kv_scale_decode, tanh, to_dtype

TREE_TOKENS = tl.constexpr(64)
"""Query tokens that one word of a tree mask covers."""
KV_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn)
_KV_NAMES = "float32, float16, bfloat16, int8, float8_e4m3fn"


@triton.jit
def page_ids(table_ptr, start, kv_end, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Pages of the tokens [start, start + BLOCK_N): one id where they share a page, else one a token; int64.

    Loops carry this one tile ahead: with the load inside the tile the pipeline would prefetch half as deep.
    """
    if PAGE % BLOCK_N == 0:
        return tl.load(table_ptr + start // PAGE, mask=start < kv_end, other=0).to(tl.int64)
    else:
        offs_n = start + tl.arange(0, BLOCK_N)
        return tl.load(table_ptr + offs_n // PAGE, mask=offs_n < kv_end, other=0).to(tl.int64)


@triton.jit
def token_ptrs(ptr, page, start, stride_b, stride_t, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_N]: where the tokens [start, start + BLOCK_N) begin. Within one page 32 bits suffice for offsets."""
    offs = tl.arange(0, BLOCK_N)
    if PAGE % BLOCK_N == 0:
        return ptr + page * stride_b + (start % PAGE) * stride_t + offs * stride_t
    else:
        return ptr + page * stride_b + ((start + offs) % PAGE) * stride_t


@triton.jit
def load_kv(ptrs, mask, DOT: tl.constexpr, MASKED: tl.constexpr, FP8_BITS: tl.constexpr):
    """Keys or values as operands of a dot; FP8_BITS: the cache holds float8 e4m3 as bytes."""
    if MASKED:
        x = tl.load(ptrs, mask=mask, other=0.0)
    else:
        x = tl.load(ptrs)
    if FP8_BITS:
        return e4m3_decode(x).to(DOT)
    else:
        return x.to(DOT)


@triton.jit
def count_bits(x):
    """Number of ones of each int64."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x * 0x0101010101010101) >> 56) & 0xFF


@triton.jit
def seen(offs_n, kv_end, context, q_len, token, tree, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """bool [BLOCK_M, BLOCK_N]: which of the keys offs_n each query row sees.

    `token` [BLOCK_M] is the row's number among its sequence's query tokens, `tree` its mask over them or None.
    """
    ok = (offs_n < kv_end)[None, :] & (token >= 0)[:, None]
    position = context + token
    if CAUSAL:
        before = offs_n[None, :] <= position[:, None]
        if tree is not None:
            among = offs_n - context  # number of the key among the query tokens
            branching = q_len <= TREE_TOKENS
            shift = tl.minimum(tl.maximum(among, 0), TREE_TOKENS - 1).to(tl.int64)
            ancestor = ((tree[:, None] >> shift[None, :]) & 1) == 1
            ok = ok & ((among < 0)[None, :] | tl.where(branching, ancestor, before))
            position = tl.where(branching, context + count_bits(tree).to(tl.int32) - 1, position)
        else:
            ok = ok & before
    if WINDOWED:
        near = offs_n[None, :] > position[:, None] - window
        if tree is not None:  # no window is narrower than a tree is deep
            near = near | ((offs_n >= context) & (q_len <= TREE_TOKENS))[None, :]
        ok = ok & near
    return ok


@triton.jit
def attend_tile(
    acc,
    m_i,
    l_i,
    q,  # [BLOCK_M, BLOCK_D]
    page,  # from page_ids
    start,
    kv_end,
    context,
    q_len,
    token,  # [BLOCK_M]
    tree,  # [BLOCK_M] or None
    k_ptr,  # the program's KV head: [num_blocks, PAGE, D]
    v_ptr,
    k_scale_ptr,  # [num_blocks, PAGE] or None
    v_scale_ptr,
    stride_kb,
    stride_kt,
    stride_sb,
    qk_scale,
    softcap,
    window,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
    FP8_BITS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One step of the online softmax over the keys [start, start + BLOCK_N): the new (acc, m_i, l_i).

    Scales of quantized keys and values multiply columns of S and P, never the tile itself. Values beyond kv_end are
    not loaded: a weight of zero would not keep a NaN there out of the sum.
    """
    offs_n = start + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    bound = kv_end if MASKED else start + BLOCK_N
    mask = (offs_n < bound)[:, None] & (offs_d < D)[None, :]
    partial: tl.constexpr = MASKED or D != BLOCK_D
    k_ptrs = token_ptrs(k_ptr, page, start, stride_kb, stride_kt, PAGE, BLOCK_N)
    k = load_kv(k_ptrs[None, :] + offs_d[:, None], tl.trans(mask), DOT, partial, FP8_BITS)
    s = tl.dot(q, k, input_precision="ieee")
    if k_scale_ptr is not None:
        scale_ptrs = token_ptrs(k_scale_ptr, page, start, stride_sb, 1, PAGE, BLOCK_N)
        s = s * kv_scale_decode(tl.load(scale_ptrs, mask=offs_n < kv_end, other=0))[None, :]
    factor = qk_scale
    if SOFTCAP:
        s = tanh(s * qk_scale)
        factor = softcap
    if MASKED:
        s = tl.where(seen(offs_n, kv_end, context, q_len, token, tree, window, CAUSAL, WINDOWED), s, float("-inf"))
    # The factor is positive, so the maximum can be scaled instead of every score: one fused multiply-add each is left.
    m_new = tl.maximum(m_i, tl.max(s, 1) * factor)
    m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(s * factor - m_safe[:, None])
    alpha = tl.exp2(m_i - m_safe)
    l_i = l_i * alpha + tl.sum(p, 1)
    if v_scale_ptr is not None:
        scale_ptrs = token_ptrs(v_scale_ptr, page, start, stride_sb, 1, PAGE, BLOCK_N)
        p = p * kv_scale_decode(tl.load(scale_ptrs, mask=offs_n < kv_end, other=0))[None, :]
    v_ptrs = token_ptrs(v_ptr, page, start, stride_kb, stride_kt, PAGE, BLOCK_N)
    v = load_kv(v_ptrs[:, None] + offs_d[None, :], mask, DOT, partial, FP8_BITS)
    acc = tl.dot(p.to(DOT), v, acc * alpha[:, None], input_precision="ieee")
    return acc, m_new, l_i


@triton.jit
def softmax_start(sinks_ptr, head, row_ok, first, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """(acc, m_i, l_i) before any key; a sink joins the denominator once, in the `first` split."""
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head, mask=row_ok, other=0.0).to(tl.float32) * LOG2E
        m_i = tl.where(first, sink, float("-inf"))
        l_i = tl.where(first, 1.0, tl.zeros([BLOCK_M], tl.float32))
    else:
        m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
        l_i = tl.zeros([BLOCK_M], tl.float32)
    return acc, m_i, l_i


@triton.jit
def store_rows(
    acc, m_i, l_i, out_ptr, lse_ptr, rows, head, split, row_ok,
    stride_ot, stride_oh, stride_os, stride_lt, stride_lh,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """acc / l_i and the base-2 lse of each row; a row that saw nothing is zero with an lse of -inf."""
    offs_d = tl.arange(0, BLOCK_D)
    l_safe = tl.where(l_i == 0.0, 1.0, l_i)
    out_ptrs = out_ptr + rows[:, None] * stride_ot + head[:, None] * stride_oh + split * stride_os + offs_d[None, :]
    out = to_dtype(acc / l_safe[:, None], out_ptr.dtype.element_ty)
    tl.store(out_ptrs, out, mask=row_ok[:, None] & (offs_d < D)[None, :])
    if lse_ptr is not None:
        lse2 = tl.where(l_i == 0.0, float("-inf"), m_i + tl.log2(l_safe))
        tl.store(lse_ptr + rows * stride_lt + head * stride_lh + split, lse2, mask=row_ok)


@dataclass(frozen=True, slots=True)
class PagedShape:
    """What a launcher and a configuration picker need to know of a call."""

    arch: Arch
    tokens: int
    sequences: int
    heads: int
    kv_heads: int
    dim: int
    page: int
    itemsize: int
    """Bytes of one cached number."""
    fp8_bits: bool
    """Whether float8 is decoded from its bits: the hardware, or the interpreter, cannot."""

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def block_d(self) -> int:
        return max(16, triton.next_power_of_2(self.dim))


def inspect(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, scales: Any, arch: Arch) -> PagedShape:
    """The call's shape. Raises ValueError, one sentence, where the kernels cannot take the tensors."""
    tokens, heads, dim = q.shape
    kv_heads, page = k_cache.shape[1], k_cache.shape[2]
    if q.dtype not in KV_DTYPES[:3]:
        raise ValueError(f"queries of {q.dtype} have no Triton kernel: use float32, float16 or bfloat16.")
    if k_cache.dtype not in KV_DTYPES or v_cache.dtype != k_cache.dtype:
        raise ValueError(
            f"caches of {k_cache.dtype} and {v_cache.dtype} cannot be read: use one floating type or int8."
        )
    if k_cache.dtype == torch.int8 and scales is None:
        raise ValueError("an int8 cache needs k_scale and v_scale.")
    if k_cache.stride() != v_cache.stride() or q.stride(-1) != 1 or (dim > 1 and k_cache.stride(-1) != 1):
        raise ValueError("q and the caches need a last dimension without gaps, and both caches the same strides.")
    if page * k_cache.stride(2) >= 2**31:
        raise ValueError(f"a page of {page} tokens spans more than 2^31 elements of the cache: use smaller pages.")
    if (reason := why_not_paged(dim, heads // kv_heads)) is not None:
        raise ValueError(f"the Triton kernels cannot run: {reason}.")
    fp8_bits = k_cache.dtype == torch.float8_e4m3fn and not arch.has_fp8
    return PagedShape(arch, tokens, block_table.shape[0], heads, kv_heads, dim, page, k_cache.itemsize, fp8_bits)


def kv_arguments(
    shape: PagedShape, k_cache: Tensor, v_cache: Tensor, scales: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, tuple[int, int]]:
    """Caches as the kernels read them, and the scales with their strides."""
    if shape.fp8_bits:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    if scales is None:
        return k_cache, v_cache, None, None, (0, 0)
    k_scale, v_scale = scales
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale.shape != k_cache.shape[:3] or scale.dtype != torch.uint8 or scale.stride() != k_scale.stride():
            raise ValueError(f"{name} must be uint8 [num_blocks, Hkv, block_size] = {list(k_cache.shape[:3])}.")
    if k_scale.shape[2] > 1 and k_scale.stride(2) != 1:
        raise ValueError("scales need a last dimension without gaps.")
    return k_cache, v_cache, k_scale, v_scale, (k_scale.stride(0), k_scale.stride(1))


def score_scale(scale: float, softcap: float | None) -> tuple[float, float]:
    """(factor of q k^T, factor of the tanh): base-2 scores, log2(e) folded in once. Raises ValueError below zero."""
    if scale <= 0 or (softcap is not None and softcap <= 0):
        raise ValueError(f"scale={scale} and softcap={softcap} must be positive.")
    log2e = float(LOG2E.value)
    return (scale * log2e, 0.0) if softcap is None else (scale / softcap, softcap * log2e)


def architecture(q: Tensor) -> Arch:
    return current(q.device)


def dot_dtype(q: Tensor) -> tl.dtype:
    return compute_dtype(q.dtype)


def aot_case(
    launcher: Callable[..., Tensor],
    name: str,
    *,
    tokens: int,
    sequences: int,
    dim: int = 128,
    group: int = 4,
    page: int = 64,
    kv_dtype: torch.dtype = torch.bfloat16,
    num_splits: int = 1,
    **options: Any,
) -> tuple[str, Callable[[], object]]:
    """A call on the meta device for compiling ahead of time: eight KV heads, bfloat16 queries."""

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    cache = empty(4096, 8, page, dim, dtype=kv_dtype)
    q = empty(tokens, 8 * group, dim, dtype=torch.float32 if kv_dtype == torch.float32 else torch.bfloat16)
    if kv_dtype in (torch.int8, torch.float8_e4m3fn):
        options["scales"] = (empty(4096, 8, page, dtype=torch.uint8),) * 2
    tensors = (q, cache, cache, empty(sequences, 128), empty(sequences + 1), empty(sequences))
    return name, partial(launcher, *tensors, scale=dim**-0.5, num_splits=num_splits, **options)
