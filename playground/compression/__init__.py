"""What makes models smaller: quantized weights written layer by layer.

from playground import QuantizationConfig
from playground.compression import Calibration, compress
compress("my-model", QuantizationConfig(method="gptq", bits=4), "my-model-int4", calibration=Calibration((file,)))
"""

from playground.compression.calibration import Calibration
from playground.compression.pipeline import Compressed, compress

__all__ = ["Calibration", "Compressed", "compress"]
