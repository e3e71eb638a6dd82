"""Tiny random checkpoints of every supported family, saved by transformers itself, each built once per test run."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.tiny import write_tiny_tokenizer

SHAPE = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# name -> (model class of transformers, what differs from SHAPE)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2": ("Llama", {"num_key_value_heads": 6, "tie_word_embeddings": False}),
    "llama-3": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen2-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gpt2": ("GPT2", {}),
}
GPT2_SHAPE = {
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": 0.15,
    "bos_token_id": 2,
    "eos_token_id": 2,
}


@functools.cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="playground-checkpoints-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@functools.cache
def reference_model(variant: str) -> Any:
    """The transformers model of a variant, float32, random weights, norms and biases included."""
    import torch
    import transformers

    name, differences = VARIANTS[variant]
    vocabulary = write_tiny_tokenizer(_root() / variant)
    shape = GPT2_SHAPE if name == "GPT2" else SHAPE
    config = getattr(transformers, f"{name}Config")(vocab_size=vocabulary, **{**shape, **differences})
    # Kept for every test: one of them may want its gradients.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
        model = getattr(transformers, kind)(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms start at 1 and biases at 0, where a forgotten one would not show
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@functools.cache
def checkpoint(variant: str, shard_size: str = "1GB") -> Path:
    """Folder of the variant's checkpoint with a byte-level tokenizer; a small `shard_size` splits it."""
    folder = _root() / (variant if shard_size == "1GB" else f"{variant}-{shard_size}")
    reference_model(variant).save_pretrained(folder, max_shard_size=shard_size)
    write_tiny_tokenizer(folder)
    return folder


def writable_copy(variant: str, folder: Path) -> Path:
    """A copy of a checkpoint that a test may break."""
    return Path(shutil.copytree(checkpoint(variant), folder, dirs_exist_ok=True))
