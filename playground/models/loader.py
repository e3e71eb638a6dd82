"""Loads a checkpoint into a `Decoder`: folder, GGUF file or hub id, stored or random weights, any supported dtype.

Every name and shape is checked before the first weight is read. Weights are then built matrix by matrix from mapped
files, so that host memory never holds much more than the finished model.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from playground.config import QuantizationConfig
from playground.errors import ConfigError
from playground.models.checkpoint import Checkpoint, match_tensors
from playground.models.config import DecoderConfig
from playground.models.decoder import Decoder, DecoderWeights
from playground.models.families import tensor_shapes
from playground.models.gguf_config import read_gguf_config
from playground.models.gguf_file import GGUFFile
from playground.models.gguf_tensors import gguf_tensors
from playground.models.hub import is_gguf, resolve_model_path
from playground.models.layers import AttentionName
from playground.models.quantize_on_load import QuantizeOnLoad
from playground.models.quantized_checkpoint import match_quantized
from playground.models.weights import (
    DummyTensors,
    OnProgress,
    QuantizedSource,
    TensorSource,
    build_weights,
    weights_nbytes,
)

logger = logging.getLogger(__name__)

__all__ = ["LoadedModel", "load_model", "read_config", "resolve_model_path"]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with where it came from and what it weighs."""

    model: Decoder
    config: DecoderConfig
    path: Path
    weights_bytes: int


def load_model(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    load_format: str = "auto",
    attention: AttentionName = "sdpa",
    sliding_window: int | None = None,
    seed: int = 0,
    quantization: QuantizationConfig | None = None,
    on_progress: OnProgress | None = None,
) -> LoadedModel:
    """Load a model. `dtype` None is the checkpoint's own; `sliding_window` None is the model's own.

    `quantization` quantizes its matrices one by one while they are read. `on_progress` hears of every layer that was
    built, and may raise to end it. Raises `ModelLoadError`, or `ConfigError` where the weights cannot be quantized so,
    one sentence.
    """
    device, dummy = torch.device(device), load_format == "dummy"
    path = resolve_model_path(path_or_id, revision, load_format=load_format)
    config = read_config(path)
    if sliding_window is not None:
        config = config.with_sliding_window(sliding_window)
    dtype = usable_dtype(config.dtype if dtype is None else dtype, device)
    if dummy:
        weights = _build(config, DummyTensors(config, seed, device), dtype, device, quantization, on_progress)
    elif is_gguf(path):
        with GGUFFile(path) as file:
            weights = _build(
                config, gguf_tensors(config, file, dtype, device), dtype, device, quantization, on_progress
            )
    else:
        with Checkpoint(path) as checkpoint:
            weights = _build(config, check_names(config, checkpoint), dtype, device, quantization, on_progress)
    model = Decoder(config, weights, dtype=dtype, device=device, attention=attention)
    size = weights_nbytes(weights)
    logger.info("loaded %s (%s, %.1f MB, %s on %s)", path, config.architecture, size / 1e6, dtype, device)
    return LoadedModel(model, config, path, size)


def read_config(path: Path) -> DecoderConfig:
    """What a model is made of, from its folder or its GGUF file. Raises `ModelLoadError`."""
    if not is_gguf(path):
        return DecoderConfig.from_folder(path)
    with GGUFFile(path) as file:
        return read_gguf_config(file)


def _build(
    config: DecoderConfig,
    source: TensorSource,
    dtype: torch.dtype,
    device: torch.device,
    quantization: QuantizationConfig | None,
    on_progress: OnProgress | None,
) -> DecoderWeights:
    if quantization is None:
        return build_weights(config, source, dtype, device, on_progress=on_progress)
    if isinstance(source, QuantizedSource):
        raise ConfigError("the checkpoint is quantized already: leave quantization out, or give the original weights.")
    quantizing = QuantizeOnLoad(source, config, quantization, dtype, device)
    int8 = quantization.method == "w8a8"
    return build_weights(config, quantizing, dtype, device, int8_activations=int8, on_progress=on_progress)


def usable_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that runs: float16 has no fast arithmetic on a CPU and becomes bfloat16 where that has, or float32."""
    if dtype not in (torch.float16, torch.bfloat16) or device.type != "cpu":
        return dtype
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.bfloat16:
        if not native:
            logger.warning("this CPU has no bfloat16 arithmetic and is several times faster in float32")
        return dtype
    other = torch.bfloat16 if native else torch.float32
    logger.warning("float16 is slow on a CPU: the model runs in %s instead", str(other).removeprefix("torch."))
    return other


def check_names(config: DecoderConfig, checkpoint: Checkpoint) -> TensorSource:
    """Compare the checkpoint's tensors with those that the config needs; refuse missing, extra and misshapen ones."""
    family, expected, found = config.family, tensor_shapes(config), checkpoint.entries
    prefix = family.names.optional_prefix
    bare = f"{family.names.embed}.weight" not in found and f"{family.names.embed.removeprefix(prefix)}.weight" in found
    in_file = {name: name.removeprefix(prefix) if bare else name for name in expected}
    extra = [f"{family.names.head}.weight"] if config.tie_embeddings else []  # a copy of the embedding in some files
    if config.quantization is not None:
        return match_quantized(checkpoint, config, config.quantization, expected, in_file, also=extra)
    return match_tensors(
        checkpoint, expected, in_file, also=extra, ignored_suffixes=family.ignored_suffixes, owner=family.architecture
    )
