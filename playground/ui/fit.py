"""Where a configuration's models are, and whether they fit: what is asked before anything is loaded.

Reads headers and config.json files, never weights. Knows nothing of gradio.
"""

from dataclasses import dataclass
from pathlib import Path

from playground.config import EngineConfig
from playground.engine.outputs import EngineStats
from playground.engine.resolve import free_memory, resolve_device
from playground.errors import ConfigError
from playground.models.bundled import BUNDLED_DRAFT_MODEL, BUNDLED_MODEL
from playground.models.hub import OnBytes
from playground.models.loader import read_config, resolve_model_path
from playground.telemetry.format import format_bytes
from playground.telemetry.memory_model import DraftShape, Prediction, predict

ENOUGH_KV = 0.9
"""A new model is loaded beside the old one only where it gets this share of the KV cache that it would get alone."""


@dataclass(frozen=True, slots=True)
class Found:
    """A configuration whose models are on this machine."""

    config: EngineConfig
    """With local paths in place of hub ids."""
    path: Path
    draft_path: Path | None


def find(config: EngineConfig, *, local_only: bool = False, on_bytes: OnBytes | None = None) -> Found:
    """The local paths of a configuration's models, downloaded where need be. Raises `ModelLoadError`."""
    name, revision = config.model or str(BUNDLED_MODEL), config.revision
    path = resolve_model_path(name, revision, load_format=config.load_format, local_only=local_only, on_bytes=on_bytes)
    changes = {"model": str(path)} if config.model is not None else {}
    method = config.speculation.method if config.speculation is not None else "draft" if config.draft_model else None
    draft_path = None
    if method in ("draft", "eagle"):
        if config.draft_model is not None:
            draft_path = resolve_model_path(config.draft_model, None, local_only=local_only, on_bytes=on_bytes)
            changes["draft_model"] = str(draft_path)
        elif path.resolve() == BUNDLED_MODEL.resolve():
            draft_path = BUNDLED_DRAFT_MODEL
    return Found(config.replace(**changes), path, draft_path)


def predict_memory(found: Found, available_bytes: int | None = None) -> Prediction:
    """What it will take, where so many bytes are free (by default what is free now). Raises `ConfigError`."""
    config = found.config
    device = resolve_device(config.device)
    draft = None
    if found.draft_path is not None:
        is_head = config.speculation is not None and config.speculation.method == "eagle"
        draft = DraftShape(read_config(found.draft_path), found.draft_path, is_head)
    available = free_memory(device) if available_bytes is None else available_bytes
    return predict(config, read_config(found.path), found.path, device, available, draft)


@dataclass(frozen=True, slots=True)
class Fit:
    """How a configuration fits into memory, given what is loaded now."""

    prediction: Prediction
    """With the memory that it will have: beside the present model, or without it."""
    beside: bool
    """Whether the present model can serve until the new one is there."""

    @property
    def refusal(self) -> str | None:
        """Why it cannot be loaded, in one sentence; None where it can."""
        if self.prediction.fits:
            return None
        needed, free = self.prediction.total_bytes, self.prediction.available_bytes
        return (
            f"This needs {format_bytes(needed)} and {format_bytes(free)} are free: choose a smaller model, quantize "
            "it, or lower kv_cache_memory."
        )


def check(found: Found, present: EngineConfig | None = None, stats: EngineStats | None = None) -> Fit:
    """Whether it fits beside the `present` engine (its resolved configuration and figures), or in its place."""
    device = resolve_device(found.config.device)
    free = free_memory(device)
    if present is None or stats is None or resolve_device(present.device) != device:
        return Fit(predict_memory(found, free), beside=True)
    alone = predict_memory(found, free + stats.memory_weights_bytes + stats.memory_kv_bytes)
    try:
        beside = predict_memory(found, free)
    except ConfigError:  # not even one KV block
        return Fit(alone, beside=False)
    if beside.fits and beside.kv_tokens >= ENOUGH_KV * alone.kv_tokens:
        return Fit(beside, beside=True)
    return Fit(alone, beside=False)
