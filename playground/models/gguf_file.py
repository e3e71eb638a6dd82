"""Reads a GGUF file, memory-mapped: its metadata, and where its tensors lie. Knows nothing of architectures.

The format is llama.cpp's (docs/gguf.md there), versions 2 and 3. The header is walked here because the `gguf` library
makes arrays of every string in it: 15 s and 620 MB for the vocabulary of a Llama 3, where this takes 0.04 s.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from playground.errors import ModelLoadError
from playground.models.mapped import MappedFile
from playground.quantization.gguf_types import BLOCK_TYPES

PLAIN_TYPES = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
"""Types that hold numbers instead of blocks."""
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GGUFEntry:
    """Where one tensor lies, of what type, and its shape in torch's order (the reverse of the file's)."""

    start: int
    nbytes: int
    type_id: int
    shape: tuple[int, ...]


class GGUFFile:
    """One file. A context manager: it stays mapped while it is open."""

    def __init__(self, path: Path) -> None:
        """Raises `ModelLoadError` for what is not a whole GGUF file with tensors of known types."""
        self.path = path
        try:
            self._file = MappedFile(path)
        except ValueError:
            raise ModelLoadError(f"{path} is empty: download it again.") from None
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None
        header = _Header(path, self._file.bytes)
        self.metadata, self.entries = header.metadata, header.entries
        if self.metadata.get("split.count", 1) not in (0, 1):
            raise ModelLoadError(
                f"{path} is one of {self.metadata['split.count']} parts: join them with `llama-gguf-split --merge`."
            )

    def __enter__(self) -> "GGUFFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_plain(self, name: str, use: Callable[[Tensor], None]) -> None:
        """Call `use` with a mapped tensor of one of `PLAIN_TYPES`, which must be copied there."""
        entry = self.entries[name]
        self._file.read(entry.start, PLAIN_TYPES[entry.type_id], entry.shape, use)

    def read_blocks(self, name: str) -> Tensor:
        """A copy of a matrix in blocks, uint8 [rows, bytes of a row]."""
        entry, copies = self.entries[name], list[Tensor]()
        shape = (*entry.shape[:-1], BLOCK_TYPES[entry.type_id].row_bytes(entry.shape[-1]))
        self._file.read(entry.start, torch.uint8, shape, lambda data: copies.append(data.clone()))
        return copies[0]


class _Header:
    """Walks a header once from its first byte to its last."""

    def __init__(self, path: Path, data: Any) -> None:
        self.path, self._data, self._at = path, data, 0
        if data[:4] != _MAGIC:
            raise ModelLoadError(f"{path} is not a GGUF file: give one, or a folder in Hugging Face format.")
        try:
            self._walk()
        except (struct.error, UnicodeDecodeError, IndexError, OverflowError):
            raise ModelLoadError(
                f"{path} is cut off or broken in its header ({len(data)} bytes): download it again."
            ) from None

    def _walk(self) -> None:
        self._at = len(_MAGIC)
        version = self._scalar("I")
        if version not in _VERSIONS:
            swapped = " (its bytes are in big-endian order)" if version & 0xFFFF == 0 else ""
            raise ModelLoadError(
                f"{self.path} is GGUF version {version}{swapped}, which is not supported: "
                f"convert it to version {_VERSIONS[-1]}."
            )
        num_tensors, num_values = self._scalar("Q"), self._scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        found = [self._tensor() for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ModelLoadError(f"{self.path}: general.alignment={alignment!r} is no power of two: restore the file.")
        data_start = -(-self._at // alignment) * alignment
        self.entries = {name: self._entry(name, data_start + at, kind, shape) for name, at, kind, shape in found}
        needed = max((entry.start + entry.nbytes for entry in self.entries.values()), default=0)
        if needed > len(self._data):
            raise ModelLoadError(f"{self.path} is cut off: {len(self._data)} bytes of {needed}. Download it again.")

    def _scalar(self, kind: str) -> Any:
        value = struct.unpack_from("<" + kind, self._data, self._at)[0]
        self._at += struct.calcsize("<" + kind)
        return value

    def _bytes(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise IndexError("beyond the end of the file")
        return self._data[start : self._at]

    def _string(self) -> str:
        return self._bytes(self._scalar("Q")).decode("utf-8")

    def _value(self, kind: int) -> Any:
        """A scalar, a string, a list of numbers, or of an array of strings (a vocabulary) only how many there are."""
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise IndexError(f"unknown type of value {kind}")
        inner, count = self._scalar("I"), self._scalar("Q")
        if inner == _STRING:
            self._skip_strings(count)
            return count
        if inner not in _SCALARS:  # an array of arrays, which no model uses, or nonsense
            raise IndexError(f"unknown type of value {inner} in an array")
        dtype = np.dtype(_SCALARS[inner]).newbyteorder("<")
        return np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()

    def _skip_strings(self, count: int) -> None:
        data, at, length_at = self._data, self._at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            at += 8 + length_at(data, at)[0]
        self._at = at

    def _tensor(self) -> tuple[str, int, int, tuple[int, ...]]:
        name, num_dimensions = self._string(), self._scalar("I")
        if num_dimensions > _MOST_DIMENSIONS:
            raise IndexError(f"{num_dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(num_dimensions))[::-1]
        kind, offset = self._scalar("I"), self._scalar("Q")
        return name, offset, kind, shape

    def _entry(self, name: str, start: int, type_id: int, shape: tuple[int, ...]) -> GGUFEntry:
        if type_id in PLAIN_TYPES:
            return GGUFEntry(start, math.prod(shape) * PLAIN_TYPES[type_id].itemsize, type_id, shape)
        if type_id not in BLOCK_TYPES:
            allowed = [*(_type_name(number) for number in PLAIN_TYPES), *(kind.name for kind in BLOCK_TYPES.values())]
            raise ModelLoadError(
                f"{self.path}: {name} is stored as {_type_name(type_id)}, which is not supported: "
                f"use a file with {', '.join(allowed)}."
            )
        kind = BLOCK_TYPES[type_id]
        if not shape or shape[-1] % kind.block_size:
            raise ModelLoadError(
                f"{self.path}: rows of {name} ({list(shape)}) do not divide into blocks of {kind.block_size}, "
                f"as {kind.name} needs: restore the file."
            )
        return GGUFEntry(start, math.prod(shape[:-1]) * kind.row_bytes(shape[-1]), type_id, shape)


def _type_name(type_id: int) -> str:
    from gguf import GGMLQuantizationType

    try:
        return GGMLQuantizationType(type_id).name
    except ValueError:
        return f"type {type_id}"
