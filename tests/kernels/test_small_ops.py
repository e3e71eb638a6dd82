"""Norms, RoPE, SwiGLU and the cache write against their definitions."""

import pytest
import torch
from torch import Tensor

from kernels import cpu, reference

ROWS = pytest.mark.parametrize("rows", [1, 3, 16, 17, 200])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def random(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * scale).to(dtype)


def assert_close(got: Tensor, wanted: Tensor) -> None:
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


@ROWS
@DTYPES
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_rms_norm_is_the_definition(rows: int, dtype: torch.dtype, scale: float) -> None:
    x, weight = random(rows, 48, dtype=dtype, scale=scale), random(48, dtype=dtype, seed=1)
    before = x.clone()
    got = cpu.RMSNorm(weight, 1e-5)(x)
    assert torch.equal(x, before) and got.dtype == dtype
    assert_close(got, reference.rms_norm(x.double(), weight.double(), 1e-5))


@ROWS
@DTYPES
def test_layer_norm_is_the_definition(rows: int, dtype: torch.dtype) -> None:
    x, weight, bias = random(rows, 48, dtype=dtype), random(48, dtype=dtype, seed=1), random(48, dtype=dtype, seed=2)
    wanted = reference.layer_norm(x.double(), weight.double(), bias.double(), 1e-5)
    assert_close(cpu.LayerNorm(weight, bias, 1e-5)(x), wanted)


@ROWS
@DTYPES
def test_rope_is_the_definition_and_leaves_its_neighbours_alone(rows: int, dtype: torch.dtype) -> None:
    both = random(rows, 5, 16, dtype=dtype)
    angles = random(rows, 8, dtype=torch.float64, seed=3)
    wanted = reference.rope(both[:, :3].double(), angles.cos(), angles.sin())
    rest = both[:, 3:].clone()
    cos = torch.cat((angles.cos(), angles.cos()), 1).to(dtype)[:, None]
    sin = torch.cat((-angles.sin(), angles.sin()), 1).to(dtype)[:, None]
    assert_close(cpu.rope_(both[:, :3], cos, sin), wanted)
    assert_close(both[:, :3], wanted)
    assert torch.equal(both[:, 3:], rest)


def test_rope_turns_by_relative_position() -> None:
    """The product of a rotated query and key depends only on how far apart they stand."""
    q, k = random(1, 1, 16, dtype=torch.float64), random(1, 1, 16, dtype=torch.float64, seed=1)
    frequencies = 10_000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)

    def product(q_pos: int, k_pos: int) -> float:
        turned = [reference.rope(x, (p * frequencies).cos()[None], (p * frequencies).sin()[None]) for x, p in
                  ((q, q_pos), (k, k_pos))]  # fmt: skip
        return (turned[0] * turned[1]).sum().item()

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-12)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-3)


@ROWS
@DTYPES
def test_swiglu_is_the_definition(rows: int, dtype: torch.dtype) -> None:
    x = random(rows, 64, dtype=dtype)
    assert_close(cpu.swiglu(x), reference.swiglu(x.double()))


@pytest.mark.parametrize("write", [cpu.write_kv, reference.write_kv])
def test_cache_write_hits_exactly_its_slots(write: object) -> None:
    k, v = random(4, 2, 8, dtype=torch.float32), random(4, 2, 8, dtype=torch.float32, seed=1)
    caches = random(2, 5, 2, 3, 8, dtype=torch.float32, seed=2)
    before = caches.clone()
    write(k, v, caches[0], caches[1], torch.tensor([14, -1, 0, 7]))  # type: ignore[operator]
    for side, values in enumerate((k, v)):
        for token, (block, offset) in {0: (4, 2), 2: (0, 0), 3: (2, 1)}.items():
            assert torch.equal(caches[side, block, :, offset], values[token])
            before[side, block, :, offset] = values[token]
    assert torch.equal(caches, before)
