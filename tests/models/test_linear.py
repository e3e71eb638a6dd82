"""Every layout of a linear layer gives what F.linear gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from playground.models import linear
from playground.models.linear import ACTIVATIONS, GatedLinear, Linear, worth_a_copy

# Outputs: narrow, wide, wide and odd, few.
SHAPES = [(24, 16), (1536, 96), (1033, 131), (7, 5)]
ROWS = [1, 2, 3, 8, 16, 17, 33, 80]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.1}


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("most_rows_turned", [0, 16])  # without AMX, and with it
def test_a_layer_is_f_linear_and_adds_a_residual(
    dtype: torch.dtype,
    outputs: int,
    inputs: int,
    biased: bool,
    keep: bool,
    most_rows_turned: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "_MOST_ROWS_TURNED", most_rows_turned)
    weight = random(outputs, inputs, dtype=dtype, seed=0)
    bias = random(outputs, dtype=dtype, seed=1) if biased else None
    layer = Linear(weight.clone(), bias, keep=keep)
    for rows in ROWS:
        x, residual = random(rows, inputs, dtype=dtype, seed=2), random(rows, outputs, dtype=dtype, seed=3)
        wanted = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        got = layer(x)
        assert got.dtype == dtype and got.is_contiguous()
        torch.testing.assert_close(got.double(), wanted, rtol=1e-2, atol=TOLERANCE[dtype])
        sum_wanted = wanted + residual.double()
        torch.testing.assert_close(layer.plus(x, residual).double(), sum_wanted, rtol=1e-2, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biased", [False, True])
def test_a_gated_layer_is_activation_of_gate_times_up(dtype: torch.dtype, activation: str, biased: bool) -> None:
    weight = random(2 * 700, 24, dtype=dtype, seed=0)
    bias = random(2 * 700, dtype=dtype, seed=1) if biased else None
    layer = GatedLinear(Linear(weight.clone(), bias), activation)
    for rows in (1, 5, 40):
        x = random(rows, 24, dtype=dtype, seed=2)
        gate, up = F.linear(x.double(), weight.double(), None if bias is None else bias.double()).chunk(2, dim=-1)
        wanted = ACTIVATIONS[activation](gate) * up
        torch.testing.assert_close(layer(x).double(), wanted, rtol=2e-2, atol=5 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_torch_without_onednn_runs_on_the_plain_matrix(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_pointwise", None)
    weight = random(1536, 24, dtype=dtype, seed=0)
    layer = Linear(weight, None)
    assert layer.weight is weight
    for rows in ROWS:
        x = random(rows, 24, dtype=dtype, seed=2)
        torch.testing.assert_close(layer(x), F.linear(x, weight), rtol=1e-2, atol=TOLERANCE[dtype])


def test_a_kept_weight_is_the_tensor_that_was_given() -> None:
    weight = random(2048, 8, dtype=torch.float32, seed=0)
    assert Linear(weight, None, keep=True).weight is weight


def test_only_a_small_bfloat16_head_is_laid_out_beside_the_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "reorders", lambda dtype, device: True)
    monkeypatch.setattr(linear, "_SMALL_COPY", 8 << 20)
    assert worth_a_copy(torch.empty(4096, 1024, dtype=torch.bfloat16, device="meta"))
    assert not worth_a_copy(torch.empty(4097, 1024, dtype=torch.bfloat16, device="meta"))
    assert not worth_a_copy(torch.empty(64, 8, dtype=torch.float32, device="meta"))
    monkeypatch.setattr(linear, "reorders", lambda dtype, device: False)
    assert not worth_a_copy(torch.empty(64, 8, dtype=torch.bfloat16, device="meta"))


def test_bytes_count_the_weight_and_the_bias_once() -> None:
    weight, bias = random(2048, 8, dtype=torch.float32, seed=0), random(2048, dtype=torch.float32, seed=0)
    assert Linear(weight, bias).nbytes == 4 * (2048 * 8 + 2048)
    assert GatedLinear(Linear(weight.bfloat16(), None), "silu").nbytes == 2 * 2048 * 8
