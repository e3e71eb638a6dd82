"""NormalFloat4 with double quantization (QLoRA, arXiv 2305.14314), as bitsandbytes has it.

A matrix is flattened row by row and cut into blocks; each has its largest magnitude as scale, and every value becomes
the nearest of 16 levels between -1 and 1. Double quantization stores the scales themselves in 8 bits.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.quant_pack import NF4_LEVELS
from playground.quantization.weight import QuantizedWeight

BLOCK_SIZE = 64
SCALE_BLOCK_SIZE = 256
_ZERO_CODE = NF4_LEVELS.index(0.0)


def quantize_nf4(weight: Tensor, block_size: int = BLOCK_SIZE, *, double_quant: bool = False) -> QuantizedWeight:
    """W [N, K], K a multiple of the block size, so that a block is a group of a row.

    Scales are float32; with `double_quant` they have gone through `DoubleQuantized` and back. Codes are computed with
    the exact ones, as bitsandbytes does. Raises ValueError for other K and for values that are not finite.
    """
    rows, columns = weight.shape
    if columns % block_size:
        raise ValueError(f"blocks of {block_size} do not divide {columns} columns.")
    blocks = weight.float().view(-1, block_size)
    largest = blocks.abs().amax(-1)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("the matrix has values that are not finite.")
    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    codes = torch.bucketize(blocks * (1 / largest)[:, None], (levels[1:] + levels[:-1]) / 2, out_int32=True)
    codes = codes.masked_fill_((largest == 0)[:, None], _ZERO_CODE).to(torch.uint8).view(rows, columns)
    if double_quant:
        largest = DoubleQuantized.of(largest).dequantize()
    return QuantizedWeight(codes, largest.view(rows, -1), 4, block_size, kind="nf4")


@dataclass(frozen=True, slots=True)
class DoubleQuantized:
    """Scales less their mean, in blocks of 256, as codes of `dynamic_map` times the largest magnitude of the block."""

    codes: Tensor
    """uint8 [S], S scales."""
    largest: Tensor
    """float32 [ceil(S / 256)]."""
    offset: Tensor
    """float32 []: the mean."""

    @classmethod
    def of(cls, scales: Tensor) -> "DoubleQuantized":
        """From float32 [S]."""
        offset = scales.mean()
        spread = scales - offset
        padded = torch.nn.functional.pad(spread, (0, -len(spread) % SCALE_BLOCK_SIZE)).view(-1, SCALE_BLOCK_SIZE)
        largest = padded.abs().amax(-1)
        table = dynamic_map().to(scales.device)
        relative = padded * torch.where(largest == 0, 0, 1 / largest)[:, None]
        codes = torch.bucketize(relative, (table[1:] + table[:-1]) / 2)
        return cls(codes.flatten()[: len(scales)].to(torch.uint8), largest, offset)

    def dequantize(self) -> Tensor:
        """The scales, float32 [S]."""
        block = torch.arange(len(self.codes), device=self.codes.device) // SCALE_BLOCK_SIZE
        return dynamic_map().to(self.codes.device)[self.codes.long()] * self.largest[block] + self.offset


@functools.cache
def dynamic_map() -> Tensor:
    """The 256 ascending values from -1 (nearly) to 1 of bitsandbytes' signed dynamic 8-bit type, float32.

    Decade 10^-e below 1, e from 6 to 0, has 2^(6 - e) values of each sign: the middles of equal steps from 0.1 to 1.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        middles = 10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values))
