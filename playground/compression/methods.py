"""Which ways there are to quantize the weights of a block, and which file formats can hold the results."""

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from playground.compression.awq import clip, fold_scales
from playground.compression.blocks import ResidualBlock, Role
from playground.compression.gptq import gptq
from playground.compression.hessian import second_moment
from playground.compression.states import CalibrationStates
from playground.config import QuantizationConfig
from playground.errors import ConfigError
from playground.models.config import DecoderConfig
from playground.models.families import ROLES, linear_inputs, linear_parts
from playground.quantization.formats import (
    AWQFormat,
    BitsAndBytesFormat,
    CompressedTensorsFormat,
    GPTQFormat,
    QuantizedFormat,
)
from playground.quantization.nf4 import quantize_nf4
from playground.quantization.rtn import round_to_nearest
from playground.quantization.weight import QuantizedWeight


class BlockStore(Protocol):
    """Where the results go; from then on the block computes with what is stored of them."""

    def put(self, role: Role, weight: QuantizedWeight) -> None:
        """The matrices of a role, one below the other."""
        ...

    def put_changed(self, name: str) -> None:
        """A tensor that is not a matrix, as the block has it now."""
        ...


SCALE_DTYPE = torch.float16
"""What all formats have for scales; codes are found with the rounded ones."""
CALIBRATED = ("gptq", "awq")
FORMAT_NAMES = ("gptq", "gptq_v2", "awq", "compressed-tensors", "bitsandbytes")


class BlockQuantizer:
    """Quantizes one block after the other as a configuration says."""

    def __init__(self, quantization: QuantizationConfig) -> None:
        self.quantization = quantization
        self._nearest = partial(
            round_to_nearest,
            bits=quantization.bits,
            group_size=quantization.group_size,
            symmetric=quantization.symmetric,
            scale_dtype=SCALE_DTYPE,
            search=quantization.scale_search,
        )
        self.calibrated = quantization.method in CALIBRATED

    def __call__(self, block: ResidualBlock, states: CalibrationStates | None, store: BlockStore) -> None:
        """Quantize the block's matrices, first those behind the norm, then those that read what these give."""
        if self.quantization.method == "awq":
            assert states is not None
            for name in fold_scales(block, states, self._nearest):
                store.put_changed(name)
        for role in block.roles:
            store.put(role, self._quantize(block, role, states))

    def _quantize(self, block: ResidualBlock, role: Role, states: CalibrationStates | None) -> QuantizedWeight:
        options, weight = self.quantization, block.weight(role)
        if options.method == "nf4":
            return quantize_nf4(weight, options.group_size)
        if options.method == "rtn" or states is None:
            return self._nearest(weight)
        if options.method == "awq":
            return self._nearest(clip(block, role, states, self._nearest, options.group_size))
        return gptq(weight, second_moment(states, partial(block.inputs, role)), options, scale_dtype=SCALE_DTYPE)


def choose_format(quantization: QuantizationConfig, config: DecoderConfig, name: str | None = None) -> QuantizedFormat:
    """The file format of this name, or the usual one of the method. `ConfigError` where it cannot hold the weights."""
    if name is not None and name not in FORMAT_NAMES:
        raise ConfigError(f"format {name!r} is not known: use one of {', '.join(FORMAT_NAMES)}.")
    bits, group_size, symmetric = quantization.bits, quantization.group_size, quantization.symmetric
    if name is None:
        if quantization.method == "nf4":
            name = "bitsandbytes"
        elif quantization.method == "awq" and bits == AWQFormat.bits:
            name = "awq"
        elif not symmetric:
            # Version 1 has no place for a zero of 0, and transformers 5.23 does not load the packed zeros of
            # compressed-tensors unless it is told to dequantize.
            name = "gptq_v2"
        else:
            name = "gptq" if quantization.method == "gptq" else "compressed-tensors"
    ordered = quantization.act_order and not quantization.static_groups
    if name == "awq":
        file_format: QuantizedFormat = AWQFormat(group_size)
    elif name == "compressed-tensors":
        file_format = CompressedTensorsFormat.packed(bits, group_size, symmetric)
    elif name == "bitsandbytes":
        file_format = BitsAndBytesFormat(4, double_quantization=quantization.double_quant)
    else:
        file_format = GPTQFormat(bits, group_size, symmetric, ordered, 2 if name == "gptq_v2" else 1)
    _check_fits(quantization, config, file_format)
    return file_format


def check_groups(quantization: QuantizationConfig, config: DecoderConfig) -> None:
    """`ConfigError` where the group size does not divide the inputs of a matrix."""
    size = quantization.group_size
    for role in ROLES:
        inputs = linear_inputs(config, role)
        if size != -1 and inputs % size:
            name = linear_parts(config, role)[0][0].format(0)
            widths = sorted({linear_inputs(config, each) for each in ROLES})
            good = [g for g in (16, 32, 64, 128, 256) if all(width % g == 0 for width in widths)]
            raise ConfigError(
                f"group_size={size} does not divide the {inputs} inputs of {name}: "
                f"use {', '.join(map(str, good))}{' or ' if good else ''}-1 for whole rows."
            )


def _check_fits(quantization: QuantizationConfig, config: DecoderConfig, file_format: QuantizedFormat) -> None:
    """Let the format refuse before any work is done: pack a matrix of zeros of each shape that there is."""
    shapes: dict[tuple[int, int], str] = {}
    for role in ROLES:
        for name, outputs in linear_parts(config, role):
            shapes.setdefault((outputs, linear_inputs(config, role)), name.format(0))
    for (n, k), name in shapes.items():
        file_format.pack(name, _zeros(quantization, n, k))


def _zeros(quantization: QuantizationConfig, n: int, k: int) -> QuantizedWeight:
    groups = 1 if quantization.group_size == -1 else k // quantization.group_size
    zeros: Tensor | None = None
    index: Tensor | None = None
    nf4_codes = quantization.method == "nf4"
    if not quantization.symmetric and not nf4_codes:
        zeros = torch.zeros(n, groups, dtype=torch.uint8)
    if quantization.act_order and not quantization.static_groups and groups > 1:
        index = torch.arange(k, dtype=torch.int32).flip(0) // quantization.group_size
    return QuantizedWeight(
        torch.zeros(n, k, dtype=torch.uint8), torch.ones(n, groups, dtype=torch.float16),
        4 if nf4_codes else quantization.bits, quantization.group_size, zeros=zeros, group_index=index,
        kind="nf4" if nf4_codes else "int",
    )  # fmt: skip
