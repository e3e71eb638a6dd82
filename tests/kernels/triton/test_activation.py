"""SwiGLU and GeGLU against their definitions in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.triton.activation import gated_activation
from tests.kernels.triton.oracle import DTYPES, assert_as_good_as_eager, randn


def definition(gate_up: Tensor, activation: str) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "size"), [(1, 1), (3, 96), (2, 257), (5, 1536)])
def test_gated_activation_is_as_good_as_eager(tokens: int, size: int, dtype: torch.dtype, activation: str) -> None:
    gate_up = randn(tokens, 2 * size, dtype=dtype, seed=size, scale=3)
    got = gated_activation(gate_up, activation)
    assert_as_good_as_eager(got, definition(gate_up, activation), definition(gate_up.double(), activation))


def test_rows_of_a_larger_tensor_are_read_through_their_stride() -> None:
    wide = randn(4, 300)
    got = gated_activation(wide[:, 20:220])
    assert torch.equal(got, gated_activation(wide[:, 20:220].contiguous()))


def test_no_tokens_give_no_rows() -> None:
    assert gated_activation(randn(0, 64)).shape == (0, 32)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="use 'silu' or 'gelu'"):
        gated_activation(randn(1, 8), "relu")
