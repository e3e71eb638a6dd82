"""The decoder gives what transformers gives, however the tokens are cut into steps, batched and paged."""

import pytest
import torch
from torch import Tensor

from playground.models.kv_cache import KVCache
from playground.models.loader import LoadedModel
from tests.checkpoints import VARIANTS, checkpoint, reference_model
from tests.models.driver import Driver, Sequence, load, prompt, whole_batch

TOLERANCE = 1e-4
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def reference_logits(variant: str, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return reference_model(variant)(torch.tensor([ids])).logits[0]


def difference(logits: Tensor, wanted: Tensor) -> float:
    assert logits.shape == wanted.shape and logits.dtype == torch.float32
    return (logits - wanted).abs().max().item()


def loaded(variant: str, **options: object) -> LoadedModel:
    return load(checkpoint(variant), **options)


@EVERY_VARIANT
def test_logits_of_a_whole_prompt_equal_transformers(variant: str) -> None:
    model = loaded(variant)
    ids = prompt(70, model.config.vocab_size)
    wanted = reference_logits(variant, ids)
    assert wanted.std() > 0.3, "the reference must say something"
    assert difference(Driver(model).step([(Sequence(ids), 70)])[0], wanted) < TOLERANCE


@EVERY_VARIANT
@pytest.mark.parametrize("chunk", [1, 5, 16, 33])
def test_logits_of_a_chunked_prompt_equal_transformers(variant: str, chunk: int) -> None:
    model = loaded(variant)
    ids = prompt(70, model.config.vocab_size)
    driver, sequence, parts = Driver(model), Sequence(ids), []
    while sequence.num_computed < len(ids):
        parts += driver.step([(sequence, min(chunk, len(ids) - sequence.num_computed))])
    assert difference(torch.cat(parts), reference_logits(variant, ids)) < TOLERANCE


@EVERY_VARIANT
@pytest.mark.parametrize("block_size", [1, 4, 256])
def test_logits_do_not_depend_on_the_block_size(variant: str, block_size: int) -> None:
    model = loaded(variant)
    ids = prompt(40, model.config.vocab_size)
    driver = Driver(model, block_size=block_size, num_blocks=3 if block_size == 256 else 60)
    sequence = Sequence(ids)
    parts = [driver.step([(sequence, count)])[0] for count in (23, 1, 1, 15)]
    assert difference(torch.cat(parts), reference_logits(variant, ids)) < TOLERANCE


@EVERY_VARIANT
def test_logits_of_a_ragged_batch_of_prefill_and_decode_equal_transformers(variant: str) -> None:
    model = loaded(variant)
    lengths = [60, 9, 33, 1, 70, 17, 48, 2]
    sequences = [Sequence(prompt(n, model.config.vocab_size, seed=n)) for n in lengths]
    driver = Driver(model)
    got: list[list[Tensor]] = [[] for _ in sequences]
    # Different paces: some sequences decode token by token while others still read their prompt.
    paces = [13, 1, 32, 1, 40, 16, 1, 1]
    while any(s.num_computed < len(s.token_ids) for s in sequences):
        work = [(s, min(p, len(s.token_ids) - s.num_computed)) for s, p in zip(sequences, paces, strict=True)]
        active = [i for i, (_, count) in enumerate(work) if count]
        for i, logits in zip(active, driver.step([work[i] for i in active]), strict=True):
            got[i].append(logits)
    for sequence, parts in zip(sequences, got, strict=True):
        assert difference(torch.cat(parts), reference_logits(variant, sequence.token_ids)) < TOLERANCE


@EVERY_VARIANT
def test_prompts_of_growing_length_in_the_first_step_do_not_share_scratch_memory(variant: str) -> None:
    model = loaded(variant)
    sequences = [Sequence(prompt(n, model.config.vocab_size, seed=n)) for n in (5, 16, 43, 1, 70)]
    for sequence, logits in zip(
        sequences, Driver(model, block_size=4).step([(s, len(s.token_ids)) for s in sequences]), strict=True
    ):
        assert difference(logits, reference_logits(variant, sequence.token_ids)) < TOLERANCE


@EVERY_VARIANT
def test_logits_without_a_cache_equal_transformers(variant: str) -> None:
    model = loaded(variant)
    prompts = [prompt(n, model.config.vocab_size, seed=n) for n in (30, 1, 12)]
    logits = model.model.forward(whole_batch(prompts), None).split([30, 1, 12])
    for ids, own in zip(prompts, logits, strict=True):
        assert difference(own, reference_logits(variant, ids)) < TOLERANCE


@EVERY_VARIANT
def test_materialised_attention_gives_the_same_logits(variant: str) -> None:
    model = loaded(variant, attention="naive")
    ids = prompt(50, model.config.vocab_size)
    driver, sequence = Driver(model), Sequence(ids)
    parts = [driver.step([(sequence, count)])[0] for count in (20, 7, 1, 22)]
    assert difference(torch.cat(parts), reference_logits(variant, ids)) < TOLERANCE


@EVERY_VARIANT
def test_64_greedy_tokens_equal_transformers(variant: str) -> None:
    model = loaded(variant)
    ids = prompt(12, model.config.vocab_size, seed=5)
    with torch.inference_mode():
        wanted = reference_model(variant).generate(
            torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, 12:]
    driver, sequence = Driver(model), Sequence(list(ids))
    logits = driver.step([(sequence, 12)], rows="last")[0]
    for _ in range(63):
        sequence.token_ids.append(int(logits.argmax()))
        logits = driver.step([(sequence, 1)], rows="last")[0]
    sequence.token_ids.append(int(logits.argmax()))
    assert sequence.token_ids[12:] == wanted.tolist()


def test_a_window_given_at_load_replaces_the_models_own() -> None:
    model = loaded("llama-3", sliding_window=5)
    assert model.config.sliding_window == 5
    ids = prompt(40, model.config.vocab_size)
    full = reference_logits("llama-3", ids)
    logits = Driver(model).step([(Sequence(ids), 40)])[0]
    assert difference(logits[:5], full[:5]) < TOLERANCE
    assert difference(logits[5:], full[5:]) > 0.01


def test_blocks_left_of_the_window_are_never_read() -> None:
    model = loaded("mistral")
    ids = prompt(60, model.config.vocab_size)
    driver, sequence = Driver(model, block_size=4), Sequence(ids)
    parts = driver.step([(sequence, 50)])
    for _ in range(10):
        first_seen = sequence.num_computed - 6  # window of 7: the next token sees itself and six before
        sequence.blocks[: first_seen // 4] = [0] * (first_seen // 4)
        parts += driver.step([(sequence, 1)])
    assert difference(torch.cat(parts), reference_logits("mistral", ids)) < TOLERANCE


def test_float64_runs_in_float64_and_agrees_with_itself_to_1e_12() -> None:
    model = loaded("llama-3", dtype=torch.float64)
    ids = prompt(50, model.config.vocab_size)
    whole = Driver(model).step([(Sequence(ids), 50)])[0]
    assert whole.dtype == torch.float64
    driver, sequence = Driver(model, block_size=3), Sequence(ids)
    parts = [driver.step([(sequence, count)])[0] for count in (1, 1, 30, 1, 17)]
    assert (torch.cat(parts) - whole).abs().max() < 1e-12


def test_bfloat16_logits_are_as_close_to_float32_as_those_of_transformers() -> None:
    model = loaded("smollm2", dtype=torch.bfloat16)
    ids = prompt(60, model.config.vocab_size)
    exact = reference_logits("smollm2", ids)
    driver, sequence = Driver(model), Sequence(ids)
    parts = [driver.step([(sequence, count)])[0] for count in (40, *[1] * 20)]
    ours = (torch.cat(parts) - exact).square().mean().sqrt()
    import transformers

    peer = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("smollm2"), dtype=torch.bfloat16)
    with torch.inference_mode():
        theirs = (peer(torch.tensor([ids])).logits[0].float() - exact).square().mean().sqrt()
    assert ours < 1.5 * theirs


def test_a_slot_of_minus_one_writes_nothing() -> None:
    model = loaded("llama-3")
    driver = Driver(model)
    sequence = Sequence(prompt(5, model.config.vocab_size))
    batch = driver.batch([(sequence, 5)])
    before = [kv.clone() for kv in driver.cache.kv]
    batch.slot_mapping[:] = -1
    driver.model.forward(batch, driver.cache)
    assert all(torch.equal(kv, old) for kv, old in zip(driver.cache.kv, before, strict=True))


def test_a_batch_that_wants_no_logits_gives_none() -> None:
    model = loaded("llama-2")
    driver = Driver(model)
    batch = driver.batch([(Sequence(prompt(5, model.config.vocab_size)), 5)])
    batch.logits_rows = batch.logits_rows[:0]
    assert model.model.forward(batch, driver.cache).shape == (0, model.config.vocab_size)


def test_a_cache_of_a_smaller_dtype_costs_only_its_rounding() -> None:
    model = loaded("llama-3")
    ids = prompt(60, model.config.vocab_size)
    driver, sequence = Driver(model), Sequence(ids)
    driver.cache = KVCache(model.config, 80, 16, torch.bfloat16)
    parts = [driver.step([(sequence, count)])[0] for count in (40, 1, 1, 18)]
    off = difference(torch.cat(parts), reference_logits("llama-3", ids))
    assert 1e-4 < off < 0.3


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["llama-3", "mistral", "qwen3", "gpt2"])
def test_logits_on_a_gpu_equal_transformers_on_the_cpu(variant: str) -> None:
    model = loaded(variant, device=torch.device("cuda"))
    ids = prompt(70, model.config.vocab_size)
    driver, sequence = Driver(model), Sequence(ids)
    other = Sequence(prompt(30, model.config.vocab_size, seed=1))
    driver.step([(other, 29)])
    parts = [driver.step([(sequence, count)])[0] for count in (30, 1, 20)]
    parts.append(driver.step([(other, 1), (sequence, 19)])[1])
    torch.backends.cuda.matmul.allow_tf32 = False
    assert difference(torch.cat(parts).cpu(), reference_logits(variant, ids)) < TOLERANCE
