"""Exact top_k and top_p without a sort: where in a row's order of logits the kept tokens end.

The cut of a row is the smallest int32 order key c so that fewer than k tokens (top_k), or less than p of the weight
(top_p), lie above it; of the tokens at c itself those with the smallest ids stay. It is found by bisection on the key:
at most 32 rounds, each a count or a sum of weights over the candidates, and fewer because both ends of the interval
move on to the next key that exists. Candidates are the tokens above the highest of four pivots that surely reaches k
or p, copied next to each other in the order of their ids: the rounds then read a few hundred numbers that stay in L1.
Where no pivot is enough, or too many tokens are above it, they read the row itself: slower, and as exact.
"""

import triton
import triton.language as tl

from kernels.triton.row_passes import key_value, order_key, row_largest, usable

NO_CUT = tl.constexpr(-(2**31))
_LEAST = tl.constexpr(-(2**31))
_MOST = tl.constexpr(2**31 - 1)
_MINUS_INF = tl.constexpr(float("-inf"))
# The masses above pivots are float32 sums, off by 1e-5 at most: a pivot must hold a little more than p.
_MARGIN = tl.constexpr(1.00003)


@triton.jit
def _pivot_value(pivot):
    """Scaled logits of the pivots 0 to 3; number 4 is below everything."""
    low = tl.where(pivot == 2, -10.0, tl.where(pivot == 3, -16.0, _MINUS_INF))
    return tl.where(pivot == 0, -3.0, tl.where(pivot == 1, -6.0, low))


@triton.jit
def _total(sums_ptr, row, num_groups, BLOCK: tl.constexpr):
    """Weight of a whole row, float64, in one fixed order."""
    lanes = tl.zeros([BLOCK], tl.float64)
    for start in range(0, num_groups, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        lanes += tl.load(sums_ptr + row * num_groups + offs, mask=offs < num_groups, other=0.0)
    return tl.sum(lanes, 0)


@triton.jit
def _compact_kernel(
    logits_ptr,  # [R, V]
    part_max_ptr,  # [R, splits] float32
    part_id_ptr,  # [R, splits] int32
    temperature_ptr,  # [R] float64
    floor_ptr,  # [R] float64
    top_k_ptr,  # [R] int64
    top_p_ptr,  # [R] float64
    sums_ptr,  # [R, groups] float64
    counts_ptr,  # [R, splits, 4] int32
    masses_ptr,  # [R, splits, 4] float64
    list_ptr,  # [R, capacity] float32: candidates' logits
    list_id_ptr,  # [R, capacity] int32
    list_size_ptr,  # [R] int32, -1: the row itself is the list
    vocab,
    stride_l,
    num_groups,
    capacity,
    tiles,
    SPLITS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    floor = tl.load(floor_ptr + row)
    top, _best = row_largest(part_max_ptr, part_id_ptr, row, SPLITS)
    if (temperature <= 0) | (~usable(top)) | ((top_k <= 0) & (top_p >= 1)):
        return
    total = _total(sums_ptr, row, num_groups, BLOCK_N)
    parts = tl.arange(0, SPLITS)
    pivot, size, offset = 4, -1, 0
    for i in tl.static_range(3, -1, -1):  # from the lowest pivot up: the last that is enough is taken
        counts = tl.load(counts_ptr + (row * SPLITS + parts) * 4 + i)
        count = tl.sum(counts, 0)
        mass = tl.sum(tl.load(masses_ptr + (row * SPLITS + parts) * 4 + i), 0)
        enough = ((top_k > 0) & (count >= top_k)) | ((top_k <= 0) & (mass >= top_p * total * _MARGIN))
        taken = (enough | (floor >= _pivot_value(i))) & (count <= capacity)
        pivot = tl.where(taken, i, pivot)
        size = tl.where(taken, count, size)
        offset = tl.where(taken, tl.sum(tl.where(parts < split, counts, 0), 0), offset)
    if split == 0:
        tl.store(list_size_ptr + row, size)
    if size < 0:
        return
    lowest = _pivot_value(pivot)
    for tile in range(tiles):
        ids = (split * tiles + tile) * BLOCK_V + tl.arange(0, BLOCK_V)
        inside = ids < vocab
        x = tl.load(logits_ptr + row * stride_l + ids, mask=inside, other=_MINUS_INF).to(tl.float32)
        scaled = (x.to(tl.float64) - top.to(tl.float64)) / temperature
        keep = (inside & (scaled >= floor) & (scaled >= lowest)).to(tl.int32)
        place = row * capacity + offset + tl.cumsum(keep, 0) - keep
        tl.store(list_ptr + place, x, mask=keep > 0)
        tl.store(list_id_ptr + place, ids, mask=keep > 0)
        offset += tl.sum(keep, 0)


@triton.jit
def _candidates(
    logits_ptr, list_ptr, list_id_ptr, start, in_list, in_row, top, temperature, floor, BLOCK_N: tl.constexpr
):
    """(order key, id, scaled logit, whether it counts) of a tile of candidates: the list, or else the row."""
    offs = start + tl.arange(0, BLOCK_N)
    x = tl.load(list_ptr + offs, mask=offs < in_list, other=0.0)
    x = tl.where(offs < in_row, tl.load(logits_ptr + offs, mask=offs < in_row, other=0.0).to(tl.float32), x)
    ids = tl.where(offs < in_row, offs, tl.load(list_id_ptr + offs, mask=offs < in_list, other=0))
    scaled = (x.to(tl.float64) - top.to(tl.float64)) / temperature
    return order_key(x), ids, scaled, (offs < in_list + in_row) & (scaled >= floor)


@triton.jit
def _above(
    logits_ptr, list_ptr, list_id_ptr, in_list, in_row, top, temperature, floor, key,
    MASS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(how many candidates have a larger key or how heavy they are, the largest key up to this, the smallest above)."""
    lanes = tl.zeros([BLOCK_N], tl.float64 if MASS else tl.int32)
    below = tl.full([BLOCK_N], _LEAST, tl.int32)
    beyond = tl.full([BLOCK_N], _MOST, tl.int32)
    for start in range(0, in_list + in_row, BLOCK_N):
        keys, _ids, scaled, counts = _candidates(
            logits_ptr, list_ptr, list_id_ptr, start, in_list, in_row, top, temperature, floor, BLOCK_N
        )
        above = counts & (keys > key)
        if MASS:
            lanes += tl.where(above, tl.exp(scaled), 0.0)
        else:
            lanes += above.to(tl.int32)
        below = tl.maximum(below, tl.where(counts & (keys <= key), keys, _LEAST))
        beyond = tl.minimum(beyond, tl.where(above, keys, _MOST))
    return tl.sum(lanes, 0), tl.max(below, 0), tl.min(beyond, 0)


@triton.jit
def _search(
    logits_ptr, list_ptr, list_id_ptr, in_list, in_row, top, temperature, floor, low, high, target,
    MASS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The smallest candidate's key in [low, high] that less than `target` is above, by number or by weight."""
    while low < high:
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, rounded down, without overflow
        above, below, beyond = _above(
            logits_ptr, list_ptr, list_id_ptr, in_list, in_row, top, temperature, floor, middle, MASS, BLOCK_N
        )
        enough = above < target
        high = tl.where(enough, tl.maximum(below, low), high)
        low = tl.where(enough, low, beyond)
    return low


@triton.jit
def _last_tie(
    logits_ptr, list_ptr, list_id_ptr, in_list, in_row, top, temperature, floor, key, ties, BLOCK_N: tl.constexpr
):
    """The id of the last of so many candidates with this key: they are in the order of ids."""
    seen, last_tie = 0, _MOST
    for start in range(0, in_list + in_row, BLOCK_N):
        keys, ids, _scaled, counts = _candidates(
            logits_ptr, list_ptr, list_id_ptr, start, in_list, in_row, top, temperature, floor, BLOCK_N
        )
        tied = (counts & (keys == key)).to(tl.int32)
        rank = seen + tl.cumsum(tied, 0)
        last_tie = tl.minimum(last_tie, tl.min(tl.where((tied > 0) & (rank == ties), ids, _MOST), 0))
        seen += tl.sum(tied, 0)
    return last_tie


@triton.jit
def _cut_kernel(
    logits_ptr,  # [R, V]
    part_max_ptr,  # [R, splits] float32
    part_id_ptr,  # [R, splits] int32
    temperature_ptr,  # [R] float64
    floor_ptr,  # [R] float64
    top_k_ptr,  # [R] int64
    top_p_ptr,  # [R] float64
    sums_ptr,  # [R, groups] float64
    list_ptr,  # [R, capacity] float32
    list_id_ptr,  # [R, capacity] int32
    list_size_ptr,  # [R] int32
    cut_ptr,  # [R] int32, out
    last_tie_ptr,  # [R] int32, out
    vocab,
    stride_l,
    num_groups,
    capacity,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tl.store(cut_ptr + row, NO_CUT)
    tl.store(last_tie_ptr + row, _MOST)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    floor = tl.load(floor_ptr + row)
    top, _best = row_largest(part_max_ptr, part_id_ptr, row, SPLITS)
    if (temperature <= 0) | (~usable(top)) | ((top_k <= 0) & (top_p >= 1)):
        return
    size = tl.load(list_size_ptr + row)
    in_list, in_row = tl.maximum(size, 0), tl.where(size < 0, vocab, 0)  # one of them is 0
    row_ptr = logits_ptr + row * stride_l
    list_ptr += row * capacity
    list_id_ptr += row * capacity

    # One look at all: how many there are, and between which keys.
    lowest, number = order_key(top), 0
    for start in range(0, in_list + in_row, BLOCK_N):
        keys, _ids, _scaled, counts = _candidates(
            row_ptr, list_ptr, list_id_ptr, start, in_list, in_row, top, temperature, floor, BLOCK_N
        )
        lowest = tl.minimum(lowest, tl.min(tl.where(counts, keys, _MOST), 0))
        number += tl.sum(counts.to(tl.int32), 0)

    cut, ties = lowest - 1, 0
    total = _total(sums_ptr, row, num_groups, BLOCK_N)
    if (top_k > 0) & (top_k <= number):
        cut = _search(
            row_ptr, list_ptr, list_id_ptr, in_list, in_row, top, temperature, floor, lowest, order_key(top), top_k,
            False, BLOCK_N,
        )  # fmt: skip
        above, _below, _beyond = _above(
            row_ptr, list_ptr, list_id_ptr, in_list, in_row, top, temperature, floor, cut, False, BLOCK_N
        )
        ties = (top_k - above).to(tl.int32)
        total, _below, _beyond = _above(
            row_ptr, list_ptr, list_id_ptr, in_list, in_row, top, temperature, floor, cut, True, BLOCK_N
        )
        total += ties * tl.exp((key_value(cut).to(tl.float64) - top.to(tl.float64)) / temperature)
    if top_p < 1:
        low = _search(
            row_ptr, list_ptr, list_id_ptr, in_list, in_row, top, temperature, floor, tl.maximum(cut, lowest),
            order_key(top), top_p * total, True, BLOCK_N,
        )  # fmt: skip
        above, _below, _beyond = _above(
            row_ptr, list_ptr, list_id_ptr, in_list, in_row, top, temperature, floor, low, True, BLOCK_N
        )
        weight = tl.exp((key_value(low).to(tl.float64) - top.to(tl.float64)) / temperature)
        wanted = tl.ceil((top_p * total - above) / tl.maximum(weight, 1e-300))
        wanted = tl.minimum(tl.maximum(wanted, 1.0), 2147483647.0).to(tl.int32)
        ties = tl.where((low == cut) & (ties > 0), tl.minimum(wanted, ties), wanted)
        cut = low
    if cut < lowest:
        return
    tl.store(cut_ptr + row, cut)
    last_tie = _last_tie(row_ptr, list_ptr, list_id_ptr, in_list, in_row, top, temperature, floor, cut, ties, BLOCK_N)
    tl.store(last_tie_ptr + row, last_tie)
