"""Checkpoints of a training run: weights (safetensors), optimizer state and counters, in one folder per step.

A folder is written under a temporary name and renamed, so a crash never leaves a half checkpoint that looks whole.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from playground.errors import ConfigError
from playground.quantization.tensor_file import save_tensors
from playground.training.model import ModelShape, TrainableLlama

KEEP = 2


@dataclass
class Progress:
    """Where a run stands; with the config it determines the next batch and learning rate."""

    step: int = 0
    tokens: int = 0
    active_seconds: float = 0.0
    stage: int = 0
    epoch: int = 0
    batch: int = 0


def save_checkpoint(
    output_dir: Path, model: TrainableLlama, optimizer: torch.optim.Optimizer, progress: Progress
) -> Path:
    final = output_dir / f"checkpoint-{progress.step:07d}"
    partial = output_dir / f".partial-{progress.step:07d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: p.detach().float().cpu().contiguous() for name, p in model.named_weights().items()}
    save_tensors(weights, partial / "model.safetensors")
    torch.save(optimizer.state_dict(), partial / "optimizer.pt")
    (partial / "progress.json").write_text(json.dumps(asdict(progress)) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for old in checkpoints(output_dir)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in output_dir.glob("checkpoint-*") if (p / "progress.json").is_file())


def load_checkpoint(folder: Path, model: TrainableLlama, optimizer: torch.optim.Optimizer) -> Progress:
    load_weights(folder, model)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu"))
    return Progress(**json.loads((folder / "progress.json").read_text()))


def load_weights(source: Path, model: TrainableLlama) -> None:
    """Weights from a checkpoint folder, a run's output folder (its newest checkpoint) or a Hugging Face folder."""
    found = checkpoints(source)
    folder = found[-1] if found else source
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(f"no weights in {source}; give a run's output_dir, a checkpoint or a model folder.")
    weights = load_file(folder / "model.safetensors")
    for name, parameter in model.named_weights().items():
        if name not in weights or weights[name].shape != parameter.shape:
            had = tuple(weights[name].shape) if name in weights else "nothing"
            raise ConfigError(
                f"{folder} does not fit the configured model: {name} should be {tuple(parameter.shape)}, is {had}."
            )
    model.load_named_weights(weights)


def read_shape(folder: Path) -> ModelShape:
    """The shape of a model folder that can be trained on: a Llama with tied embeddings, as `export_model` writes.

    Raises `ConfigError` where there is none, or one with parts that `TrainableLlama` does not have.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"{folder} has no readable config.json: give a model folder in Hugging Face format."
        ) from None
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    others = {
        "a config of another family": raw.get("model_type") != "llama",
        "quantized weights": bool(raw.get("quantization_config")),
        "an output head of its own": not raw.get("tie_word_embeddings", False),
        "biases": bool(raw.get("attention_bias") or raw.get("mlp_bias")),
        "scaled rotary positions": rope.get("rope_type", rope.get("type", "default")) != "default",
        "another activation than silu": raw.get("hidden_act", "silu") != "silu",
    }
    for what, found in others.items():
        if found:
            raise ConfigError(f"{folder} has {what}: training goes on from Llama models with tied embeddings only.")
    heads = raw["num_attention_heads"]
    return ModelShape(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        intermediate_size=raw["intermediate_size"],
        rope_theta=rope.get("rope_theta") or raw.get("rope_theta") or 10000.0,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        max_position_embeddings=raw.get("max_position_embeddings", 2048),
    )
