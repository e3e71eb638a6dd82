"""What makes models smaller, and what it cost: quantized weights, pruning, fewer KV heads, healing, perplexity.

    from playground import QuantizationConfig
    from playground.compression import Calibration, Pruning, Target, compress, prune
    compress("my-model", QuantizationConfig(method="gptq", bits=4), "my-model-int4", calibration=Calibration((file,)))
    prune("my-model", Pruning("prune-layers", Target(0.25)), "my-model-small", Calibration((file,)))
"""

from playground.compression.calibration import Calibration
from playground.compression.healing import Healing
from playground.compression.pipeline import Compressed, compress
from playground.compression.pruning import Pruned, Pruning, prune
from playground.compression.targets import Target

__all__ = ["Calibration", "Compressed", "Healing", "Pruned", "Pruning", "Target", "compress", "prune"]
