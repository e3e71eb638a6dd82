"""Healing: the plain decoder's gradients, and a damaged model that comes closer to the one it was made of."""

from pathlib import Path

import pytest
import torch

from playground.compression.blocks import PlainDecoder
from playground.compression.depth_pruning import remove_layers
from playground.compression.float_checkpoint import FloatCheckpoint
from playground.compression.healing import Healing, Parameters, heal, logits
from playground.compression.sparsity import Pattern, sparsify
from playground.errors import ConfigError
from tests.checkpoints import checkpoint, reference_model
from tests.compression.helpers import assert_transformers_agrees, decoder_logits, random_ids


def text(tokens: int = 1500) -> list[int]:
    """Thirty tokens in an order to learn: each follows from the one before, but every eighth is drawn."""
    ids, generator = [5], torch.Generator().manual_seed(3)
    while len(ids) < tokens:
        step = int(torch.randint(1, 30, (1,), generator=generator)) if len(ids) % 8 == 0 else 7
        ids.append(3 + (ids[-1] + step) % 30)
    return ids


@pytest.mark.parametrize("variant", ["llama-3", "qwen2-windows", "qwen3", "gpt2"])
def test_gradients_are_those_of_transformers(variant: str) -> None:
    model, reference = FloatCheckpoint.load(checkpoint(variant)), reference_model(variant)
    ids = random_ids(model.config.vocab_size, 2, 20)
    parameters = Parameters(model)
    logits(PlainDecoder(model.config, parameters), ids).logsumexp(-1).sum().backward()
    theirs = dict(reference.named_parameters())
    expected = torch.autograd.grad(reference(ids).logits.logsumexp(-1).sum(), list(theirs.values()))
    for name, gradient in zip(theirs, expected, strict=True):
        found = parameters.by_name[name].grad
        assert found is not None
        torch.testing.assert_close(found, gradient, atol=1e-2, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_a_model_without_a_layer_comes_closer_to_the_whole_one(tmp_path: Path) -> None:
    whole = FloatCheckpoint.load(checkpoint("llama-2"))
    pruned = remove_layers(whole, [1])
    losses: list[float] = []
    settings = Healing(steps=60, batch_size=4, length=24, learning_rate=5e-3, cross_entropy_weight=0.0)
    healed = heal(pruned, whole, text(), settings, lambda step, loss: losses.append(loss))
    assert len(losses) == 60
    ids = torch.tensor(text(480)).view(-1, 24)

    def divergence(model: FloatCheckpoint) -> float:
        p, q = (decoder_logits(m.decoder(), ids).log_softmax(-1) for m in (whole, model))
        return float((p.exp() * (p - q)).sum(-1).mean())

    assert divergence(healed) < 0.5 * divergence(pruned)
    assert_transformers_agrees(healed, tmp_path / "healed")


def test_the_text_is_learned_where_cross_entropy_is_all(tmp_path: Path) -> None:
    whole = FloatCheckpoint.load(checkpoint("smollm2"))
    losses: list[float] = []
    settings = Healing(steps=60, batch_size=4, length=24, learning_rate=1e-2, cross_entropy_weight=1.0)
    heal(whole, whole, text(), settings, lambda step, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_zeros_stay_zeros_where_asked() -> None:
    whole = FloatCheckpoint.load(checkpoint("llama-2"))
    sparse = sparsify(whole, random_ids(whole.config.vocab_size), Pattern.parse("2:4"), "magnitude")
    name = "model.layers.0.mlp.up_proj.weight"
    for keep, zeros in ((True, 0.5), (False, 0.0)):
        settings = Healing(steps=2, batch_size=2, length=16, keep_zeros=keep)
        healed = heal(sparse, whole, text(), settings).tensors[name]
        assert float((healed == 0).float().mean()) == zeros
        assert not torch.equal(healed, sparse.tensors[name])


def test_the_seed_decides_the_result_and_the_original_is_left_alone() -> None:
    whole = FloatCheckpoint.load(checkpoint("smollm2"))
    before = {name: tensor.clone() for name, tensor in whole.tensors.items()}
    name = "model.layers.0.mlp.up_proj.weight"
    one, same, other = (
        heal(whole, whole, text(), Healing(3, batch_size=2, length=16, seed=seed)).tensors[name] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert all(torch.equal(whole.tensors[name], tensor) for name, tensor in before.items())


def test_what_cannot_heal_is_refused_in_one_sentence() -> None:
    model = FloatCheckpoint.load(checkpoint("smollm2"))
    with pytest.raises(ConfigError, match=r"has 100 tokens, 3 rows of 32: .* give a longer text"):
        heal(model, model, text(100), Healing(5, batch_size=4, length=32))
    with pytest.raises(ConfigError, match="heal nothing: give at least"):
        Healing(steps=0)
    with pytest.raises(ConfigError, match="a learning rate of -1 "):
        Healing(steps=1, learning_rate=-1)
