"""Flash attention backward: float64 autograd of the definition is the oracle; the bits are the same every time."""

from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from kernels import reference
from tests.kernels.triton.flash_cases import CASES, Case, definition, eager, gradients
from tests.kernels.triton.oracle import DEVICE, assert_as_good_as_eager, randn

CANCELLED = 1e-6
"""What may remain of dP - delta where they are equal: two sums of D unit products in float32, in two orders."""


def flash(tensors: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return kernels.flash_attention(**tensors, **options, return_lse=True, backend="triton")  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_are_as_good_as_eager(case: Case) -> None:
    tensors = case.inputs()
    grad_out = randn(*tensors["q"].shape, dtype=case.dtype, seed=5)
    got = gradients(flash, tensors, grad_out, **case.options)
    exact = gradients(definition, {n: t.double() for n, t in tensors.items()}, grad_out, **case.options)
    plain = gradients(eager, tensors, grad_out, **case.options)
    for name, one, wanted, other in zip(tensors, got, exact, plain, strict=True):
        assert torch.isfinite(one).all(), name
        if not torch.allclose(one.double(), wanted, rtol=0, atol=CANCELLED):
            assert_as_good_as_eager(one, other.nan_to_num(0.0), wanted)  # 0 / 0 where eager rows see nothing


def test_the_lse_has_a_gradient_too() -> None:
    case = Case("lse", 40, 35, heads=2, sinks=True, options={"softcap": 2.0})
    tensors = case.inputs()
    grads = randn(*tensors["q"].shape, seed=5), randn(*tensors["q"].shape[:3], seed=6)
    got = gradients(flash, tensors, *grads, **case.options)
    exact = gradients(definition, {n: t.double() for n, t in tensors.items()}, *grads, **case.options)
    for one, wanted in zip(got, exact, strict=True):
        torch.testing.assert_close(one.double(), wanted, rtol=2e-5, atol=2e-5)


def test_gradients_have_the_same_bits_every_time_and_in_any_batch() -> None:
    tensors = Case("twice", 40, 40, heads=2, kv_heads=1).inputs(batch=2)
    grad_out = randn(*tensors["q"].shape, seed=5)
    first, second = (gradients(flash, tensors, grad_out) for _ in range(2))
    alone = gradients(flash, {n: t[1:] for n, t in tensors.items()}, grad_out[1:])
    for one, two, row in zip(first, second, alone, strict=True):
        assert torch.equal(one, two) and torch.equal(one[1:], row)


def test_packed_sequences_have_the_gradients_of_dense_rows_bit_for_bit() -> None:
    lengths_q, lengths_k = (33, 40), (65, 40)  # and two rows after them
    cu_q, cu_k = (torch.tensor([0, *n]).cumsum(0).to(torch.int32).to(DEVICE) for n in (lengths_q, lengths_k))
    tensors = {"q": randn(75, 2, 32), "k": randn(107, 1, 32, seed=1), "v": randn(107, 1, 32, seed=2)}
    grad_out = randn(75, 2, 32, seed=3)
    options: dict[str, Any] = {"window": 40, "return_lse": True, "backend": "triton"}

    def packed(leaves: dict[str, Tensor], _: dict[str, Any]) -> Any:
        return kernels.flash_attention_varlen(*leaves.values(), cu_q, cu_k, 40, 65, **options)  # type: ignore[misc]

    def dense(leaves: dict[str, Tensor], _: dict[str, Any]) -> Any:
        return kernels.flash_attention(*leaves.values(), **options)  # type: ignore[misc]

    got = gradients(packed, tensors, grad_out)
    for s in range(2):
        own_q, own_k = slice(int(cu_q[s]), int(cu_q[s + 1])), slice(int(cu_k[s]), int(cu_k[s + 1]))
        rows = {n: t[None, own_q if n == "q" else own_k] for n, t in tensors.items()}
        alone = gradients(dense, rows, grad_out[None, own_q])
        for whole, one, own in zip(got, alone, (own_q, own_k, own_k), strict=True):
            assert torch.equal(whole[own], one[0])
    assert not got[0][73:].any() and not got[1][105:].any()


def test_a_gradient_that_is_one_number_expanded_is_read_as_such() -> None:
    tensors = {n: t.requires_grad_() for n, t in Case("sum", 33, 33).inputs().items()}
    got = torch.autograd.grad(flash(tensors, {})[0].sum(), list(tensors.values()))
    wanted = torch.autograd.grad(reference.flash_attention(**tensors)[0].sum(), list(tensors.values()))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_torch_is_differentiable_through_out_lse_and_sinks() -> None:
    case = Case("torch", 9, 6, heads=4, kv_heads=2, sinks=True, options={"window": 3})
    tensors = case.inputs()
    grads = randn(*tensors["q"].shape, seed=5), randn(*tensors["q"].shape[:3], seed=6)

    def by_torch(leaves: dict[str, Tensor], options: dict[str, Any]) -> Any:
        return kernels.flash_attention(**leaves, **options, return_lse=True, backend="torch")  # type: ignore[arg-type]

    got = gradients(by_torch, tensors, *grads, **case.options)
    exact = gradients(definition, {n: t.double() for n, t in tensors.items()}, *grads, **case.options)
    for one, wanted in zip(got, exact, strict=True):
        torch.testing.assert_close(one.double(), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("learns", [False, True], ids=["inference", "training"])
def test_the_op_keeps_the_contract_of_torch_ops(packed: bool, learns: bool) -> None:
    q, k, v = randn(1, 7, 2, 16), randn(1, 9, 1, 16, seed=1), randn(1, 9, 1, 16, seed=2)
    sinks = randn(2, seed=3)
    cu_q, cu_k = (torch.tensor(n, dtype=torch.int32, device=DEVICE) if packed else None for n in ([0, 3, 7], [0, 4, 9]))
    if learns:
        for t in (q, k, v, sinks):
            t.requires_grad_()
    options = (cu_q, cu_k, 4 if packed else 7, 5 if packed else 9, 0.25, True, 4, 5.0)
    torch.library.opcheck(torch.ops.kernels.flash_attention_forward.default, (q, k, v, sinks, *options))
    if not learns:
        out, lse = torch.ops.kernels.flash_attention_forward(q, k, v, sinks, *options)
        arguments = (torch.ones_like(out), None, q, k, v, out, lse, sinks, *options)
        torch.library.opcheck(torch.ops.kernels.flash_attention_backward.default, arguments)


def test_compiled_code_holds_attention_without_a_graph_break() -> None:
    tensors = Case("compiled", 7, 7, dim=16).inputs()

    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.flash_attention(q * 2, k, v, backend="triton") + 1  # type: ignore[operator]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    leaves = [[t.clone().requires_grad_() for t in tensors.values()] for _ in range(2)]
    results = [step(*leaves[0]), compiled(*leaves[1])]
    assert torch.equal(results[0], results[1])
    for result in results:
        result.square().sum().backward()
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(*leaves, strict=True))  # type: ignore[arg-type]
