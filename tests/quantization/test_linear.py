"""Quantized layers against float64 products with the weight as it is defined, for every form, layout and dtype."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from playground.quantization.layouts import FewRowsLayout, Int4Groups, Int8Activations, Int8Rows, KernelGroups, lay_out
from playground.quantization.linear import QuantizedLinear
from playground.quantization.packed import PackedMatrix
from playground.quantization.rtn import int8_rows, round_to_nearest
from playground.quantization.weight import QuantizedWeight
from tests.quantization.weights import random_weight, weights

# Of the typical size of a sum: rounding of float64 and float32, and of scales, weights and sums in bfloat16.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
CPU = torch.device("cpu")


def error(y: Tensor, x: Tensor, weight: QuantizedWeight, extra: Tensor | float = 0.0) -> float:
    """The largest difference from the exact sum, as a share of it and the root of the sum of squares of its terms.

    A weight of codes * scale - offset is two terms, and one of (codes - zero) * scale with a fraction for a zero too:
    both are rounded apart, and what is left of their difference may be much smaller than both.
    """
    exact = weight.dequantize(torch.float64)
    sums = x.double() @ exact.t()
    squares = exact.square()
    parts = {"offsets": weight.offsets, "zeros": weight.zeros}
    apart = {
        name: torch.zeros_like(part) for name, part in parts.items() if part is not None and part.is_floating_point()
    }
    if apart:
        shift = exact - replace(weight, **apart).dequantize(torch.float64)
        squares = (exact - shift).square() + shift.square()
    terms = (x.double().square() @ squares.t()).sqrt() + sums.abs() + torch.as_tensor(extra).abs() + 1e-30
    return float(((y.double() - sums - extra).abs() / terms).max())


def ways(linear: QuantizedLinear, x: Tensor) -> list[Tensor]:
    """The layer's product by every way that its layout has."""
    results = [linear(x)]
    if isinstance(linear.layout, FewRowsLayout) and linear._order is None:
        results += [linear.layout.packed(x), linear.layout.written(x)]
    if isinstance(linear.layout, Int8Rows) and linear._order is None:
        results.append(linear.layout._streamed(x))
    return results


@given(weights(), st.integers(1, 9), st.sampled_from(list(TOLERANCE)))
@settings(max_examples=100, deadline=None)
def test_any_weight_multiplies_as_it_is_defined(weight: QuantizedWeight, rows: int, dtype: torch.dtype) -> None:
    linear = QuantizedLinear(weight, None, dtype=dtype, device=CPU)
    x = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(rows)).to(dtype)
    for y in ways(linear, x):
        assert y.dtype == dtype and y.shape == (rows, weight.shape[0])
        assert error(y, x, weight) < TOLERANCE[dtype]


LAYOUTS = (
    ({"bits": 8, "group_size": -1}, Int8Rows),
    ({"bits": 8, "group_size": 32}, Int4Groups),
    ({"bits": 8, "group_size": 32, "form": "offsets"}, Int4Groups),
    ({"bits": 4, "group_size": 64, "form": "zeros"}, Int4Groups),
    ({"bits": 4, "group_size": -1}, Int4Groups),
    ({"bits": 4, "group_size": 512, "form": "offsets"}, Int4Groups),
    ({"bits": 3, "group_size": 128}, Int4Groups),
    ({"bits": 4, "group_size": 64, "form": "zeros", "shuffled": True}, Int4Groups),
    ({"bits": 2, "group_size": 32}, PackedMatrix),
    ({"bits": 6, "group_size": 16}, PackedMatrix),
    ({"kind": "nf4", "group_size": 64}, PackedMatrix),
    ({"kind": "fp8", "bits": 8, "group_size": -1}, PackedMatrix),
)


@pytest.mark.parametrize(("form", "layout"), LAYOUTS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("rows", [1, 3, 33, 300])
def test_bfloat16_on_a_cpu_takes_the_packed_product_that_fits(form: dict, layout: type, rows: int) -> None:
    weight = random_weight(200, 512, **form)
    linear = QuantizedLinear(weight, None, dtype=torch.bfloat16, device=CPU)
    assert type(linear.layout) is layout
    x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    for y in ways(linear, x):
        assert error(y, x, weight) < TOLERANCE[torch.bfloat16]
    spread = torch.zeros(rows, 1024, dtype=torch.bfloat16)
    spread[:, :512] = x
    assert torch.equal(linear(spread[:, :512]), linear(x)), "rows of x that do not lie side by side"


@pytest.mark.parametrize(("form", "_"), LAYOUTS, ids=lambda value: str(value)[:60])
def test_rows_can_be_looked_up_and_bias_and_residual_are_added(form: dict, _: type) -> None:
    weight = random_weight(130, 512, **form)
    exact, numbers = weight.dequantize(torch.float64), torch.tensor([[129, 0], [64, 63]]).flatten()
    for dtype in TOLERANCE:
        bias = torch.randn(130, generator=torch.Generator().manual_seed(1)).to(dtype)
        linear = QuantizedLinear(weight, bias.clone(), dtype=dtype, device=CPU)
        taken = linear.take(numbers)
        assert taken.dtype == dtype
        assert (taken.double() - exact[numbers]).abs().max() < TOLERANCE[dtype] * exact.abs().max() / 2
        x = torch.randn(2, 512, generator=torch.Generator().manual_seed(2)).to(dtype)
        assert error(linear(x), x, weight, bias.double()) < TOLERANCE[dtype]
        residual = torch.randn(2, 130, generator=torch.Generator().manual_seed(3)).to(dtype)
        extra = residual.double() + bias.double()
        assert error(linear.plus(x, residual.clone()), x, weight, extra) < TOLERANCE[dtype]


KERNEL_FORMS = (
    {"bits": 2, "form": "zeros"},
    {"bits": 4, "group_size": 64, "form": "fractions"},
    {"bits": 4, "group_size": 128, "form": "offsets"},
    {"bits": 8, "group_size": -1},
    {"kind": "nf4", "group_size": 64},
    {"kind": "fp8", "bits": 8, "group_size": -1},
)


@pytest.mark.parametrize("form", KERNEL_FORMS, ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_layout_of_the_gpu_kernels_holds_the_same_matrix(form: dict, device: str) -> None:
    weight, numbers = random_weight(40, 256, **form), torch.tensor([39, 0, 0])
    for dtype in (torch.float32, torch.bfloat16):
        there = weight.to(device)
        if device == "cuda":
            assert isinstance(lay_out(there, dtype), KernelGroups) or form.get("kind") == "fp8"
        layout = KernelGroups(there, dtype)
        taken = layout.take(numbers.to(device)).cpu().double()
        exact = weight.dequantize(torch.float64)
        assert (taken - exact[numbers]).abs().max() < TOLERANCE[dtype] * exact.abs().max()
        for rows in (1, 3, 70):
            x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
            assert error(layout(x.to(device)).cpu(), x, weight) < TOLERANCE[dtype]
        assert layout.nbytes < weight.codes.nbytes * weight.bits / 8 + 2 * weight.scales.nbytes + 1


@pytest.mark.parametrize(
    "form", [{"bits": 3}, {"group_size": 48}, {"shuffled": True}, {"bits": 6, "group_size": 16}], ids=str
)
def test_what_the_gpu_kernels_cannot_decode_is_written_out(form: dict) -> None:
    assert not KernelGroups.fits(random_weight(40, 192, **form), torch.bfloat16)
    assert not KernelGroups.fits(random_weight(40, 192), torch.float64)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 17, 100])
def test_int8_activations_on_a_gpu(rows: int) -> None:
    weight = int8_rows(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
    here, there = (
        QuantizedLinear(weight, None, dtype=torch.bfloat16, device=device, int8_activations=True)
        for device in ("cpu", "cuda")
    )
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert there.layout.name == "int8 x int8"
    assert torch.allclose(there(x.cuda()).cpu(), here(x), rtol=2e-2, atol=2e-2)


def test_uneven_groups_in_activation_order_are_no_different() -> None:
    weight = random_weight(40, 64, form="zeros", shuffled=True)
    assert weight.group_index is not None
    weight.group_index[weight.group_index == 1] = 0  # all columns in the first group: no order makes them blocks
    for dtype in TOLERANCE:
        linear = QuantizedLinear(weight, None, dtype=dtype, device=CPU)
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert error(linear(x), x, weight) < TOLERANCE[dtype]


def test_a_layer_counts_what_it_holds() -> None:
    bias = torch.zeros(128, dtype=torch.bfloat16)
    int8 = QuantizedLinear(random_weight(128, 64, bits=8, group_size=-1), bias, dtype=torch.bfloat16, device=CPU)
    assert int8.nbytes == 128 * 64 + 128 * 2 + 128 * 2 and int8.num_elements == 128 * 64
    int4 = QuantizedLinear(random_weight(128, 64, form="zeros"), None, dtype=torch.bfloat16, device=CPU)
    assert int4.nbytes == 128 * 64 // 2 + 128 * 2 * 4
    assert int4.weight is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_int8_activations_are_the_integer_product_of_rounded_tokens(dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = int8_rows(torch.randn(48, 72, generator=generator))
    linear = QuantizedLinear(weight, None, dtype=dtype, device=CPU, int8_activations=True)
    assert isinstance(linear.layout, Int8Activations)
    x = torch.randn(rows, 72, generator=generator).to(dtype)
    x[0] *= 1000  # every token has a scale of its own
    x[-1, 3] = 0
    wide = x if dtype == torch.float64 else x.float()
    largest = wide.abs().amax(-1, keepdim=True)
    scales = largest / 127.5
    codes = (wide / largest * 127.5).round().clamp(-128, 127)  # the largest is a tie, and goes to 127 or -128
    expected = codes.double() * scales @ weight.dequantize(torch.float64).t()
    off_by_one = scales * weight.dequantize(torch.float64).abs().amax() + expected.abs() * TOLERANCE[dtype]
    assert ((linear(x).double() - expected).abs() <= off_by_one).all()
    assert float((linear(x).double() - expected).abs().mean() / expected.abs().mean()) < TOLERANCE[dtype]
    assert torch.isfinite(linear(torch.zeros(2, 72, dtype=dtype))).all()


@pytest.mark.parametrize("rows", [1, 40])
def test_int8_activations_are_those_of_compressed_tensors(rows: int) -> None:
    pytest.importorskip("compressed_tensors", reason="the format's own library is not installed")
    from compressed_tensors.quantization import QuantizationArgs, forward_quantize
    from compressed_tensors.quantization.quant_config import QuantizationStatus

    generator = torch.Generator().manual_seed(rows)
    weight, x = int8_rows(torch.randn(48, 72, generator=generator)), torch.randn(rows, 72, generator=generator)
    args = QuantizationArgs(num_bits=8, symmetric=True, strategy="token", dynamic=True)
    module = torch.nn.Linear(72, 48)
    module.quantization_status = QuantizationStatus.COMPRESSED  # type: ignore[assignment]
    rounded = forward_quantize(module, x[None], "input", args)[0]
    largest = x.abs().amax(-1, keepdim=True)
    scales = largest / 127.5
    tie = x == -largest  # -127.5: theirs goes to either side with the last bit of the scale, ours to the even one
    assert ((rounded / scales)[tie].round() + 127.5).abs().eq(0.5).all()
    rounded = torch.where(tie, -128 * scales, rounded)
    linear = QuantizedLinear(weight, None, dtype=torch.float32, device=CPU, int8_activations=True)
    torch.testing.assert_close(linear(x), rounded @ weight.dequantize().t(), atol=1e-4, rtol=1e-5)


def test_a_weight_that_int8_products_cannot_take_is_multiplied_as_it_is() -> None:
    weight = random_weight(32, 64, bits=8, group_size=32)
    linear = QuantizedLinear(weight, None, dtype=torch.float32, device=CPU, int8_activations=True)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert error(linear(x), x, weight) < 1e-5


def test_a_tied_table_multiplies_and_is_looked_up_alike() -> None:
    table = round_to_nearest(torch.randn(100, 64, generator=torch.Generator().manual_seed(0)), 8, -1, symmetric=True)
    linear = QuantizedLinear(table, None, dtype=torch.bfloat16, device=CPU)
    one_hot = torch.eye(64, dtype=torch.bfloat16)
    assert torch.allclose(linear(one_hot).t(), linear.take(torch.arange(100)), rtol=8e-3)
