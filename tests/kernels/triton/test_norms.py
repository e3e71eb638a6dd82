"""RMSNorm, Gemma's form, LayerNorm and the fused residual against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference
from kernels.triton.norms import layer_norm, rms_norm
from tests.kernels.triton.oracle import DTYPES, assert_as_good_as_eager, randn

SHAPES = [(1, 1), (3, 64), (17, 80), (2, 257), (3, 2050), (5, 3, 128), (2, 7, 33)]
EPS = 1e-6


def eager_rms(x: Tensor, weight: Tensor, gemma: bool) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS)
    return (y * (1 + weight.float())).to(x.dtype) if gemma else y.to(x.dtype) * weight


@pytest.mark.parametrize("gemma", [False, True], ids=["llama", "gemma"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm_is_as_good_as_eager(shape: tuple[int, ...], dtype: torch.dtype, gemma: bool) -> None:
    x, weight = randn(*shape, dtype=dtype, seed=1, scale=3), randn(shape[-1], dtype=dtype, seed=2)
    exact = reference.rms_norm(x.double(), weight.double(), EPS, gemma)
    assert_as_good_as_eager(rms_norm(x, weight, EPS, gemma=gemma), eager_rms(x, weight, gemma), exact)


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_layer_norm_is_as_good_as_eager(shape: tuple[int, ...], dtype: torch.dtype, biased: bool) -> None:
    size = shape[-1]
    x, weight = randn(*shape, dtype=dtype, seed=1) + 2, randn(size, dtype=dtype, seed=2)
    bias = randn(size, dtype=dtype, seed=3) if biased else None
    exact = reference.layer_norm(x.double(), weight.double(), None if bias is None else bias.double(), 1e-5)
    eager = F.layer_norm(x, (size,), weight, bias, 1e-5)
    assert_as_good_as_eager(layer_norm(x, weight, bias, 1e-5), eager, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["rms", "gemma", "layer"])
def test_fused_residual_is_the_addition_and_then_the_norm_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    x, residual = randn(5, 96, dtype=dtype, seed=1), randn(5, 96, dtype=dtype, seed=2, scale=8)
    weight = randn(96, dtype=dtype, seed=3)
    total = residual + x
    if kind == "layer":
        expected = layer_norm(total, weight, None, EPS)
        got = layer_norm(x, weight, None, EPS, residual)
    else:
        expected = rms_norm(total, weight, EPS, gemma=kind == "gemma")
        got = rms_norm(x, weight, EPS, residual, gemma=kind == "gemma")
    assert torch.equal(residual, total)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("size", [48, 2050])
def test_a_row_gives_the_same_bits_alone_and_in_a_batch(size: int) -> None:
    x, weight = randn(19, size, dtype=torch.bfloat16), randn(size, dtype=torch.bfloat16, seed=1)
    together = rms_norm(x, weight, EPS)
    for row in (0, 7, 18):
        assert torch.equal(rms_norm(x[row : row + 1], weight, EPS)[0], together[row])


def test_heads_inside_a_fused_projection_are_read_and_written_in_place() -> None:
    qkv = randn(3, 10 * 32, dtype=torch.float16)
    weight = randn(32, dtype=torch.float16, seed=1)
    before = qkv.clone()
    q = qkv[:, 64:192].view(3, 4, 32)
    expected = rms_norm(q.contiguous(), weight, EPS)
    rms_norm(q, weight, EPS, out=q)
    assert torch.equal(q, expected)
    assert torch.equal(qkv[:, :64], before[:, :64])
    assert torch.equal(qkv[:, 192:], before[:, 192:])


def test_rows_of_zeros_stay_finite() -> None:
    assert torch.equal(rms_norm(torch.zeros_like(randn(2, 40)), randn(40), EPS), torch.zeros_like(randn(2, 40)))


def test_no_rows_give_no_rows() -> None:
    assert rms_norm(randn(0, 64), randn(64), EPS).shape == (0, 64)


def test_what_does_not_fit_is_refused() -> None:
    x, weight = randn(2, 8), randn(8)
    with pytest.raises(ValueError, match="weight has shape"):
        rms_norm(x, randn(7), EPS)
    with pytest.raises(ValueError, match="residual is"):
        rms_norm(x, weight, EPS, randn(2, 7))
    with pytest.raises(ValueError, match="float64"):
        rms_norm(x.double(), weight, EPS)
    with pytest.raises(ValueError, match="contiguous there"):
        rms_norm(randn(8, 2).T, weight, EPS)
