"""The split decode kernel against the float64 definition, and what must hold without any tolerance.

Every slot and block that no sequence uses holds NaN: one read of it that counts shows.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.triton.paged_decode import paged_decode
from tests.kernels.paged_batches import Paged, paged
from tests.kernels.triton.oracle import DEVICE, DTYPES, assert_as_good_as_eager, randn

NAN = float("nan")


def decode_batch(kv_lens: list[int], query_lens: list[int] | None = None, **options: object) -> Paged:
    """One query token a sequence unless told otherwise, on the device of these tests."""
    return paged(query_lens or [1] * len(kv_lens), kv_lens, stale=NAN, **options).to(DEVICE)  # type: ignore[arg-type]


def decode(batch: Paged, splits: int = 1, max_query_len: int = 1, **options: object) -> tuple[Tensor, Tensor]:
    lse = torch.full(batch.q.shape[:2], NAN, device=DEVICE)
    scales = None if batch.k_scale is None else (batch.k_scale, batch.v_scale)
    options.setdefault("scale", batch.q.shape[-1] ** -0.5)
    out = paged_decode(
        *batch.arguments(), max_query_len=max_query_len, num_splits=splits, scales=scales, lse=lse, **options
    )  # type: ignore[arg-type,misc]
    return out, lse


def check(batch: Paged, splits: int = 1, max_query_len: int = 1, **options: object) -> None:
    out, lse = decode(batch, splits, max_query_len, **options)
    exact, exact_lse = batch.oracle(**options)
    eager, eager_lse = batch.eager(**options)
    assert_as_good_as_eager(out, eager, exact)
    assert_as_good_as_eager(lse, eager_lse, exact_lse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("page", "heads", "kv_heads", "dim"), [(16, 2, 2, 32), (32, 3, 1, 64), (64, 6, 1, 80), (128, 16, 2, 32)]
)
def test_decode_is_as_good_as_eager_for_every_page_and_sharing_of_heads(
    page: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> None:
    lens = [1, page - 1, page, page + 1]
    check(decode_batch(lens, block_size=page, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype), splits=2)


@pytest.mark.parametrize("window", [1, 15, 16, 17, 33, 1000])
@pytest.mark.parametrize("splits", [1, 3])
def test_window_edges(window: int, splits: int) -> None:
    check(decode_batch([1, 16, 33, 97], heads=2, kv_heads=1), splits=splits, window=window)


@pytest.mark.parametrize("block_size", [1, 24, 64, 200])
def test_pages_of_any_size(block_size: int) -> None:
    check(decode_batch([5, 97], heads=2, kv_heads=1, block_size=block_size), splits=2)


@pytest.mark.parametrize("window", [None, 20])
def test_several_query_tokens_are_causal_among_each_other(window: int | None) -> None:
    batch = decode_batch([40, 3, 70, 33], [5, 3, 1, 2], heads=3, kv_heads=1)
    check(batch, splits=2, max_query_len=5, window=window)


@pytest.mark.parametrize("window", [None, 64])
def test_a_tree_of_drafts_sees_its_ancestors_only(window: int | None) -> None:
    # 0 is the last token; 1 and 2 are its children, 3 and 4 children of 1, 5 of 2; the second sequence is a chain.
    tree = [0b1, 0b11, 0b101, 0b1011, 0b10011, 0b100101, 0b1, 0b11, 0b111]
    batch = decode_batch([96, 33], [6, 3], heads=2, kv_heads=1)
    check(batch, 2, 6, window=window, tree_mask=torch.tensor(tree, device=DEVICE))


def test_a_chain_as_a_tree_gives_the_bits_of_plain_causality() -> None:
    batch = decode_batch([40, 66], [4, 3], heads=2, kv_heads=1)
    chain = torch.tensor([1, 3, 7, 15, 1, 3, 7], device=DEVICE)
    for window in (None, 64):
        plain, tree = (decode(batch, 2, 4, window=window, tree_mask=mask) for mask in (None, chain))
        assert torch.equal(plain[0], tree[0]) and torch.equal(plain[1], tree[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("splits", [1, 3])
def test_sinks_join_the_denominator_once(dtype: torch.dtype, splits: int) -> None:
    batch = decode_batch([1, 40, 97], heads=4, kv_heads=2, dtype=dtype)
    check(batch, splits, sinks=randn(4, dtype=dtype, seed=9, scale=2))


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"scale": 0.5}, {"softcap": 1.5, "window": 9, "scale": 0.3}])
def test_soft_cap_and_scale(options: dict[str, float]) -> None:
    check(decode_batch([33, 40], heads=2, kv_heads=1), 2, **options)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("page", [16, 64])
def test_quantized_caches_are_scaled_per_token_and_head(dtype: torch.dtype, page: int) -> None:
    batch = decode_batch([33, 97, 1], heads=4, kv_heads=2, block_size=page, dtype=torch.bfloat16).quantized(dtype)
    check(batch, 2)
    check(batch, 2, window=20)


def test_a_float8_cache_without_scales_is_read_as_it_is() -> None:
    batch = decode_batch([33, 50], heads=2, kv_heads=1, dtype=torch.bfloat16)
    caches = [cache.to(torch.float8_e4m3fn) for cache in (batch.k_cache, batch.v_cache)]
    check(replace(batch, k_cache=caches[0], v_cache=caches[1]))


def test_a_cache_in_another_floating_type_is_converted() -> None:
    batch = decode_batch([33, 50], heads=2, kv_heads=1)
    check(replace(batch, k_cache=batch.k_cache.half(), v_cache=batch.v_cache.half()))


# What holds bit for bit


def test_rows_that_see_nothing_are_zero_and_their_lse_is_minus_infinity() -> None:
    batch = decode_batch([0, 0, 5, 1], [1, 0, 1, 3], heads=2, kv_heads=1)  # the last: more queries than keys
    out, lse = decode(batch, 2, 3)
    for row in (0, 2, 3):
        assert (out[row] == 0).all() and (lse[row] == -torch.inf).all()
    check(batch, 2, 3)


def test_physical_pages_do_not_matter() -> None:
    batch = decode_batch([40, 97, 3])
    for options in ({}, {"window": 20}):
        for got, wanted in zip(decode(batch.permuted(), 2, **options), decode(batch, 2, **options), strict=True):
            assert torch.equal(got, wanted)


def test_a_sequence_alone_has_the_bits_that_it_has_in_a_batch() -> None:
    batch = decode_batch([40, 97, 3], [2, 1, 3])
    whole = decode(batch, 3, 3)
    parts = [decode(batch.sequence(row), 3, 3) for row in range(3)]
    for i in range(2):
        assert torch.equal(whole[i], torch.cat([part[i] for part in parts]))


@pytest.mark.parametrize("splits", [2, 3, 8])
def test_splits_change_nothing_but_the_rounding(splits: int) -> None:
    batch = decode_batch([1, 64, 199], heads=2, kv_heads=1)
    one, many = decode(batch, 1), decode(batch, splits)
    exact, exact_lse = batch.oracle()
    assert_as_good_as_eager(many[0], one[0], exact)
    assert_as_good_as_eager(many[1], one[1], exact_lse)


@pytest.mark.parametrize("page", [16, 64])  # one page id a token, one a tile
def test_page_ids_are_multiplied_in_64_bits(page: int) -> None:
    batch = decode_batch([33, 20], heads=1, kv_heads=1, dim=16, block_size=page).quantized(torch.int8)
    assert batch.k_scale is not None and batch.v_scale is not None
    far = 2**31 // (page * 16) + 2  # the first page whose offset in elements does not fit 32 bits
    count = batch.k_cache.shape[0]
    caches, scales = [], []
    for cache, scale in ((batch.k_cache, batch.k_scale), (batch.v_cache, batch.v_scale)):
        large = torch.empty(far + count, 1, page, 16, dtype=torch.int8, device=DEVICE)  # memory that is never touched
        large_scale = torch.empty(far + count, 1, page, dtype=torch.uint8, device=DEVICE)
        large[far:], large_scale[far:] = cache, scale
        caches.append(large)
        scales.append(large_scale)
    table = batch.block_table + far
    moved = replace(
        batch, k_cache=caches[0], v_cache=caches[1], k_scale=scales[0], v_scale=scales[1], block_table=table
    )
    assert torch.equal(decode(moved, 2)[0], decode(batch, 2)[0])


# Refusals and nothing


def test_no_sequences_give_no_rows() -> None:
    batch = decode_batch([])
    assert decode(batch)[0].shape == (0, 6, 16)


def test_what_the_kernel_cannot_take_is_refused_in_one_sentence() -> None:
    batch = decode_batch([5], heads=2, kv_heads=1)
    with pytest.raises(ValueError, match="exceed 64 rows"):
        decode(batch, max_query_len=33)
    with pytest.raises(ValueError, match="use float32, float16 or bfloat16"):
        decode(replace(batch, q=batch.q.double()))
    with pytest.raises(ValueError, match="int8 cache needs"):
        decode(replace(batch, k_cache=batch.k_cache.to(torch.int8), v_cache=batch.v_cache.to(torch.int8)))
    with pytest.raises(ValueError, match="without gaps"):
        decode(replace(batch, k_cache=batch.k_cache.transpose(2, 3), v_cache=batch.v_cache.transpose(2, 3)))
    with pytest.raises(ValueError, match="must be uint8"):
        decode(replace(batch.quantized(torch.int8), v_scale=torch.ones(1, device=DEVICE)))
    for options in ({"scale": 0.0}, {"softcap": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            decode(batch, **options)
    with pytest.raises(ValueError, match="heads of up to 256"):
        decode(decode_batch([5], dim=512))
