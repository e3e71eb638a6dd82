"""Zeros: exact numbers of them, the known masks, and SparseGPT's weights against the least squares that it solves."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from playground.compression.float_checkpoint import FloatCheckpoint
from playground.compression.hessian import output_error
from playground.compression.sparsity import Pattern, magnitude_mask, sparsegpt, sparsify, wanda_mask
from playground.errors import ConfigError
from tests.checkpoints import checkpoint
from tests.compression.helpers import assert_transformers_agrees, decoder_logits, random_ids


def layer(outputs: int, inputs: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A matrix and the second moment of inputs that correlate and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=dtype)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=dtype) * inputs**-0.5
    sizes = torch.randn(inputs, generator=generator, dtype=dtype).exp()
    x = (
        torch.randn(4 * inputs, inputs, generator=generator, dtype=dtype)
        @ (mix + torch.eye(inputs, dtype=dtype))
        * sizes
    )
    return weight, x.t() @ x / len(x)


@given(share=st.floats(0.01, 0.99), outputs=st.integers(1, 9), inputs=st.integers(2, 40), levels=st.integers(1, 5))
def test_unstructured_masks_have_exactly_the_share_even_among_equal_weights(
    share: float, outputs: int, inputs: int, levels: int
) -> None:
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randint(-levels, levels + 1, (outputs, inputs), generator=generator).float()
    pattern = Pattern(share)
    zero = magnitude_mask(weight, pattern)
    assert zero.sum() == int(share * weight.numel() + 1e-9)
    if zero.sum() > 0:
        assert weight.abs()[zero].max() <= weight.abs()[~zero].min()
    rows = wanda_mask(weight, torch.rand(inputs, generator=generator), pattern).sum(1)
    assert (rows == int(share * inputs + 1e-9)).all()


def test_wanda_scores_are_weights_times_input_norms() -> None:
    weight, hessian = layer(6, 16)
    scores = weight.abs() * hessian.diagonal().sqrt()
    for row, zero in zip(scores, wanda_mask(weight, hessian.diagonal(), Pattern(0.5)), strict=True):
        assert zero.sum() == 8 and row[zero].max() < row[~zero].min()
    groups = wanda_mask(weight, hessian.diagonal(), Pattern.parse("2:4")).view(-1, 4)
    for row, zero in zip(scores.view(-1, 4), groups, strict=True):
        assert zero.sum() == 2 and row[zero].max() < row[~zero].min()


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("text", "per_group", "group"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:3", 1, 3)])
def test_every_few_neighbours_hold_their_zeros(method: str, text: str, per_group: int, group: int) -> None:
    weight, hessian = layer(5, 264)  # more than one block of SparseGPT
    pattern = Pattern.parse(text)
    masks = {
        "magnitude": lambda: magnitude_mask(weight, pattern),
        "wanda": lambda: wanda_mask(weight, hessian.diagonal(), pattern),
        "sparsegpt": lambda: sparsegpt(weight, hessian, pattern) == 0,
    }
    assert (masks[method]().view(-1, group).sum(1) == per_group).all()


def test_sparsegpt_zeroes_the_share_of_every_block_of_columns() -> None:
    weight, hessian = layer(7, 300)
    zero = sparsegpt(weight, hessian, Pattern(0.4)) == 0
    counts = [int(part.sum()) for part in zero.split(128, dim=1)]
    assert counts == [int(0.4 * 7 * width) for width in (128, 128, 44)]


@pytest.mark.parametrize("text", ["0.5", "0.8", "2:4"])
@pytest.mark.parametrize("seed", range(5))
def test_sparsegpt_loses_less_than_wanda_and_wanda_less_than_magnitude(seed: int, text: str) -> None:
    weight, hessian = layer(24, 64, seed)
    pattern = Pattern.parse(text)
    by_magnitude = weight.masked_fill(magnitude_mask(weight, pattern), 0)
    by_wanda = weight.masked_fill(wanda_mask(weight, hessian.diagonal(), pattern), 0)
    pruned = sparsegpt(weight, hessian, pattern)
    losses = [float(output_error(w - weight, hessian)) for w in (pruned, by_wanda, by_magnitude)]
    assert losses == sorted(losses) and losses[0] < losses[1]


def test_sparsegpt_equals_removing_weights_one_by_one_with_the_exact_inverse() -> None:
    """Optimal Brain Surgeon with the explicit inverse of what is left of H, float64: no Cholesky factor, no blocks."""
    weight, hessian = layer(3, 12, dtype=torch.float64)
    pruned = sparsegpt(weight, hessian, Pattern.parse("2:4"), damping=0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    expected = weight.clone()
    for row in expected:
        zero: list[int] = []
        for column in range(12):
            inverse = torch.linalg.inv(damped[column:, column:])
            if column % 4 == 0:
                costs = {}
                for other in range(column, column + 4):  # as they stand when the neighbourhood is reached
                    later = torch.linalg.inv(damped[other:, other:])
                    costs[other] = float(row[other] ** 2 / later[0, 0])
                zero += sorted(costs, key=lambda other: costs[other])[:2]
            if column in zero:
                row[column:] -= row[column] / inverse[0, 0] * inverse[0]
                row[column] = 0
    torch.testing.assert_close(pruned, expected, atol=1e-9, rtol=1e-9)


def test_inputs_that_never_came_cost_nothing_and_break_nothing() -> None:
    weight, hessian = layer(4, 16)
    hessian[3], hessian[:, 3] = 0, 0
    assert (wanda_mask(weight, hessian.diagonal(), Pattern(1 / 16))[:, 3]).all()
    assert sparsegpt(weight, hessian, Pattern(0.5)).isfinite().all()


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("variant", "text"), [("llama-biased", "0.5"), ("gpt2", "2:4")])
def test_a_sparse_checkpoint_is_a_normal_one(method: str, variant: str, text: str, tmp_path: Path) -> None:
    model = FloatCheckpoint.load(checkpoint(variant))
    ids = random_ids(model.config.vocab_size)
    sparse = sparsify(model, ids, Pattern.parse(text), method)  # type: ignore[arg-type]
    assert sparse.config == model.config
    names = model.config.family.names
    for layer_number in range(model.config.num_layers):
        for name in (*names.qkv, names.out, *names.up, names.down):
            weight = sparse.tensors[f"{name.format(layer_number)}.weight"]
            along = weight.t() if model.config.family.transposed else weight
            if text == "2:4":
                assert (along.reshape(-1, 4).count_nonzero(dim=1) == 2).all()
            else:
                assert weight.count_nonzero() == weight.numel() - weight.numel() // 2
    embed = f"{names.embed}.weight"
    assert sparse.tensors[embed] is model.tensors[embed]
    assert_transformers_agrees(sparse, tmp_path / "sparse")


def test_making_up_for_zeros_pays_on_a_whole_model() -> None:
    model = FloatCheckpoint.load(checkpoint("llama-3"))
    ids = random_ids(model.config.vocab_size, sequences=24)
    whole = decoder_logits(model.decoder(), ids)
    sparsegpt_error, *others = (
        float((decoder_logits(sparsify(model, ids, Pattern(0.5), method).decoder(), ids) - whole).square().mean())
        for method in ("sparsegpt", "wanda", "magnitude")
    )
    assert sparsegpt_error < 0.9 * min(others)


def test_patterns_that_cannot_be_are_refused_in_one_sentence() -> None:
    assert (Pattern.parse("0.5"), Pattern.parse("2:4")) == (Pattern(0.5), Pattern(zeros=2, of=4))
    for text in ("0", "1", "1.5", "-0.5", "half", "nan", "4:4", "0:4", "5:4", "2:4:8", ""):
        with pytest.raises(ConfigError, match="is not allowed: give a share between 0 and 1"):
            Pattern.parse(text)
    model = FloatCheckpoint.load(checkpoint("llama-2"))
    with pytest.raises(ConfigError, match="3:7 does not divide rows of 48 weights"):
        sparsify(model, random_ids(model.config.vocab_size), Pattern.parse("3:7"), "magnitude")
