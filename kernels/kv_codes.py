"""Quantized keys and values: codes of one head of one token, int8 or float8 e4m3, and a byte for what a code is worth.

That byte is the upper half of a float16 without its sign, 5 bits of exponent and 3 of mantissa, over 256: 2^-22 to 240
in full precision, down to 2^-25 with less. It is rounded up, so that no code saturates: a step is at most 9/8 of
max|x| / 127, and on average 5 % coarser. Two bytes would cost capacity: with heads of 32 a cache of int8 would hold
64 / 34 = 1.88 times what bfloat16 does instead of 64 / 33 = 1.94.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_CODE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The types of quantized caches, and what their codes reach."""
BEYOND_SCALES = 248
"""The byte of heads too large for any scale, or not finite: it is worth infinity, so that the error is seen."""


@dataclass(frozen=True, slots=True)
class PageLayout:
    """What one page holds: [block_size, head_dim] numbers and, where they are codes, a byte for each row behind them.

    A page has its scales in it, so that whoever shares, copies or moves it need not know of them. Block sizes of a
    multiple of 16 keep the rows of quantized pages aligned for a GPU's widest loads.
    """

    block_size: int
    head_dim: int
    dtype: torch.dtype

    @property
    def quantized(self) -> bool:
        return self.dtype in LARGEST_CODE

    @property
    def stored(self) -> torch.dtype:
        """What a page is an array of."""
        return torch.int8 if self.quantized else self.dtype

    @property
    def width(self) -> int:
        """Elements of the stored type in a page."""
        return self.block_size * (self.head_dim + self.quantized)

    @property
    def nbytes(self) -> int:
        """Bytes of a page."""
        return self.width * self.stored.itemsize

    def numbers(self, pages: Tensor) -> Tensor:
        """The part of pages [..., width] that holds numbers or codes: a view [..., block_size, head_dim]."""
        rows = pages[..., : self.block_size * self.head_dim].unflatten(-1, (self.block_size, self.head_dim))
        return rows.view(self.dtype)

    def scales(self, pages: Tensor) -> Tensor | None:
        """The scales in pages [..., width], a uint8 view [..., block_size]; None where there are none."""
        return pages[..., self.block_size * self.head_dim :].view(torch.uint8) if self.quantized else None

    def is_finite(self, pages: Tensor) -> bool:
        """Whether pages [..., width] (any shape where nothing is quantized) hold nothing but finite numbers."""
        scales = self.scales(pages)
        if scales is None:
            return bool(torch.isfinite(pages).all())
        finite = (scales < BEYOND_SCALES).all()
        if self.dtype == torch.float8_e4m3fn:
            finite &= (self.numbers(pages).view(torch.uint8) & 0x7F != 0x7F).all()
        return bool(finite)


def quantize_kv(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """int8 or float8 codes of x [..., D], and the bytes of their scales, uint8 [...]: the smallest that reach max|x|.

    Codes are to the nearest: int8 is off by half a scale at most. What is beyond every scale comes back as infinity.
    """
    scales = torch.bucketize(x.abs().amax(-1).float(), _reaches(dtype, x.device), out_int32=True)
    codes = x / F.embedding(scales, _scale_values(torch.float32, x.device))  # float32 at least
    return codes.round_().to(dtype) if dtype == torch.int8 else codes.to(dtype), scales.to(torch.uint8)


def scale_values(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """What codes are worth, [..., 1], by the bytes of their scales, uint8 [...]; exact in all types but float16."""
    return F.embedding(scales.int(), _scale_values(dtype, scales.device))


def dequantize_kv(codes: Tensor, scales: Tensor | None, out: Tensor) -> None:
    """Fill `out` [..., D] with codes [..., D] times their scales, uint8 [...]; without scales only the type changes.

    A CPU converts float8 by hand, number by number: 2 million take 16.7 ms on a core, 3.3 out of a table of all codes
    and 0.65 as int8.
    """
    if codes.dtype == torch.float8_e4m3fn and codes.device.type == "cpu":
        index = codes.view(torch.uint8).reshape(-1).int()
        out.copy_(_e4m3_values(out.dtype).index_select(0, index).view(codes.shape))
    else:
        out.copy_(codes)
    if scales is not None:
        out.mul_(scale_values(scales, torch.float32 if out.dtype == torch.float16 else out.dtype))


@functools.cache
def _scale_values(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[256, 1]: what a code is worth, by the byte of its scale."""
    upper = torch.arange(256, dtype=torch.int16) << 7
    return (upper.view(torch.float16).float() / 256).to(device, dtype)[:, None]


@functools.cache
def _reaches(dtype: torch.dtype, device: torch.device) -> Tensor:
    """float32 [248]: the largest number that each finite scale reaches. No head has the scale of zero: it divides."""
    reaches = _scale_values(torch.float32, torch.device("cpu"))[:BEYOND_SCALES, 0] * LARGEST_CODE[dtype]
    reaches[0] = -1
    return reaches.to(device)


@functools.cache
def _e4m3_values(dtype: torch.dtype) -> Tensor:
    """[256]: the numbers that float8 e4m3 stands for, by their bits."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(dtype)
