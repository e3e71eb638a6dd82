"""The prefill kernel against the float64 definition: any mix of query lengths, and what must hold bit for bit.

Every slot and block that no sequence uses holds NaN: one read of it that counts shows.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.triton.paged_decode import paged_decode
from kernels.triton.paged_prefill import paged_prefill
from tests.kernels.paged_batches import Paged, paged
from tests.kernels.triton.oracle import DEVICE, DTYPES, assert_as_good_as_eager, randn

NAN = float("nan")


def batch_of(query_lens: list[int], kv_lens: list[int], **options: object) -> Paged:
    return paged(query_lens, kv_lens, stale=NAN, **options).to(DEVICE)  # type: ignore[arg-type]


def prefill(batch: Paged, splits: int = 1, **options: object) -> tuple[Tensor, Tensor]:
    lse = torch.full(batch.q.shape[:2], NAN, device=DEVICE)
    scales = None if batch.k_scale is None else (batch.k_scale, batch.v_scale)
    options.setdefault("scale", batch.q.shape[-1] ** -0.5)
    return paged_prefill(*batch.arguments(), num_splits=splits, scales=scales, lse=lse, **options), lse  # type: ignore[arg-type,misc]


def check(batch: Paged, splits: int = 1, **options: object) -> None:
    out, lse = prefill(batch, splits, **options)
    exact, exact_lse = batch.oracle(**options)
    eager, eager_lse = batch.eager(**options)
    assert_as_good_as_eager(out, eager, exact)
    assert_as_good_as_eager(lse, eager_lse, exact_lse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("page", "heads", "kv_heads", "dim"), [(16, 2, 2, 32), (32, 3, 1, 64), (64, 6, 1, 80), (128, 8, 1, 32)]
)
def test_prefill_is_as_good_as_eager_for_every_page_and_sharing_of_heads(
    page: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> None:
    batch = batch_of(
        [1, 13, min(page - 1, 40), 1], [page + 1, 13, page - 1, page],
        block_size=page, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype,
    )  # fmt: skip
    check(batch)


@pytest.mark.parametrize(
    ("query_lens", "kv_lens"),
    [
        ([1], [1]),
        ([32], [32]),
        ([33], [64]),
        ([40], [103]),
        ([0, 5, 0, 0, 17, 0], [0, 5, 9, 0, 80, 0]),
        ([1] * 9, [3] * 9),
        ([3, 2], [1, 0]),  # more queries than keys
    ],
)
def test_ragged_batches(query_lens: list[int], kv_lens: list[int]) -> None:
    check(batch_of(query_lens, kv_lens, heads=3, kv_heads=1))


@pytest.mark.parametrize("window", [1, 15, 16, 17, 32, 33, 50, 1000])
def test_window_edges(window: int) -> None:
    check(batch_of([40, 1, 16], [97, 65, 33], heads=2, kv_heads=1), window=window)


@pytest.mark.parametrize("options", [{}, {"window": 20}, {"causal": False}])
def test_splits_along_the_keys(options: dict[str, int]) -> None:
    check(batch_of([9, 1, 16], [97, 65, 16], heads=2, kv_heads=1), 3, **options)


def test_without_causality_every_query_sees_every_key() -> None:
    check(batch_of([20, 3, 4], [50, 1, 0], heads=2, kv_heads=1), causal=False)


@pytest.mark.parametrize("window", [None, 64])
def test_trees_and_chunks_mix(window: int | None) -> None:
    # A prompt of more tokens than a mask has bits stays causal, whatever its words say.
    tree = [0b1, 0b11, 0b101, 0b1011, 0b10011] + [0] * 70
    batch = batch_of([5, 70], [81, 75], heads=1, kv_heads=1)
    check(batch, window=window, tree_mask=torch.tensor(tree, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sinks_and_soft_cap(dtype: torch.dtype) -> None:
    batch = batch_of([9, 1, 2], [40, 33, 2], heads=4, kv_heads=2, dtype=dtype)
    check(batch, sinks=randn(4, dtype=dtype, seed=9, scale=2))
    check(batch, softcap=2.0, window=20, scale=0.3)
    check(batch, 2, sinks=randn(4, dtype=dtype, seed=9, scale=2))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("page", [16, 64])
def test_quantized_caches_are_scaled_per_token_and_head(dtype: torch.dtype, page: int) -> None:
    batch = batch_of([9, 1, 20], [97, 65, 20], heads=4, kv_heads=2, block_size=page, dtype=torch.bfloat16)
    check(batch.quantized(dtype))
    check(batch.quantized(dtype), window=20)


# What holds bit for bit


def test_physical_pages_do_not_matter() -> None:
    batch = batch_of([20, 1, 3], [40, 97, 3])
    for options in ({}, {"window": 20}):
        for got, wanted in zip(prefill(batch.permuted(), **options), prefill(batch, **options), strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_sequence_alone_has_the_bits_that_it_has_in_a_batch(splits: int) -> None:
    batch = batch_of([20, 1, 3], [40, 97, 3], heads=2, kv_heads=1)
    whole = prefill(batch, splits)
    parts = [prefill(batch.sequence(row), splits) for row in range(3)]
    for i in range(2):
        assert torch.equal(whole[i], torch.cat([part[i] for part in parts]))


def test_chunks_give_the_bits_of_the_whole_prompt_where_tiles_coincide() -> None:
    whole = batch_of([64], [64], heads=2, kv_heads=1, block_size=32)
    out = prefill(whole)[0]
    for begin, end in ((0, 16), (16, 48), (48, 64)):  # tiles hold 16 tokens of two heads
        starts = torch.tensor([0, end - begin], dtype=torch.int32, device=DEVICE)
        kv_lens = torch.tensor([end], dtype=torch.int32, device=DEVICE)
        chunk = replace(whole, q=whole.q[begin:end], cu_seqlens_q=starts, kv_lens=kv_lens)
        assert torch.equal(prefill(chunk)[0], out[begin:end])


def test_part_of_a_batch_leaves_the_rows_of_the_rest_alone() -> None:
    batch = batch_of([1, 1, 20, 3], [40, 97, 50, 3], heads=2, kv_heads=1)
    whole = prefill(batch, 2)[0]
    out = torch.full_like(batch.q, 7.0)
    scale = batch.q.shape[-1] ** -0.5
    rest = (batch.block_table[2:], batch.cu_seqlens_q[2:], batch.kv_lens[2:])
    paged_prefill(batch.q, batch.k_cache, batch.v_cache, *rest, scale=scale, num_splits=2, out=out)
    assert (out[:2] == 7.0).all()
    assert torch.equal(out[2:], whole[2:])
    first = (batch.block_table[:2], batch.cu_seqlens_q[:3], batch.kv_lens[:2])
    paged_decode(batch.q, batch.k_cache, batch.v_cache, *first, scale=scale, num_splits=2, out=out)
    assert torch.equal(out[2:], whole[2:])
    assert_as_good_as_eager(out, batch.eager()[0], batch.oracle()[0])


def test_no_tokens_and_no_sequences_give_no_rows() -> None:
    assert prefill(batch_of([], []))[0].shape == (0, 6, 16)
    assert prefill(batch_of([0, 0], [5, 0]))[0].shape == (0, 6, 16)
