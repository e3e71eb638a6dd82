"""Quantizes the matrices of any source while a model is built from it, one after another."""

from collections.abc import Callable

import torch
from torch import Tensor

from playground.config import QuantizationConfig
from playground.models.config import DecoderConfig
from playground.models.weights import TensorSource
from playground.quantization.schemes import check_method, quantize
from playground.quantization.weight import QuantizedWeight

_HEAD = QuantizationConfig.named("int8")


class QuantizeOnLoad:
    """A `QuantizedSource` over a plain source: the matrices of the layers by the config, and the output head.

    Norms, biases, positions and an embedding of its own stay as they are. A tied embedding is the head.
    """

    def __init__(
        self,
        source: TensorSource,
        config: DecoderConfig,
        quantization: QuantizationConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Raises `ConfigError` for methods that need calibration."""
        check_method(quantization)
        names = config.family.names
        self._source, self._quantization, self._device = source, quantization, device
        self._scale_dtype = torch.float32 if dtype == torch.float64 else dtype
        self._head = names.embed if config.tie_embeddings else names.head
        self._tables = (names.embed, names.head)
        self._transposed = config.family.transposed

    def read(self, name: str, use: Callable[[Tensor], None]) -> None:
        """See `TensorSource`."""
        self._source.read(name, use)

    def quantized(self, name: str) -> QuantizedWeight | None:
        """See `QuantizedSource`. Raises `ConfigError` where the matrix cannot be quantized so."""
        is_table = name in self._tables
        if is_table and (name != self._head or self._quantization.head == "keep"):
            return None
        found: list[QuantizedWeight] = []
        turned = self._transposed

        def use(tensor: Tensor) -> None:
            weight, how = (tensor, _HEAD) if is_table else (tensor.t() if turned else tensor, self._quantization)
            found.append(quantize(weight, how, name=name, scale_dtype=self._scale_dtype, device=self._device))

        self._source.read(f"{name}.weight", use)
        return found[0]
