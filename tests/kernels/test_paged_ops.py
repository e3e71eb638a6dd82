"""The public paged ops: every backend takes every option, the right kernel runs, and no length is read back."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from kernels.triton.arch import KNOWN, pretending
from kernels.triton.launch import recording
from kernels.triton.paged_common import inspect
from kernels.triton.paged_decode import pick_splits
from tests.kernels.paged_batches import Paged, paged
from tests.kernels.triton.oracle import DEVICE, assert_as_good_as_eager, randn

BACKENDS = ("torch", "reference", "triton")
H200 = next(arch for arch in KNOWN if arch.cc == 90)


def batch_of(query_lens: list[int], kv_lens: list[int], **options: Any) -> Paged:
    return paged(query_lens, kv_lens, **options).to(DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["plain", "sinks", "tree", "everything seen", "soft cap and window", "int8"])
def test_every_backend_takes_every_option(name: str, backend: str) -> None:
    batch = batch_of([4, 1, 2], [40, 33, 2], heads=4, kv_heads=2)
    tree = torch.tensor([0b1, 0b11, 0b101, 0b1101, 0b1, 0b1, 0b11], device=DEVICE)
    options: dict[str, Any] = {
        "sinks": {"sinks": randn(4, seed=9)},
        "tree": {"tree_mask": tree},
        "everything seen": {"causal": False},
        "soft cap and window": {"softcap": 2.0, "window": 9, "scale": 0.4},
    }.get(name, {})
    if name == "int8":
        batch = batch.quantized(torch.int8)
    out, lse = batch.run(return_lse=True, backend=backend, **options)
    exact, exact_lse = batch.oracle(**options)
    eager, eager_lse = batch.eager(**options)
    assert_as_good_as_eager(out, eager, exact)
    assert_as_good_as_eager(lse, eager_lse, exact_lse)
    into = torch.zeros_like(out)
    assert batch.run(backend=backend, out=into, **options) is into
    assert torch.equal(into, out)


def test_a_sink_of_minus_infinity_changes_nothing() -> None:
    batch = batch_of([1, 5], [40, 33])
    none = torch.full((6,), -math.inf, device=DEVICE)
    for backend in BACKENDS:
        torch.testing.assert_close(
            batch.run(backend=backend, sinks=none), batch.run(backend=backend), rtol=0, atol=1e-7
        )


def names(**options: Any) -> list[str]:
    """Kernels that a call on an H200 would launch."""
    query_lens = options.pop("query_lens", [1, 1, 1])
    batch = batch_of(query_lens, [40] * len(query_lens), heads=8, kv_heads=2)
    with pretending(H200), recording() as launches:
        batch.run(backend="triton", **options)
    return [launch.kernel.__name__.removeprefix("_").removesuffix("_kernel") for launch in launches]


def test_short_queries_take_the_decode_kernel_and_splits_are_merged() -> None:
    assert names(max_query_len=1, num_splits=1) == ["paged_decode"]
    assert names(max_query_len=1, num_splits=4) == ["paged_decode", "merge_splits"]
    assert names(query_lens=[16, 3], max_query_len=16, num_splits=1) == ["paged_decode"]
    assert names(query_lens=[17, 3], max_query_len=17, num_splits=1) == ["paged_prefill"]  # 4 heads: 68 rows
    assert names(num_splits=1) == ["paged_prefill"]  # nobody promised anything
    assert names(max_query_len=1, causal=False, num_splits=1) == ["paged_prefill"]


def test_decodes_first_and_prompts_after_them_take_a_kernel_each() -> None:
    mixed = {"query_lens": [1, 2, 20, 1], "max_query_len": 2, "num_splits": 1}
    assert names(**mixed, num_short=2) == ["paged_decode", "paged_prefill"]
    assert names(**mixed, num_short=0) == ["paged_decode", "paged_prefill"]  # an empty grid, which launches nothing
    assert names(query_lens=[1, 2], max_query_len=2, num_splits=1, num_short=2) == ["paged_decode"]
    batch = batch_of([1, 2, 20, 1], [40, 70, 20, 33], heads=4, kv_heads=2)
    for num_splits in (None, 2):
        out, lse = batch.run(backend="triton", max_query_len=2, num_short=2, num_splits=num_splits, return_lse=True)
        assert_as_good_as_eager(out, batch.eager()[0], batch.oracle()[0])
        assert_as_good_as_eager(lse, batch.eager()[1], batch.oracle()[1])


def meta(like: Tensor) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")


@pytest.mark.parametrize("max_query_len", [1, None])
def test_no_op_waits_for_the_device(max_query_len: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kernels.paged, kernels.cache_ops):
        monkeypatch.setattr(module, "choose", lambda backend, device: "triton")
    batch = batch_of([1, 1], [40, 33], heads=8, kv_heads=2, block_size=32)
    tensors = [meta(t) for t in batch.arguments()]  # reading a number of one of these raises
    options: dict[str, Any] = {"max_query_len": max_query_len, "return_lse": True}
    qkv, slots = meta(torch.zeros(2, 12, 16)), meta(torch.zeros(2, dtype=torch.int64))
    tables = {"positions": slots, "cos": meta(torch.zeros(64, 8)), "sin": meta(torch.zeros(64, 8))}
    with pretending(H200), recording() as launches:
        kernels.paged_attention(*tensors, **options)  # type: ignore[arg-type]
        kernels.cascade_attention(*tensors, 1, **options)  # type: ignore[arg-type]
        kernels.rope_and_write(qkv, tensors[1], tensors[2], slots, **tables)
        kernels.write_kv(qkv[:, 8:10], qkv[:, 10:], tensors[1], tensors[2], slots)
        kernels.copy_blocks(tensors[1], tensors[2], slots, slots)
    assert len(launches) >= 7


def splits(sequences: int, kv_heads: int, max_kv_len: int, page: int = 64) -> int:
    cache = torch.empty(1, kv_heads, page, 128, dtype=torch.bfloat16, device="meta")
    q = torch.empty(sequences, 4 * kv_heads, 128, dtype=torch.bfloat16, device="meta")
    table = torch.empty(sequences, max_kv_len // page, device="meta")
    return pick_splits(inspect(q, cache, cache, table, None, H200), max_kv_len, 64, 2)


def test_few_long_sequences_are_split_and_many_are_not() -> None:
    assert splits(1, 8, 32768) == 33  # two programs for each of 132 multiprocessors
    assert splits(8, 8, 32768) == 5
    assert splits(64, 8, 32768) == 1
    assert splits(1, 8, 256) == 2  # two tiles each at least
    assert splits(1, 8, 64) == 1
    assert splits(1, 1, 1 << 20) == 64


def test_options_that_contradict_each_other_are_refused() -> None:
    batch = batch_of([1, 2], [40, 33])
    mask = torch.ones(3, dtype=torch.int64, device=DEVICE)
    for options, message in (
        ({"causal": False, "window": 5}, "neither a window nor a tree_mask"),
        ({"causal": False, "tree_mask": mask}, "neither a window nor a tree_mask"),
        ({"tree_mask": mask.int()}, "must be int64"),
        ({"tree_mask": mask[:2]}, "must be int64"),
        ({"tree_mask": mask, "window": 63}, "at least 64"),
    ):
        for backend in BACKENDS:
            with pytest.raises(ValueError, match=message):
                batch.run(backend=backend, **options)
    for changed in (
        replace(batch, block_table=batch.block_table[:1]),
        replace(batch, cu_seqlens_q=batch.cu_seqlens_q[1:]),
        replace(batch, kv_lens=batch.kv_lens[1:]),
    ):
        with pytest.raises(ValueError, match=r"starts \[S \+ 1\]"):
            changed.run()
