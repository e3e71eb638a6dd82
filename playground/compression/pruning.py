"""One pruning of one checkpoint, start to end: to a target, in rounds, healed, written as another checkpoint.

What `playground compress` calls for every method that is not quantization. The methods themselves stand in
`depth_pruning`, `width_pruning`, `sparsity` and `gqa`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from playground.compression.calibration import Calibration, calibration_tokens
from playground.compression.depth_pruning import LayerChoice, choose_layers, layers_to_keep, remove_layers
from playground.compression.float_checkpoint import FloatCheckpoint
from playground.compression.gqa import Pooling, convert_kv_heads
from playground.compression.healing import Healing, heal
from playground.compression.perplexity import encode_text, read_text
from playground.compression.sparsity import Pattern, sparsify
from playground.compression.targets import Target
from playground.compression.width_pruning import (
    MULTIPLE,
    channels_to_keep,
    groups_step,
    groups_to_keep,
    prune_channels,
    prune_groups,
)
from playground.errors import ConfigError
from playground.models.tokenizer import load_tokenizer
from playground.quantization.writer import check_free

logger = logging.getLogger(__name__)

PruningMethod = Literal["prune-layers", "prune-ffn", "prune-heads", "magnitude", "wanda", "sparsegpt", "gqa"]
METHODS: tuple[PruningMethod, ...] = get_args(PruningMethod)


@dataclass(frozen=True)
class Pruning:
    """What to do; each field says for which methods it is."""

    method: PruningMethod
    target: Target = field(default_factory=lambda: Target(0.25))
    """prune-*: how much goes."""
    rounds: int = 1
    """prune-*: go there in so many steps, healed after each, measured anew before each."""
    layers_by: LayerChoice = "perplexity"
    """prune-layers: how a layer's importance is measured."""
    layers: tuple[int, ...] = ()
    """prune-layers: these, and nothing is measured."""
    sparsity: Pattern = field(default_factory=lambda: Pattern(0.5))
    """magnitude, wanda, sparsegpt: which weights become zero."""
    kv_heads: int = 1
    """gqa: how many KV heads there are afterwards."""
    pooling: Pooling = "mean"
    """gqa: what becomes of the heads of a group."""
    healing: Healing | None = None
    """Of all its steps, each round takes its part."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method {self.method!r} is not known: use one of {', '.join(METHODS)}.")
        if self.rounds < 1 or (self.healing is not None and self.rounds > self.healing.steps):
            most = "" if self.healing is None else f" and at most {self.healing.steps}, the steps of healing"
            raise ConfigError(f"rounds={self.rounds} is not allowed: give at least 1{most}.")
        if self.layers and (self.method != "prune-layers" or self.rounds > 1):
            raise ConfigError("layers to remove are for method 'prune-layers' in one round: leave them out.")

    @property
    def structured(self) -> bool:
        """Whether the model becomes smaller in parts that can be counted."""
        return self.method.startswith("prune-")


@dataclass(frozen=True)
class Pruned:
    """What came of it."""

    output: Path
    parameters: tuple[int, int]
    """Before and after."""
    kv_bytes_per_token: tuple[int, int]
    """Before and after, in the dtype of the checkpoint."""
    zeros: float
    """Share of the parameters that are zero afterwards."""
    removed_layers: list[int]
    """Of the original's layers."""


def prune(model: str | Path, pruning: Pruning, output: str | Path, calibration: Calibration | None = None) -> Pruned:
    """Write a pruned copy of a model to `output`, a folder that must not exist yet.

    Healing reads the whole calibration text, or what the model wrote itself where there is none. Raises `ConfigError`
    or `ModelLoadError`, one sentence; the source is never touched, and what cannot be finished is not there.
    """
    output = Path(output).expanduser()
    check_free(output)
    original = FloatCheckpoint.load(model)
    plan = _plan(original, pruning)  # refuses what cannot be, before the work
    calibration = calibration or Calibration()
    given = pruning.method in ("gqa", "magnitude") or bool(pruning.layers)
    needs_text = not given or pruning.healing is not None
    ids = calibration_tokens(original.folder, original.config, calibration) if needs_text else torch.zeros(1, 2).long()
    text = _healing_text(original, ids, calibration) if pruning.healing else []
    result, removed = original, list[int]()
    for number, keep in enumerate(plan):
        if pruning.method == "prune-layers":
            chosen = list(pruning.layers) or choose_layers(result, ids, keep, pruning.layers_by)
            left = [layer for layer in range(original.config.num_layers) if layer not in removed]
            result = remove_layers(result, chosen)
            removed += [left[layer] for layer in chosen]
        else:
            result = _step(result, pruning, keep, ids)
        if pruning.healing is not None:
            result = heal(result, original, text, _share_of(pruning, number, len(plan)))
    result.save(output)
    return Pruned(
        output,
        (original.num_parameters, result.num_parameters),
        (_kv_bytes(original), _kv_bytes(result)),
        sum(int((tensor == 0).sum()) for tensor in result.tensors.values()) / result.num_parameters,
        sorted(removed),
    )


def _plan(model: FloatCheckpoint, pruning: Pruning) -> list[int]:
    """How many parts are kept after each round, each fewer than before; one entry for methods without parts."""
    if not pruning.structured:
        return [0]
    config = model.config
    if pruning.layers:
        return [config.num_layers - len(pruning.layers)]
    total, keep, multiple = {
        "prune-layers": lambda: (config.num_layers, layers_to_keep(model, pruning.target), 1),
        "prune-ffn": lambda: (config.intermediate_size, channels_to_keep(model, pruning.target), MULTIPLE),
        "prune-heads": lambda: (config.num_kv_heads, groups_to_keep(model, pruning.target), groups_step(config)),
    }[pruning.method]()
    ways = [total - (total - keep) * number // pruning.rounds for number in range(pruning.rounds + 1)]
    counts = [total, *(max(keep, -(-count // multiple) * multiple) for count in ways[1:])]
    return [after for before, after in pairwise(counts) if after < before]


def _step(model: FloatCheckpoint, pruning: Pruning, keep: int, ids: Tensor) -> FloatCheckpoint:
    if pruning.method == "prune-ffn":
        return prune_channels(model, ids, keep)
    if pruning.method == "prune-heads":
        return prune_groups(model, ids, keep)
    if pruning.method == "gqa":
        return convert_kv_heads(model, pruning.kv_heads, pruning.pooling)
    assert pruning.method in ("magnitude", "wanda", "sparsegpt")
    return sparsify(model, ids, pruning.sparsity, pruning.method)


def _share_of(pruning: Pruning, number: int, rounds: int) -> Healing:
    """A round's part of the healing: other text than the rounds before, and all steps together are those asked for."""
    assert pruning.healing is not None
    steps = pruning.healing.steps
    own = steps * (number + 1) // rounds - steps * number // rounds
    sparse = pruning.method in ("magnitude", "wanda", "sparsegpt")
    return replace(pruning.healing, steps=own, seed=pruning.healing.seed + number, keep_zeros=sparse)


def _healing_text(model: FloatCheckpoint, ids: Tensor, calibration: Calibration) -> list[int]:
    if not calibration.files:
        return ids.flatten().tolist()
    tokenizer = load_tokenizer(model.folder)
    return encode_text(tokenizer, "".join(read_text(file) for file in calibration.files))


def _kv_bytes(model: FloatCheckpoint) -> int:
    return model.config.kv_bytes_per_token(model.config.dtype)
