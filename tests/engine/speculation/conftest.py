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


def write_eagle_head(folder: Path, *, vocab_size: int, hidden: int, heads: int, kv_heads: int) -> Path:
    """A random EAGLE head."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    dim, wide = hidden // heads, 2 * hidden
    shapes = {
        "fc.weight": (hidden, 2 * hidden),
        "layers.0.self_attn.q_proj.weight": (hidden, hidden),
        "layers.0.self_attn.k_proj.weight": (kv_heads * dim, hidden),
        "layers.0.self_attn.v_proj.weight": (kv_heads * dim, hidden),
        "layers.0.self_attn.o_proj.weight": (hidden, hidden),
        "layers.0.mlp.gate_proj.weight": (wide, hidden),
        "layers.0.mlp.up_proj.weight": (wide, hidden),
        "layers.0.mlp.down_proj.weight": (hidden, wide),
        "layers.0.post_attention_layernorm.weight": (hidden,),
    }
    generator = torch.Generator().manual_seed(3)
    save_file(
        {name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden, intermediate_size=wide, num_hidden_layers=1,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=256,
        architectures=["LlamaForCausalLMEagle"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def eagle_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random head for the tiny model."""
    folder = tmp_path_factory.mktemp("tiny-eagle")
    return write_eagle_head(folder, vocab_size=259, hidden=32, heads=4, kv_heads=2)


@pytest.fixture(scope="session")
def small_eagle_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random head for the target of `small_pair`."""
    folder = tmp_path_factory.mktemp("small-eagle")
    return write_eagle_head(folder, vocab_size=SMALL_VOCABULARY, hidden=16, heads=2, kv_heads=1)


@pytest.fixture
def make_speculative(tiny_model: Path, draft_model: Path, eagle_head: Path) -> Iterator[Callable[..., Engine]]:
    """Makes an engine over the pair: speculation settings by name, and `engine` for other fields; None: without."""
    engines: list[Engine] = []

    def make(speculation: dict[str, Any] | None, **fields: Any) -> Engine:
        given: dict[str, Any] = {
            "model": str(tiny_model), "device": "cpu", "dtype": "float64", "block_size": 4, "num_kv_blocks": 200,
            "max_num_seqs": 8, "max_num_batched_tokens": 64,
        }  # fmt: skip
        if speculation is not None:
            given["speculation"] = SpeculationConfig(**speculation)
            drafts = {"draft": draft_model, "eagle": eagle_head}
            if given["speculation"].method in drafts:
                given["draft_model"] = str(drafts[given["speculation"].method])
        given |= fields
        if given.get("kv_cache") == "none":
            del given["num_kv_blocks"], given["max_num_batched_tokens"]
        engines.append(Engine(EngineConfig(**given)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
