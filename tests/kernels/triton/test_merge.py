"""Merging partial results: definition, associativity, parts that saw nothing; and attention over shared prefixes."""

import math

import pytest
import torch
from torch import Tensor

import kernels
from kernels import reference
from tests.kernels.paged_batches import Paged, paged
from tests.kernels.triton.oracle import DEVICE, DTYPES, assert_as_good_as_eager, randn

NOTHING = -math.inf


def state(seed: int, dtype: torch.dtype = torch.float32, rows: int = 5, heads: int = 3) -> tuple[Tensor, Tensor]:
    return randn(rows, heads, 24, dtype=dtype, seed=seed), randn(rows, heads, seed=seed + 100, scale=4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merge_state_is_the_definition(dtype: torch.dtype) -> None:
    a, b = state(1, dtype), state(2, dtype)
    a[1][0], b[1][1], a[1][2], b[1][2] = NOTHING, NOTHING, NOTHING, NOTHING
    out, lse = kernels.merge_state(*a, *b, backend="triton")
    exact, exact_lse = reference.merge_state(a[0].double(), a[1].double(), b[0].double(), b[1].double())
    eager, eager_lse = reference.merge_state(*a, *b)
    assert_as_good_as_eager(out, eager, exact)
    assert_as_good_as_eager(lse, eager_lse, exact_lse)


def test_a_part_that_saw_nothing_is_not_looked_at() -> None:
    (out, lse), (garbage, _) = state(1), state(2)
    garbage.fill_(math.nan)
    nothing = torch.full_like(lse, NOTHING)
    for backend in ("triton", "torch"):
        for merged in (
            kernels.merge_state(out, lse, garbage, nothing, backend=backend),
            kernels.merge_state(garbage, nothing, out, lse, backend=backend),
        ):
            assert torch.equal(merged[0], out) and torch.equal(merged[1], lse)
        empty = kernels.merge_state(garbage, nothing, garbage, nothing, backend=backend)
        assert (empty[0] == 0).all() and torch.equal(empty[1], nothing)


def test_merging_is_associative_and_commutative_up_to_rounding() -> None:
    a, b, c = state(1), state(2), state(3)
    left = kernels.merge_state(*kernels.merge_state(*a, *b, backend="triton"), *c, backend="triton")
    right = kernels.merge_state(*kernels.merge_state(*c, *b, backend="triton"), *a, backend="triton")
    for got, wanted in zip(left, right, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-6, atol=2e-6)


def test_parts_of_different_shapes_are_refused() -> None:
    a, b = state(1), state(2, rows=4)
    for backend in ("triton", "torch"):
        with pytest.raises(ValueError, match="do not fit together"):
            kernels.merge_state(*a, *b, backend=backend)


# Shared prefixes


def sharing(
    query_lens: list[int],
    kv_lens: list[int],
    blocks: int,
    dtype: torch.dtype = torch.float32,
    stale: float = math.nan,
) -> Paged:
    """A batch whose sequences all begin with the same `blocks` blocks of 16."""
    batch = paged(query_lens, kv_lens, heads=4, kv_heads=2, dtype=dtype, stale=stale).to(DEVICE)
    batch.block_table[:, :blocks] = batch.block_table[0, :blocks]
    return batch


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cascade_is_attention_over_the_whole_table(dtype: torch.dtype, backend: str) -> None:
    stale = 1e4 if backend == "torch" else math.nan  # torch's own attention multiplies what it masks by zero
    batch = sharing([1, 1, 5, 1], [40, 33, 70, 52], 2, dtype, stale)
    options = {"sinks": randn(4, seed=5)}
    out, lse = kernels.cascade_attention(*batch.arguments(), 2, return_lse=True, backend=backend, **options)  # type: ignore[arg-type]
    exact, exact_lse = batch.oracle(**options)
    eager, eager_lse = batch.eager(**options)
    assert_as_good_as_eager(out, eager, exact)
    assert_as_good_as_eager(lse, eager_lse, exact_lse)


def test_cascade_of_decoding_sequences_with_splits() -> None:
    batch = sharing([1, 1, 1], [81, 66, 65], 4)
    for splits in (None, 2):
        out = kernels.cascade_attention(*batch.arguments(), 4, backend="triton", max_query_len=1, num_splits=splits)  # type: ignore[call-overload,misc]
        assert_as_good_as_eager(out, batch.eager()[0], batch.oracle()[0])


def test_no_shared_block_is_plain_attention_and_too_many_are_refused() -> None:
    batch = sharing([1, 3], [40, 33], 2)
    assert torch.equal(kernels.cascade_attention(*batch.arguments(), 0), batch.run())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must lie in 0\.\.3"):
        kernels.cascade_attention(*batch.arguments(), 4)  # type: ignore[call-overload,misc]
