"""From a `QuantizationConfig` to a quantized matrix, for the methods that need no calibration."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from playground.config import QuantizationConfig
from playground.errors import ConfigError
from playground.quantization.nf4 import quantize_nf4
from playground.quantization.rtn import fp8_rows, int8_rows, round_to_nearest
from playground.quantization.weight import QuantizedWeight, join

_PIECE_ELEMENTS = 1 << 20


def quantize(
    weight: Tensor,
    config: QuantizationConfig,
    *,
    name: str = "the matrix",
    scale_dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> QuantizedWeight:
    """W [N, K] of any floating dtype by the config's method; `name` is for errors. Temporaries stay small.

    Scales are stored in `scale_dtype` (float32 for nf4), and all is on `device`, that of the weight by default. Raises
    `ConfigError`, one sentence, where the method needs calibration, the groups do not divide K, or values are not
    finite.
    """
    rounded = _quantizer(config, scale_dtype)
    size = weight.shape[1] if config.group_size == -1 else config.group_size
    if weight.shape[1] % size:
        fitting = [other for other in (128, 64, 32, 16) if weight.shape[1] % other == 0]
        advice = f"give {fitting[0]}, or " if fitting and config.method != "nf4" else "give "
        other = "another method" if config.method == "nf4" else "-1 for whole rows"
        raise ConfigError(f"group_size={size} does not divide the {weight.shape[1]} inputs of {name}: {advice}{other}.")
    rows = max(1, _PIECE_ELEMENTS // weight.shape[1])
    try:
        return join([rounded(piece.to(device or piece.device)) for piece in weight.split(rows)])
    except ValueError as error:
        raise ConfigError(f"{name} cannot be quantized: {error}") from None


def _quantizer(config: QuantizationConfig, scale_dtype: torch.dtype) -> Callable[[Tensor], QuantizedWeight]:
    if config.method == "nf4":
        return partial(quantize_nf4, block_size=config.group_size, double_quant=config.double_quant)
    if config.method == "fp8":
        return partial(fp8_rows, scale_dtype=scale_dtype)
    if config.method == "w8a8":
        return partial(int8_rows, scale_dtype=scale_dtype)
    check_method(config)
    return partial(
        round_to_nearest, bits=config.bits, group_size=config.group_size, symmetric=config.symmetric,
        scale_dtype=scale_dtype, search=config.scale_search,
    )  # fmt: skip


def check_method(config: QuantizationConfig) -> None:
    """`ConfigError` for methods that need calibration."""
    if config.method not in ("gptq", "awq"):
        return
    raise ConfigError(
        f"quantization method {config.method!r} needs calibration text: run playground compress --method "
        f"{config.method} first, then load the folder that it writes."
    )
