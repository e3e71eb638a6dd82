"""A real checkpoint whose greedy reply never ends by itself: for tests that act in the middle of a reply."""

import json
import string
from pathlib import Path

from tests.tiny import write_tiny_model

NUM_LAYERS = 16
"""Enough to make some 200 tokens a second of it: time to act, and a reply still ends soon where it should."""


def write_endless_model(folder: Path) -> Path:
    """A tiny random Llama whose greedy tokens are ASCII letters: every other row of the tied embedding is zero.

    A zero row scores exactly 0, and the best of 52 random letters always scores above that, so no end mark is reached.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    write_tiny_model(folder, max_position_embeddings=8192)
    letters = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(list(string.ascii_letters))
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    kept = torch.zeros(embedding.shape[0], 1)
    kept[letters] = 1
    weights["model.embed_tokens.weight"] = embedding * kept
    for layer in range(2, NUM_LAYERS):
        for name in [name for name in weights if name.startswith(f"model.layers.{layer % 2}.")]:
            weights[name.replace(f".{layer % 2}.", f".{layer}.", 1)] = weights[name].clone()
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": NUM_LAYERS}
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


SHORT = {"temperature": "0", "max_tokens": "12"}
LONG = {"temperature": "0", "max_tokens": "200"}
"""Some frames long, and ends by its limit."""
ENDLESS = {"temperature": "0", "max_tokens": "7000"}
"""Many seconds long: for what is going to be stopped."""
ODD = {"temperature": "5", "max_tokens": "12"}
"""Another reply for every seed."""
