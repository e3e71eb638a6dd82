"""Stateless random numbers: a function of (seed, position, purpose, id) and of nothing else.

Owns the integer hash and its way to uniform and Gumbel noise. Keeps no generator and no state, so a token's noise is
the same whatever batch it is drawn in, after a preemption, and on CPU and CUDA alike.

The hash is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014; its finaliser is
Stafford's variant 13): a bijection of 64-bit words, three xor-shifts and two multiplications. torch has no unsigned
64-bit arithmetic, so words are int64 whose products wrap and whose right shifts are masked to be logical.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

TOKEN: Final = 0
"""Purpose of the noise that picks a token inside its group."""
GROUP: Final = 1
"""Purpose of the noise that picks a group of tokens. Other uses of noise at the same place take further numbers."""

_WORD: Final = 1 << 64


def _int64(value: int) -> int:
    """The two's-complement int64 with the same low 64 bits."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


_GOLDEN: Final = _int64(0x9E3779B97F4A7C15)
_FIRST: Final = _int64(0xBF58476D1CE4E5B9)
_SECOND: Final = _int64(0x94D049BB133111EB)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def mix(words: Tensor) -> Tensor:
    """Scrambles int64 words one to one: flipping any bit of the input flips each bit of the output half of the time."""
    words = (words ^ _shift_right(words, 30)) * _FIRST
    words = (words ^ _shift_right(words, 27)) * _SECOND
    return words ^ _shift_right(words, 31)


def keys(seeds: Sequence[int], positions: Sequence[int], purpose: int, device: torch.device) -> Tensor:
    """One int64 key a row, [R]. Any Python ints will do; they count modulo 2**64."""
    words = torch.tensor([[_int64(seed), _int64(position)] for seed, position in zip(seeds, positions, strict=True)])
    words = words.reshape(-1, 2).to(device)
    key = mix(words[:, 0] + _GOLDEN)
    key = mix(key + words[:, 1] * _GOLDEN)
    return mix(key + _int64(purpose * 0x9E3779B97F4A7C15))


def uniform(row_keys: Tensor, ids: Tensor) -> Tensor:
    """Float64 uniforms strictly between 0 and 1 for row keys [R] and ids [N] or [R, N]; shape [R, N]."""
    words = mix(row_keys[:, None] + (ids + 1) * _GOLDEN)
    # 52 bits and a half: the largest, 1 - 2**-53, is still exact in float64; 53 bits and a half would round to 1.
    return (_shift_right(words, 12).double() + 0.5) * 2.0**-52


def gumbel(row_keys: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float64 [R, N]; always finite, between -3.6 and 36.8."""
    return uniform(row_keys, ids).log_().neg_().log_().neg_()
