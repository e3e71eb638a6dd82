"""Round to nearest: the grids that integers span, and nf4's. Every method here ends on one of them.

A weight becomes a code by its group's scale and zero: w ~ (code - zero) * scale. Scales are rounded to the 16 bits that
files have for them before codes are found, so that what is measured is what is stored.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.quant_pack import NF4_LEVELS
from playground.quantization.weight import QuantizedWeight

_SMALLEST_SCALE = torch.finfo(torch.float16).tiny


@dataclass(frozen=True)
class Grid:
    """Integers of some bits with a scale, and unless symmetric a zero, for every group of columns."""

    bits: int
    group_size: int
    symmetric: bool
    scale_dtype: torch.dtype = torch.float16

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def groups(self, weight: Tensor) -> Tensor:
        """[N, K] -> [N, G, columns of a group]."""
        return weight.view(weight.shape[0], -1, weight.shape[1] if self.group_size == -1 else self.group_size)

    def fit(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero [...] of groups [..., g]: the range of the weights, 0 included, is the range of the codes."""
        if self.symmetric:
            scale = groups.abs().amax(-1) * 2 / self.top
        else:
            low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
            scale = (high - low) / self.top
        scale = torch.where(scale > 0, scale, 1.0).to(self.scale_dtype).to(groups.dtype).clamp_min(_SMALLEST_SCALE)
        if self.symmetric:
            return scale, torch.full_like(scale, 2 ** (self.bits - 1))
        return scale, (-low / scale).round().clamp(0, self.top)

    def encode(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest codes, in the dtype of the weight."""
        return ((weight / scale).round() + zero).clamp(0, self.top)

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """W [N, K] rounded to nearest."""
        groups = self.groups(weight)
        scale, zero = self.fit(groups)
        codes = self.encode(groups, scale[..., None], zero[..., None])
        return self.weight(codes.to(torch.uint8).view(weight.shape), scale, zero)

    def weight(self, codes: Tensor, scale: Tensor, zero: Tensor, group_index: Tensor | None = None) -> QuantizedWeight:
        """Codes [N, K] on this grid with scales and zeros [N, G]."""
        zeros = None if self.symmetric else zero.to(torch.uint8)
        return QuantizedWeight(
            codes, scale.to(self.scale_dtype), self.bits, self.group_size, zeros=zeros, group_index=group_index
        )


def nf4(weight: Tensor, group_size: int) -> QuantizedWeight:
    """W [N, K] rounded to the nearest level of NormalFloat4 times the group's largest magnitude (arXiv 2305.14314)."""
    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    groups = weight.view(weight.shape[0], -1, weight.shape[1] if group_size == -1 else group_size)
    largest = groups.abs().amax(-1)
    relative = groups * (1 / largest.clamp_min(torch.finfo(torch.float32).tiny))[..., None]
    codes = torch.bucketize(relative, (levels[1:] + levels[:-1]) / 2)
    return QuantizedWeight(codes.to(torch.uint8).view(weight.shape), largest, 4, group_size, kind="nf4")
