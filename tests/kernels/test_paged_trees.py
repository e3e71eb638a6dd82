"""Trees of query tokens over a paged cache in torch calls: the definition, whatever is batched with what."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels
from kernels.cpu_attention import TREE_TOKENS
from kernels.cpu_paged import arrange
from tests.kernels.paged_batches import Paged, paged, random_tree


def chain(count: int) -> list[int]:
    return [signed((1 << (i + 1)) - 1) for i in range(count)]


def signed(mask: int) -> int:
    return mask - (1 << TREE_TOKENS) if mask >> (TREE_TOKENS - 1) else mask


def assert_is_the_definition(batch: Paged, tree_mask: Tensor, **options: Any) -> None:
    got = batch.run(return_lse=True, tree_mask=tree_mask, **options)
    wanted = batch.oracle(tree_mask=tree_mask, **options)
    for ours, exact in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=3e-6, atol=3e-6)


def trees(query_lens: list[int], seed: int = 0) -> Tensor:
    rows = [random_tree(n, seed + i) if n <= TREE_TOKENS else [0] * n for i, n in enumerate(query_lens)]
    return torch.tensor([mask for tree in rows for mask in tree])


RAGGED = [
    ([5], [5]),
    ([6], [40]),
    ([64], [64]),
    ([40], [200]),
    ([5, 5, 5], [40, 41, 300]),
    ([9, 1, 9, 1, 17], [50, 3, 90, 70, 200]),
    ([70, 3, 64, 1], [90, 33, 64, 20]),
]


@pytest.mark.parametrize(("query_lens", "kv_lens"), RAGGED)
@pytest.mark.parametrize("window", [None, 64, 90])
def test_a_token_sees_its_branch_only(query_lens: list[int], kv_lens: list[int], window: int | None) -> None:
    batch = paged(query_lens, kv_lens)
    assert_is_the_definition(batch, trees(query_lens), window=window)


def test_the_last_window_position_counts_depth_and_not_place() -> None:
    """The second child of the root stands at depth 1: it sees one token more than if it stood behind its sibling."""
    batch = paged([3], [100])
    siblings, in_a_row = torch.tensor([0b1, 0b11, 0b101]), torch.tensor([0b1, 0b11, 0b111])
    first_seen = 97 - 64 + 2  # of a token at depth 1
    for mask, changes in ((siblings, True), (in_a_row, False)):
        before = batch.run(tree_mask=mask, window=64)
        block, offset = int(batch.block_table[0, first_seen // 16]), first_seen % 16
        kept = batch.v_cache[block, :, offset].clone()
        batch.v_cache[block, :, offset] += 5
        assert torch.equal(before[2], batch.run(tree_mask=mask, window=64)[2]) is not changes
        batch.v_cache[block, :, offset] = kept


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"scale": 0.4, "window": 70}, {"sinks": torch.arange(6.0) - 3}])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (6, 6), (6, 1)])
def test_trees_with_every_option(options: dict[str, Any], heads: int, kv_heads: int) -> None:
    query_lens = [4, 20, 4, 1]
    batch = paged(query_lens, [90, 100, 33, 12], heads=heads, kv_heads=kv_heads)
    assert_is_the_definition(batch, trees(query_lens), **options)


def test_trees_over_a_quantized_cache() -> None:
    batch = paged([4, 4, 20], [90, 33, 50]).quantized(torch.int8)
    assert_is_the_definition(batch, trees([4, 4, 20]))


def test_bits_beyond_the_query_tokens_show_nothing() -> None:
    mask = trees([4, 4]) | (-1 << 4)
    assert_is_the_definition(paged([4, 4], [90, 33]), mask)


def test_trees_behind_a_shared_prefix() -> None:
    batch = paged([4, 20], [90, 100])
    batch.block_table[1, :3] = batch.block_table[0, :3]
    mask = trees([4, 20])
    shared = kernels.cascade_attention(*batch.arguments(), 3, tree_mask=mask)  # type: ignore[arg-type]
    assert isinstance(shared, Tensor)
    torch.testing.assert_close(shared.double(), batch.oracle(tree_mask=mask)[0], rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("count", [2, 16, 17, 64])
def test_a_chain_as_a_tree_is_plain_causality(count: int) -> None:
    batch = paged([count, count], [count + 30, count + 7])
    for window in (None, 64):
        as_tree = batch.run(tree_mask=torch.tensor(chain(count) * 2), window=window)
        torch.testing.assert_close(as_tree, batch.run(window=window), rtol=0, atol=1e-6)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 5, 16, 17, 66]), st.integers(0, 90)), min_size=1, max_size=6),
    st.sampled_from([None, 64, 80]),
    st.sampled_from([1, 16, 256]),
    st.integers(0, 999),
)
def test_any_batch_of_trees_is_the_definition(
    lengths: list[tuple[int, int]], window: int | None, block_size: int, seed: int
) -> None:
    query_lens = [q for q, _ in lengths]
    batch = paged(query_lens, [q + context for q, context in lengths], block_size=block_size, seed=seed)
    assert_is_the_definition(batch, trees(query_lens, seed), window=window)


def test_sequences_of_equally_few_tokens_share_a_group_where_padding_is_cheap() -> None:
    assert arrange([5, 5, 5], [100, 101, 110], 16, None, 192) == [[0, 1, 2]]
    assert arrange([5, 5, 5], [100, 900, 110], 16, None, 192) == [[0, 2], [1]]
    assert arrange([5, 1, 4, 5, 1], [50, 50, 50, 50, 50], 16, None, 192) == [[1, 4], [0, 3], [2]]
    assert arrange([17, 17], [50, 50], 16, None, 192) == [[0], [1]]
