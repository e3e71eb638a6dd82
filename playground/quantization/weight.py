"""`QuantizedWeight`: a matrix as codes, scales and zeros, in no file's layout and no kernel's.

Files are unpacked into it, quantizers make it, writers pack it, and the layers lay it out for the device; none of them
knows of the others. One code takes a whole byte here, so it is held for one matrix at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.quant_pack import NF4_LEVELS

Kind = Literal["int", "nf4", "fp8"]


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A matrix W [N, K] (outputs, inputs), W[n, k] a function of its code, with g the group of column k:

    "int": (code - zero[n, g]) * scale[n, g], and with `offsets`: code * scale[n, g] - offset[n, g];
    "nf4": level[code] * scale[n, g] (arXiv 2305.14314); "fp8": e4m3(code) * scale[n, g].
    """

    codes: Tensor
    """uint8 [N, K], 0 .. 2^bits - 1; of "fp8" the bits of float8_e4m3fn."""
    scales: Tensor
    """Floating [N, G], G = ceil(K / group_size), 1 where group_size is -1."""
    bits: int
    """2 to 8."""
    group_size: int
    """Columns that share a scale; -1 is the whole row."""
    zeros: Tensor | None = None
    """"int": [N, G], uint8 or floating; None is 2^(bits - 1), the middle code, everywhere (symmetric)."""
    offsets: Tensor | None = None
    """"int", instead of zeros: floating [N, G], for formats that store a group's smallest value."""
    group_index: Tensor | None = None
    """int32 [K]: the group of every column (GPTQ's activation order); None is column // group_size."""
    kind: Kind = "int"
    activations: Literal["int8", "fp8"] | None = None
    """What a file says its inputs are rounded to before the product, with a scale per token; None is not at all."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def num_groups(self) -> int:
        return self.scales.shape[1]

    @property
    def symmetric(self) -> bool:
        return self.zeros is None and self.offsets is None

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W [N, K], computed in float32 (in float64 for float64) and rounded once."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scales = self._per_column(self.scales.to(wide))
        if self.kind == "nf4":
            values = torch.tensor(NF4_LEVELS, dtype=wide, device=self.codes.device)[self.codes.long()]
        elif self.kind == "fp8":
            values = self.codes.view(torch.float8_e4m3fn).to(wide)
        elif self.offsets is not None:
            return (self.codes.to(wide) * scales - self._per_column(self.offsets.to(wide))).to(dtype)
        else:
            zeros = 2 ** (self.bits - 1) if self.zeros is None else self._per_column(self.zeros.to(wide))
            values = self.codes.to(wide) - zeros
        return (values * scales).to(dtype)

    def rows(self, start: int, stop: int) -> "QuantizedWeight":
        """Rows start .. stop - 1 as a weight of their own (views, nothing is copied)."""
        return self._with_parts(("codes", "scales", "zeros", "offsets"), lambda part: part[start:stop])

    def to(self, device: torch.device | str) -> "QuantizedWeight":
        """The same weight on another device."""
        return self._with_parts(("codes", "scales", "zeros", "offsets", "group_index"), lambda part: part.to(device))

    def _with_parts(self, names: Sequence[str], change: Callable[[Tensor], Tensor]) -> "QuantizedWeight":
        parts: dict[str, Any] = {name: getattr(self, name) for name in names}
        changes: dict[str, Any] = {name: None if part is None else change(part) for name, part in parts.items()}
        return replace(self, **changes)

    def _per_column(self, values: Tensor) -> Tensor:
        """[N, G] -> [N, K], or [N, 1] for one group a row."""
        if self.group_index is not None:
            return values[:, self.group_index.long()]
        if self.group_size == -1:
            return values
        return values.repeat_interleave(self.group_size, dim=1)[:, : self.codes.shape[1]]


def joinable(weights: Sequence[QuantizedWeight]) -> bool:
    """Whether the weights can be one: same inputs, same coding, same order of columns, all with or without zeros."""
    first = weights[0]

    def alike(other: QuantizedWeight) -> bool:
        same_order = (first.group_index is None) == (other.group_index is None) and (
            first.group_index is None
            or (other.group_index is not None and torch.equal(first.group_index, other.group_index))
        )
        forms = [
            (w.kind, w.bits, w.group_size, w.shape[1], w.zeros is None, w.offsets is None, w.activations)
            for w in (first, other)
        ]
        return same_order and forms[0] == forms[1]

    return all(alike(other) for other in weights[1:])


def join(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """The weights one below the other, as the fused matrices of a layer want them. They must be `joinable`."""
    first = weights[0]
    if len(weights) == 1:
        return first
    parts: dict[str, Any] = {}
    for name in ("codes", "scales", "zeros", "offsets"):
        tensors = [getattr(weight, name) for weight in weights]
        parts[name] = None if tensors[0] is None else torch.cat(tensors)
    return replace(first, **parts)
