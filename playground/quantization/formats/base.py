"""What every file format of quantized matrices offers, and what they need to know of the files.

A format is made from the `quantization_config` of a config.json, or by whoever writes a checkpoint. It knows how one
matrix lies in a checkpoint; which matrices there are, and where the files are, it never asks.
"""

import math
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from playground.errors import ConfigError, ModelLoadError
from playground.quantization.weight import QuantizedWeight
from playground.validation import shorten

FLOATS = ("F16", "BF16", "F32", "F64")
"""Names, in safetensors files, of what scales and unquantized weights may be stored as."""


class Stored(Protocol):
    """The tensors of a checkpoint as its files list them, before a weight is read."""

    @property
    def where(self) -> str:
        """What errors call the checkpoint."""
        ...

    def described(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """Type, as safetensors names it, and shape of a tensor; None where there is none of this name."""
        ...

    def small(self, name: str) -> Tensor:
        """A copy of a tensor that only describes others."""
        ...


class QuantizedFormat(Protocol):
    """How quantized matrices lie in a checkpoint. `name` is that of a matrix without ".weight"; shapes are (N, K)."""

    @property
    def method(self) -> str:
        """What config.json calls it: its `quant_method`."""
        ...

    def holds(self, name: str, stored: Stored) -> bool:
        """Whether this matrix is stored quantized: some always are as they were."""
        ...

    def check(self, name: str, shape: tuple[int, int], stored: Stored) -> list[str]:
        """The tensors that make up a matrix that is held; `ModelLoadError` where one is missing or does not fit."""
        ...

    def unpack(self, name: str, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        """The matrix itself, from the tensors that `check` named; what it holds shares no memory with them."""
        ...

    def pack(self, name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
        """The tensors that make up a matrix; `ConfigError` where the format cannot hold it.

        Scales may be rounded here: what is stored is `unpack(name, weight.shape, pack(name, weight))`.
        """
        ...

    def config_entry(self) -> dict[str, Any]:
        """`quantization_config` of the config.json."""
        ...


def expect(stored: Stored, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> str:
    """`name`, if the checkpoint has it in this shape and one of these types."""
    found = stored.described(name)
    if found is None:
        raise ModelLoadError(f"{stored.where} lacks {name}: the files are incomplete or belong to another config.")
    if found[0] not in dtypes:
        raise ModelLoadError(
            f"{stored.where}: {name} is stored as {found[0]}, which is not supported there: use {', '.join(dtypes)}."
        )
    if found[1] != shape:
        raise ModelLoadError(
            f"{stored.where}: {name} has shape {list(found[1])} where its config.json asks for {list(shape)}: "
            "the quantization_config belongs to another model."
        )
    return name


def num_groups(columns: int, group_size: int) -> int:
    """Groups of a row; -1 is one for the whole row."""
    return 1 if group_size == -1 else math.ceil(columns / group_size)


def group_numbers(columns: int, group_size: int) -> Tensor:
    """int32 [columns]: the group of every column where groups lie one behind the other."""
    return torch.arange(columns, dtype=torch.int32) // (columns if group_size == -1 else group_size)


class Entry:
    """Reads a `quantization_config` and refuses, in one sentence, what is not supported."""

    def __init__(self, raw: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.raw, self.source, self._prefix = raw, source, prefix

    def fail(self, what: str) -> NoReturn:
        raise ModelLoadError(f"quantization_config of {self.source}: {what}")

    def get(self, key: str, default: Any = None) -> Any:
        value = self.raw.get(key)
        return default if value is None else value

    def one_of(self, key: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
        """The value of a key, which must be one of these (1 is not True)."""
        value = self.get(key, default)
        if not any(value == one and type(value) is type(one) for one in allowed):
            names = ", ".join(str(one) for one in allowed)
            self.fail(f"{self._prefix}{key}={shorten(value)} is not supported: use {names}.")
        return value

    def group_size(self, default: int | None = None) -> int:
        """`group_size`: whole numbers above 0, or -1."""
        value = self.get("group_size", default)
        if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != -1):
            self.fail(
                f"{self._prefix}group_size={shorten(value)} is not allowed: give a whole number above 0, or -1 for "
                "whole rows."
            )
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self.get(key, [])
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            self.fail(f"{self._prefix}{key}={shorten(value)} is not allowed: give a list of names.")
        return tuple(value)

    def part(self, key: str) -> "Entry | None":
        """The object under a key."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(f"{self._prefix}{key}={shorten(value)} is not allowed: give an object.")
        return Entry(value, self.source, f"{self._prefix}{key}.")


def require(holds: bool, method: str, name: str, what: str) -> None:
    """`ConfigError` about a matrix that a format cannot hold, unless it can."""
    if not holds:
        raise ConfigError(f"{name} cannot be written as {method}: {what}")
