"""Rotary embedding against float64, in both pairings and on part of a head."""

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.triton.rope import rope
from tests.kernels.triton.oracle import DEVICE, DTYPES, assert_as_good_as_eager, randn


def tables(positions: int, rotary: int) -> tuple[Tensor, Tensor]:
    frequencies = 10000.0 ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / rotary)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float().to(DEVICE), angles.sin().float().to(DEVICE)


def eager(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """As models have it: in the dtype of x."""
    rotary = 2 * cos.shape[-1]
    c, s = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    y = x.clone()
    a, b = (
        (slice(0, rotary, 2), slice(1, rotary, 2)) if interleaved else (slice(rotary // 2), slice(rotary // 2, rotary))
    )
    y[..., a] = x[..., a] * c - x[..., b] * s
    y[..., b] = x[..., b] * c + x[..., a] * s
    return y


@pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rotary"),
    [(1, 1, 2, 2), (9, 3, 64, 64), (12, 1, 80, 32), (9, 9, 80, 80), (8, 2, 48, 46)],
)
def test_rope_is_as_good_as_eager(
    heads: int, kv_heads: int, dim: int, rotary: int, dtype: torch.dtype, interleaved: bool
) -> None:
    q, k = randn(5, heads, dim, dtype=dtype, seed=1), randn(5, kv_heads, dim, dtype=dtype, seed=2)
    cos, sin = tables(100, rotary)
    positions = torch.tensor([99, 0, 7, 7, 31], dtype=torch.int32, device=DEVICE)
    c, s = cos[positions], sin[positions]
    expected = [reference.rope(x.double(), c.double(), s.double(), interleaved) for x in (q, k)]
    plain = [eager(x, c, s, interleaved) for x in (q, k)]
    got = rope(q, k, cos, sin, positions, interleaved=interleaved)
    assert got[0] is q and got[1] is k
    for mine, other, exact in zip(got, plain, expected, strict=True):
        assert_as_good_as_eager(mine, other, exact)


def test_dimensions_beyond_the_rotary_ones_are_not_touched() -> None:
    q, k = randn(3, 2, 80, dtype=torch.bfloat16), randn(3, 1, 80, dtype=torch.bfloat16, seed=1)
    before = q.clone(), k.clone()
    cos, sin = tables(10, 24)
    rope(q, k, cos, sin, torch.tensor([3, 4, 9], device=DEVICE))
    assert torch.equal(q[..., 24:], before[0][..., 24:]) and torch.equal(k[..., 24:], before[1][..., 24:])
    assert not torch.equal(q[..., :24], before[0][..., :24])


def test_position_zero_changes_nothing() -> None:
    q, k = randn(2, 3, 32), randn(2, 1, 32, seed=1)
    before = q.clone(), k.clone()
    rope(q, k, *tables(4, 32), torch.zeros(2, dtype=torch.int64, device=DEVICE))
    assert torch.equal(q, before[0]) and torch.equal(k, before[1])


def test_inverse_turns_back() -> None:
    q, k = randn(4, 3, 32), randn(4, 2, 32, seed=1)
    before = q.clone(), k.clone()
    positions = torch.arange(4, device=DEVICE) * 20
    rope(q, k, *tables(100, 32), positions)
    rope(q, k, *tables(100, 32), positions, inverse=True)
    torch.testing.assert_close((q, k), before, atol=1e-6, rtol=0)


def test_heads_inside_a_fused_projection_are_rotated_in_place() -> None:
    qkv = randn(3, (4 + 2 + 2) * 16, dtype=torch.float16)
    before = qkv.clone()
    q, k = qkv[:, :64].view(3, 4, 16), qkv[:, 64:96].view(3, 2, 16)
    positions = torch.tensor([1, 5, 6], device=DEVICE)
    expected = rope(q.contiguous(), k.contiguous(), *tables(8, 16), positions)
    rope(q, k, *tables(8, 16), positions)
    assert torch.equal(q, expected[0]) and torch.equal(k, expected[1])
    assert torch.equal(qkv[:, 96:], before[:, 96:])


def test_no_tokens_are_no_work() -> None:
    q, k = randn(0, 4, 16), randn(0, 2, 16)
    assert rope(q, k, *tables(8, 16), torch.zeros(0, dtype=torch.int32, device=DEVICE))[0].shape == (0, 4, 16)


def test_what_does_not_fit_is_refused() -> None:
    q, k, positions = randn(2, 4, 16), randn(2, 2, 16), torch.zeros(2, dtype=torch.int32, device=DEVICE)
    cos, sin = tables(8, 16)
    with pytest.raises(ValueError, match="contiguous float32"):
        rope(q, k, cos.half(), sin.half(), positions)
    with pytest.raises(ValueError, match="R <= D"):
        rope(q, k, *tables(8, 18), positions)
    with pytest.raises(ValueError, match="positions is"):
        rope(q, k, cos, sin, positions[:1])
    with pytest.raises(ValueError, match="give both as"):
        rope(q, k.half(), cos, sin, positions)
