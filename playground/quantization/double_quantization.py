"""Double quantization of QLoRA (arXiv 2305.14314, section 3), as bitsandbytes has it: scales themselves as codes of 8
bits.

Blocks of 256 scales, their mean taken away, become the nearest of the 256 numbers of the signed dynamic map of
arXiv 1511.04561 times the block's largest magnitude. 0.373 bits a weight less at groups of 64.
"""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES_PER_BLOCK = 256


@dataclass(frozen=True, slots=True)
class DoubleQuantized:
    """Scales [S] as codes."""

    codes: Tensor
    """uint8 [S], places in `dynamic_map`."""
    largest: Tensor
    """float32 [ceil(S / 256)], the largest magnitude of each block."""
    offset: float
    """Their mean."""

    @classmethod
    def of(cls, scales: Tensor) -> "DoubleQuantized":
        """Quantize float32 [S]."""
        offset = scales.mean()
        blocks = F.pad(scales - offset, (0, -len(scales) % SCALES_PER_BLOCK)).view(-1, SCALES_PER_BLOCK)
        largest = blocks.abs().amax(dim=1)
        levels = dynamic_map().to(scales.device)
        relative = blocks / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        codes = torch.bucketize(relative, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
        return cls(codes.flatten()[: len(scales)].clone(), largest, offset.item())

    def dequantize(self) -> Tensor:
        """The scales, float32 [S]."""
        per_code = self.largest.repeat_interleave(SCALES_PER_BLOCK)[: len(self.codes)]
        return dynamic_map().to(self.codes.device)[self.codes.int()] * per_code + self.offset


@cache
def dynamic_map() -> Tensor:
    """float32 [256], ascending from -0.99 to 1: every power of ten from 1e-6 to 1 has twice the numbers of the last."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        middles = (10.0 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2).tolist()
        values += middles + [-value for value in middles]
    return torch.tensor(sorted(values), dtype=torch.float32)
