"""Attention against the float64 definition over awkward shapes, and what must hold without any tolerance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels
from kernels import reference
from kernels.cpu_paged import arrange, token_order
from tests.kernels.paged_batches import Paged, paged, rng


def assert_close(got: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> None:
    assert got.shape == wanted.shape
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


RAGGED = [
    ([1], [1]),
    ([1], [16]),
    ([1], [17]),
    ([1, 1, 1], [15, 16, 17]),
    ([1, 1, 1, 1], [2000, 3, 1, 700]),
    ([5], [5]),
    ([16], [31]),
    ([1, 7, 1, 33, 1], [40, 7, 3, 65, 129]),
    ([600], [601]),
    ([2, 1], [2, 1]),
]


@pytest.mark.parametrize(("query_lens", "kv_lens"), RAGGED)
@pytest.mark.parametrize("window", [None, 1, 7, 16, 17, 5000])
def test_paged_attention_is_the_definition(query_lens: list[int], kv_lens: list[int], window: int | None) -> None:
    batch = paged(query_lens, kv_lens)
    assert_close(batch.run(window=window), batch.oracle(window=window)[0])


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 1), (3, 3), (9, 3), (8, 1), (16, 2)])
@pytest.mark.parametrize("block_size", [1, 16, 64, 512])
def test_paged_attention_for_every_sharing_of_heads_and_page_size(heads: int, kv_heads: int, block_size: int) -> None:
    batch = paged([1, 9, 1, 3], [35, 70, 64, 3], heads=heads, kv_heads=kv_heads, block_size=block_size)
    for window in (None, 20):
        assert_close(batch.run(window=window), batch.oracle(window=window)[0])


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"scale": 0.5}, {"softcap": 1.5, "window": 9, "scale": 0.3}])
def test_paged_attention_with_scale_and_soft_cap(options: dict[str, float]) -> None:
    batch = paged([1, 12, 1], [33, 40, 16])
    assert_close(batch.run(**options), batch.oracle(**options)[0])


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_paged_attention_returns_the_base_2_lse(window: int | None, softcap: float | None) -> None:
    batch = paged([1, 12, 1, 40], [33, 40, 400, 40])
    out, lse = kernels.paged_attention(*batch.arguments(), window=window, softcap=softcap, return_lse=True)  # type: ignore[arg-type]
    wanted, wanted_lse = batch.oracle(window=window, softcap=softcap)
    assert_close(out, wanted)
    assert_close(lse, wanted_lse)


def test_lse_is_that_of_base_2_and_not_of_e() -> None:
    batch = paged([1], [1], heads=1, kv_heads=1)
    _, lse = kernels.paged_attention(*batch.arguments(), return_lse=True)  # type: ignore[arg-type]
    score = (batch.q[0, 0] @ batch.k_cache[batch.block_table[0, 0], 0, 0]) * 16**-0.5
    assert lse.item() == pytest.approx(score.item() / math.log(2), rel=1e-5)


def test_rows_that_see_nothing_are_zero_and_their_lse_is_minus_infinity() -> None:
    batch = paged([1, 0, 1, 3], [0, 0, 5, 2])  # an empty sequence, none at all, a normal one, more queries than keys
    out, lse = kernels.paged_attention(*batch.arguments(), return_lse=True)  # type: ignore[arg-type]
    wanted, wanted_lse = batch.oracle()
    assert_close(out, wanted)
    assert torch.equal(lse.isinf(), wanted_lse.isinf())
    assert (out[0] == 0).all() and (out[2] == 0).all() and lse[2].isinf().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_paged_attention_in_other_dtypes_errs_at_most_twice_as_much_as_plain_attention(dtype: torch.dtype) -> None:
    batch = paged([1, 9, 1], [35, 70, 300], dtype=dtype)
    exact = batch.oracle()[0]
    plain = batch.run(backend="reference") if dtype == torch.float64 else batch.eager()[0]
    ours, theirs = (error(out, exact) for out in (batch.run(), plain))
    assert ours <= max(2 * theirs, 1e-12)


def error(out: Tensor, exact: Tensor) -> float:
    return (out.double() - exact).abs().max().item()


@pytest.mark.parametrize("code", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_quantized_caches_are_scaled_back(code: torch.dtype) -> None:
    batch = paged([1, 9, 1, 20], [35, 70, 300, 20]).quantized(code)
    assert_close(batch.run(), batch.oracle()[0], 1e-5)
    assert_close(batch.run(window=13), batch.oracle(window=13)[0], 1e-5)


def test_one_large_quantized_block_is_converted_where_it_is_looked_at() -> None:
    batch = paged([1, 3, 40], [300, 70, 400], block_size=512).quantized(torch.int8)
    assert_close(batch.run(), batch.oracle()[0], 1e-5)
    assert_close(batch.run(window=30), batch.oracle(window=30)[0], 1e-5)


# What holds bit for bit


ragged_batches = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 90)), min_size=1, max_size=6)


@settings(max_examples=40)
@given(ragged_batches, st.sampled_from([None, 1, 5, 33]), st.sampled_from([1, 3, 16, 64]), st.integers(0, 99))
def test_any_batch_is_the_definition_and_does_not_know_its_pages(
    lengths: list[tuple[int, int]], window: int | None, block_size: int, seed: int
) -> None:
    query_lens, contexts = [q for q, _ in lengths], [c for _, c in lengths]
    kv_lens = [q + c for q, c in lengths]
    assert len(contexts) == len(kv_lens)
    batch = paged(query_lens, kv_lens, block_size=block_size, seed=seed)
    out = batch.run(window=window)
    assert_close(out, batch.oracle(window=window)[0])
    assert torch.equal(out, batch.permuted(seed).run(window=window))


@pytest.mark.parametrize("window", [None, 9])
def test_what_lies_in_unseen_slots_and_blocks_changes_nothing(window: int | None) -> None:
    batch = paged([1, 1, 9, 1], [35, 120, 70, 16])
    out = batch.run(window=window)
    seen = torch.zeros(batch.k_cache.shape[0], batch.k_cache.shape[2], dtype=torch.bool)
    for row, kv_len in enumerate(batch.kv_lens.tolist()):
        first = 0 if window is None else max(0, kv_len - (9 if row == 2 else 1) - window + 1)
        for position in range(first, kv_len):
            seen[batch.block_table[row, position // 16], position % 16] = True
    for cache in (batch.k_cache, batch.v_cache):
        cache.masked_fill_(~seen[:, None, :, None], -333.0)
    assert torch.equal(batch.run(window=window), out)


def test_a_split_batch_gives_the_same_rows() -> None:
    query_lens, kv_lens = [1, 9, 1, 1, 30], [35, 70, 300, 16, 30]
    batch = paged(query_lens, kv_lens)
    whole, starts = batch.run(), batch.cu_seqlens_q.tolist()
    for cut in range(1, 5):
        parts = []
        for rows in (slice(0, cut), slice(cut, 5)):
            begin, end = starts[rows.start], starts[rows.stop]
            cu = batch.cu_seqlens_q[rows.start : rows.stop + 1] - begin
            q = batch.q[begin:end]
            part = Paged(q, batch.k_cache, batch.v_cache, batch.block_table[rows], cu, batch.kv_lens[rows])
            parts.append(part.run())
        assert_close(torch.cat(parts), whole.double(), 1e-6)


def test_inputs_are_left_as_they_were() -> None:
    batch = paged([1, 9, 1], [35, 70, 300])
    before = [t.clone() for t in batch.arguments()]
    batch.run()
    assert all(torch.equal(old, new) for old, new in zip(before, batch.arguments(), strict=True))


# Dense


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 40), (17, 17), (5, 40), (600, 700), (9, 4)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 6])
def test_flash_attention_is_the_definition(q_len: int, kv_len: int, causal: bool, window: int | None) -> None:
    generator = rng(0)
    q = torch.randn(2, q_len, 6, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_len, 2, 8, generator=generator).unbind(0)
    out, lse = kernels.flash_attention(q, k, v, causal=causal, window=window, return_lse=True)
    wanted, wanted_lse = reference.flash_attention(q.double(), k.double(), v.double(), causal=causal, window=window)
    assert_close(out, wanted)
    assert_close(lse, wanted_lse)
    assert_close(kernels.flash_attention(q, k, v, causal=causal, window=window), wanted)  # type: ignore[arg-type]


def test_the_definition_itself_is_torchs_attention() -> None:
    q, k, v = torch.randn(3, 2, 11, 4, 8, dtype=torch.float64, generator=rng(0)).unbind(0)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), is_causal=True
    ).transpose(1, 2)
    assert_close(reference.flash_attention(q, k, v)[0], wanted, 1e-12)


# Grouping


def test_sequences_of_similar_length_share_a_group_and_far_ones_do_not() -> None:
    assert arrange([1, 1, 1], [100, 101, 90], 16, None, 192) == [[0, 1, 2]]
    assert arrange([1, 1, 1], [100, 9000, 90], 16, None, 192) == [[1], [0, 2]]
    assert arrange([1, 1, 1], [100, 9000, 90], 16, 64, 192) == [[0, 1, 2]]
    assert arrange([1, 1, 1], [100, 400, 90], 16, None, 192) == [[1], [0, 2]]
    assert arrange([1, 1, 1], [100, 400, 90], 16, None, 64) == [[0, 1, 2]], (
        "padding of narrow keys costs less than a call"
    )
    assert arrange([7, 1, 0, 3], [7, 5, 9, 30], 16, None, 192) == [[1], [0], [3]]


def test_tokens_are_reordered_only_where_groups_ask_for_it() -> None:
    assert token_order([[0], [1, 2]], [3, 1, 1]) is None
    assert token_order([[1], [0]], [3, 1]) == [3, 0, 1, 2]


# What is refused


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of auto, torch, reference, triton"):
        paged([1], [5]).run(backend="cuda")


def test_shapes_that_do_not_fit_are_refused() -> None:
    batch = paged([1], [5])
    with pytest.raises(ValueError, match="cannot share"):
        kernels.paged_attention(batch.q[:, :5], *batch.arguments()[1:])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit"):
        kernels.paged_attention(batch.q[..., :8], *batch.arguments()[1:])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="go together"):
        batch.run(k_scale=torch.ones(1))
    codes = batch.quantized(torch.int8)
    with pytest.raises(ValueError, match="must be uint8"):
        kernels.paged_attention(*codes.arguments(), k_scale=codes.k_scale, v_scale=torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an int8 cache needs"):
        kernels.paged_attention(*codes.arguments())  # type: ignore[arg-type]


def test_explain_names_every_op_and_why() -> None:
    choices = {choice.op: choice for choice in kernels.explain("cpu")}
    assert {"flash_attention", "paged_attention", "rms_norm", "rope", "write_kv", "sample"} <= set(choices)
    assert all(choice.backend == "torch" and choice.reason for choice in choices.values())
    assert torch.cuda.is_available() or "no NVIDIA GPU" in kernels.explain("cuda")[0].reason
