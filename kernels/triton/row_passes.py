"""Passes over rows of logits: the largest, sums of weights by group of 256 ids, the draw, and probabilities.

weight = exp((logit - largest) / temperature) in float64. Every group is summed by one program in one order, however
many programs a row is split over, so that a row draws the same alone and in any batch.
"""

import triton
import triton.language as tl

from kernels import noise as torch_noise
from kernels.triton.noise import gumbel, row_key

GROUP = tl.constexpr(256)
TOKEN = tl.constexpr(torch_noise.TOKEN)
GROUP_CHOICE = tl.constexpr(torch_noise.GROUP)
_NO_ID = tl.constexpr(2**31 - 1)
_MINUS_INF = tl.constexpr(float("-inf"))


@triton.jit
def _largest_kernel(
    logits_ptr,  # [R, V]
    part_max_ptr,  # [R, splits] float32
    part_id_ptr,  # [R, splits] int32
    vocab,
    stride_l,
    tiles,
    BLOCK_V: tl.constexpr,
):
    """The largest logit of each part of a row and the smallest id that has it; NaN where there is one."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = split * tiles * BLOCK_V
    best = tl.full([BLOCK_V], _MINUS_INF, tl.float32)
    best_id = first + tl.arange(0, BLOCK_V)
    nan = tl.zeros([BLOCK_V], tl.int32)
    for tile in range(tiles):
        ids = first + tile * BLOCK_V + tl.arange(0, BLOCK_V)
        x = tl.load(logits_ptr + row * stride_l + ids, mask=ids < vocab, other=_MINUS_INF).to(tl.float32)
        nan = nan | (x != x).to(tl.int32)
        better = x > best
        best = tl.where(better, x, best)
        best_id = tl.where(better, ids, best_id)
    top = tl.max(best, 0)
    where = tl.min(tl.where(best == top, best_id, _NO_ID), 0)
    at = row * tl.num_programs(1) + split
    tl.store(part_max_ptr + at, tl.where(tl.max(nan, 0) > 0, float("nan"), top))
    tl.store(part_id_ptr + at, where)


@triton.jit
def row_largest(part_max_ptr, part_id_ptr, row, SPLITS: tl.constexpr):
    """(largest logit of a row, NaN if it has one; the smallest id that has it)."""
    at = row * SPLITS + tl.arange(0, SPLITS)
    parts = tl.load(part_max_ptr + at)
    ids = tl.load(part_id_ptr + at)
    nan = tl.max((parts != parts).to(tl.int32), 0) > 0
    top = tl.max(tl.where(parts == parts, parts, _MINUS_INF), 0)
    where = tl.min(tl.where(parts == top, ids, _NO_ID), 0)
    return tl.where(nan, float("nan"), top), where


@triton.jit
def usable(top):
    """Whether a row with this largest logit has a token to draw: it is finite."""
    return tl.abs(top) < float("inf")


@triton.jit
def order_key(x):
    """int32 that are ordered as the float32 are; -0 counts as 0. Its own inverse is `key_value`."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_value(key):
    """The float32 whose `order_key` this is."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def survives(x, ids, cut, last_tie):
    """Whether tokens pass top_k and top_p: they are above the cut, or at it with an id that still stays."""
    key = order_key(x)
    return (key > cut) | ((key == cut) & (ids <= last_tie))


@triton.jit
def _group_sums_kernel(
    logits_ptr,  # [R, V]
    part_max_ptr,  # [R, splits] float32
    part_id_ptr,  # [R, splits] int32
    temperature_ptr,  # [R] float64
    floor_ptr,  # [R] float64
    cut_ptr,  # [R] int32
    last_tie_ptr,  # [R] int32
    sums_ptr,  # [R, groups] float64
    counts_ptr,  # [R, splits, 4] int32
    masses_ptr,  # [R, splits, 4] float64
    vocab,
    stride_l,
    num_groups,
    tiles,
    SPLITS: tl.constexpr,
    SURVEY: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Sums of weights by group. SURVEY: also how many and how heavy the tokens above each pivot are, about. CUT: only
    what survives the cut is summed, in rows that have one."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    top, _ = row_largest(part_max_ptr, part_id_ptr, row, SPLITS)
    cut = tl.load(cut_ptr + row) if CUT else -(2**31)
    if (temperature <= 0) | (~usable(top)):
        return
    if CUT:
        if cut == -(2**31):
            return
        last_tie = tl.load(last_tie_ptr + row)
    floor = tl.load(floor_ptr + row)
    if SURVEY:
        c3 = tl.zeros([BLOCK_G, GROUP], tl.int32)
        c6, c10, c16 = c3, c3, c3
        m3 = tl.zeros([BLOCK_G, GROUP], tl.float32)
        m6, m10, m16 = m3, m3, m3
    for tile in range(tiles):
        groups = (split * tiles + tile) * BLOCK_G + tl.arange(0, BLOCK_G)
        ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        inside = ids < vocab
        x = tl.load(logits_ptr + row * stride_l + ids, mask=inside, other=_MINUS_INF).to(tl.float32)
        scaled = (x.to(tl.float64) - top.to(tl.float64)) / temperature
        keep = inside & (scaled >= floor)
        if CUT:
            keep = keep & survives(x, ids, cut, last_tie)
        if CUT and tl.max(keep.to(tl.int32)) == 0:  # most tiles: their exponentials are saved
            tl.store(sums_ptr + row * num_groups + groups, tl.zeros([BLOCK_G], tl.float64), mask=groups < num_groups)
        else:
            weight = tl.where(keep, tl.exp(scaled), 0.0)
            tl.store(sums_ptr + row * num_groups + groups, tl.sum(weight, 1), mask=groups < num_groups)
            if SURVEY:
                light = weight.to(tl.float32)
                a3, a6, a10, a16 = scaled >= -3, scaled >= -6, scaled >= -10, scaled >= -16
                c3 += (keep & a3).to(tl.int32)
                c6 += (keep & a6).to(tl.int32)
                c10 += (keep & a10).to(tl.int32)
                c16 += (keep & a16).to(tl.int32)
                m3 += tl.where(a3, light, 0.0)
                m6 += tl.where(a6, light, 0.0)
                m10 += tl.where(a10, light, 0.0)
                m16 += tl.where(a16, light, 0.0)
    if SURVEY:
        at = (row * SPLITS + split) * 4
        tl.store(counts_ptr + at, tl.sum(c3))
        tl.store(counts_ptr + at + 1, tl.sum(c6))
        tl.store(counts_ptr + at + 2, tl.sum(c10))
        tl.store(counts_ptr + at + 3, tl.sum(c16))
        tl.store(masses_ptr + at, tl.sum(m3).to(tl.float64))
        tl.store(masses_ptr + at + 1, tl.sum(m6).to(tl.float64))
        tl.store(masses_ptr + at + 2, tl.sum(m10).to(tl.float64))
        tl.store(masses_ptr + at + 3, tl.sum(m16).to(tl.float64))


@triton.jit
def pick_group(sums_ptr, row, num_groups, key, BLOCK_N: tl.constexpr):
    """Argmax of log(sum) + noise over the groups of a row: (the group [], whether any has weight)."""
    best = tl.full([BLOCK_N], _MINUS_INF, tl.float64)
    best_group = tl.zeros([BLOCK_N], tl.int32)
    for start in range(0, num_groups, BLOCK_N):
        groups = start + tl.arange(0, BLOCK_N)
        sums = tl.load(sums_ptr + row * num_groups + groups, mask=groups < num_groups, other=0.0)
        score = tl.where(sums > 0, tl.log(tl.where(sums > 0, sums, 1.0)) + gumbel(key, groups), _MINUS_INF)
        better = score > best
        best = tl.where(better, score, best)
        best_group = tl.where(better, groups, best_group)
    top = tl.max(best, 0)
    return tl.min(tl.where(best == top, best_group, _NO_ID), 0), top > _MINUS_INF


@triton.jit
def _draw_kernel(
    logits_ptr,  # [R, V]
    part_max_ptr,  # [R, splits] float32
    part_id_ptr,  # [R, splits] int32
    temperature_ptr,  # [R] float64
    floor_ptr,  # [R] float64
    seed_ptr,  # [R] int64
    position_ptr,  # [R] int64
    cut_ptr,  # [R] int32
    last_tie_ptr,  # [R] int32
    sums_ptr,  # [R, groups] float64
    token_ptr,  # [R] int64, out
    largest_ptr,  # [R] float32, out
    vocab,
    stride_l,
    num_groups,
    SPLITS: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    top, token = row_largest(part_max_ptr, part_id_ptr, row, SPLITS)
    tl.store(largest_ptr + row, top)
    temperature = tl.load(temperature_ptr + row)
    if ~usable(top):
        tl.store(token_ptr + row, -1)
    elif temperature <= 0:
        tl.store(token_ptr + row, token)
    else:
        seed, position = tl.load(seed_ptr + row), tl.load(position_ptr + row)
        group, _ = pick_group(sums_ptr, row, num_groups, row_key(seed, position, GROUP_CHOICE), BLOCK_N)
        ids = group * GROUP + tl.arange(0, GROUP)
        inside = ids < vocab
        x = tl.load(logits_ptr + row * stride_l + ids, mask=inside, other=_MINUS_INF).to(tl.float32)
        scaled = (x.to(tl.float64) - top.to(tl.float64)) / temperature
        keep = inside & (scaled >= tl.load(floor_ptr + row))
        if CUT:
            keep = keep & survives(x, ids, tl.load(cut_ptr + row), tl.load(last_tie_ptr + row))
        score = tl.where(keep, scaled + gumbel(row_key(seed, position, TOKEN), ids), _MINUS_INF)
        drawn = tl.min(tl.where(score == tl.max(score, 0), ids, _NO_ID), 0)
        tl.store(token_ptr + row, drawn)


@triton.jit
def _probabilities_kernel(
    logits_ptr,  # [R, V]
    part_max_ptr,  # [R, splits] float32
    part_id_ptr,  # [R, splits] int32
    temperature_ptr,  # [R] float64
    floor_ptr,  # [R] float64
    cut_ptr,  # [R] int32
    last_tie_ptr,  # [R] int32
    sums_ptr,  # [R, groups] float64
    out_ptr,  # [R, V] float32
    vocab,
    stride_l,
    num_groups,
    tiles,
    SPLITS: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    top, best = row_largest(part_max_ptr, part_id_ptr, row, SPLITS)
    floor = tl.load(floor_ptr + row)
    lanes = tl.zeros([BLOCK_N], tl.float64)
    if temperature > 0:
        for start in range(0, num_groups, BLOCK_N):
            groups = start + tl.arange(0, BLOCK_N)
            lanes += tl.load(sums_ptr + row * num_groups + groups, mask=groups < num_groups, other=0.0)
    total = tl.sum(lanes, 0)
    for tile in range(tiles):
        ids = (split * tiles + tile) * BLOCK_V + tl.arange(0, BLOCK_V)
        inside = ids < vocab
        p = (ids == best).to(tl.float64)
        if temperature > 0:
            x = tl.load(logits_ptr + row * stride_l + ids, mask=inside, other=_MINUS_INF).to(tl.float32)
            scaled = (x.to(tl.float64) - top.to(tl.float64)) / temperature
            keep = inside & (scaled >= floor)
            if CUT:
                keep = keep & survives(x, ids, tl.load(cut_ptr + row), tl.load(last_tie_ptr + row))
            p = tl.where(keep, tl.exp(scaled), 0.0) / total
        tl.store(out_ptr + row * vocab + ids, tl.where(usable(top), p, float("nan")).to(tl.float32), mask=inside)
