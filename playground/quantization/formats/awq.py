"""AWQ checkpoints (arXiv 2306.00978) in AutoAWQ's "gemm" layout, always 4 bits.

A matrix W [N, K] is `qweight` int32 [K, N / 8], packed along N; `qzeros` int32 [G, N / 8]; `scales` [G, N].
W[n, k] = (code - zero) * scale. Nibble i of a word holds column ORDER[i] of its eight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from playground.quantization.formats.base import FLOATS, Entry, Stored, expect, num_groups, require
from playground.quantization.formats.gptq import check_integers, half, whole_zeros
from playground.quantization.formats.words import pack_words, unpack_words
from playground.quantization.weight import QuantizedWeight

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PLACES = tuple(ORDER.index(column) for column in range(8))


@dataclass(frozen=True)
class AWQFormat:
    """AWQ's "gemm" layout; `kept` are names (or parts of names) of modules that are not quantized."""

    method: ClassVar[str] = "awq"
    bits: ClassVar[int] = 4

    group_size: int
    kept: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, entry: Entry) -> "AWQFormat":
        """From a `quantization_config`; `ModelLoadError` for what is not supported."""
        entry.one_of("bits", (4,), 4)
        version = str(entry.get("version", "gemm")).lower()
        if version != "gemm":
            entry.fail(f"version={version!r} is not supported: only 'gemm' is.")
        return cls(entry.group_size(128), entry.names("modules_to_not_convert"))

    def config_entry(self) -> dict[str, Any]:
        """See `QuantizedFormat.config_entry`."""
        return {
            "quant_method": self.method,
            "bits": self.bits,
            "group_size": self.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(self.kept) or None,
        }

    def holds(self, name: str, stored: Stored) -> bool:
        """See `QuantizedFormat.holds`."""
        return any(stored.described(f"{name}.{part}") is not None for part in ("qweight", "qzeros", "scales"))

    def check(self, name: str, shape: tuple[int, int], stored: Stored) -> list[str]:
        """See `QuantizedFormat.check`."""
        (n, k), groups = shape, num_groups(shape[1], self.group_size)
        return [
            expect(stored, f"{name}.qweight", (k, n // 8), ("I32",)),
            expect(stored, f"{name}.qzeros", (groups, n // 8), ("I32",)),
            expect(stored, f"{name}.scales", (groups, n), FLOATS),
        ]

    def unpack(self, name: str, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        """See `QuantizedFormat.unpack`."""
        codes, zeros = (_unpack(tensors[f"{name}.{part}"]) for part in ("qweight", "qzeros"))
        scales = tensors[f"{name}.scales"].t().clone(memory_format=torch.contiguous_format)
        return QuantizedWeight(codes, scales, self.bits, self.group_size, zeros=zeros)

    def pack(self, name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
        """See `QuantizedFormat.pack`. Scales become float16 unless they are bfloat16."""
        check_integers(weight, self.method, name, self.bits, self.group_size)
        require(weight.shape[0] % 8 == 0, self.method, name, f"its {weight.shape[0]} rows are no multiple of 8.")
        require(weight.group_index is None, self.method, name, "its columns are in groups of their own order.")
        return {
            f"{name}.qweight": _pack(weight.codes),
            f"{name}.qzeros": _pack(whole_zeros(weight, self.method, name)),
            f"{name}.scales": half(weight.scales).t().contiguous(),
        }


def _unpack(words: Tensor) -> Tensor:
    """int32 [C, N / 8] -> uint8 [N, C]."""
    nibbles = unpack_words(words, 4, 8 * words.shape[1]).view(words.shape[0], -1, 8)
    return nibbles[:, :, list(_PLACES)].flatten(1).t().contiguous()


def _pack(codes: Tensor) -> Tensor:
    """uint8 [N, C] -> int32 [C, N / 8]."""
    eights = codes.t().reshape(codes.shape[1], -1, 8)
    return pack_words(eights[:, :, list(ORDER)].flatten(1), 4)
