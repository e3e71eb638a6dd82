"""Codes in 32-bit words, against one long Python integer."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from playground.quantization.formats.words import pack_words, unpack_words


def by_definition(codes: list[int], bits: int) -> list[int]:
    """Code i is bits i * b ... of one number, which is cut into words from its low end; words are signed."""
    number = sum(code << (bits * place) for place, code in enumerate(codes))
    words = [(number >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(codes) * bits // 32))]
    return [word - 2**32 if word >= 2**31 else word for word in words]


@given(st.integers(1, 8), st.integers(1, 100), st.integers(0, 2**32))
def test_words_are_one_stream_of_bits_and_are_read_back(bits: int, count: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (3, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    words = pack_words(codes, bits)
    assert words.dtype == torch.int32 and words.tolist() == [by_definition(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack_words(words, bits, count), codes)


def test_matrices_that_are_turned_views_are_packed_and_unpacked() -> None:
    codes = torch.arange(64, dtype=torch.uint8).view(8, 8) % 16
    words = pack_words(codes.t(), 4)
    assert torch.equal(unpack_words(words.t().contiguous().t(), 4, 8), codes.t())
