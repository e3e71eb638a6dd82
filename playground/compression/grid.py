"""Grid: temporary until rtn."""

from dataclasses import dataclass

import torch
from torch import Tensor

from playground.quantization.weight import QuantizedWeight


@dataclass(frozen=True)
class Grid:
    bits: int
    group_size: int
    symmetric: bool
    scale_dtype: torch.dtype = torch.float16

    def fit(self, group: Tensor) -> tuple[Tensor, Tensor]:
        """[..., g] -> scale, zero [...]."""
        levels = 2**self.bits - 1
        if self.symmetric:
            scale = group.abs().amax(-1) * 2 / levels
            zero = torch.full_like(scale, 2 ** (self.bits - 1))
        else:
            low, high = group.amin(-1).clamp_max(0), group.amax(-1).clamp_min(0)
            scale = (high - low) / levels
        scale = torch.where(scale > 0, scale, torch.ones_like(scale)).to(self.scale_dtype).to(group.dtype)
        scale = torch.where(scale > 0, scale, torch.full_like(scale, torch.finfo(self.scale_dtype).tiny))
        if not self.symmetric:
            zero = (-low / scale).round().clamp(0, levels)
        return scale, zero

    def groups(self, weight: Tensor) -> Tensor:
        size = weight.shape[1] if self.group_size == -1 else self.group_size
        return weight.view(weight.shape[0], -1, size)

    def fit_groups(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.fit(self.groups(weight))

    def encode(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return (weight / scale).round().add(zero).clamp(0, 2**self.bits - 1)

    def weight(self, codes, scales, zeros, group_index=None) -> QuantizedWeight:
        return QuantizedWeight(
            codes,
            scales.to(self.scale_dtype),
            self.bits,
            self.group_size,
            zeros=None if self.symmetric else zeros.to(torch.uint8),
            group_index=group_index,
        )

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        scales, zeros = self.fit_groups(weight)
        codes = self.encode(self.groups(weight), scales[..., None], zeros[..., None]).to(torch.uint8).view(weight.shape)
        return self.weight(codes, scales, zeros)


def nf4(weight: Tensor, group_size: int) -> QuantizedWeight:
    from kernels.quant_pack import NF4_LEVELS

    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    groups = weight.view(weight.shape[0], -1, group_size)
    absmax = groups.abs().amax(-1, keepdim=True)
    scaled = groups * (1 / absmax.clamp_min(torch.finfo(torch.float32).tiny))
    codes = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(weight.shape)
    return QuantizedWeight(codes, absmax[..., 0], 4, group_size, kind="nf4")
