"""NormalFloat4 with double quantization (QLoRA, arXiv 2305.14314), as bitsandbytes has it.

A matrix is flattened row by row and cut into blocks; each has its largest magnitude as scale, and every value becomes
the nearest of 16 levels between -1 and 1. Scales may be quantized themselves: see `double_quantization`.
"""

import torch
from torch import Tensor

from kernels.quant_pack import NF4_LEVELS
from playground.quantization.double_quantization import DoubleQuantized
from playground.quantization.weight import QuantizedWeight

BLOCK_SIZE = 64
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
