"""The decoder with its attention in Triton gives what transformers gives: interpreted here, compiled on a GPU."""

import pytest
import torch

from tests.checkpoints import checkpoint, reference_model
from tests.kernels.triton.oracle import DEVICE
from tests.models.driver import Driver, Sequence, load, prompt, whole_batch

TOLERANCE = 1e-4


def logits_in_steps(variant: str, ids: list[int], counts: list[int], block_size: int = 16) -> torch.Tensor:
    """Logits of every token of `ids`, run in steps of `counts` beside another sequence that decodes."""
    driver = Driver(load(checkpoint(variant), attention="triton", device=DEVICE), block_size=block_size)
    sequence = Sequence(ids)
    other = Sequence(prompt(9, driver.model.config.vocab_size, seed=1))
    driver.step([(other, 9 - len(counts) + 1)])
    parts = [driver.step([(sequence, counts[0])])[0]]
    parts += [driver.step([(other, 1), (sequence, count)])[1] for count in counts[1:]]
    return torch.cat(parts).cpu()


@pytest.mark.parametrize("variant", ["llama-3", "mistral", "qwen2-windows", "qwen3", "gpt2"])
def test_logits_in_chunks_beside_a_decoding_request_equal_transformers(variant: str) -> None:
    ids = prompt(24, 60, seed=2)
    with torch.inference_mode():
        wanted = reference_model(variant)(torch.tensor([ids])).logits[0]
    assert (logits_in_steps(variant, ids, [13, 1, 10]) - wanted).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("variant", ["llama-3", "mistral"])
def test_logits_without_a_cache_equal_transformers(variant: str) -> None:
    prompts = [prompt(n, 60, seed=n) for n in (11, 1, 6)]
    model = load(checkpoint(variant), attention="triton", device=DEVICE).model
    logits = model.forward(whole_batch(prompts, DEVICE), None).cpu().split([11, 1, 6])
    for ids, own in zip(prompts, logits, strict=True):
        with torch.inference_mode():
            wanted = reference_model(variant)(torch.tensor([ids])).logits[0]
        assert (own - wanted).abs().max().item() < TOLERANCE


def test_logits_do_not_depend_on_the_block_size() -> None:
    ids = prompt(12, 60, seed=3)
    wanted = logits_in_steps("llama-3", ids, [7, 1, 4])
    for block_size in (1, 32):
        assert (logits_in_steps("llama-3", ids, [7, 1, 4], block_size) - wanted).abs().max().item() < TOLERANCE
