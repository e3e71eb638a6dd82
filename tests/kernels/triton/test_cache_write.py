"""Writing to pages, alone and fused with norm and rotation: the definition, exact codes, and what stays as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from kernels import reference
from tests.kernels.triton.oracle import DEVICE, DTYPES, assert_as_good_as_eager, randn

PAGE = 16
SLOTS = [37, -1, 0, 63, 16, 15, -1]
"""Two tokens of padding; first and last slots of pages."""
STALE = 7.0


def caches(kv_heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return tuple(torch.full((4, kv_heads, PAGE, dim), STALE, device=DEVICE).to(dtype) for _ in range(2))  # type: ignore[return-value]


def scales_of(cache: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.full(cache.shape[:3], STALE, device=DEVICE).to(torch.uint8) for _ in range(2))  # type: ignore[return-value]


def slots() -> Tensor:
    return torch.tensor(SLOTS, device=DEVICE)


def tables(rotary: int) -> dict[str, Tensor]:
    """positions, cos and sin of 32 positions."""
    if rotary == 0:
        return {}
    angles = torch.outer(torch.arange(32.0), 10.0 ** -torch.linspace(0, 2, rotary // 2)).to(DEVICE)
    return {"positions": torch.tensor([3, 0, 31, 7, 7, 1, 0], device=DEVICE), "cos": angles.cos(), "sin": angles.sin()}


def bits(x: Tensor) -> Tensor:
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.itemsize])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kv_heads", "dim"), [(1, 32), (3, 80), (2, 64)])
def test_a_plain_write_stores_the_bits_and_nothing_else(kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    k, v = randn(7, kv_heads, dim, dtype=dtype, seed=1), randn(7, kv_heads, dim, dtype=dtype, seed=2)
    got, wanted = caches(kv_heads, dim, dtype), caches(kv_heads, dim, dtype)
    kernels.write_kv(k, v, *got, slots(), backend="triton")
    kernels.write_kv(k, v, *wanted, slots(), backend="reference")
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(bits(a), bits(b))
    assert (got[0] == STALE).all((1, 3)).sum() == 4 * PAGE - 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("code", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_codes_and_scales_are_those_of_the_definition(code: torch.dtype, dtype: torch.dtype) -> None:
    k, v = randn(7, 2, 80, dtype=dtype, seed=1, scale=30), randn(7, 2, 80, dtype=dtype, seed=2)
    k[2, 1] = 0  # a head of zeros has the smallest scale
    k[2, 0] *= 1e-7  # what the scales do not resolve
    v[2, 0] = 1e30  # and what they do not reach
    k[3, 0, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])  # ties, with a scale of one in int8
    k[3, 0, 4:] = k[3, 0, 4:].clamp(-100, 100)
    results = []
    for backend in ("triton", "torch", "reference"):
        cache = caches(2, 80, code)
        scales = scales_of(cache[0])
        kernels.write_kv(k, v, *cache, slots(), k_scale=scales[0], v_scale=scales[1], backend=backend)
        results.append([bits(t) for t in (*cache, *scales)])
    for got in results[:2]:
        assert all(torch.equal(a, b) for a, b in zip(got, results[2], strict=True))


def test_float8_without_scales_saturates() -> None:
    k = torch.tensor([1e6, -1e6, 448.0, 460.0, 0.3, 1e-5], device=DEVICE).repeat(7, 1)[:, None]
    for backend in ("triton", "torch"):
        cache = caches(1, 6, torch.float8_e4m3fn)
        kernels.write_kv(k, k, *cache, slots(), backend=backend)
        wanted = torch.tensor([448.0, -448.0, 448.0, 448.0, 0.3125, 0.0], device=DEVICE)
        assert torch.equal(cache[0][0, 0, 0].float(), wanted)


def fused(qkv: Tensor, kv_heads: int, backend: str, code: torch.dtype | None = None, **options: Any) -> list[Tensor]:
    """[q, K cache, V cache, scales] after the fused op on a copy of qkv; what it may not touch is checked here."""
    qkv = qkv.clone()
    before = qkv.clone()
    cache = caches(kv_heads, qkv.shape[2], code or qkv.dtype)
    scales = scales_of(cache[0]) if code is not None else ()
    named = dict(zip(("k_scale", "v_scale"), scales, strict=False))
    q = kernels.rope_and_write(qkv, *cache, slots(), backend=backend, **named, **options)
    q_heads = qkv.shape[1] - 2 * kv_heads
    assert q.data_ptr() == qkv.data_ptr() and q.shape[1] == q_heads
    assert torch.equal(qkv[:, q_heads:], before[:, q_heads:])
    return [q, *cache, *scales]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rotary", "interleaved", "norm"),
    [
        (6, 2, 32, 32, False, False),
        (3, 1, 80, 32, False, True),
        (2, 2, 64, 64, True, True),
        (4, 1, 96, 64, True, False),
        (4, 2, 32, 0, False, True),
    ],
)
def test_the_fused_write_is_as_good_as_eager(
    heads: int, kv_heads: int, dim: int, rotary: int, interleaved: bool, norm: bool, dtype: torch.dtype
) -> None:
    qkv = randn(7, heads + 2 * kv_heads, dim, dtype=dtype, scale=2)
    weight = 1 + 0.1 * randn(heads + kv_heads, dim, seed=3) if norm else None
    options: dict[str, Any] = {"interleaved": interleaved, **tables(rotary)}
    got = fused(qkv, kv_heads, "triton", qk_norm=None if weight is None else weight.to(dtype), **options)
    exact_options = options | {"qk_norm": None if weight is None else weight.to(dtype).double()}
    exact = fused(qkv.double(), kv_heads, "reference", **exact_options)
    eager = eager_write(qkv, kv_heads, None if weight is None else weight.to(dtype), **options)
    for mine, theirs, true in zip(got, eager, exact, strict=True):
        assert_as_good_as_eager(mine, theirs, true)


def eager_write(qkv: Tensor, kv_heads: int, weight: Tensor | None, interleaved: bool, **tables: Tensor) -> list[Tensor]:
    """Norm, rotation and write one after the other, each rounding to the dtype."""
    q_heads = qkv.shape[1] - 2 * kv_heads
    qk = qkv[:, : q_heads + kv_heads]
    if weight is not None:
        qk = (qk.float() / torch.sqrt(qk.float().square().mean(-1, keepdim=True) + 1e-6)).to(qk.dtype) * weight
    if tables:
        qk = reference.rope(qk, tables["cos"][tables["positions"]], tables["sin"][tables["positions"]], interleaved)
    cache = caches(kv_heads, qkv.shape[2], qkv.dtype)
    reference.write_kv(qk[:, q_heads:], qkv[:, q_heads + kv_heads :], *cache, slots())
    return [qk[:, :q_heads], *cache]


@pytest.mark.parametrize("code", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_rotated_keys_are_quantized_to_within_one_code(code: torch.dtype) -> None:
    qkv = randn(7, 8, 64, dtype=torch.bfloat16, scale=2)
    got, wanted = (fused(qkv, 2, backend, code, **tables(32)) for backend in ("triton", "reference"))
    assert torch.equal(bits(got[2]), bits(wanted[2])) and torch.equal(got[4], wanted[4])  # values do not rotate
    assert ((got[3].int() - wanted[3].int()).abs() <= 1).all()
    written = wanted[3] != STALE
    ours, theirs = (r[1].float()[written] * reference.kv_scale(r[3])[written][:, None] for r in (got, wanted))
    step = theirs.abs().amax(-1, keepdim=True) / (127 if code == torch.int8 else 448 / 32)
    assert ((ours - theirs).abs() <= step).all()


def test_heads_of_a_larger_tensor_are_read_through_their_strides() -> None:
    wide = randn(7, 8, 100)
    whole = wide[:, :, 20:52]
    got, wanted = caches(2, 32, torch.float32), caches(2, 32, torch.float32)
    kernels.write_kv(whole[:, 4:6], whole[:, 6:], *got, slots(), backend="triton")
    kernels.write_kv(whole[:, 4:6], whole[:, 6:], *wanted, slots(), backend="reference")
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])


def test_slots_are_multiplied_in_64_bits() -> None:
    pages = 2**31 // (PAGE * 256) + 2
    cache = [torch.empty(pages, 1, PAGE, 256, dtype=torch.int8, device=DEVICE) for _ in range(2)]  # not yet touched
    scale = torch.empty(pages, 1, PAGE, dtype=torch.uint8, device=DEVICE)
    k = randn(1, 1, 256)
    slot = torch.tensor([pages * PAGE - 1], device=DEVICE)
    kernels.write_kv(k, k, cache[0], cache[1], slot, k_scale=scale, v_scale=scale, backend="triton")
    assert torch.equal(cache[1][-1, :, -1], reference.quantize_kv(k, torch.int8)[0][0])
    source, target = torch.tensor([pages - 1], device=DEVICE), torch.tensor([pages - 2], device=DEVICE)
    kernels.copy_blocks(cache[0], cache[1], source, target, backend="triton")
    assert torch.equal(cache[1][-2], cache[1][-1])


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8, torch.float8_e4m3fn], ids=str)
def test_blocks_are_copied_and_padding_copies_nothing(dtype: torch.dtype, backend: str) -> None:
    k, v = (randn(6, 2, PAGE, 40, seed=seed, scale=9).to(dtype) for seed in (1, 2))
    before = k.clone(), v.clone()
    source, target = (torch.tensor(ids, device=DEVICE) for ids in ([4, -1, 1], [0, 3, 5]))
    kernels.copy_blocks(k, v, source, target, backend=backend)
    for cache, old in zip((k, v), before, strict=True):
        for block, origin in enumerate([4, 1, 2, 3, 4, 1]):
            assert torch.equal(bits(cache[block]), bits(old[origin]))


def test_no_tokens_write_nothing() -> None:
    cache = caches(2, 32, torch.float32)
    kernels.write_kv(randn(0, 2, 32), randn(0, 2, 32), *cache, slots()[:0], backend="triton")
    assert (cache[0] == STALE).all()
    none = slots()[:0]
    kernels.copy_blocks(*cache, none, none, backend="triton")


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    k, qkv = randn(7, 2, 32), randn(7, 8, 32)
    cache, codes = caches(2, 32, torch.float32), caches(2, 32, torch.int8)
    scale = scales_of(cache[0])[0]
    with pytest.raises(ValueError, match="do not fit together"):
        kernels.write_kv(k[:, :1], k[:, :1], *cache, slots())
    with pytest.raises(ValueError, match="int8 cache needs"):
        kernels.write_kv(k, k, *codes, slots())
    with pytest.raises(ValueError, match="takes no scales"):
        kernels.write_kv(k, k, *cache, slots(), k_scale=scale, v_scale=scale)
    with pytest.raises(ValueError, match="go together"):
        kernels.write_kv(k, k, *codes, slots(), k_scale=scale)
    with pytest.raises(ValueError, match="must be uint8"):
        kernels.write_kv(k, k, *codes, slots(), k_scale=scale.half(), v_scale=scale)
    with pytest.raises(ValueError, match="go together"):
        kernels.rope_and_write(qkv, *cache, slots(), positions=slots())
    with pytest.raises(ValueError, match="R <= D"):
        kernels.rope_and_write(qkv, *cache, slots(), **tables(64))
    with pytest.raises(ValueError, match=r"must be \[6, 32\]"):
        kernels.rope_and_write(qkv, *cache, slots(), qk_norm=randn(4, 32))
    with pytest.raises(ValueError, match=r"must be \[T, Hq"):
        kernels.rope_and_write(k, *cache, slots())
    with pytest.raises(ValueError, match="block ids"):
        kernels.copy_blocks(*cache, slots(), slots()[1:])
