"""Flash attention forward: against the float64 definition, and what must hold bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from kernels import reference
from kernels.triton.arch import INTERPRETED
from tests.kernels.triton.flash_cases import CASES, Case, definition, eager
from tests.kernels.triton.oracle import DEVICE, assert_as_good_as_eager, randn

BASE = Case("base", 70, 100, heads=2, kv_heads=1)


def flash(tensors: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    out, lse = kernels.flash_attention(**tensors, **options, return_lse=True, backend="triton")  # type: ignore[arg-type]
    return out, lse


def cumulative(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(DEVICE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward_is_as_good_as_eager(case: Case) -> None:
    tensors = case.inputs()
    out, lse = flash(tensors, **case.options)
    (exact, exact_lse), (plain, plain_lse) = definition(tensors, case.options), eager(tensors, case.options)
    assert_as_good_as_eager(out, plain, exact)
    assert_as_good_as_eager(lse, plain_lse, exact_lse)


def test_a_batch_row_alone_gives_the_same_bits() -> None:
    tensors = BASE.inputs(batch=2)
    out, lse = flash(tensors)
    for row in range(2):
        alone = flash({name: t[row : row + 1] for name, t in tensors.items()})
        assert torch.equal(alone[0][0], out[row]) and torch.equal(alone[1][0], lse[row])


def test_packed_sequences_give_the_bits_of_dense_rows() -> None:
    lengths_q, lengths_k = (33, 0, 40, 1), (65, 5, 40, 34)
    q, k, v = (randn(sum(n), h, 32, seed=h) for n, h in ((lengths_q, 2), (lengths_k, 1), (lengths_k, 1)))
    sinks = randn(2, seed=9)
    cu_q, cu_k = cumulative(*lengths_q), cumulative(*lengths_k)
    options: dict[str, Any] = {"window": 40, "softcap": 3.0, "sinks": sinks, "return_lse": True, "backend": "triton"}
    out, lse = kernels.flash_attention_varlen(q, k, v, cu_q, cu_k, 40, 65, **options)
    for s, (rows, keys) in enumerate(zip(lengths_q, lengths_k, strict=True)):
        own_q, own_k = slice(int(cu_q[s]), int(cu_q[s]) + rows), slice(int(cu_k[s]), int(cu_k[s]) + keys)
        one = kernels.flash_attention(q[None, own_q], k[None, own_k], v[None, own_k], **options)
        assert torch.equal(one[0][0], out[own_q]) and torch.equal(one[1][0], lse[own_q])


def test_packed_rows_of_no_sequence_give_zeros() -> None:
    q, k, v = randn(20, 2, 32), randn(12, 1, 32), randn(12, 1, 32)
    cu = cumulative(5, 7)
    out, lse = kernels.flash_attention_varlen(q, k, v, cu, cu, 7, return_lse=True, backend="triton")
    assert not out[12:].any() and bool((lse[12:] == -torch.inf).all())
    wanted, wanted_lse = reference.flash_attention_varlen(q.double(), k.double(), v.double(), cu, cu)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-5, atol=2e-6)


def test_permuted_heads_give_permuted_bits() -> None:
    tensors = Case("heads", 40, 40, heads=4, kv_heads=4).inputs()
    order = torch.tensor([2, 0, 3, 1], device=DEVICE)
    out, _ = flash(tensors)
    permuted, _ = flash({name: t[:, :, order] for name, t in tensors.items()})
    assert torch.equal(permuted, out[:, :, order])


def test_a_window_over_everything_is_no_window_bit_for_bit() -> None:
    q, k, v = (t[0] for t in BASE.inputs().values())
    cu_q, cu_k = cumulative(70), cumulative(100)
    assert torch.equal(flash(BASE.inputs(), window=100)[0], flash(BASE.inputs())[0])
    # Packed, the kernel meets the window: no length is known before it runs.
    packed = [
        kernels.flash_attention_varlen(q, k, v, cu_q, cu_k, 70, 100, window=w, backend="triton") for w in (None, 100)
    ]
    assert torch.equal(packed[0], packed[1])  # type: ignore[arg-type]


def test_what_a_row_does_not_see_does_not_reach_it() -> None:
    tensors = Case("leak", 64, 64, heads=1).inputs()
    clean, _ = flash(tensors, window=20)
    tensors["k"][:, 40:], tensors["v"][:, 40:] = 1e30, -1e30
    tensors["k"][:, :4], tensors["v"][:, :4] = 1e30, 1e30
    dirty, _ = flash(tensors, window=20)
    assert torch.equal(clean[:, 23:40], dirty[:, 23:40])
    assert not torch.equal(clean[:, 22], dirty[:, 22]) and not torch.equal(clean[:, 40], dirty[:, 40])


def test_strided_views_are_read_where_they_lie() -> None:
    qkv = randn(2, 40, 4, 32)
    views = {"q": qkv[:, :, :2], "k": qkv[:, :, 2:3], "v": qkv[:, :, 3:]}
    out, _ = flash(views)
    assert torch.equal(out, flash({name: t.contiguous() for name, t in views.items()})[0])
    turned = {name: t.transpose(-1, -2).contiguous().transpose(-1, -2) for name, t in views.items()}
    assert torch.equal(out, flash(turned)[0])


def test_a_sink_of_minus_infinity_is_no_sink() -> None:
    tensors = BASE.inputs()
    with_sinks = flash(tensors | {"sinks": torch.full((2,), -torch.inf, device=DEVICE)})
    assert torch.equal(with_sinks[0], flash(tensors)[0])


def test_empty_inputs_give_empty_outputs() -> None:
    out, lse = flash(Case("no queries", 0, 5).inputs())
    assert out.shape == (1, 0, 2, 32) and lse.shape == (1, 0, 2)
    assert flash(Case("no batch", 4, 4).inputs(batch=0))[0].shape == (0, 4, 2, 32)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_other_backends_know_sinks_and_packed_sequences(backend: str) -> None:
    tensors = Case("sinks", 9, 4, heads=4, kv_heads=2, sinks=True).inputs()
    out, lse = kernels.flash_attention(**tensors, return_lse=True, backend=backend)  # type: ignore[arg-type]
    exact, exact_lse = definition(tensors, {})
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=2e-6)
    q, k, v = (t[0] for name, t in tensors.items() if name != "sinks")
    cu_q, cu_k = cumulative(6, 0, 2), cumulative(2, 1, 1)
    packed = (q, k, v, cu_q, cu_k, 6)
    got = kernels.flash_attention_varlen(*packed, sinks=tensors["sinks"], backend=backend)
    wanted = kernels.flash_attention_varlen(*packed, sinks=tensors["sinks"], backend="triton")
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "hides every key"),
        ({"softcap": 0.0}, "must be above 0"),
        ({"sinks": torch.zeros(3)}, "one a query head"),
        ({"scale": -1.0, "backend": "triton"}, "is negative"),
    ],
)
def test_options_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.flash_attention(**BASE.inputs(), **change)  # type: ignore[arg-type]


def test_what_the_kernels_do_not_take_is_refused_or_left_to_torch() -> None:
    tensors = {name: t.double() for name, t in Case("wide", 4, 4).inputs().items()}
    with pytest.raises(ValueError, match="must be one of float32, float16 and bfloat16"):
        flash(tensors)
    with pytest.raises(ValueError, match="head size 264 is above 256"):
        flash(Case("large head", 4, 4, dim=264).inputs())
    assert kernels.flash_attention(**tensors).dtype == torch.float64  # type: ignore[arg-type,union-attr]
    with pytest.raises(ValueError, match="batch of 2"):
        kernels.flash_attention(randn(2, 4, 2, 32), *(randn(1, 4, 1, 32) for _ in range(2)))


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter's choice on CPU tensors")
def test_a_cpu_runs_torch_unless_told_otherwise() -> None:
    tensors = BASE.inputs()
    assert torch.equal(
        kernels.flash_attention(**tensors),  # type: ignore[arg-type]
        kernels.flash_attention(**tensors, backend="torch"),  # type: ignore[arg-type]
    )
