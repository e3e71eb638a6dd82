"""Stateless random numbers: a function of (seed, position, purpose, id) and of nothing else.

Owns the integer hash and its way to uniform and Gumbel noise. Keeps no generator and no state, so a token's noise is
the same whatever batch it is drawn in, after a preemption, and on CPU and CUDA alike. The kernels have it in
`kernels.triton.noise`, bit for bit.

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
"""Purpose of the noise that picks a group of tokens."""
ACCEPT: Final = 2
"""Purpose of the noise that decides whether a draft token stays; the id is the draft's index."""
REST_TOKEN: Final = 3
"""Like TOKEN, for the token after the accepted drafts, which must not depend on what was drawn as a draft."""
REST_GROUP: Final = 4
"""Like GROUP, for that token."""

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
    return row_keys(as_words(seeds, device), as_words(positions, device), purpose)


def as_words(values: Sequence[int], device: torch.device) -> Tensor:
    """Python ints as int64 words [R], modulo 2**64."""
    return torch.tensor([_int64(value) for value in values], dtype=torch.int64).to(device)


def row_keys(seeds: Tensor, positions: Tensor, purpose: int) -> Tensor:
    """`keys` of int64 tensors [R]."""
    key = mix(seeds + _GOLDEN)
    key = mix(key + positions * _GOLDEN)
    return mix(key + _int64(purpose * 0x9E3779B97F4A7C15))


def uniform(row_keys: Tensor, ids: Tensor) -> Tensor:
    """Float64 uniforms strictly between 0 and 1 for row keys [R] and ids [N] or [R, N]; shape [R, N]."""
    words = mix(row_keys[:, None] + (ids + 1) * _GOLDEN)
    # 52 bits and a half: the largest, 1 - 2**-53, is still exact in float64; 53 bits and a half would round to 1.
    return (_shift_right(words, 12).double() + 0.5) * 2.0**-52


def gumbel(row_keys: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float64 [R, N]; always finite, between -3.6 and 36.8."""
    return uniform(row_keys, ids).log_().neg_().log_().neg_()
