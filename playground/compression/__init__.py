"""What makes models smaller: quantized weights written layer by layer.

    from playground import QuantizationConfig
    from playground.compression import Calibration, compress
    compress("my-model", QuantizationConfig(method="gptq", bits=4), "my-model-int4", calibration=Calibration((file,)))

Importing this package is cheap; torch is imported when one of its names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playground.compression.calibration import Calibration
    from playground.compression.pipeline import Compressed, compress

__all__ = ["Calibration", "Compressed", "compress"]

_HOME = {"Calibration": "calibration", "Compressed": "pipeline", "compress": "pipeline"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
