"""Round to nearest against its formula number by number, nf4 against bitsandbytes and the published levels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.quant_pack import NF4_LEVELS
from playground.config import QUANTIZATION_SHORT_NAMES, QuantizationConfig
from playground.errors import ConfigError
from playground.quantization.double_quantization import DoubleQuantized, dynamic_map
from playground.quantization.nf4 import quantize_nf4
from playground.quantization.rtn import fp8_rows, int8_rows, round_to_nearest
from playground.quantization.schemes import quantize


def matrix(rows: int, columns: int, seed: int = 0, scale: float = 0.05) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale


@given(
    st.sampled_from((2, 3, 4, 8)),
    st.sampled_from((-1, 8, 32)),
    st.booleans(),
    st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
    st.sampled_from((0.0, 0.2, -0.2)),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_round_to_nearest_is_its_formula(
    bits: int, group_size: int, symmetric: bool, dtype: torch.dtype, shift: float, seed: int
) -> None:
    w = matrix(3, 32, seed) + shift  # shifted: groups of one sign, whose range is stretched to 0
    got = round_to_nearest(w, bits, group_size, symmetric=symmetric, scale_dtype=dtype)
    top, size = 2**bits - 1, 32 if group_size == -1 else group_size
    assert got.scales.dtype == dtype and got.symmetric == symmetric
    for row in range(3):
        for group in range(32 // size):
            values = w[row, group * size : (group + 1) * size]
            low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
            span = 2 * float(values.abs().max()) if symmetric else high - low
            scale = float(torch.tensor(span / top).to(dtype))
            assert math.isclose(float(got.scales[row, group]), scale, rel_tol=1e-2 if dtype != torch.float32 else 1e-6)
            scale = float(got.scales[row, group])
            zero = 2 ** (bits - 1) if symmetric else min(max(round(-low / scale), 0), top)
            if got.zeros is not None:
                assert abs(int(got.zeros[row, group]) - zero) <= (abs(-low / scale % 1 - 0.5) < 1e-3)
                zero = int(got.zeros[row, group])
            for code, value in zip(got.codes[row, group * size :].tolist(), values.tolist(), strict=False):
                exact = value / scale + zero
                assert code == min(max(round(exact), 0), top) or abs(exact % 1 - 0.5) < 1e-3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_value_is_within_half_a_step_unless_it_is_clipped(bits: int) -> None:
    w = matrix(16, 64)
    for symmetric in (False, True):
        got = round_to_nearest(w, bits, 32, symmetric=symmetric)
        step = got.scales.repeat_interleave(32, dim=1)
        allowed = 0.5 + 0.5 * (symmetric | (bits <= 3))  # the largest value of a symmetric group is clipped by half
        assert ((got.dequantize() - w).abs() <= allowed * step * 1.001).all()


@given(st.sampled_from((2, 3, 4)), st.sampled_from((-1, 16, 32)), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_searched_scales_lose_no_more_than_those_of_the_range(
    bits: int, group_size: int, symmetric: bool, seed: int
) -> None:
    w = matrix(16, 32, seed)
    w[0, :20], w[1] = 0, w[1].abs()

    def losses(**options: bool) -> Tensor:
        rounded = round_to_nearest(w, bits, group_size, symmetric=symmetric, scale_dtype=torch.float16, **options)
        return (
            (rounded.dequantize() - w).abs().pow(2.4).unflatten(1, (-1, 32 if group_size == -1 else group_size)).sum(-1)
        )

    found, plain = losses(search=True), losses()
    assert (found <= plain * 1.0001 + 1e-12).all()
    if bits == 2:
        assert found.sum() < 0.85 * plain.sum()


def test_searched_scales_are_the_best_of_forty_shrunken_ranges() -> None:
    w = matrix(1, 16, 7)
    low, high = float(w.min()), float(w.max())
    best = math.inf, 0.0
    for number in range(41):
        share = 1 - number / 50
        scale = torch.tensor((high - low) * share / 3).half().float()
        zero = min(max(round(-low * share / float(scale)), 0), 3)
        rounded = ((w / scale).round() + zero).clamp(0, 3).sub(zero) * scale
        best = min(best, (float((rounded - w).abs().pow(2.4).sum()), float(scale)))
    got = round_to_nearest(w, 2, -1, symmetric=False, scale_dtype=torch.float16, search=True)
    assert float(got.scales) == best[1]


def test_finer_groups_and_more_bits_are_closer() -> None:
    w = matrix(64, 256)

    def rmse(bits: int, group_size: int, symmetric: bool = False) -> float:
        return float((round_to_nearest(w, bits, group_size, symmetric=symmetric).dequantize() - w).square().mean())

    assert rmse(4, 32) < rmse(4, 64) < rmse(4, 128) < rmse(4, -1)
    assert rmse(8, 64) < rmse(4, 64) < rmse(3, 64) < rmse(2, 64)


def test_relative_errors_on_gaussian_numbers_are_the_known_ones() -> None:
    w = matrix(1024, 1024, scale=1.0)

    def error(form: Tensor) -> float:
        return float((form - w).square().mean().sqrt())

    assert error(quantize_nf4(w).dequantize()) == pytest.approx(0.0920, abs=0.0005)
    assert error(round_to_nearest(w, 4, 64, symmetric=False).dequantize()) == pytest.approx(0.0910, abs=0.0005)
    # A scale of max / 7 has 0.1075; 2 max / 15 clips the largest value by half a step and is finer for all others.
    assert error(round_to_nearest(w, 4, 64, symmetric=True).dequantize()) == pytest.approx(0.1029, abs=0.0005)
    assert error(round_to_nearest(w, 4, 128, symmetric=False).dequantize()) == pytest.approx(0.1007, abs=0.0005)


def test_zeros_stay_zeros_and_what_is_not_finite_is_refused() -> None:
    nothing = torch.zeros(2, 64)
    for name in ("int8", "int4", "int2", "nf4", "fp8", "w8a8"):
        got = quantize(nothing, QuantizationConfig.named(name))
        assert torch.equal(got.dequantize(), nothing) and torch.isfinite(got.scales).all()
        broken = matrix(2, 64)
        broken[1, 3] = math.nan
        with pytest.raises(ConfigError, match=r"layer 7 cannot be quantized: .* not finite"):
            quantize(broken, QuantizationConfig.named(name), name="layer 7")


def test_int8_and_fp8_rows_use_their_whole_range() -> None:
    w = matrix(8, 48)
    int8, fp8 = int8_rows(w), fp8_rows(w)
    assert int(int8.codes.max()) == 255 or int(int8.codes.min()) == 1
    assert int(int8.codes.min()) >= 1, "-128 has no counterpart"
    assert torch.allclose(int8.scales[:, 0], w.abs().amax(1) / 127)
    assert torch.equal(fp8.codes.view(torch.float8_e4m3fn).float().abs().amax(1), torch.full((8,), 448.0))
    assert ((fp8.dequantize() - w).abs() <= w.abs() / 16 + fp8.scales * 2**-10).all()


def test_nf4_takes_the_nearest_published_level() -> None:
    w = matrix(4, 128)
    got = quantize_nf4(w)
    blocks = (w.view(4, 2, 64) / w.view(4, 2, 64).abs().amax(-1, keepdim=True)).view(4, 128)
    nearest = (blocks[..., None] - torch.tensor(NF4_LEVELS)).abs().argmin(-1)
    assert torch.equal(got.codes.long(), nearest)
    assert torch.equal(got.scales, w.view(4, 2, 64).abs().amax(-1)) and (got.kind, got.group_size) == ("nf4", 64)


@given(st.integers(1, 8), st.integers(1, 6), st.sampled_from((32, 64, 128)), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_nf4_has_the_bytes_of_bitsandbytes(rows: int, blocks: int, block_size: int, seed: int) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    w = matrix(rows, blocks * block_size, seed)
    packed, state = functional.quantize_4bit(w, blocksize=block_size, quant_type="nf4", compress_statistics=False)
    got = quantize_nf4(w, block_size)
    assert torch.equal(got.scales.flatten(), state.absmax)
    ours = got.codes.flatten()
    assert torch.equal((ours[::2] << 4) | ours[1::2], packed.flatten())
    assert torch.equal(got.dequantize(), functional.dequantize_4bit(packed, state))


def test_double_quantized_scales_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(dynamic_map(), functional.create_dynamic_map(signed=True))
    w = matrix(256, 1024)
    _, state = functional.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
    scales = w.view(-1, 64).abs().amax(-1)
    ours = DoubleQuantized.of(scales)
    assert ours.offset == pytest.approx(float(state.offset)) and torch.allclose(ours.largest, state.state2.absmax)
    off = (ours.codes.int() - state.absmax.int()).abs()  # its C code takes a neighbour of the nearest now and then
    assert off.max() <= 1 and (off > 0).float().mean() <= 0.005
    restored = quantize_nf4(w, double_quant=True)
    assert torch.equal(restored.scales.flatten(), ours.dequantize())
    assert (ours.dequantize() - scales).abs().max() < 0.02 * scales.max()


def test_the_dynamic_map_is_what_the_paper_says() -> None:
    table = dynamic_map()
    assert len(table) == 256 and (table[1:] > table[:-1]).all() and float(table[-1]) == 1.0 and 0.0 in table.tolist()
    positive = table[table > 0]
    assert [int(((positive > 10.0**-e) & (positive < 10.0 ** (1 - e))).sum()) for e in range(1, 8)] == [
        64, 32, 16, 8, 4, 2, 1,
    ]  # fmt: skip
    assert set((-table[table < 0]).tolist()) == set(positive[:-1].tolist())


def test_one_scale_alone_survives_double_quantization() -> None:
    scales = torch.tensor([0.3])
    assert torch.equal(DoubleQuantized.of(scales).dequantize(), scales)


@pytest.mark.parametrize("name", QUANTIZATION_SHORT_NAMES)
def test_every_short_name_is_a_config_that_survives_its_own_fields(name: str) -> None:
    config = QuantizationConfig.named(name)
    assert QuantizationConfig(**config.model_dump()) == config
    assert config.head == "int8"


def test_methods_know_what_they_leave_out() -> None:
    assert QuantizationConfig(method="nf4").group_size == 64 and QuantizationConfig(method="nf4").bits == 4
    assert QuantizationConfig(bits=4).group_size == 128 and QuantizationConfig().group_size == -1
    assert QuantizationConfig(method="gptq", bits=3, group_size=32).group_size == 32
    with pytest.raises(ConfigError, match="'int5' is not allowed: give int8, int4"):
        QuantizationConfig.named("int5")


def test_what_cannot_be_done_is_said_in_one_sentence() -> None:
    w = matrix(4, 576)
    with pytest.raises(ConfigError, match=r"group_size=128 does not divide the 576 inputs of x: give 64, or -1"):
        quantize(w, QuantizationConfig(bits=4), name="x")
    with pytest.raises(ConfigError, match=r"group_size=128 does not divide the 576 inputs of x: give another method"):
        quantize(w, QuantizationConfig(method="nf4", group_size=128), name="x")
    for method in ("gptq", "awq"):
        with pytest.raises(ConfigError, match=f"needs calibration text: run playground compress --method {method}"):
            quantize(w, QuantizationConfig.named(f"{method}-int4"))


def test_large_matrices_are_quantized_in_pieces_that_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    w, config = matrix(50, 64), QuantizationConfig.named("int4")
    whole = quantize(w, config, scale_dtype=torch.bfloat16)
    monkeypatch.setattr("playground.quantization.schemes._PIECE_ELEMENTS", 7 * 64)
    pieces = quantize(w, config, scale_dtype=torch.bfloat16)
    assert torch.equal(whole.dequantize(), pieces.dequantize()) and pieces.scales.dtype == torch.bfloat16
