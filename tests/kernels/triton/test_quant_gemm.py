"""Weight-only quantized products against float64, every format, on shapes that fill no block."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.quant_pack import NF4_LEVELS, PackedWeight, pack
from kernels.triton.arch import INTERPRETED, KNOWN, Arch, current, pretending
from kernels.triton.quant_gemm import dequantize, pick_config, quant_gemm, quant_linear
from tests.kernels.triton.oracle import DEVICE, DTYPES, assert_as_good_as_eager, randn

# kind, bits, group size, with zeros
FORMATS = [
    ("int", 8, -1, False), ("int", 8, 32, True), ("int", 8, 128, False),
    ("int", 4, -1, True), ("int", 4, 32, True), ("int", 4, 64, False), ("int", 4, 128, True), ("int", 4, 256, False),
    ("int", 2, -1, False), ("int", 2, 32, True), ("int", 2, 64, False), ("int", 2, 128, True),
    ("nf4", 4, 64, False), ("nf4", 4, 32, False), ("fp8", 8, -1, False), ("fp8", 8, 64, False),
]  # fmt: skip
Format = tuple[str, int, int, bool]


def make(
    form: Format, n: int, k: int, seed: int = 0, scale_dtype: torch.dtype = torch.float16
) -> tuple[PackedWeight, Tensor]:
    """A random packed weight, and the float64 matrix that it stands for (from the codes, not from the packing)."""
    kind, bits, group, with_zeros = form
    if kind == "fp8" and not (INTERPRETED or current(DEVICE).has_fp8):
        pytest.skip("this GPU does not decode fp8")
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (n, k), generator=generator, dtype=torch.uint8)
    if kind == "fp8":
        codes = torch.where(codes % 128 == 127, 0, codes).to(torch.uint8)  # those are NaN
    groups = 1 if group == -1 else -(-k // group)
    scales = ((torch.rand(n, groups, generator=generator) + 0.5) / 2**bits).to(scale_dtype)
    zeros = (torch.rand(n, groups, generator=generator) * 2**bits).to(scale_dtype) if with_zeros else None
    packed = pack(codes, scales, zeros, bits=bits, group_size=group, kind=kind).to(DEVICE)
    if kind == "nf4":
        values = torch.tensor(NF4_LEVELS, dtype=torch.float64)[codes.long()]
    elif kind == "fp8":
        values = codes.view(torch.float8_e4m3fn).double()
    else:
        values = codes.double()
    column = torch.zeros(k, dtype=torch.long) if group == -1 else torch.arange(k) // group
    if kind == "int":
        values = values - (2 ** (bits - 1) if zeros is None else zeros.double()[:, column])
    return packed, (values * scales.double()[:, column]).to(DEVICE)


def check(x: Tensor, packed: PackedWeight, weight: Tensor, got: Tensor, bias: Tensor | None = None) -> None:
    eager = F.linear(x, weight.to(x.dtype), bias)
    exact = F.linear(x.double(), weight, None if bias is None else bias.double())
    assert_as_good_as_eager(got, eager, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_every_format_is_as_good_as_eager(form: Format, dtype: torch.dtype) -> None:
    packed, weight = make(form, 23, 328)
    x, bias = randn(3, 328, dtype=dtype, seed=1), randn(23, dtype=dtype, seed=2)
    check(x, packed, weight, quant_gemm(x, packed, bias), bias)


@pytest.mark.parametrize(
    ("rows", "cols", "size"),
    [(1, 1, 1), (1, 31, 70), (16, 33, 128), (17, 64, 129), (33, 5, 256), (64, 32, 100), (70, 33, 200)],
)
@pytest.mark.parametrize("form", [("int", 4, 32, True), ("int", 2, 64, False), ("nf4", 4, 64, False)], ids=str)
def test_shapes_that_fill_no_tile_are_right(form: Format, rows: int, cols: int, size: int) -> None:
    packed, weight = make(form, cols, size, seed=rows)
    x = randn(rows, size, dtype=torch.float16, seed=1)
    check(x, packed, weight, quant_linear(x, packed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("form", [FORMATS[i] for i in (0, 5, 10, 12, 15)], ids=str)
def test_every_code_is_decoded_exactly(form: Format, dtype: torch.dtype) -> None:
    """A row of an identity picks one column of W: nothing is summed, so only the last rounding may lose anything."""
    kind, bits, group, _ = form
    make(form, 1, 1)  # skips what this GPU cannot decode
    codes = (torch.arange(256) % 2**bits).to(torch.uint8)[None]
    if kind == "fp8":
        codes = torch.where(codes % 128 == 127, 0, codes).to(torch.uint8)
    scales = torch.ones(1, 1 if group == -1 else 256 // group)
    packed = pack(codes, scales, bits=bits, group_size=group, kind=kind).to(DEVICE)
    if kind == "nf4":
        levels = torch.tensor(NF4_LEVELS, dtype=torch.float32).to(dtype)
        expected = levels[codes.long()][0]
    else:
        values = codes.view(torch.float8_e4m3fn).float() if kind == "fp8" else codes.float() - 2 ** (bits - 1)
        expected = values[0].to(dtype)
    assert torch.equal(dequantize(packed, dtype)[0].cpu(), expected)
    eye = torch.eye(256, dtype=dtype).to(DEVICE)
    picked = torch.cat([quant_gemm(rows, packed, splits=1) for rows in eye.split(64)])
    assert torch.equal(picked[:, 0].cpu(), expected)


def test_bit_patterns_turn_codes_into_bfloat16_numbers() -> None:
    """The interpreter takes another path in bfloat16, so the arithmetic of the compiled one is checked here."""
    for bits in (2, 4):
        codes = torch.arange(2**bits, dtype=torch.int16)
        number = (codes | 0x4300).view(torch.bfloat16) - (128 + 2 ** (bits - 1))
        assert number.tolist() == [code - 2 ** (bits - 1) for code in range(2**bits)]


@pytest.mark.parametrize("form", [FORMATS[3], FORMATS[9], FORMATS[12]], ids=str)
def test_written_out_weights_are_the_weights(form: Format) -> None:
    packed, weight = make(form, 37, 300)
    got = dequantize(packed, torch.bfloat16)
    assert_as_good_as_eager(got, weight.to(torch.bfloat16), weight)


@pytest.mark.parametrize("form", [("int", 4, 64, True), ("int", 8, -1, False), ("nf4", 4, 64, False)], ids=str)
def test_a_row_gives_the_same_bits_alone_and_in_a_batch(form: Format) -> None:
    packed, _ = make(form, 23, 300)
    x = randn(16, 300, dtype=torch.float16)
    together = quant_gemm(x, packed)
    for row in (0, 15):
        assert torch.equal(quant_gemm(x[row : row + 1], packed)[0], together[row])


@pytest.mark.parametrize("arch", KNOWN, ids=lambda arch: f"sm{arch.cc}")
@pytest.mark.parametrize("cols", [1, 576, 4096, 151936])
def test_up_to_16_rows_are_computed_alike_whatever_their_number(cols: int, arch: Arch) -> None:
    configs = [pick_config(arch, rows, cols, 32, torch.bfloat16) for rows in range(1, 17)]
    assert all(config == configs[0] for config in configs)
    assert configs[0]["BLOCK_M"] == 16 and 1 <= configs[0]["splits"] <= 8


def test_splits_of_k_give_one_result_each_time_and_nearly_the_same_among_them() -> None:
    packed, weight = make(("int", 4, 64, True), 23, 384)
    x = randn(4, 384)
    for splits in (1, 2, 99):
        got = quant_gemm(x, packed, splits=splits)
        assert torch.equal(got, quant_gemm(x, packed, splits=splits))
        check(x, packed, weight, got)


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_scales_keep_their_own_type(scale_dtype: torch.dtype) -> None:
    packed, weight = make(("int", 4, 64, True), 16, 128, scale_dtype=scale_dtype)
    x = randn(2, 128)
    check(x, packed, weight, quant_gemm(x, packed))


def test_rows_of_a_larger_tensor_are_read_through_their_stride() -> None:
    packed, _ = make(("int", 4, 32, False), 16, 96)
    wide = randn(4, 200)
    assert torch.equal(quant_gemm(wide[:, 50:146], packed), quant_gemm(wide[:, 50:146].contiguous(), packed))


def test_no_rows_give_no_rows() -> None:
    packed, _ = make(("int", 4, 64, False), 8, 64)
    assert quant_linear(randn(0, 64), packed).shape == (0, 8)


def test_what_does_not_fit_is_refused() -> None:
    packed, _ = make(("int", 4, 64, False), 8, 64)
    with pytest.raises(ValueError, match=r"give float32, float16 or bfloat16 \[M, 64\]"):
        quant_gemm(randn(2, 65), packed)
    with pytest.raises(ValueError, match="bias has shape"):
        quant_gemm(randn(2, 64), packed, randn(7))
    with pytest.raises(ValueError, match="contiguous there"):
        quant_gemm(randn(64, 2).T, packed)


@pytest.mark.skipif(not INTERPRETED, reason="would launch on the GPU at hand")
def test_fp8_weights_are_refused_where_the_gpu_cannot_decode_them() -> None:
    packed, _ = make(("fp8", 8, -1, False), 8, 64)
    with pretending(Arch(86, 82)), pytest.raises(ValueError, match=r"capability 8\.9 or later, this one has 8\.6"):
        quant_gemm(randn(2, 64), packed)
