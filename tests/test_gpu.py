"""On an NVIDIA GPU the engine says what it says on the CPU. Skipped with the reason where there is no GPU."""

from pathlib import Path

import pytest

from playground import Engine, EngineConfig, SamplingParams

PROMPTS = ["one two three", "a", "the little fox " * 6]


@pytest.mark.gpu
def test_greedy_tokens_are_the_same_on_gpu_and_cpu(tiny_model: Path) -> None:
    tokens = {}
    for device in ("cpu", "cuda"):
        # float64, so that a tie between two tokens cannot decide the comparison
        config = EngineConfig(model=str(tiny_model), device=device, dtype="float64", num_kv_blocks=64)
        with Engine(config) as engine:
            params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
            tokens[device] = [generation.token_ids for generation in engine.generate(PROMPTS, params)]
    assert tokens["cuda"] == tokens["cpu"]


@pytest.mark.gpu
def test_auto_takes_the_gpu_and_its_memory_comes_back(tiny_model: Path) -> None:
    import torch

    with Engine(EngineConfig(model=str(tiny_model), num_kv_blocks=64)) as engine:
        assert engine.config.device == "cuda:0"
        assert engine.generate("hello", SamplingParams(max_tokens=4, ignore_eos=True))[0].finish_reason == "length"
        held = torch.cuda.memory_allocated()
    assert torch.cuda.memory_allocated() < held
