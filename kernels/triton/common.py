"""Small pieces that every kernel here is made of, written so that they mean the same compiled and interpreted.

The interpreter cannot compute in bfloat16 (values are bit patterns) and truncates when it casts to it: kernels upcast
to `compute_dtype` right after a load and store through `to_dtype`.
"""

import torch
import triton
import triton.language as tl

from kernels.triton.arch import INTERPRETED

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
_INTERPRETED = tl.constexpr(INTERPRETED)

_TL_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def compute_dtype(dtype: torch.dtype) -> tl.dtype:
    """What operands of a dot are held in: their own dtype, except bfloat16 in the interpreter."""
    if INTERPRETED and dtype == torch.bfloat16:
        return tl.float32
    return _TL_DTYPES[dtype]


@triton.jit
def bf16_bits_round(x):
    """float32 -> bfloat16, to nearest even, by bits."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return bits.to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def to_dtype(x, dtype: tl.constexpr):
    """Round float32 `x` to `dtype`, to nearest even in both worlds."""
    if _INTERPRETED and dtype == tl.bfloat16:
        return bf16_bits_round(x.to(tl.float32))
    else:
        return x.to(dtype)


@triton.jit
def rounded_through(x, dtype: tl.constexpr, compute: tl.constexpr):
    """What `x` is after a trip through `dtype`, held in `compute`: the rounding that storing it would do."""
    return to_dtype(x, dtype).to(compute)


@triton.jit
def tanh(x):
    """2 sigmoid(2x) - 1: no library call, which the interpreter could not run."""
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def round_half_even(x):
    """Nearest integer of |x| < 2^22, ties to even, as float32: adding 1.5 * 2^23 leaves no fraction bits."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def e4m3_encode(x):
    """float32 -> the bits of float8 e4m3fn (uint8): nearest even, saturating at 448."""
    bits = x.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = tl.minimum(tl.abs(x), 448.0)
    size_bits = size.to(tl.int32, bitcast=True)
    rounded = size_bits + 0x7FFFF + ((size_bits >> 20) & 1)
    normal = (rounded >> 20) - ((127 - 7) << 3)
    subnormal = (size * 512.0 + 12582912.0).to(tl.int32, bitcast=True) & 0xF
    return (sign | tl.where(size < 0.015625, subnormal, normal)).to(tl.uint8)


@triton.jit
def e4m3_decode(codes):
    """Bits of float8 e4m3fn (uint8) -> float32, exact for every finite code."""
    wide = codes.to(tl.int32)
    bits = ((wide & 0x80) << 24) | ((wide & 0x7F) << 20)
    return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120


@triton.jit
def kv_scale_decode(byte):
    """The byte of a scale (see `kernels.kv_codes`) -> what one code is worth, float32."""
    return (byte.to(tl.int16) << 7).to(tl.float16, bitcast=True).to(tl.float32) * 0.00390625


@triton.jit
def kv_scale_encode(largest, LARGEST_CODE: tl.constexpr):
    """The byte of the smallest scale above zero of which LARGEST_CODE codes reach `largest`, float32; else infinity's.

    Rounding the quotient to float16 before its lower half is rounded up may fall short by one.
    """
    quotient = tl.div_rn(largest, tl.full(largest.shape, LARGEST_CODE, tl.float32)) * 256.0
    bits = tl.minimum(quotient, 65504.0).to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
    byte = tl.minimum(tl.maximum((bits + 127) >> 7, 1), 248)
    short = kv_scale_decode(byte) * LARGEST_CODE < largest
    return (byte + tl.where(short, 1, 0)).to(tl.uint8)
