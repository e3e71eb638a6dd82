"""What makes models smaller, and what it cost: quantized weights, pruning, fewer KV heads, healing, perplexity.

    from playground import QuantizationConfig
    from playground.compression import Calibration, Pruning, Target, compress, prune
    compress("my-model", QuantizationConfig(method="gptq", bits=4), "my-model-int4", calibration=Calibration((file,)))
    prune("my-model", Pruning("prune-layers", Target(0.25)), "my-model-small", Calibration((file,)))

Importing this package is cheap; torch is imported when one of its names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playground.compression.calibration import Calibration
    from playground.compression.healing import Healing
    from playground.compression.pipeline import Compressed, compress
    from playground.compression.pruning import Pruned, Pruning, prune
    from playground.compression.targets import Target

__all__ = ["Calibration", "Compressed", "Healing", "Pruned", "Pruning", "Target", "compress", "prune"]

_HOME = {
    "Calibration": "calibration",
    "Compressed": "pipeline",
    "Healing": "healing",
    "Pruned": "pruning",
    "Pruning": "pruning",
    "Target": "targets",
    "compress": "pipeline",
    "prune": "pruning",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
