"""Inference Playground: an LLM inference engine whose every mechanism can be watched, switched off and measured.

    from playground import Engine, EngineConfig, SamplingParams

Importing this package loads no model, touches no GPU and opens no connection; `Engine` imports torch when first used.
"""

from typing import TYPE_CHECKING, Any

from playground.config import EngineConfig, QuantizationConfig, SpeculationConfig
from playground.engine.outputs import (
    Delta,
    EngineStats,
    Generation,
    PinnedPrefix,
    RequestMetrics,
    Sample,
    TokenLogprob,
)
from playground.errors import ConfigError, ModelLoadError, PlaygroundError, RequestError
from playground.sampling_params import SamplingParams

if TYPE_CHECKING:
    from playground.engine.engine import Engine

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Delta",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Generation",
    "ModelLoadError",
    "PinnedPrefix",
    "PlaygroundError",
    "QuantizationConfig",
    "RequestError",
    "RequestMetrics",
    "Sample",
    "SamplingParams",
    "SpeculationConfig",
    "TokenLogprob",
]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from playground.engine.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
