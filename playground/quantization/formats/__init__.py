"""File formats of quantized matrices in safetensors checkpoints: one module each, and which there are.

Each turns a `QuantizedWeight` into the tensors of a file and back. GGUF, which is a container of its own, is not here.
"""

from collections.abc import Callable
from typing import Any

from playground.errors import ModelLoadError
from playground.quantization.formats.awq import AWQFormat
from playground.quantization.formats.base import Entry, QuantizedFormat, Stored
from playground.quantization.formats.bitsandbytes import BitsAndBytesFormat
from playground.quantization.formats.compressed_tensors import CompressedTensorsFormat
from playground.quantization.formats.gptq import GPTQFormat
from playground.validation import shorten

__all__ = [
    "FORMATS",
    "AWQFormat",
    "BitsAndBytesFormat",
    "CompressedTensorsFormat",
    "GPTQFormat",
    "QuantizedFormat",
    "Stored",
    "read_format",
]

FORMATS: dict[str, Callable[[Entry], QuantizedFormat]] = {
    GPTQFormat.method: GPTQFormat.from_config,
    AWQFormat.method: AWQFormat.from_config,
    CompressedTensorsFormat.method: CompressedTensorsFormat.from_config,
    BitsAndBytesFormat.method: BitsAndBytesFormat.from_config,
}


def read_format(raw: Any, source: str) -> QuantizedFormat:
    """The format that a `quantization_config` describes; `ModelLoadError` for those that are not supported."""
    if not isinstance(raw, dict):
        raise ModelLoadError(f"quantization_config of {source} is {shorten(raw)}: restore the config.json.")
    method = raw.get("quant_method")
    if method is None and ("load_in_4bit" in raw or "load_in_8bit" in raw):  # files from before there were others
        method = BitsAndBytesFormat.method
    if method not in FORMATS:
        raise ModelLoadError(
            f"quantization_config of {source}: quant_method={shorten(method)} is not supported: "
            f"use one of {', '.join(FORMATS)}, or the original weights."
        )
    return FORMATS[method](Entry(raw, source))
