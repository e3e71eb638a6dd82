"""The block formats of GGUF: how many weights a block holds, in which bytes, and what they decode to.

A row of a matrix is a sequence of blocks (32 weights, or 256 in the K-quants); every block carries its own float16
scales, so a row is meaningful by itself. Decoding follows the reference of llama.cpp (`gguf.quants`) operation by
operation in float32, so that the values are the same to the last bit. The decoders work on blocks that lie
"transposed", byte by byte with the rows innermost: then every operation runs over long contiguous runs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Decoder = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class BlockType:
    """One format. A block is `nbytes` bytes, of which `num_halves` float16 numbers begin at byte `halves_at`."""

    name: str
    type_id: int
    """Number of the type in a file."""
    block_size: int
    """Weights of a block."""
    nbytes: int
    halves_at: int
    num_halves: int
    _decode: Decoder

    def split(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks uint8 [..., nbytes] -> their float16 [..., num_halves], last, and before them all other bytes."""
        end = self.halves_at + 2 * self.num_halves
        codes = torch.cat((blocks[..., : self.halves_at], blocks[..., end:]), dim=-1)
        return codes, blocks[..., self.halves_at : end].contiguous().view(torch.float16)

    def decode(self, codes: Tensor, halves: Tensor) -> Tensor:
        """Weights float32 [B * block_size, R] of B blocks of R rows: codes [B, bytes, R], halves [B, num_halves, R]."""
        return self._decode(codes, halves.to(torch.float32)).flatten(0, -2)

    def dequantize(self, rows: Tensor) -> Tensor:
        """Weights float32 [R, K] of rows as a file stores them, uint8 [R, K / block_size * nbytes]."""
        codes, halves = self.split(rows.unflatten(1, (-1, self.nbytes)))
        return self.decode(codes.permute(1, 2, 0), halves.permute(1, 2, 0)).t()

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of this many weights, a multiple of `block_size`."""
        return columns // self.block_size * self.nbytes


def _nibbles(packed: Tensor, dim: int) -> Tensor:
    """[.., n, R] -> [.., 2, n, R]: the low four bits of every byte, then the high ones."""
    return torch.stack((packed & 15, packed >> 4), dim=dim)


def _fields(packed: Tensor, width: int) -> Tensor:
    """[B, g, n, R] -> [B, g, 8 / width, n, R]: the fields of `width` bits of every byte, the lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    return (packed[:, :, None] >> shifts[:, None, None]) & (2**width - 1)


def _scaled(codes: Tensor, scales: Tensor) -> Tensor:
    """float32 codes [B, G, n, R] times scales [B, G, R]."""
    return codes.to(torch.float32).mul_(scales[:, :, None])


def _q8_0(codes: Tensor, halves: Tensor) -> Tensor:
    return codes.view(torch.int8).to(torch.float32).mul_(halves)


def _q4_0(codes: Tensor, halves: Tensor) -> Tensor:
    return (_nibbles(codes, 1).flatten(1, 2).view(torch.int8).sub_(8)).to(torch.float32).mul_(halves)


def _q4_1(codes: Tensor, halves: Tensor) -> Tensor:
    return _nibbles(codes, 1).flatten(1, 2).to(torch.float32).mul_(halves[:, :1]).add_(halves[:, 1:])


def _five_bits(codes: Tensor) -> Tensor:
    """Codes of Q5_0 and Q5_1: the fifth bits of a block's weights are 32 bits in 4 bytes, then come the nibbles."""
    high = _fields(codes[:, :4, None], 1).flatten(1, 3)
    return _nibbles(codes[:, 4:], 1).flatten(1, 2) | (high << 4)


def _q5_0(codes: Tensor, halves: Tensor) -> Tensor:
    return _five_bits(codes).view(torch.int8).sub_(16).to(torch.float32).mul_(halves)


def _q5_1(codes: Tensor, halves: Tensor) -> Tensor:
    return _five_bits(codes).to(torch.float32).mul_(halves[:, :1]).add_(halves[:, 1:])


def _q2_k(codes: Tensor, halves: Tensor) -> Tensor:
    levels, packed = codes[:, :16], codes[:, 16:].unflatten(1, (2, 32))
    values = _fields(packed, 2).flatten(1, 3).unflatten(1, (16, 16))
    return (
        _scaled(values, halves[:, :1] * (levels & 15)).sub_((halves[:, 1:] * (levels >> 4))[:, :, None]).flatten(1, 2)
    )


def _q3_k(codes: Tensor, halves: Tensor) -> Tensor:
    high, low, packed = codes[:, None, :32], codes[:, 32:96].unflatten(1, (2, 32)), codes[:, 96:]
    levels = _nibbles(packed[:, :8], 1).flatten(1, 2) | (_fields(packed[:, None, 8:], 2).flatten(1, 3) << 4)
    signs = (_fields(high, 1).flatten(1, 3) ^ 1) << 2
    values = (_fields(low, 2).flatten(1, 3).view(torch.int8) - signs.view(torch.int8)).unflatten(1, (16, 16))
    return _scaled(values, halves * (levels.view(torch.int8) - 32)).flatten(1, 2)


def six_bit_levels(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of the 8 groups of a Q4_K or Q5_K block, 6 bits each in 12 bytes -> two uint8 [B, 8, R]."""
    first, second, third = packed.split(4, dim=1)
    scales = torch.cat((first & 63, (third & 15) | (first >> 6 << 4)), dim=1)
    minima = torch.cat((second & 63, (third >> 4) | (second >> 6 << 4)), dim=1)
    return scales, minima


def _k_with_minima(values: Tensor, levels: Tensor, halves: Tensor) -> Tensor:
    scales, minima = six_bit_levels(levels)
    return _scaled(values, halves[:, :1] * scales).sub_((halves[:, 1:] * minima)[:, :, None]).flatten(1, 2)


def _q4_k(codes: Tensor, halves: Tensor) -> Tensor:
    values = _nibbles(codes[:, 12:].unflatten(1, (4, 32)), 2).flatten(1, 2)
    return _k_with_minima(values, codes[:, :12], halves)


def _q5_k(codes: Tensor, halves: Tensor) -> Tensor:
    high = _fields(codes[:, None, 12:44], 1).flatten(1, 2)
    values = _nibbles(codes[:, 44:].unflatten(1, (4, 32)), 2).flatten(1, 2) | (high << 4)
    return _k_with_minima(values, codes[:, :12], halves)


def _q6_k(codes: Tensor, halves: Tensor) -> Tensor:
    low = _nibbles(codes[:, :128].unflatten(1, (2, 64)), 2).flatten(1, 3)
    high = _fields(codes[:, 128:192].unflatten(1, (2, 32)), 2).flatten(1, 3)
    values = (low | (high << 4)).view(torch.int8).sub_(32).unflatten(1, (16, 16))
    return _scaled(values, halves * codes[:, 192:].view(torch.int8)).flatten(1, 2)


_TYPES = (
    BlockType("Q4_0", 2, 32, 18, 0, 1, _q4_0),
    BlockType("Q4_1", 3, 32, 20, 0, 2, _q4_1),
    BlockType("Q5_0", 6, 32, 22, 0, 1, _q5_0),
    BlockType("Q5_1", 7, 32, 24, 0, 2, _q5_1),
    BlockType("Q8_0", 8, 32, 34, 0, 1, _q8_0),
    BlockType("Q2_K", 10, 256, 84, 80, 2, _q2_k),
    BlockType("Q3_K", 11, 256, 110, 108, 1, _q3_k),
    BlockType("Q4_K", 12, 256, 144, 0, 2, _q4_k),
    BlockType("Q5_K", 13, 256, 176, 0, 2, _q5_k),
    BlockType("Q6_K", 14, 256, 210, 208, 1, _q6_k),
)
BLOCK_TYPES: dict[int, BlockType] = {kind.type_id: kind for kind in _TYPES}
"""The formats by their number in a file."""
