"""Removing layers: what is left is a normal checkpoint, and the least useful layers go first."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from playground.compression.depth_pruning import (
    angular_distances,
    block_influence,
    choose_layers,
    layers_to_keep,
    remove_layers,
)
from playground.compression.float_checkpoint import FloatCheckpoint
from playground.compression.perplexity import Window, decoder_scorer
from playground.compression.targets import Target
from playground.errors import ConfigError
from tests.checkpoints import checkpoint, reference_model
from tests.compression.helpers import assert_transformers_agrees, decoder_logits, random_ids


@pytest.mark.parametrize(
    ("variant", "layer"), [("llama-3", 0), ("qwen2-windows", 0), ("qwen2-windows", 2), ("gpt2", 1)]
)
def test_transformers_loads_what_is_left(variant: str, layer: int, tmp_path: Path) -> None:
    model = FloatCheckpoint.load(checkpoint(variant))
    left = remove_layers(model, [layer])
    assert left.config.num_layers == model.config.num_layers - 1
    windows = [w for number, w in enumerate(model.config.layer_windows) if number != layer]
    assert list(left.config.layer_windows) == windows
    assert_transformers_agrees(left, tmp_path / "left")


def test_the_rest_computes_what_skipping_the_layer_computes() -> None:
    model = FloatCheckpoint.load(checkpoint("llama-2"))
    ids = random_ids(model.config.vocab_size)
    skipping = decoder_logits(model.decoder().with_layers([0, 2]), ids)
    assert torch.equal(decoder_logits(remove_layers(model, [1]).decoder(), ids), skipping)


def test_influence_and_angle_are_those_of_transformers_hidden_states() -> None:
    model = FloatCheckpoint.load(checkpoint("llama-3"))
    ids = random_ids(model.config.vocab_size)
    reference = reference_model("llama-3")
    seen: list[torch.Tensor] = []  # hidden_states ends behind the final norm, so the layers are listened to
    hooks = [layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for layer in reference.model.layers]
    hooks.append(reference.model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
    with torch.no_grad():
        reference(ids)
    for hook in hooks:
        hook.remove()

    def cosine(a: int, b: int) -> float:
        return float(torch.cosine_similarity(seen[a], seen[b], dim=-1).mean())

    assert block_influence(model, ids) == pytest.approx([1 - cosine(n, n + 1) for n in range(3)], abs=1e-5)
    expected = [torch.tensor(cosine(n, n + 2)).arccos().item() / torch.pi for n in range(2)]
    assert angular_distances(model, ids, 2) == pytest.approx(expected, abs=1e-4)


def with_idle_layers(model: FloatCheckpoint, layers: Sequence[int]) -> FloatCheckpoint:
    """Layers that add nothing to the residual stream."""
    names = model.config.family.names
    keys = [f"{name.format(layer)}.weight" for name in (names.out, names.down) for layer in layers]
    return model.changed({key: torch.zeros_like(model.tensors[key]) for key in keys})


@pytest.mark.parametrize("idle", [[0], [1], [2], [0, 1], [1, 2], [0, 2]])
def test_layers_that_do_nothing_are_found_by_influence_and_if_they_are_neighbours_by_angle(idle: list[int]) -> None:
    model = with_idle_layers(FloatCheckpoint.load(checkpoint("llama-2")), idle)
    ids = random_ids(model.config.vocab_size)
    assert choose_layers(model, ids, 3 - len(idle), "influence") == idle
    if idle != [0, 2]:
        assert choose_layers(model, ids, 3 - len(idle), "angular") == idle


def test_the_greedy_choice_is_the_best_layer_at_every_step() -> None:
    model = FloatCheckpoint.load(checkpoint("llama-3"))
    ids = random_ids(model.config.vocab_size)
    pieces = [Window(row, 1) for row in ids.tolist()]

    def loss(removed: list[int]) -> float:
        return float(decoder_scorer(remove_layers(model, removed).decoder())(pieces).mean())

    first = min(range(3), key=lambda layer: loss([layer]))
    second = min(set(range(3)) - {first}, key=lambda layer: loss([first, layer]))
    assert choose_layers(model, ids, 2, "perplexity") == [first]
    assert choose_layers(model, ids, 1, "perplexity") == sorted([first, second])


def test_a_target_is_a_share_of_the_layers_or_of_the_parameters() -> None:
    model = FloatCheckpoint.load(checkpoint("llama-2"))
    assert layers_to_keep(model, Target(0.3)) == 2
    assert layers_to_keep(model, Target(1 / 3)) == 2
    assert layers_to_keep(model, Target(0.34)) == 1
    share = 1 - remove_layers(model, [0]).num_parameters / model.num_parameters
    assert layers_to_keep(model, Target(share, "parameters")) == 2
    assert layers_to_keep(model, Target(share + 0.01, "parameters")) == 1


def test_what_cannot_be_removed_is_refused_in_one_sentence() -> None:
    model = FloatCheckpoint.load(checkpoint("llama-2"))
    ids = random_ids(model.config.vocab_size)
    with pytest.raises(ConfigError, match=r"leaves no layers: of 3, 1 must stay, so that at most 66.7% can go"):
        layers_to_keep(model, Target(0.9))
    for share in (0.0, 1.0, -0.2, 25.0, float("nan")):
        with pytest.raises(ConfigError, match="out of range: give a share between 0 and 1"):
            Target(share)
    with pytest.raises(ConfigError, match="all 3 layers would be removed"):
        remove_layers(model, [0, 1, 2])
    for layers in ([3], [-1], [1, 1], []):
        with pytest.raises(ConfigError, match="give some of 0 to 2"):
            remove_layers(model, layers)
    for keep in (0, 3):
        with pytest.raises(ConfigError, match="layers cannot be kept"):
            choose_layers(model, ids, keep)
