"""GPTQ (arXiv 2210.17323): columns are rounded one after another, and what is lost is made up for by those to come.

One matrix and the second moment of its inputs in, a `QuantizedWeight` out; knows nothing of models and files.
"""

import torch
from torch import Tensor

from playground.compression.grid import Grid
from playground.compression.hessian import inverse_factor
from playground.quantization.weight import QuantizedWeight

_COLUMNS_AT_ONCE = 128


def gptq(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    act_order: bool = False,
    static_groups: bool = False,
    damping: float = 0.01,
) -> QuantizedWeight:
    """Quantize W [N, K] so that tr((W - Q) H (W - Q)^T) is small, H [K, K] being the second moment of its inputs.

    `act_order` takes the columns with the largest inputs first, while there is still much to make up with. Groups are
    then columns that follow each other in that order (`group_index` says which), or, with `static_groups`, columns
    that lie side by side, with scales from the weights as they were. Columns whose input was never seen are rounded to
    nearest: nothing is known against them. Computes in the dtype of `weight`, float32 or float64.
    """
    n, k = weight.shape
    size = k if grid.group_size == -1 else grid.group_size
    diagonal = hessian.diagonal()
    order = (
        torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(k, device=weight.device)
    )
    group_of = torch.arange(k, device=weight.device) // size
    fixed = act_order and static_groups
    if fixed:
        group_of = order // size
        scales, zeros = grid.fit(grid.groups(weight))
    else:
        scales, zeros = (weight.new_empty(n, -(-k // size)) for _ in range(2))
    factor = inverse_factor(hessian[order][:, order], damping).to(weight.dtype)
    rows = weight.t()[order].contiguous()  # one row is one column of W
    codes = torch.empty(k, n, dtype=torch.uint8, device=weight.device)
    # A group begins where all updates of its columns have been made: where a block begins, or inside one.
    block = _COLUMNS_AT_ONCE if size >= k else max(size, _COLUMNS_AT_ONCE // size * size)
    groups = group_of.tolist()
    for start in range(0, k, block):
        stop = min(start + block, k)
        errors = rows.new_empty(stop - start, n)
        for i in range(start, stop):
            group = groups[i]
            if not fixed and i % size == 0:
                scales[:, group], zeros[:, group] = grid.fit(rows[i : i + size].t())
            scale, zero = scales[:, group], zeros[:, group]
            code = grid.encode(rows[i], scale, zero)
            codes[i] = code
            error = (rows[i] - (code - zero) * scale) / factor[i, i]
            rows[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
            errors[i - start] = error
        rows[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    in_place = torch.empty_like(codes)
    in_place[order] = codes
    group_index = None
    if act_order and not fixed and size < k:
        group_index = torch.empty(k, dtype=torch.int32, device=weight.device)
        group_index[order] = group_of.int()
    return grid.weight(in_place.t().contiguous(), scales, zeros, group_index)
