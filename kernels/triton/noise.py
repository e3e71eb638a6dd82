"""The stateless noise of `kernels.noise`, up to the logarithms: SplitMix64 of seed, position, purpose and id.

Integers are uint64, whose products wrap; the uniforms are equal exactly, Gumbel noise to the last bit of two float64
logarithms.
"""

import triton
import triton.language as tl

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
FIRST = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def mix(words):
    """SplitMix64's finaliser of uint64 words."""
    words = (words ^ (words >> 30)) * tl.full([1], FIRST, tl.uint64)
    words = (words ^ (words >> 27)) * tl.full([1], SECOND, tl.uint64)
    return words ^ (words >> 31)


@triton.jit
def row_key(seed, position, PURPOSE: tl.constexpr):
    """The uint64 key [1] of an int64 seed and position."""
    golden = tl.full([1], GOLDEN, tl.uint64)
    key = mix(seed.to(tl.uint64) + golden)
    key = mix(key + position.to(tl.uint64) * golden)
    return mix(key + tl.full([1], PURPOSE, tl.uint64) * golden)


@triton.jit
def uniform(key, ids):
    """Float64 uniforms strictly between 0 and 1 for a key [1] and ids [N]."""
    words = mix(key + (ids.to(tl.uint64) + 1) * tl.full([1], GOLDEN, tl.uint64))
    return ((words >> 12).to(tl.int64).to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2^-52


@triton.jit
def gumbel(key, ids):
    """Standard Gumbel noise, float64 [N]; always finite."""
    return -tl.log(-tl.log(uniform(key, ids)))
