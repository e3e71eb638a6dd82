"""GPTQ (arXiv 2210.17323): columns are rounded one after another, and what is lost is made up for by those to come.

One matrix and the second moment of its inputs in, a `QuantizedWeight` out; knows nothing of models and files.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from playground.compression.hessian import inverse_factor
from playground.config import QuantizationConfig
from playground.quantization.rtn import grid, round_to_nearest
from playground.quantization.weight import QuantizedWeight

_COLUMNS_AT_ONCE = 128


def gptq(
    weight: Tensor, hessian: Tensor, config: QuantizationConfig, *, scale_dtype: torch.dtype = torch.float16
) -> QuantizedWeight:
    """Quantize W [N, K] so that tr((W - Q) H (W - Q)^T) is small, H [K, K] being the second moment of its inputs.

    `act_order` takes the columns with the largest inputs first, while there is still much to make up with. Groups are
    then columns that lie side by side all the same, with scales from the weights as they were; without `static_groups`
    they are columns that follow each other in that order (`group_index` says which), with scales from the weights as
    they are when it is their turn. `scale_search` is for these scales. Columns whose input was never seen are rounded
    to nearest: nothing is known against them. Computes in the dtype of `weight`, float32 or float64.
    """
    n, k = weight.shape
    size = k if config.group_size == -1 else config.group_size
    fixed, top, middle = config.act_order and config.static_groups, 2**config.bits - 1, 2.0 ** (config.bits - 1)
    order = torch.arange(k, device=weight.device)
    if config.act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    groups = (order if fixed else torch.arange(k, device=weight.device)) // size

    how: dict[str, Any] = {
        "symmetric": config.symmetric, "scale_dtype": scale_dtype, "search": config.scale_search,
    }  # fmt: skip

    def fit(columns: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        scale, zero = grid(columns, config.bits, group_size, **how)
        scale = scale.to(weight.dtype)
        return scale, torch.full_like(scale, middle) if zero is None else zero.to(weight.dtype)

    if fixed:
        scales, zeros = fit(weight, size)
    else:
        scales, zeros = (weight.new_empty(n, k // size) for _ in range(2))
    factor = inverse_factor(hessian[order][:, order], config.damping).to(weight.dtype)
    rows = weight.t()[order].contiguous()  # one row is one column of W
    codes = torch.empty(k, n, dtype=torch.uint8, device=weight.device)
    # A group begins where all updates of its columns have been made: where a block begins, or inside one.
    block = _COLUMNS_AT_ONCE if size >= k else max(size, _COLUMNS_AT_ONCE // size * size)
    for start in range(0, k, block):
        stop = min(start + block, k)
        errors = rows.new_empty(stop - start, n)
        for i, group in enumerate(groups[start:stop].tolist(), start):
            if not fixed and i % size == 0:
                scales[:, [group]], zeros[:, [group]] = fit(rows[i : i + size].t(), -1)
            scale, zero = scales[:, group], zeros[:, group]
            code = ((rows[i] / scale).round_() + zero).clamp_(0, top)
            codes[i] = code
            errors[i - start] = error = (rows[i] - (code - zero) * scale) / factor[i, i]
            rows[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
        rows[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    back = torch.argsort(order)
    ordered = config.act_order and not fixed and size < k
    result = QuantizedWeight(
        codes[back].t().contiguous(),
        scales.to(scale_dtype),
        config.bits,
        config.group_size,
        zeros=None if config.symmetric else zeros.to(torch.uint8),
        group_index=groups[back].int() if ordered else None,
    )
    columns = weight[:, order] if ordered else weight
    nearest = round_to_nearest(columns, config.bits, config.group_size, **how)
    if ordered:
        nearest = replace(nearest, codes=nearest.codes[:, back], group_index=result.group_index)
    return _better_rows(result, nearest, weight, hessian)


def _better_rows(result: QuantizedWeight, other: QuantizedWeight, weight: Tensor, hessian: Tensor) -> QuantizedWeight:
    """`result`, but the rows of `other` where these make the smaller error.

    Going greedily from column to column has no bound: with two bits and few columns a row may end up worse than
    rounded to nearest, its scales having grown with what was put on the last columns.
    """
    errors = []
    for each in (result, other):
        difference = each.dequantize(weight.dtype) - weight
        errors.append(((difference @ hessian) * difference).sum(1, keepdim=True))
    worse = errors[1] < errors[0]
    return replace(
        result,
        codes=torch.where(worse, other.codes, result.codes),
        scales=torch.where(worse, other.scales, result.scales),
        zeros=None if result.zeros is None or other.zeros is None else torch.where(worse, other.zeros, result.zeros),
    )
