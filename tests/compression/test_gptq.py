"""GPTQ against Optimal Brain Quantization, done column by column anew, and against rounding to nearest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from playground.compression.gptq import gptq
from playground.compression.hessian import inverse_factor, output_error
from playground.config import QuantizationConfig
from playground.errors import ModelLoadError
from playground.quantization.rtn import grid, round_to_nearest


def moment(inputs: int, tokens: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Second moment of correlated inputs whose channels differ in size, as those of language models do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) * inputs**-0.5
    mixed = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ (torch.eye(inputs) + mixing)
    mixed *= (0.5 * torch.randn(inputs, generator=generator, dtype=torch.float64)).exp()
    return (mixed.t() @ mixed / tokens).to(dtype)


def matrix(outputs: int, inputs: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def config(bits: int, group_size: int, symmetric: bool = False, **more: object) -> QuantizationConfig:
    more = {"scale_search": False, **more}
    return QuantizationConfig(method="gptq", bits=bits, group_size=group_size, symmetric=symmetric, **more)  # type: ignore[arg-type]


def rounded(column: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    middle = 2 ** (bits - 1) if zero is None else zero
    return (((column / scale).round() + middle).clamp(0, 2**bits - 1) - middle) * scale


def nearest(weight: Tensor, options: QuantizationConfig, scale_dtype: torch.dtype = torch.float16) -> Tensor:
    bits, group_size, symmetric = options.bits, options.group_size, options.symmetric
    search = options.scale_search
    rounded = round_to_nearest(weight, bits, group_size, symmetric=symmetric, scale_dtype=scale_dtype, search=search)
    return rounded.dequantize(weight.dtype)


def assert_rows(got: Tensor, greedy: Tensor, weight: Tensor, hessian: Tensor, options: QuantizationConfig) -> None:
    """Each row is the greedy one's, or rounded to nearest where that is better, which it seldom is."""
    plain = nearest(weight, options, torch.float32)
    ours, theirs = ((((q - weight) @ hessian) * (q - weight)).sum(1) for q in (greedy, plain))
    assert (ours <= theirs).float().mean() >= 0.6
    torch.testing.assert_close(got, torch.where((ours <= theirs)[:, None], greedy, plain), atol=1e-10, rtol=0)


def optimal_brain_quantization(weight: Tensor, hessian: Tensor, bits: int, symmetric: bool, order: list[int]) -> Tensor:
    """Each row's columns one by one: round one, move all that are left by the exact least-squares answer.

    Solved anew for each column from the Hessian of those left, so nothing of the factored form is in it. Scales are
    those of the whole row before anything was rounded.
    """
    work, done = weight.clone(), torch.zeros_like(weight)
    scale, zero = (None if part is None else part[:, 0] for part in grid(weight, bits, -1, symmetric=symmetric))
    assert scale is not None
    left = list(order)
    while left:
        column, rest = left[0], left[1:]
        value = rounded(work[:, column], scale, zero, bits)
        error = work[:, column] - value
        done[:, column] = value
        if rest:  # argmin over d of the error (column off by `error`, the rest by -d)
            work[:, rest] += error[:, None] * torch.linalg.solve(hessian[rest][:, rest], hessian[rest, column])
        left = rest
    return done


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_it_is_optimal_brain_quantization_in_a_fixed_order(act_order: bool, symmetric: bool) -> None:
    weight, hessian = matrix(6, 150, 1, torch.float64), moment(150, 600, 2, torch.float64)
    options = config(3, -1, symmetric, act_order=act_order, damping=1e-30)
    order = torch.argsort(hessian.diagonal(), descending=True).tolist() if act_order else list(range(150))
    expected = optimal_brain_quantization(weight, hessian, 3, symmetric, order)
    got = gptq(weight, hessian, options, scale_dtype=torch.float32).dequantize(torch.float64)
    assert_rows(got, expected, weight, hessian, options)


def test_groups_that_end_inside_a_block_of_columns_see_the_corrected_weights() -> None:
    """A group's scales come from its columns as they are when its turn comes, also in the middle of a lazy block."""
    weight, hessian = matrix(5, 96, 3, torch.float64), moment(96, 400, 4, torch.float64)
    factor, work = inverse_factor(hessian, 0.01), weight.clone()
    expected = torch.zeros_like(weight)
    for column in range(96):
        if column % 32 == 0:
            scale, zero = grid(work[:, column : column + 32], 4, -1, symmetric=False)
        value = rounded(work[:, column], scale[:, 0], None if zero is None else zero[:, 0], 4)
        expected[:, column] = value
        work[:, column + 1 :] -= ((work[:, column] - value) / factor[column, column])[:, None] * factor[
            column, column + 1 :
        ]
    got = gptq(weight, hessian, config(4, 32), scale_dtype=torch.float32).dequantize(torch.float64)
    assert_rows(got, expected, weight, hessian, config(4, 32))


@given(
    seed=st.integers(0, 2**16),
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([16, 32, 128, -1]),
    symmetric=st.booleans(),
    order=st.sampled_from(["none", "dynamic", "static"]),
    search=st.booleans(),
)
@settings(max_examples=30)
def test_no_row_is_worse_than_rounded_to_nearest(
    seed: int, bits: int, group_size: int, symmetric: bool, order: str, search: bool
) -> None:
    k = 128
    weight, hessian = matrix(32, k, seed), moment(k, 1000, seed + 1)
    options = config(bits, group_size, symmetric, act_order=order != "none", static_groups=order == "static",
                     scale_search=search)  # fmt: skip
    ours = gptq(weight, hessian, options)
    assert int(ours.codes.max()) < 2**bits
    assert (ours.group_index is not None) == (order == "dynamic" and group_size not in (-1, k))
    columns = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    if ours.group_index is None:
        columns = torch.arange(k)
    rounded_too = torch.empty_like(weight)
    rounded_too[:, columns] = nearest(weight[:, columns], options)
    off, off_rounded = ours.dequantize() - weight, rounded_too - weight
    for row in range(len(weight)):  # each for itself, and well below in all where there are codes enough
        assert output_error(off[row], hessian) <= 1.0001 * output_error(off_rounded[row], hessian)
    assert output_error(off, hessian) < (0.99 if bits == 2 else 0.75) * output_error(off_rounded, hessian)


def test_searched_scales_make_two_bits_better() -> None:
    weight, hessian = matrix(48, 128, 5), moment(128, 1000, 6)
    found, plain = (gptq(weight, hessian, config(2, 32, scale_search=search)) for search in (True, False))
    losses = [float(output_error(each.dequantize() - weight, hessian)) for each in (found, plain)]
    assert losses[0] < 0.8 * losses[1]


def test_activation_order_tells_the_group_of_each_column() -> None:
    weight, hessian = matrix(4, 64, 7), moment(64, 300, 8)
    got = gptq(weight, hessian, config(4, 16, True, act_order=True, static_groups=False))
    assert got.group_index is not None
    places = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    for place, column in enumerate(places.tolist()):
        assert got.group_index[column] == place // 16


def test_columns_whose_input_was_never_seen_are_rounded_to_nearest() -> None:
    weight, hessian = matrix(8, 32, 9), moment(32, 200, 10)
    hessian[5, :] = hessian[:, 5] = 0
    got = gptq(weight, hessian, config(4, -1)).dequantize()
    assert torch.equal(got[:, 5], nearest(weight, config(4, -1))[:, 5])
    assert torch.isfinite(got).all()


def test_a_hessian_of_fewer_tokens_than_inputs_is_damped_until_it_has_a_factor() -> None:
    hessian = moment(64, 3, 11)
    factor = inverse_factor(hessian, 0.0)
    assert torch.isfinite(factor).all()
    assert torch.isfinite(gptq(matrix(4, 64, 12), hessian, config(4, 32, damping=1e-30)).dequantize()).all()


def test_the_factor_is_that_of_the_inverse() -> None:
    hessian = moment(48, 500, 13, torch.float64)
    factor = inverse_factor(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(48, dtype=torch.float64)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.t() @ factor @ damped, torch.eye(48, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_second_moment_that_none_can_have_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="no positive second moment"):
        inverse_factor(-torch.eye(4) + 10 * torch.ones(4, 4).fill_diagonal_(0), 0.01)
