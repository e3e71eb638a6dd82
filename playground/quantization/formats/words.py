"""Codes of any width as one dense stream of bits in 32-bit words, the lowest bits first.

GPTQ and compressed-tensors store their codes so. A code of 3, 5, 6 or 7 bits may lie across two words.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Codes [R, C], 0 .. 2^bits - 1, as int32 [R, ceil(C * bits / 32)], the rest of the last word zero."""
    rows, count = codes.shape
    period, words = _period(bits)
    chunks = math.ceil(count / period)
    split = F.pad(codes, (0, chunks * period - count)).view(rows, chunks, period).int()
    packed = torch.zeros(rows, chunks, words, dtype=torch.int32, device=codes.device)
    for number in range(period):
        word, shift = divmod(number * bits, 32)
        packed[:, :, word] |= split[:, :, number] << shift
        if shift + bits > 32:
            packed[:, :, word + 1] |= split[:, :, number] >> (32 - shift)
    return packed.flatten(1)[:, : math.ceil(count * bits / 32)].contiguous()


def unpack_words(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of every row of int32 [R, W], as uint8 [R, count]."""
    rows = packed.shape[0]
    period, words = _period(bits)
    chunks = math.ceil(count / period)
    split = F.pad(packed, (0, chunks * words - packed.shape[1])).view(rows, chunks, words)
    codes = torch.empty(rows, chunks, period, dtype=torch.uint8, device=packed.device)
    for number in range(period):
        word, shift = divmod(number * bits, 32)
        low_bits = min(bits, 32 - shift)
        code = (split[:, :, word] >> shift) & (2**low_bits - 1)  # the mask takes the copies of the sign bit away
        if low_bits < bits:
            code |= (split[:, :, word + 1] & (2 ** (bits - low_bits) - 1)) << low_bits
        codes[:, :, number] = code.to(torch.uint8)
    return codes.flatten(1)[:, :count].contiguous()


def _period(bits: int) -> tuple[int, int]:
    """After how many codes the pattern begins again at the start of a word, and in how many words."""
    codes = 32 // math.gcd(32, bits)
    return codes, codes * bits // 32
