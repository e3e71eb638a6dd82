"""The public small ops: every implementation gives the definition, and gradients match float64 autograd."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels.quant_pack import PackedWeight, dequantize, pack
from tests.kernels.triton.oracle import DEVICE, assert_as_good_as_eager, randn

BACKENDS = pytest.mark.parametrize("backend", ["torch", "reference", "triton"])
EPS = 1e-5


def int4_weight(n: int, k: int) -> PackedWeight:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (n, k), generator=generator, dtype=torch.uint8)
    scales = torch.rand(n, -(-k // 32), generator=generator) / 8
    zeros = torch.rand(n, -(-k // 32), generator=generator) * 15
    return pack(codes, scales, zeros, bits=4, group_size=32).to(DEVICE)


def tables(positions: int, rotary: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(positions)[:, None] * 0.7 ** torch.arange(rotary // 2)
    return angles.cos().to(DEVICE), angles.sin().to(DEVICE)


@BACKENDS
@pytest.mark.parametrize("shape", [(48,), (3, 48), (2, 3, 48), (2, 1, 3, 48), (0, 48)], ids=str)
@pytest.mark.parametrize("kind", ["rms", "gemma", "layer"])
def test_norms_take_any_leading_dimensions(kind: str, shape: tuple[int, ...], backend: str) -> None:
    x, residual = randn(*shape, seed=1), randn(*shape, seed=2)
    weight, bias = randn(48, seed=3), randn(48, seed=4)
    total = residual + x

    def norm(x: Tensor, residual: Tensor | None = None, backend: str = backend) -> Tensor | tuple[Tensor, Tensor]:
        if kind == "layer":
            return kernels.layer_norm(x, weight, bias, EPS, residual, backend=backend)
        return kernels.rms_norm(x, weight, EPS, residual, gemma=kind == "gemma", backend=backend)

    out, updated = norm(x, residual)
    assert updated is residual and torch.equal(residual, total)
    assert torch.equal(out, norm(total))
    torch.testing.assert_close(out, norm(total, backend="reference"), rtol=1e-5, atol=1e-5)


@BACKENDS
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gated_activations_agree(activation: str, backend: str) -> None:
    x = randn(2, 3, 64, scale=2)
    gate, up = x.double().chunk(2, -1)
    exact = (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up
    got = kernels.gated_activation(x, activation, backend=backend)
    torch.testing.assert_close(got, exact.float(), rtol=1e-5, atol=1e-5)
    if activation == "silu":
        assert torch.equal(got, kernels.swiglu(x, backend=backend))


@BACKENDS
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_in_place(interleaved: bool, backend: str) -> None:
    q, k = randn(3, 4, 20), randn(3, 2, 20, seed=1)
    angles, positions = tables(9, 12), torch.tensor([0, 8, 3], device=DEVICE)
    cos, sin = (t[positions][:, None].double() for t in angles)
    first, second = (slice(0, 12, 2), slice(1, 12, 2)) if interleaved else (slice(0, 6), slice(6, 12))
    wanted = []
    for x in (q, k):
        y = x.double()
        a, b = y[..., first].clone(), y[..., second].clone()
        y[..., first], y[..., second] = a * cos - b * sin, b * cos + a * sin
        wanted.append(y.float())
    got = kernels.rope(q, k, *angles, positions, interleaved=interleaved, backend=backend)
    assert got[0] is q and got[1] is k
    torch.testing.assert_close((q, k), tuple(wanted), rtol=1e-5, atol=1e-5)


@BACKENDS
@pytest.mark.parametrize("rows", [(2,), (2, 3), (0,), (80,)], ids=str)
def test_quant_linear_agrees(rows: tuple[int, ...], backend: str) -> None:
    packed, bias = int4_weight(24, 70), randn(24, seed=1)
    x = randn(*rows, 70)
    exact = F.linear(x.double(), dequantize(packed, torch.float64), bias.double())
    got = kernels.quant_linear(x, packed, bias, backend=backend)
    assert_as_good_as_eager(got, F.linear(x, dequantize(packed), bias), exact)


def assert_gradients(op: Callable[..., Tensor], exact_op: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Gradients of a random projection of the output: the op's against the definition's in float64, and eager's."""
    grads = []
    for function, dtype in ((op, None), (exact_op, None), (exact_op, torch.float64)):
        leaves = [t.to(dtype or t.dtype).detach().clone().requires_grad_() for t in inputs]
        out = function(*leaves)
        out.backward(randn(*out.shape, dtype=torch.float64, seed=9).to(out.dtype))
        grads.append([leaf.grad for leaf in leaves])
    for got, eager, exact in zip(*grads, strict=True):
        assert_as_good_as_eager(got, eager, exact)


def eager_rms(x: Tensor, weight: Tensor, gemma: bool) -> Tensor:
    y = x if x.dtype == torch.float64 else x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS)
    return (y * (1 + weight.to(y.dtype))).to(x.dtype) if gemma else y.to(x.dtype) * weight


GRADIENT_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@GRADIENT_DTYPES
@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("shape", [(1, 7), (19, 48), (3, 5, 300)], ids=str)
def test_gradients_of_rms_norm(shape: tuple[int, ...], gemma: bool, dtype: torch.dtype) -> None:
    x, weight = randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype, seed=1)
    assert_gradients(
        lambda x, w: kernels.rms_norm(x, w, EPS, gemma=gemma, backend="triton"),
        lambda x, w: eager_rms(x, w, gemma),
        x,
        weight,
    )


@GRADIENT_DTYPES
def test_gradients_of_layer_norm(dtype: torch.dtype) -> None:
    assert_gradients(
        lambda x, w, b: kernels.layer_norm(x, w, b, EPS, backend="triton"),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPS),
        randn(19, 48, dtype=dtype) + 1,
        randn(48, dtype=dtype, seed=1),
        randn(48, dtype=dtype, seed=2),
    )


def test_gradients_flow_through_a_fused_residual_to_both_summands() -> None:
    weight = randn(48, seed=1)

    def op(x: Tensor, residual: Tensor, norm: Callable[..., Tensor]) -> Tensor:
        total = residual * 1.0  # not a leaf, as in a model
        return norm(x, total)

    def fused(x: Tensor, total: Tensor) -> Tensor:
        out, updated = kernels.rms_norm(x, weight, EPS, total, backend="triton")
        return out + 2 * updated

    def plain(x: Tensor, total: Tensor) -> Tensor:
        return eager_rms(x + total, weight.to(x.dtype), False) + 2 * (x + total)

    assert_gradients(lambda x, r: op(x, r, fused), lambda x, r: op(x, r, plain), randn(3, 48), randn(3, 48, seed=2))


@GRADIENT_DTYPES
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gradients_of_gated_activations(activation: str, dtype: torch.dtype) -> None:
    assert_gradients(
        lambda x: kernels.gated_activation(x, activation, backend="triton"),
        lambda x: kernels.gated_activation(x, activation, backend="torch"),
        randn(3, 2 * 300, dtype=dtype, scale=2),
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_of_rope_turn_back(interleaved: bool) -> None:
    angles, positions = tables(9, 12), torch.tensor([0, 8, 3], device=DEVICE)

    def op(q: Tensor, k: Tensor, backend: str) -> Tensor:
        return torch.cat(kernels.rope(q, k, *angles, positions, interleaved=interleaved, backend=backend), dim=1)

    q, k = randn(3, 4, 20), randn(3, 2, 20, seed=1)
    assert_gradients(lambda q, k: op(q, k, "triton"), lambda q, k: op(q, k, "torch"), q, k)


@pytest.mark.parametrize("rows", [3, 70])
def test_gradients_pass_through_quantized_weights(rows: int) -> None:
    packed = int4_weight(24, 70)
    assert_gradients(
        lambda x, b: kernels.quant_linear(x, packed, b, backend="triton"),
        lambda x, b: F.linear(x, dequantize(packed, x.dtype), b),
        randn(rows, 70),
        randn(24, seed=1),
    )


def test_float64_goes_to_torch_unless_triton_is_asked_for() -> None:
    x, weight = randn(2, 8, dtype=torch.float64), randn(8, dtype=torch.float64)
    assert kernels.rms_norm(x, weight, EPS).dtype == torch.float64
    with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
        kernels.rms_norm(x, weight, EPS, backend="triton")


def test_what_does_not_fit_is_refused_by_every_op() -> None:
    with pytest.raises(ValueError, match=r"give \[8\]"):
        kernels.rms_norm(randn(2, 8), randn(7), EPS)
    with pytest.raises(ValueError, match="give it like x"):
        kernels.rms_norm(randn(2, 8), randn(8), EPS, randn(1, 8))
    with pytest.raises(ValueError, match="give 'silu' or 'gelu'"):
        kernels.gated_activation(randn(2, 8), "relu")
    with pytest.raises(ValueError, match="R <= D"):
        kernels.rope(randn(2, 1, 8), randn(2, 1, 8), *tables(4, 10), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"give \[..., 70\]"):
        kernels.quant_linear(randn(2, 71), int4_weight(4, 70))
