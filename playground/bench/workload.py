"""What the engine benchmark runs: models, prompt lengths, batches, repeats. It does not know how they are timed."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playground.errors import ConfigError

PAD_ID = 0
_SHAPES: dict[str, dict[str, int]] = {
    # The shape of SmolLM2-135M.
    "dummy-135m": {
        "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    },
    "dummy-tiny": {
        "vocab_size": 512, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 512,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Requests that are submitted together: how long each prompt is and how many tokens each wants."""

    name: str
    prompt_lens: tuple[int, ...]
    output_lens: tuple[int, ...]
    reach: float | None = None
    """The ratio over the peer that decoding is meant to reach."""

    @property
    def size(self) -> int:
        return len(self.prompt_lens)


@dataclass(frozen=True)
class Plan:
    """One run of the benchmark."""

    models: tuple[str, ...]
    dtypes: tuple[str, ...]
    repeats: int
    first_token_prompts: tuple[int, ...]
    batches: tuple[Batch, ...]
    steps_batch: Batch
    """For the time split of a step: equal lengths, so that all requests run together."""

    @property
    def max_tokens(self) -> int:
        """The longest sequence that any part of the plan needs."""
        everything = (*self.batches, self.steps_batch)
        longest = max(p + o for b in everything for p, o in zip(b.prompt_lens, b.output_lens, strict=True))
        return max([longest, *(length + 1 for length in self.first_token_prompts)])

    @property
    def max_batch(self) -> int:
        return max(batch.size for batch in (*self.batches, self.steps_batch))


def mixed(size: int, reach: float | None = None) -> Batch:
    """`size` requests with prompts of 16 to 256 tokens and 32 to 128 output tokens, the same in every run."""
    prompts = tuple(16 + (i * 97 + 112) % 241 for i in range(size))
    outputs = tuple(32 + (i * 53 + 32) % 97 for i in range(size))
    return Batch(f"{size} mixed" if size > 1 else "1", prompts, outputs, reach)


def full_plan(models: tuple[str, ...] = (), dtypes: tuple[str, ...] = (), repeats: int | None = None) -> Plan:
    return Plan(
        models=models or ("dummy-135m", "bundled"),
        dtypes=dtypes or ("bfloat16", "float32"),
        repeats=repeats or 5,
        first_token_prompts=(128, 1024),
        batches=(mixed(1, 1.4), mixed(4), mixed(16, 2.0), Batch("16 equal", (128,) * 16, (64,) * 16)),
        steps_batch=Batch("16 equal", (64,) * 16, (64,) * 16),
    )


def quick_plan(models: tuple[str, ...] = (), dtypes: tuple[str, ...] = (), repeats: int | None = None) -> Plan:
    """Seconds instead of minutes: shows that everything runs. Its numbers mean nothing."""
    return Plan(
        models=models or ("dummy-tiny",),
        dtypes=dtypes or ("float32",),
        repeats=repeats or 2,
        first_token_prompts=(8, 24),
        batches=(Batch("1", (8,), (6,), 1.4), Batch("3 mixed", (4, 9, 14), (4, 6, 8), 2.0)),
        steps_batch=Batch("3 equal", (8,) * 3, (24,) * 3),  # long enough for all three to run at once
    )


def random_prompt(length: int, vocabulary: int, rng: random.Random) -> list[int]:
    """Token ids without the lowest ones, where special tokens lie."""
    return [rng.randrange(min(64, vocabulary // 2), vocabulary) for _ in range(length)]


@contextmanager
def model_folder(name: str) -> Iterator[Path]:
    """The folder that both sides load: the bundled model's, a given one, or a dummy written for this run."""
    if name in _SHAPES:
        with TemporaryDirectory(prefix="playground-bench-") as folder:
            write_dummy(Path(folder), _SHAPES[name])
            yield Path(folder)
        return
    if name == "bundled":
        from playground.models.bundled import BUNDLED_MODEL

        yield Path(BUNDLED_MODEL)
        return
    if not (Path(name) / "config.json").is_file():
        raise ConfigError(f"model {name!r} is neither {', '.join(_SHAPES)}, bundled nor a folder with a config.json.")
    yield Path(name)


def write_dummy(folder: Path, shape: dict[str, int]) -> None:
    """A seeded random Llama saved by transformers, with a byte-level tokenizer that knows every id."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, logging

    logging.disable_progress_bar()
    # Wider than the usual 0.02: flat logits would make every comparison of greedy tokens a tie.
    config = LlamaConfig(
        **shape, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, initializer_range=0.05
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    _write_tokenizer(folder, shape["vocab_size"])


def _write_tokenizer(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", *alphabet, *(f"Ġword{i}" for i in range(size))][:size]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)


def read_shape(folder: Path) -> dict[str, Any]:
    """Vocabulary size and longest sequence of a model folder."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {"vocab_size": raw["vocab_size"], "max_len": raw.get("max_position_embeddings") or raw.get("n_positions")}
