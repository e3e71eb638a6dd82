"""A target and a draft that agrees with it about half of the time, and engines over them in float64."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from playground import Engine, EngineConfig
from playground.config import SpeculationConfig
from tests.tiny import write_tiny_model

SMALL_VOCABULARY = 6


@pytest.fixture(scope="session")
def draft_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with noise on its weights."""
    from transformers import LlamaForCausalLM

    folder = write_tiny_model(tmp_path_factory.mktemp("tiny-draft"))
    model = LlamaForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.12 * parameter.data.std(unbiased=False) * noise
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Config folders of two random models over six tokens, without a tokenizer: few enough sequences to count all."""
    from transformers import LlamaConfig

    folders = []
    for name, layers in (("target", 2), ("draft", 1)):
        config = LlamaConfig(
            vocab_size=SMALL_VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=None, pad_token_id=None, architectures=["LlamaForCausalLM"],
        )  # fmt: skip
        folders.append(tmp_path_factory.mktemp(name))
        config.save_pretrained(folders[-1])
    return folders[0], folders[1]


@pytest.fixture
def make_speculative(tiny_model: Path, draft_model: Path) -> Iterator[Callable[..., Engine]]:
    """Makes an engine over the pair: speculation settings by name, and `engine` for other fields; None: without."""
    engines: list[Engine] = []

    def make(speculation: dict[str, Any] | None, **fields: Any) -> Engine:
        given: dict[str, Any] = {
            "model": str(tiny_model), "device": "cpu", "dtype": "float64", "block_size": 4, "num_kv_blocks": 200,
            "max_num_seqs": 8, "max_num_batched_tokens": 64,
        }  # fmt: skip
        if speculation is not None:
            given["speculation"] = SpeculationConfig(**speculation)
            if given["speculation"].method == "draft":
                given["draft_model"] = str(draft_model)
        given |= fields
        if given.get("kv_cache") == "none":
            del given["num_kv_blocks"], given["max_num_batched_tokens"]
        engines.append(Engine(EngineConfig(**given)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
