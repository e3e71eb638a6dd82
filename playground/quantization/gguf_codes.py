"""GGUF's block formats of 4 and 8 bits as codes with scales: what kernels that decode as they multiply take."""

import torch

from playground.quantization.blocks import BlockWeight
from playground.quantization.gguf_types import six_bit_levels
from playground.quantization.weight import QuantizedWeight

GROUP_SIZE = 32
CODED_TYPES = ("Q4_0", "Q4_1", "Q8_0", "Q4_K")


def to_codes(weight: BlockWeight) -> QuantizedWeight:
    """The same matrix, value for value; its format must be one of `CODED_TYPES`."""
    kind = weight.kind
    codes, halves = kind.split(weight.data.unflatten(1, (-1, kind.nbytes)))  # [N, B, bytes], [N, B, num_halves]
    if kind.name == "Q8_0":
        return QuantizedWeight((codes ^ 128).flatten(1), halves[..., 0], 8, GROUP_SIZE)
    if kind.name == "Q4_K":
        levels, packed = codes[..., :12].permute(1, 2, 0), codes[..., 12:].unflatten(2, (4, 32))
        scales, minima = (
            (halves[..., at : at + 1].float() * part.permute(2, 0, 1)).flatten(1)
            for at, part in enumerate(six_bit_levels(levels))
        )
        return QuantizedWeight(_nibbles(packed), scales, 4, GROUP_SIZE, offsets=minima)
    offsets = -halves[..., 1] if kind.name == "Q4_1" else None
    return QuantizedWeight(_nibbles(codes), halves[..., 0], 4, GROUP_SIZE, offsets=offsets)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """[N, .., n] -> [N, .. 2 n]: of each run of n bytes the low four bits, then the high ones."""
    return torch.stack((packed & 15, packed >> 4), dim=-2).flatten(1)
