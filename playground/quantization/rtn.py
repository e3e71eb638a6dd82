"""Round to nearest: the quantizers that need nothing but the matrix.

Every scale is rounded to the type it is stored in before a code is computed with it, so that what was measured is what
is stored. Groups of nothing but zeros have scale 1.
"""

import torch
from torch import Tensor

from playground.quantization.weight import QuantizedWeight

E4M3_MAX = 448.0
_SHARES = [1 - number / 50 for number in range(1, 41)]
_NORM = 2.4


def round_to_nearest(
    weight: Tensor,
    bits: int,
    group_size: int,
    *,
    symmetric: bool,
    scale_dtype: torch.dtype = torch.float32,
    search: bool = False,
) -> QuantizedWeight:
    """W [N, K] in groups of `group_size` columns (-1 is the whole row), which must divide K: see `grid`."""
    scales, zeros = grid(weight, bits, group_size, symmetric=symmetric, scale_dtype=scale_dtype, search=search)
    codes = _codes(_grouped(weight, group_size), scales, zeros, bits).to(torch.uint8).flatten(1)
    return QuantizedWeight(codes, scales, bits, group_size, zeros)


def grid(
    weight: Tensor,
    bits: int,
    group_size: int,
    *,
    symmetric: bool,
    scale_dtype: torch.dtype = torch.float32,
    search: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scales [N, G] and zeros uint8 [N, G] (None where symmetric) of the groups of W [N, K], with Q = 2^bits - 1.

    Symmetric: 2 max|w| / Q, around the middle code 2^(bits - 1). Asymmetric: (max - min) / Q over the range with 0 in
    it, zero = round(-min / scale), as GPTQ has them (arXiv 2210.17323). `search` shrinks the range of each group, down
    to a fifth, to where the sum of |error|^2.4 is least: what lies outside is clipped, as in GPTQ's own code.
    """
    groups, top = _grouped(weight, group_size), 2**bits - 1
    low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high

    def fit(share: float) -> tuple[Tensor, Tensor | None]:
        scales = _stored((high - low) * share / top, scale_dtype)
        return scales, None if symmetric else (low * -share / scales.float()).round_().clamp_(0, top).to(torch.uint8)

    scales, zeros = fit(1.0)
    if not search:
        return scales, zeros
    least = _loss(groups, scales, zeros, bits)
    for share in _SHARES:
        others = fit(share)
        loss = _loss(groups, *others, bits)
        better = loss < least
        least, scales = torch.where(better, loss, least), torch.where(better, others[0], scales)
        if zeros is not None and others[1] is not None:
            zeros = torch.where(better, others[1], zeros)
    return scales, zeros


def _codes(groups: Tensor, scales: Tensor, zeros: Tensor | None, bits: int) -> Tensor:
    """[N, G, group size], whole numbers in float32."""
    middle = 2.0 ** (bits - 1) if zeros is None else zeros.float()[..., None]
    return (groups / scales.float()[..., None]).round_().add_(middle).clamp_(0, 2**bits - 1)


def _loss(groups: Tensor, scales: Tensor, zeros: Tensor | None, bits: int) -> Tensor:
    """[N, G]: what `grid` makes least."""
    middle = 2.0 ** (bits - 1) if zeros is None else zeros.float()[..., None]
    rounded = (_codes(groups, scales, zeros, bits) - middle) * scales.float()[..., None]
    return rounded.sub_(groups).abs_().pow_(_NORM).sum(-1)


def int8_rows(weight: Tensor, *, scale_dtype: torch.dtype = torch.float32) -> QuantizedWeight:
    """W [N, K] as whole numbers from -127 to 127 times max|w| / 127 of each row: what int8 products are done with."""
    scales = _stored(weight.float().abs().amax(-1, keepdim=True) / 127, scale_dtype)
    codes = (weight.float() / scales.float()).round_().clamp_(-127, 127).add_(128).to(torch.uint8)
    return QuantizedWeight(codes, scales, 8, -1)


def fp8_rows(weight: Tensor, *, scale_dtype: torch.dtype = torch.float32) -> QuantizedWeight:
    """W [N, K] as float8 e4m3 times max|w| / 448 of each row."""
    scales = _stored(weight.float().abs().amax(-1, keepdim=True) / E4M3_MAX, scale_dtype)
    numbers = (weight.float() / scales.float()).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return QuantizedWeight(numbers.view(torch.uint8), scales, 8, -1, kind="fp8")


def _grouped(weight: Tensor, group_size: int) -> Tensor:
    """[N, K] -> float32 [N, G, group size]. ValueError where the groups do not divide K."""
    size = weight.shape[1] if group_size == -1 else group_size
    if weight.shape[1] % size:
        raise ValueError(f"groups of {size} do not divide {weight.shape[1]} columns.")
    return weight.float().unflatten(1, (-1, size))


def _stored(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales in the type they are kept in, 1 where they vanish. ValueError where weights are not finite."""
    scales = scales.to(dtype)
    if not bool(torch.isfinite(scales).all()):
        raise ValueError("the matrix has values that are not finite.")
    return torch.where(scales == 0, 1, scales)
