"""What drafting needs of a decoder: part of its layers, its hidden states, and steps prepared ahead."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from playground.errors import ConfigError
from playground.models.batch import one_token_steps
from playground.models.decoder import Decoder
from tests.checkpoints import VARIANTS, checkpoint, reference_model
from tests.models.driver import Driver, Sequence, load, prompt, whole_batch

TOLERANCE = 1e-4
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def reference_of_layers(variant: str, keep: list[int], ids: list[int]) -> Tensor:
    """Logits of transformers with the other layers taken out."""
    model = copy.deepcopy(reference_model(variant))
    inner = model.transformer if hasattr(model, "transformer") else model.model
    name = "h" if hasattr(inner, "h") else "layers"
    layers = getattr(inner, name)
    setattr(inner, name, torch.nn.ModuleList(layers[i] for i in keep))
    model.config.num_hidden_layers = len(keep)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in keep]
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def in_steps(driver: Driver, ids: list[int]) -> Tensor:
    sequence, parts = Sequence(ids), []
    for count in (13, 1, 1, len(ids) - 15):
        parts += driver.step([(sequence, count)])
    return torch.cat(parts)


# Part of the layers


@EVERY_VARIANT
@pytest.mark.parametrize("keep", [[0, 2], [1], [0, 1, 2]])
def test_part_of_the_layers_is_the_model_without_the_others(variant: str, keep: list[int]) -> None:
    driver = Driver(load(checkpoint(variant)))
    ids = prompt(30, driver.model.config.vocab_size)
    driver.model = driver.model.with_layers(keep)
    exact = reference_of_layers(variant, keep, ids)
    assert (in_steps(driver, ids) - exact).abs().max().item() < TOLERANCE
    without = driver.model.forward(whole_batch([ids]), None)
    assert (without - exact).abs().max().item() < TOLERANCE


def test_all_layers_give_the_bits_of_the_whole_model() -> None:
    driver, other = (Driver(load(checkpoint("llama-3"))) for _ in range(2))
    other.model = other.model.with_layers(range(3))
    ids = prompt(30, 60)
    assert torch.equal(in_steps(driver, ids), in_steps(other, ids))


def test_a_part_reads_and_writes_the_caches_layers_of_the_same_number() -> None:
    driver = Driver(load(checkpoint("llama-3")))
    whole, ids = driver.model, prompt(20, 60)
    sequence = Sequence(ids)
    driver.step([(sequence, 10)])
    before = [kv.clone() for kv in driver.cache.kv]
    driver.model = whole.with_layers([0, 2])
    drafted = driver.step([(sequence, 1)])[0]
    changed = [not torch.equal(kv, old) for kv, old in zip(driver.cache.kv, before, strict=True)]
    assert changed == [True, False, True]
    # Layer 0 sees the same inputs in both; the whole model writes its keys again over those of the part.
    sequence.num_computed -= 1
    driver.model = whole
    exact = driver.step([(sequence, 1)])[0]
    assert not torch.allclose(drafted, exact, atol=1e-2)
    with torch.inference_mode():
        wanted = reference_model("llama-3")(torch.tensor([ids[:11]])).logits[0, -1:]
    assert (exact - wanted).abs().max().item() < TOLERANCE


def test_a_part_copies_no_weights_and_leaves_the_whole_as_it_was() -> None:
    model = load(checkpoint("llama-3")).model
    part = model.with_layers([2])
    assert part.weights.embed is model.weights.embed and part.weights.layers[0] is model.weights.layers[2]
    assert len(model.weights.layers) == 3 and part.config is model.config


@pytest.mark.parametrize("keep", [[], [1, 0], [0, 0], [-1], [3]])
def test_layers_that_do_not_ascend_or_do_not_exist_are_refused(keep: list[int]) -> None:
    with pytest.raises(ConfigError, match="at least one of 0 to 2, ascending"):
        load(checkpoint("llama-3")).model.with_layers(keep)


# Hidden states


@EVERY_VARIANT
def test_hidden_states_are_what_the_output_head_reads(variant: str) -> None:
    driver = Driver(load(checkpoint(variant)))
    lengths = [30, 1, 9, 60, 9]  # groups stand in another order than the batch
    sequences = [Sequence(prompt(n, driver.model.config.vocab_size, seed=n)) for n in lengths]
    driver.step([(s, len(s.token_ids) - 5) for s in sequences if len(s.token_ids) > 5])
    work = [(s, min(5, len(s.token_ids))) for s in sequences]
    batch = driver.batch(work, rows="last")
    logits, hidden = driver.model.forward_with_hidden(batch, driver.cache)
    plain = driver.model.forward(batch, driver.cache)
    assert torch.allclose(logits, plain, atol=1e-5)
    for sequence, own, last in zip(sequences, hidden.split([count for _, count in work]), logits, strict=True):
        with torch.inference_mode():
            reference = reference_model(variant)
            exact = reference(torch.tensor([sequence.token_ids]), output_hidden_states=True).hidden_states[-1][0]
            assert (own - exact[-len(own) :]).abs().max().item() < TOLERANCE
            assert (reference.lm_head(own[-1]) - last).abs().max().item() < TOLERANCE


def test_hidden_states_come_also_where_no_logits_are_wanted() -> None:
    driver = Driver(load(checkpoint("llama-3")))
    batch = driver.batch([(Sequence(prompt(7, 60)), 7)])
    _, exact = driver.model.forward_with_hidden(batch, driver.cache)
    batch.logits_rows = batch.logits_rows[:0]
    logits, hidden = driver.model.forward_with_hidden(batch, driver.cache)
    assert logits.shape == (0, driver.model.config.vocab_size) and torch.equal(hidden, exact)


# Steps ahead


def greedy(model: Decoder, driver: Driver, sequences: list[Sequence], steps: int, ahead: bool) -> list[Tensor]:
    """Logits of `steps` tokens of each sequence, every next one the most probable."""
    slots = torch.tensor([[driver.slot(s, s.num_computed + k) for s in sequences] for k in range(steps)])
    first = driver.batch([(s, 1) for s in sequences])
    batches = model.steps_ahead(first, slots, driver.cache) if ahead else one_token_steps(first, slots)
    results = []
    for batch in batches:
        if results:
            batch.token_ids = results[-1].argmax(-1)
        results.append(model.forward(batch, driver.cache))
    return results


@pytest.mark.parametrize("attention", ["sdpa", "naive"])
@settings(max_examples=25)
@given(
    st.sampled_from(["llama-3", "mistral", "qwen2-windows", "gpt2"]),
    st.lists(st.integers(1, 70), min_size=1, max_size=5),
    st.integers(1, 5),
    st.sampled_from([1, 4, 16, 256]),
)
def test_steps_prepared_ahead_give_the_logits_of_steps_one_by_one(
    attention: str, variant: str, lengths: list[int], steps: int, block_size: int
) -> None:
    model = load(checkpoint(variant), attention=attention)
    results = []
    for ahead in (False, True):
        driver = Driver(model, block_size=block_size, num_blocks=400 if block_size < 16 else 40)
        sequences = [Sequence(prompt(n, model.config.vocab_size, seed=n)) for n in lengths]
        for sequence in sequences:
            if len(sequence.token_ids) > 1:
                driver.step([(sequence, len(sequence.token_ids) - 1)])
        results.append(torch.stack(greedy(model.model, driver, sequences, steps, ahead)))
    assert torch.allclose(*results, atol=1e-5)


def test_a_step_without_a_slot_writes_nothing_and_disturbs_no_other_sequence() -> None:
    model = load(checkpoint("llama-3"))
    driver = Driver(model, block_size=4)
    sequences = [Sequence(prompt(n, 60, seed=n)) for n in (8, 6)]
    driver.step([(s, len(s.token_ids) - 1) for s in sequences])
    slots = torch.tensor([[driver.slot(s, s.num_computed + k) for s in sequences] for k in range(3)])
    slots[1:, 0] = -1  # the first has no room for more
    exact = greedy(model.model, driver, [sequences[1]], 3, ahead=True)
    before = [kv.clone() for kv in driver.cache.kv]
    batches = model.model.steps_ahead(driver.batch([(s, 1) for s in sequences]), slots, driver.cache)
    for batch, alone in zip(batches, exact, strict=True):
        logits = model.model.forward(batch, driver.cache)
        assert torch.allclose(logits[1:], alone, atol=1e-5)
        for later in batches:
            later.token_ids = logits.argmax(-1)
    changed = torch.stack([kv != old for kv, old in zip(driver.cache.kv, before, strict=True)]).any(5).any(3)
    changed[:, :, sequences[1].blocks] = False
    own = driver.slot(sequences[0], 7)
    assert changed.any(0).any(0).nonzero().tolist() == [[own // 4, own % 4]]


def test_steps_ahead_run_in_triton_as_plain_batches() -> None:
    from tests.kernels.triton.oracle import DEVICE

    results = []
    for attention in ("sdpa", "triton"):
        model = load(checkpoint("llama-3"), attention=attention, device=DEVICE)
        driver, sequence = Driver(model), Sequence(prompt(7, 60))
        driver.step([(sequence, 6)])
        results.append(torch.stack(greedy(model.model, driver, [sequence], 2, ahead=True)))
    assert torch.allclose(*results, atol=1e-4)
