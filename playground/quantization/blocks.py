"""Matrices in one of GGUF's block formats, and the form in which they are held and multiplied.

In memory are the file's own bytes, no more: only their order differs. Rows are cut into panels and every panel is
turned byte by byte, so that the rows are innermost; a panel is then decoded in a few operations over long runs and
multiplied while it is in the cache. 4096 x 4096, one row and thread, in ms: Q8_0 4.2, Q4_0 6.3, Q4_K 9.7, Q6_K 13,
where a float32 matrix takes 4.1 and a bfloat16 one 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from playground.quantization.gguf_types import BlockType

# Larger panels leave the cache, narrower ones are decoded in short runs: of 2^15 to 2^22 elements of a 4096 x 4096
# matrix, 2^20 took least (in Q8_0 2^15 took seven times as long, 2^22 two and a half).
_PANEL_ELEMENTS, _NARROWEST = 1 << 20, 128
# Up to here a bfloat16 model multiplies in float32: to round the panel would cost more than the product saves.
_MOST_WIDE_ROWS = 8


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """A matrix [N, K] (outputs, inputs) as a GGUF file stores it, row by row."""

    kind: BlockType
    data: Tensor
    """uint8 [N, K / block_size * nbytes]."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.data.shape[0], self.data.shape[1] // self.kind.nbytes * self.kind.block_size

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W [N, K], computed in float32 as the format defines it."""
        return self.kind.dequantize(self.data).to(dtype)

    def to(self, device: torch.device | str) -> "BlockWeight":
        """The same weight on another device."""
        return replace(self, data=self.data.to(device))


def join_blocks(weights: Sequence[BlockWeight]) -> BlockWeight | None:
    """The matrices, of equally many inputs, one below the other; None where they are of different formats."""
    first = weights[0]
    if any(weight.kind is not first.kind for weight in weights):
        return None
    return replace(first, data=torch.cat([weight.data for weight in weights]))


class BlockPanels:
    """A matrix in blocks as a `Layout`: turned and cut into panels, each decoded where it is multiplied."""

    name = "file's blocks"

    def __init__(self, weight: BlockWeight, dtype: torch.dtype) -> None:
        self.shape, self.kind, self.dtype = weight.shape, weight.kind, dtype
        outputs, inputs = weight.shape
        count = -(-outputs // max(_NARROWEST, _PANEL_ELEMENTS // inputs))
        self._width = -(-outputs // count)
        self._codes, self._halves = self._panels(weight)

    def _panels(self, weight: BlockWeight) -> tuple[Tensor, Tensor]:
        """Codes uint8 [P, B, bytes, width], halves float16 [P, B, num_halves, width]; the last rows may be padding."""
        kind, width, data = self.kind, self._width, weight.data
        panels, blocks = -(-self.shape[0] // width), self.shape[1] // kind.block_size
        codes = data.new_empty(panels, blocks, kind.nbytes - 2 * kind.num_halves, width)
        halves = codes.new_empty(panels, blocks, kind.num_halves, width, dtype=torch.float16)
        for panel, rows in enumerate(data.split(width)):
            padded = F.pad(rows, (0, 0, 0, width - rows.shape[0])).unflatten(1, (blocks, kind.nbytes))
            for target, part in zip((codes, halves), kind.split(padded), strict=True):
                target[panel].copy_(part.permute(1, 2, 0))
        return codes, halves

    def __call__(self, x: Tensor) -> Tensor:
        """[T, K] -> [T, N]."""
        rows = x.shape[0]
        dtype = torch.float32 if rows <= _MOST_WIDE_ROWS and x.device.type == "cpu" else x.dtype
        dtype = torch.float64 if x.dtype == torch.float64 else dtype
        wide = x.to(dtype)
        y = wide.new_empty(rows, self._codes.shape[0] * self._width)
        for part, codes, halves in zip(y.split(self._width, dim=1), self._codes, self._halves, strict=True):
            torch.mm(wide, self.kind.decode(codes, halves).to(dtype), out=part)
        return y[:, : self.shape[0]].to(x.dtype).contiguous()

    def take(self, numbers: Tensor) -> Tensor:
        """The rows with these numbers (int64 [T]), [T, K]: only these are decoded."""
        panel, column = numbers // self._width, numbers % self._width
        codes, halves = (part[panel, :, :, column].permute(1, 2, 0) for part in (self._codes, self._halves))
        return self.kind.decode(codes, halves).t().to(self.dtype)

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._halves.nbytes
