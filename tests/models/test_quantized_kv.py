"""Attention over a quantized cache is attention over what its codes stand for, however a batch is put together."""

import pytest
import torch
from torch import Tensor

from kernels import reference
from playground.models.attention import LayerAttention
from playground.models.batch import ModelBatch
from playground.models.kv_cache import KVCache
from tests.checkpoints import checkpoint
from tests.kernels.triton.oracle import DEVICE
from tests.models.driver import Driver, Sequence, Tree, load, prompt

CODES = [torch.int8, torch.float8_e4m3fn]


def driver(code: torch.dtype, variant: str = "llama-3", *, block_size: int = 16, **options: object) -> Driver:
    """A model over a quantized cache of stale numbers."""
    made = Driver(load(checkpoint(variant), **options), block_size=block_size)
    made.cache = KVCache(made.model.config, 80, block_size, code, made.model.device)
    for layer, kv in enumerate(made.cache.kv):
        kv[:, 1:].copy_(torch.randn(kv[:, 1:].shape, generator=torch.Generator().manual_seed(layer)).mul_(90).to(code))
        for side in made.cache.scales[layer] or ():
            side[1:] = 200
    return made


def oracle(made: Driver, batch: ModelBatch, layer: LayerAttention, qkv: Tensor) -> Tensor:
    """The definition in float64 over what lies in the cache, for queries that do not rotate."""
    scales = made.cache.scales[layer.number]
    assert scales is not None
    return reference.paged_attention(
        qkv[:, : made.model.config.num_heads].double(),
        made.cache.k[layer.number].double(),
        made.cache.v[layer.number].double(),
        batch.block_table,
        batch.cu_seqlens_q,
        batch.kv_lens,
        window=layer.window,
        k_scale=scales[0],
        v_scale=scales[1],
        tree_mask=batch.tree_mask,
    )[0]


@pytest.mark.parametrize(
    ("attention", "block_size"), [("sdpa", 4), ("sdpa", 256), ("naive", 16), ("triton", 16)], ids=str
)
@pytest.mark.parametrize("code", CODES, ids=str)
@torch.inference_mode()
def test_attention_is_that_over_the_dequantized_cache(code: torch.dtype, attention: str, block_size: int) -> None:
    made = driver(code, "gpt2", block_size=block_size, device=DEVICE)  # which does not rotate
    config, vocabulary = made.model.config, made.model.config.vocab_size
    sequences = [Sequence(prompt(n, vocabulary, seed=n)) for n in (40, 9, 30, 5)]
    made.step([(sequences[0], 37), (sequences[1], 8), (sequences[2], 12)])
    batch = made.batch([(sequences[0], 1), (sequences[1], 1), (sequences[2], 18), (sequences[3], 5)])
    layer = made.model.weights.layers[1].attention
    made.model._stack.attention = attention  # type: ignore[assignment]
    attend = made.model._stack.begin(batch, made.cache)
    heads = config.num_heads + 2 * config.num_kv_heads
    qkv = torch.randn(25, heads, config.head_dim, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    order = slice(None) if attend.order is None else attend.order
    out = attend(layer, qkv[order].clone())
    wanted = oracle(made, batch, layer, qkv)
    assert (out.double() - wanted[order]).abs().max().item() < 2e-6


@pytest.mark.parametrize("variant", ["llama-3", "mistral", "qwen2-windows"])
@pytest.mark.parametrize("code", CODES, ids=str)
def test_chunks_blocks_and_company_change_nothing(code: torch.dtype, variant: str) -> None:
    """In float64, where only a rounding of 1e-16 may differ: a query sees codes, of its own chunk too."""
    ids = prompt(24, 60, seed=2)
    whole = driver(code, variant, dtype=torch.float64)
    wanted = whole.step([(Sequence(ids), 24)])[0]
    for block_size in (3, 64):
        made = driver(code, variant, block_size=block_size, dtype=torch.float64)
        sequence, other = Sequence(ids), Sequence(prompt(20, 60, seed=1))
        made.step([(other, 6)])
        parts = [made.step([(other, 1), (sequence, count)])[1] for count in (9, 1, 1, 13)]
        assert (torch.cat(parts) - wanted).abs().max().item() < 1e-9


@pytest.mark.parametrize("code", CODES, ids=str)
def test_a_branch_of_a_tree_is_what_its_tokens_in_a_row_are(code: torch.dtype) -> None:
    ids, tree = prompt(12, 60, seed=4), Tree([7, 9, 11, 13], [-1, -1, 1, 2])
    made = driver(code, dtype=torch.float64)
    sequence = Sequence(ids)
    made.step([(sequence, 11)])
    logits = made.model.forward(made.batch([(sequence, 5)], trees={0: tree}), made.cache)
    chain = driver(code, dtype=torch.float64)
    wanted = chain.step([(Sequence([*ids, 9, 11, 13]), 15)])[0]
    assert (logits[[0, 2, 3, 4]] - wanted[11:]).abs().max().item() < 1e-9
    slots = [made.slot(sequence, position) for position in range(11, 16)]
    made.cache.move([(slots[2], slots[1]), (slots[3], slots[2]), (slots[4], slots[3])])
    sequence.token_ids += [9, 11, 13, 5]
    sequence.num_computed = 15
    again = chain.step([(Sequence([*ids, 9, 11, 13, 5]), 16)])[0]
    assert (made.step([(sequence, 1)])[0] - again[15:]).abs().max().item() < 1e-9


def test_triton_writes_and_reads_what_torch_does() -> None:
    ids = prompt(8, 60, seed=2)
    results = []
    for attention in ("sdpa", "triton"):
        made = driver(torch.int8, attention=attention, device=DEVICE)
        sequence = Sequence(ids)
        results.append(torch.cat([made.step([(sequence, count)])[0] for count in (7, 1)]))
    # Keys are rotated in another order of operations, so that a code may be the next one now and then.
    assert (results[0] - results[1]).abs().max().item() < 2e-2
    assert (results[0] - results[1]).abs().median().item() < 1e-4
