"""Another number of KV heads: exact where it can be, and in transformers' order of heads."""

from pathlib import Path

import pytest
import torch

from playground.compression.float_checkpoint import FloatCheckpoint
from playground.compression.gqa import convert_kv_heads
from playground.errors import ConfigError
from tests.checkpoints import checkpoint
from tests.compression.helpers import assert_transformers_agrees, decoder_logits, random_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["llama-3", "qwen2", "qwen3", "smollm2"])
def test_heads_repeated_and_pooled_again_are_bit_identical(variant: str, dtype: torch.dtype) -> None:
    loaded = FloatCheckpoint.load(checkpoint(variant))
    model = FloatCheckpoint(
        loaded.folder, loaded.raw, loaded.config, {n: t.to(dtype) for n, t in loaded.tensors.items()}
    )
    wide = convert_kv_heads(model, model.config.num_heads)  # three heads a group: no power of two
    assert wide.config.group_size == 1
    for pooling in ("mean", "first"):
        again = convert_kv_heads(wide, model.config.num_kv_heads, pooling)  # type: ignore[arg-type]
        assert again.config == model.config
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in model.tensors.items())


@pytest.mark.parametrize("variant", ["llama-3", "qwen2"])
def test_repeated_heads_compute_the_same(variant: str) -> None:
    model = FloatCheckpoint.load(checkpoint(variant))
    ids = random_ids(model.config.vocab_size)
    wide = convert_kv_heads(model, 6)
    torch.testing.assert_close(decoder_logits(wide.decoder(), ids), decoder_logits(model.decoder(), ids))


@pytest.mark.parametrize("pooling", ["mean", "first", "random"])
@pytest.mark.parametrize(("variant", "kv_heads"), [("llama-2", 2), ("llama-2", 1), ("qwen2", 1), ("llama-biased", 1)])
def test_transformers_loads_a_converted_model(variant: str, kv_heads: int, pooling: str, tmp_path: Path) -> None:
    model = FloatCheckpoint.load(checkpoint(variant))
    converted = convert_kv_heads(model, kv_heads, pooling)  # type: ignore[arg-type]
    ratio = model.config.num_kv_heads // kv_heads
    before, after = (m.config.kv_bytes_per_token(torch.bfloat16) for m in (model, converted))
    assert before == ratio * after
    assert_transformers_agrees(converted, tmp_path / "converted")


def test_a_group_is_the_mean_or_the_first_of_neighbouring_heads() -> None:
    model = FloatCheckpoint.load(checkpoint("llama-2"))
    name = "model.layers.1.self_attn.v_proj.weight"
    heads = model.tensors[name].view(6, 8, 48)
    mean, first = (convert_kv_heads(model, 2, pooling).tensors[name] for pooling in ("mean", "first"))
    torch.testing.assert_close(mean.view(2, 8, 48), torch.stack([heads[:3].mean(0), heads[3:].mean(0)]))
    assert torch.equal(first.view(2, 8, 48), heads[[0, 3]])


def test_random_heads_have_the_spread_of_the_real_ones_and_the_seed_decides_them() -> None:
    model = FloatCheckpoint.load(checkpoint("llama-2"))
    name = "model.layers.0.self_attn.k_proj.weight"
    one, same, other = (convert_kv_heads(model, 3, "random", seed).tensors[name] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(float(model.tensors[name].std()), rel=0.1)


def test_numbers_of_heads_that_cannot_be_are_refused_in_one_sentence() -> None:
    model, grouped = FloatCheckpoint.load(checkpoint("llama-2")), FloatCheckpoint.load(checkpoint("llama-3"))
    with pytest.raises(ConfigError, match="has 6 KV heads already: give another number"):
        convert_kv_heads(model, 6)
    for kv_heads in (0, 4, 5, 12, -2):
        with pytest.raises(ConfigError, match=r"do not become .*: give 1 or 2 or 3"):
            convert_kv_heads(model, kv_heads)
    with pytest.raises(ConfigError, match="2 KV heads of 6 query heads do not become 3: give 1 or 6"):
        convert_kv_heads(grouped, 3)
    with pytest.raises(ConfigError, match="GPT2LMHeadModel cannot share KV heads"):
        convert_kv_heads(FloatCheckpoint.load(checkpoint("gpt2")), 2)
