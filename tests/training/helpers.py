"""Tiny training runs for the tests: a two-layer model on template text alone, so that no data set is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TINY_MODEL = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}


def tiny_config(folder: Path, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": "tiny",
        "output_dir": str(folder / "run"),
        "vocab_size": 320,
        "device": "cpu",
        "dtype": "float32",
        "compile": False,
        "num_threads": 1,
        "generated_documents": 40,
        "sample_tokens": 8,
        "model": TINY_MODEL,
        "schedule": {"learning_rate": 5e-3, "warmup_steps": 3},
        "stages": [
            {
                "name": "one",
                "length": 32,
                "batch_size": 4,
                "tokens": 1280,
                "mix": {"greetings": 1.0, "arithmetic": 1.0},
            },
            {
                "name": "two",
                "length": 64,
                "batch_size": 2,
                "tokens": 1280,
                "pack": "rows",
                "assistant_only": True,
                "mix": {"small_talk": 1.0},
            },
        ],
    }
    return {**config, **changes}


def write_config(folder: Path, config: dict[str, Any], name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(config))
    return path
