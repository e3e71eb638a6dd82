"""Fewer FFN channels and heads: normal checkpoints, and channels that do nothing go first."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from playground.compression.float_checkpoint import FloatCheckpoint
from playground.compression.targets import Target
from playground.compression.width_pruning import channels_to_keep, groups_to_keep, prune_channels, prune_groups
from playground.errors import ConfigError
from tests.checkpoints import checkpoint
from tests.compression.helpers import assert_transformers_agrees, decoder_logits, random_ids


@pytest.mark.parametrize("variant", ["llama-biased", "qwen3", "gpt2"])
def test_transformers_loads_a_model_with_fewer_channels(variant: str, tmp_path: Path) -> None:
    model = FloatCheckpoint.load(checkpoint(variant))
    narrow = prune_channels(model, random_ids(model.config.vocab_size), 40)
    assert narrow.config == replace(model.config, intermediate_size=40)
    assert_transformers_agrees(narrow, tmp_path / "narrow")


@pytest.mark.parametrize("variant", ["llama-2", "qwen2", "qwen3", "llama-biased"])
def test_transformers_loads_a_model_with_fewer_heads(variant: str, tmp_path: Path) -> None:
    model = FloatCheckpoint.load(checkpoint(variant))
    keep = model.config.num_kv_heads // 2
    narrow = prune_groups(model, random_ids(model.config.vocab_size), keep)
    assert (narrow.config.num_kv_heads, narrow.config.group_size) == (keep, model.config.group_size)
    assert narrow.config.head_dim == model.config.head_dim
    assert_transformers_agrees(narrow, tmp_path / "narrow")


@pytest.mark.parametrize("variant", ["llama-3", "gpt2"])
def test_channels_that_add_nothing_go_and_the_model_stays_as_it_was(variant: str) -> None:
    model = FloatCheckpoint.load(checkpoint(variant))
    down, generator = model.config.family.names.down, torch.Generator().manual_seed(1)
    idle, half = {}, model.config.intermediate_size // 2
    for layer in range(model.config.num_layers):
        key = f"{down.format(layer)}.weight"
        weight = model.tensors[key].clone()
        chosen = torch.randperm(model.config.intermediate_size, generator=generator)[:half]
        (weight if model.config.family.transposed else weight.t())[chosen] = 0
        idle[key] = weight
    model = model.changed(idle)
    ids = random_ids(model.config.vocab_size)
    narrow = prune_channels(model, ids, half)
    torch.testing.assert_close(decoder_logits(narrow.decoder(), ids), decoder_logits(model.decoder(), ids))


def test_a_kv_group_that_adds_nothing_goes_and_the_model_stays_as_it_was() -> None:
    model = FloatCheckpoint.load(checkpoint("llama-3"))
    width = model.config.group_size * model.config.head_dim
    idle = {}
    for layer in range(model.config.num_layers):
        key = f"{model.config.family.names.out.format(layer)}.weight"
        weight = model.tensors[key].clone()
        group = layer % 2
        weight[:, group * width : (group + 1) * width] = 0
        idle[key] = weight
    model = model.changed(idle)
    ids = random_ids(model.config.vocab_size)
    narrow = prune_groups(model, ids, 1)
    torch.testing.assert_close(decoder_logits(narrow.decoder(), ids), decoder_logits(model.decoder(), ids))


def test_the_kept_channels_are_a_choice_better_than_chance() -> None:
    model = FloatCheckpoint.load(checkpoint("llama-2"))
    ids = random_ids(model.config.vocab_size)
    whole = decoder_logits(model.decoder(), ids)
    ours = (decoder_logits(prune_channels(model, ids, 40).decoder(), ids) - whole).square().mean()
    names = model.config.family.names
    errors = []
    for seed in range(4):
        generator, tensors = torch.Generator().manual_seed(seed), {}
        for layer in range(model.config.num_layers):
            chosen = torch.randperm(80, generator=generator)[:40]
            for name in names.up:
                tensors[f"{name.format(layer)}.weight"] = model.tensors[f"{name.format(layer)}.weight"][chosen]
            key = f"{names.down.format(layer)}.weight"
            tensors[key] = model.tensors[key][:, chosen]
        other = model.changed(tensors, intermediate_size=40)
        errors.append(float((decoder_logits(other.decoder(), ids) - whole).square().mean()))
    assert float(ours) < min(errors)


def test_targets_are_met_in_multiples_of_eight() -> None:
    model = FloatCheckpoint.load(checkpoint("llama-2"))
    assert channels_to_keep(model, Target(0.25)) == 56
    assert channels_to_keep(model, Target(0.3)) == 56
    assert channels_to_keep(model, Target(0.31)) == 48
    kept = channels_to_keep(model, Target(0.1, "parameters"))
    sizes = [replace(model.config, intermediate_size=n).num_parameters for n in (kept, kept + 8)]
    assert sizes[0] <= 0.9 * model.num_parameters < sizes[1]
    assert groups_to_keep(model, Target(0.5)) == 3
    assert groups_to_keep(FloatCheckpoint.load(checkpoint("llama-3")), Target(0.5)) == 1


def test_widths_that_cannot_be_are_refused_in_one_sentence() -> None:
    model, grouped = FloatCheckpoint.load(checkpoint("llama-2")), FloatCheckpoint.load(checkpoint("smollm2"))
    ids = random_ids(model.config.vocab_size)
    with pytest.raises(ConfigError, match="leaves no FFN channels: of 80, 8 must stay"):
        channels_to_keep(model, Target(0.95))
    with pytest.raises(ConfigError, match="leaves no KV groups"):
        groups_to_keep(grouped, Target(0.5))
    for keep in (0, 44, 80, 88):
        with pytest.raises(ConfigError, match="FFN channels cannot be kept: give a multiple of 8 below 80"):
            prune_channels(model, ids, keep)
    with pytest.raises(ConfigError, match="KV groups cannot be kept"):
        prune_groups(model, ids, 6)
    with pytest.raises(ConfigError, match="heads of GPT2LMHeadModel cannot be pruned"):
        groups_to_keep(FloatCheckpoint.load(checkpoint("gpt2")), Target(0.5))
