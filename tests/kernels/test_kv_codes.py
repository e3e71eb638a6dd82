"""Codes of keys and values: the definition's bits, how far off they may be, and pages that hold their own scales."""

import math

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.kv_codes import PageLayout, dequantize_kv, quantize_kv, scale_values
from tests.kernels.paged_batches import rng

CODES = [torch.int8, torch.float8_e4m3fn]


def heads(dim: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    """Heads of every size that scales resolve, from 1e-4 to 1e3: [600, 2, dim]."""
    x = torch.randn(600, 2, dim, generator=rng(dim)) * 10 ** torch.linspace(-4, 3, 600)[:, None, None]
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("code", CODES, ids=str)
def test_codes_and_scales_are_those_of_the_definition(code: torch.dtype, dtype: torch.dtype) -> None:
    x = heads(dtype=dtype)
    x[7] = 0
    x[8] *= 1e-7
    x[9, 0, 0], x[9, 1, 1] = math.inf, math.nan
    x[10, 0], x[11] = 127 * 0.5, 127 * 0.5 * (1 + 2**-7)  # what a scale reaches exactly, and a little more
    for got, wanted in zip(quantize_kv(x, code), reference.quantize_kv(x, code), strict=True):
        assert torch.equal(got[:9].view(torch.uint8), wanted[:9].view(torch.uint8))
        assert torch.equal(got[10:].view(torch.uint8), wanted[10:].view(torch.uint8))
    assert quantize_kv(x, code)[1][9].tolist() == reference.quantize_kv(x, code)[1][9].tolist() == [248, 248]


def test_every_scale_is_what_its_bits_say_in_every_type() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    wanted = reference.kv_scale(every)
    assert (wanted[1:248].diff() > 0).all() and wanted[247] == 240 and wanted[1] == 2.0**-25
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        torch.testing.assert_close(scale_values(every, dtype)[:, 0].double(), wanted, rtol=0, atol=0, equal_nan=True)


def test_int8_is_off_by_half_a_scale_which_is_an_eighth_too_large_at_most() -> None:
    x = heads()
    codes, scales = quantize_kv(x, torch.int8)
    step, largest = reference.kv_scale(scales), x.double().abs().amax(-1)
    back = torch.empty_like(x, dtype=torch.float64)
    dequantize_kv(codes, scales, back)
    assert ((back - x).abs() <= step[..., None] / 2 * (1 + 1e-6)).all()
    assert (step * 127 >= largest).all() and (step * 127 <= largest * 9 / 8).all()
    assert 1.03 < (step * 127 / largest).mean() < 1.07, "5 % on average"


def test_float8_keeps_four_bits_of_every_number() -> None:
    x = heads()
    codes, scales = quantize_kv(x, torch.float8_e4m3fn)
    back = torch.empty_like(x, dtype=torch.float64)
    dequantize_kv(codes, scales, back)
    smallest = reference.kv_scale(scales)[..., None] * 2.0**-10  # half of the least subnormal
    assert ((back - x).abs() <= torch.maximum(x.abs().double() / 16, smallest) * (1 + 1e-6)).all()
    assert not back.isnan().any() and (codes.float().abs().amax(-1) >= 448 / 9 * 8 - 32).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("code", CODES, ids=str)
def test_what_comes_back_is_code_times_scale_rounded_once(code: torch.dtype, dtype: torch.dtype) -> None:
    codes, scales = quantize_kv(heads(), code)
    exact = codes.double() * reference.kv_scale(scales)[..., None]
    out = torch.empty(codes.shape, dtype=dtype)
    dequantize_kv(codes, scales, out)
    assert torch.equal(out, exact.to(dtype))
    dequantize_kv(codes[:, 1:, ::2], None, out[:, 1:, ::2])
    assert torch.equal(out[:, 1:, ::2], codes.to(dtype)[:, 1:, ::2])


@pytest.mark.parametrize("code", CODES, ids=str)
def test_pages_are_numbers_and_a_byte_a_row_and_nothing_else(code: torch.dtype) -> None:
    layout = PageLayout(4, 6, code)
    assert layout.width == layout.nbytes == 4 * 7
    pages = torch.zeros(5, layout.width, dtype=layout.stored)
    scales = layout.scales(pages)
    assert scales is not None
    layout.numbers(pages).view(torch.uint8).fill_(1)
    scales.fill_(2)
    assert pages.tolist() == [[1] * 24 + [2] * 4] * 5
    assert layout.is_finite(pages)
    scales[3, 2] = 248
    assert not layout.is_finite(pages)


def test_a_float8_code_that_is_no_number_is_seen() -> None:
    layout = PageLayout(4, 6, torch.float8_e4m3fn)
    pages = torch.zeros(1, layout.width, dtype=torch.int8)
    layout.numbers(pages)[0, 3, 5] = math.nan
    assert not layout.is_finite(pages)


def test_plain_pages_are_numbers_alone() -> None:
    layout = PageLayout(4, 6, torch.bfloat16)
    pages = torch.zeros(3, layout.width, dtype=layout.stored)
    assert layout.scales(pages) is None and layout.numbers(pages).shape == (3, 4, 6) and layout.nbytes == 48
    assert layout.is_finite(pages)
    pages[2, 5] = math.inf
    assert not layout.is_finite(pages)


@pytest.mark.parametrize(("head_dim", "ratio"), [(32, 64 / 33), (64, 128 / 65), (80, 160 / 81), (128, 256 / 129)])
def test_a_quantized_cache_holds_nearly_twice_what_bfloat16_does(head_dim: int, ratio: float) -> None:
    for code in CODES:
        found = PageLayout(16, head_dim, torch.bfloat16).nbytes / PageLayout(16, head_dim, code).nbytes
        assert found == pytest.approx(ratio, rel=1e-12) and found > 1.9
