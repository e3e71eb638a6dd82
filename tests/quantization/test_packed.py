"""Packed codes come back exactly and take the bits they have."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.quantization.packed import PackedMatrix, field_widths, pack_codes, unpack_codes
from playground.quantization.weight import QuantizedWeight
from tests.quantization.weights import random_weight, weights


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 130), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_codes_of_any_width_come_back(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)
    fields = pack_codes(codes, bits)
    assert torch.equal(unpack_codes(fields, bits, columns), codes)
    widths = field_widths(bits)
    assert sum(widths) == bits
    assert [field.numel() for field in fields] == [rows * -(-columns * width // 8) for width in widths]


def test_a_matrix_takes_its_bits_and_scales_and_keeps_no_bytes_of_codes() -> None:
    weight = random_weight(64, 128, bits=3, form="zeros", scale_dtype=torch.bfloat16)
    packed = PackedMatrix(weight, torch.bfloat16)
    assert packed.nbytes == 64 * (128 * 3 // 8 + 4 * 2 + 4)
    everything = {value.data_ptr() for value in vars(packed).values() if isinstance(value, torch.Tensor)}
    assert weight.codes.data_ptr() not in everything


@given(weights())
@settings(max_examples=60, deadline=None)
def test_rows_are_written_out_as_they_are_defined(weight: QuantizedWeight) -> None:
    numbers = torch.tensor([weight.shape[0] - 1, 0, 0])
    for dtype in (torch.float64, torch.float32):
        exact = weight.dequantize(dtype)[numbers]
        assert torch.equal(PackedMatrix(weight, dtype).take(numbers), exact)
