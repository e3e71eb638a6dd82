"""The trainable Llama against transformers, its blocked attention against the plain one, its cache against none."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import kernels
from playground.training.export import export_model
from playground.training.generation import generate
from playground.training.model import IGNORE_INDEX, ModelShape, TrainableLlama, causal_attention, grouped_attention
from playground.training.tokenizer import train_tokenizer

SHAPE = ModelShape(
    vocab_size=300, hidden_size=48, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=8, intermediate_size=40,
    max_position_embeddings=300,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> TrainableLlama:
    model = TrainableLlama(SHAPE, torch.float32)
    model.initialise(3)
    with torch.no_grad():  # larger weights than at the start of training, so that every part matters
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim == 2 else 1.3)
    return model


def test_logits_equal_those_of_transformers_on_the_exported_weights(model: TrainableLlama, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a story about a cat", "hello there"] * 20, 300)
    export_model(model, tokenizer, tmp_path, torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 290, (2, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 7, 128, 129, 300])
def test_blocked_attention_equals_the_whole_square(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(2, 3, length, 8, generator=generator)
    k, v = torch.randn(2, 2, length, 8, generator=generator).unbind(0)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (q @ k[:, None].transpose(-1, -2)).masked_fill(hidden, float("-inf"))
    torch.testing.assert_close(causal_attention(q, k, v, block=64), scores.softmax(-1) @ v[:, None])


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_attention_of_a_cpu_is_what_the_flash_kernel_of_a_gpu_computes(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(2, 37, 6, 16, generator=generator)
    k, v = torch.randn(2, 2, 37, 2, 16, generator=generator).unbind(0)
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("the interpreter runs kernels on CPU tensors only where there is no GPU")
    out = kernels.flash_attention(q, k, v, scale=1.0, backend=backend)
    torch.testing.assert_close(grouped_attention(q, k, v), out)


@pytest.mark.gpu
def test_a_training_step_on_a_gpu_has_the_gradients_of_a_cpu(model: TrainableLlama) -> None:
    ids = torch.randint(0, 290, (2, 65), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    on_gpu = copy.deepcopy(model).cuda()
    on_gpu.zero_grad()
    on_gpu.loss(ids[:, :-1].cuda(), ids[:, 1:].cuda()).backward()
    for mine, other in zip(model.parameters(), on_gpu.parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None
        torch.testing.assert_close(other.grad.cpu(), mine.grad, rtol=1e-3, atol=1e-5)


def test_greedy_text_with_the_cache_equals_recomputing_every_step(model: TrainableLlama) -> None:
    prompts = torch.randint(0, 290, (3, 9), generator=torch.Generator().manual_seed(1))
    ids = prompts
    with torch.no_grad():
        for _ in range(24):
            ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generate(model, prompts, 24, 0.0, torch.Generator()), ids[:, 9:])


def test_sampling_is_a_function_of_its_seed(model: TrainableLlama) -> None:
    prompts = torch.tensor([[5, 6, 7]])
    runs = [generate(model, prompts, 20, 1.0, torch.Generator().manual_seed(s)).tolist() for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_loss_counts_only_the_labels_that_are_not_ignored(model: TrainableLlama) -> None:
    ids = torch.randint(0, 290, (1, 20), generator=torch.Generator().manual_seed(2))
    labels = torch.full((1, 20), IGNORE_INDEX)
    labels[0, 11] = 42
    expected = -model(ids)[0, 11].log_softmax(-1)[42]
    torch.testing.assert_close(model.loss(ids, labels), expected)
