"""GPTQ checkpoints (arXiv 2210.17323), versions 1 and 2, with codes of 2, 3, 4 or 8 bits.

A matrix W [N, K] is `qweight` int32 [K * bits / 32, N], packed along K; `qzeros` int32 [G, N * bits / 32], packed along
N; `scales` [G, N]; `g_idx` int32 [K], the group of every column. W[n, k] = (code - zero) * scale. Version 1 stores
zeros less 1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from playground.errors import ModelLoadError
from playground.quantization.formats.base import FLOATS, Entry, Stored, expect, group_numbers, num_groups, require
from playground.quantization.formats.words import pack_words, unpack_words
from playground.quantization.weight import QuantizedWeight

BITS = (2, 3, 4, 8)
_VERSIONS = {"gptq": 1, "gptq_v2": 2}


@dataclass(frozen=True)
class GPTQFormat:
    """GPTQ's layout: `symmetric` and `activation_order` say what a reader may expect of zeros and `g_idx`."""

    method: ClassVar[str] = "gptq"

    bits: int
    group_size: int
    symmetric: bool = True
    activation_order: bool = False
    version: int = 1
    overrides: tuple[tuple[str, int, int], ...] = ()
    """(regular expression, bits, group size) of matrices that differ."""

    @classmethod
    def from_config(cls, entry: Entry) -> "GPTQFormat":
        """From a `quantization_config`; `ModelLoadError` for what is not supported."""
        if entry.get("is_marlin_format"):
            entry.fail("is_marlin_format=true is not supported: use the checkpoint in GPTQ's own layout.")
        entry.one_of("pack_dtype", ("int32",), "int32")
        bits, group_size = entry.one_of("bits", BITS), entry.group_size(128)
        name = entry.one_of("checkpoint_format", tuple(_VERSIONS), "gptq")
        rules = entry.part("dynamic")
        overrides = []
        for pattern in rules.raw if rules else {}:
            if pattern.startswith("-:"):  # stored as it was: seen in the files
                continue
            rule = rules.part(pattern) if rules else None
            if rule is None:
                continue
            try:
                re.compile(pattern.removeprefix("+:"))
            except re.error:
                entry.fail(f"dynamic has {pattern!r}, which is no regular expression.")
            own_bits = rule.one_of("bits", BITS, bits)
            overrides.append((pattern.removeprefix("+:"), own_bits, rule.group_size(group_size)))
        return cls(
            bits, group_size, bool(entry.get("sym", True)), bool(entry.get("desc_act", False)),
            _VERSIONS[name], tuple(overrides),
        )  # fmt: skip

    def config_entry(self) -> dict[str, Any]:
        """See `QuantizedFormat.config_entry`."""
        return {
            "quant_method": self.method,
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": self.symmetric,
            "desc_act": self.activation_order,
            "lm_head": False,
            "checkpoint_format": next(name for name, version in _VERSIONS.items() if version == self.version),
            "pack_dtype": "int32",
        }

    def holds(self, name: str, stored: Stored) -> bool:
        """See `QuantizedFormat.holds`."""
        return any(stored.described(f"{name}.{part}") is not None for part in ("qweight", "qzeros", "scales"))

    def check(self, name: str, shape: tuple[int, int], stored: Stored) -> list[str]:
        """See `QuantizedFormat.check`."""
        own, (n, k) = self._own(name), shape
        groups = num_groups(k, own.group_size)
        _whole_words(stored, name, shape, own.bits)
        names = [
            expect(stored, f"{name}.qweight", (k * own.bits // 32, n), ("I32",)),
            expect(stored, f"{name}.qzeros", (groups, n * own.bits // 32), ("I32",)),
            expect(stored, f"{name}.scales", (groups, n), FLOATS),
        ]
        if stored.described(f"{name}.g_idx") is not None:  # the oldest files have none
            names.append(expect(stored, f"{name}.g_idx", (k,), ("I32",)))
        return names

    def unpack(self, name: str, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        """See `QuantizedFormat.unpack`."""
        own, (n, k) = self._own(name), shape
        codes = unpack_words(tensors[f"{name}.qweight"].t(), own.bits, k)
        scales = tensors[f"{name}.scales"].t().clone(memory_format=torch.contiguous_format)
        zeros = unpack_words(tensors[f"{name}.qzeros"], own.bits, n)
        middle = 2 ** (own.bits - 1)
        # Some writers have said version 1 and stored the zeros of version 2; of symmetric ones it shows.
        mislabelled = self.symmetric and bool((zeros == middle).all())
        if self.version == 1 and not mislabelled:
            zeros = _one_more(tensors[f"{name}.qzeros"], own.bits, n)
        symmetric = bool((zeros == middle).all())
        return QuantizedWeight(
            codes, scales, own.bits, own.group_size,
            zeros=None if symmetric else zeros.t().contiguous(),
            group_index=_group_index(name, tensors.get(f"{name}.g_idx"), own.group_size, k),
        )  # fmt: skip

    def pack(self, name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
        """See `QuantizedFormat.pack`. Scales become float16 unless they are bfloat16."""
        n, k = weight.shape
        check_integers(weight, self.method, name, self.bits, self.group_size)
        require(weight.bits in BITS, self.method, name, f"{weight.bits} bits are none of {BITS}.")
        whole = k * self.bits % 32 == 0 and n * self.bits % 32 == 0
        require(whole, self.method, name, f"its {n} rows and {k} columns of {self.bits} bits do not fill 32-bit words.")
        require(weight.symmetric or not self.symmetric, self.method, name, "it has zeros, and the config says sym.")
        ordered = weight.group_index is None or self.activation_order
        require(ordered, self.method, name, "its columns are in groups of their own order: say activation_order.")
        zeros = whole_zeros(weight, self.method, name)
        if self.version == 1:
            require(bool((zeros > 0).all()), self.method, name, "it has zeros of 0, which version 1 cannot store.")
            zeros = zeros - 1
        groups = group_numbers(k, self.group_size) if weight.group_index is None else weight.group_index
        return {
            f"{name}.qweight": pack_words(weight.codes, self.bits).t().contiguous(),
            f"{name}.qzeros": pack_words(zeros.t(), self.bits),
            f"{name}.scales": half(weight.scales).t().contiguous(),
            f"{name}.g_idx": groups.int().cpu().clone(),
        }

    def _own(self, name: str) -> "GPTQFormat":
        """The format with the bits and group size of this matrix."""
        for pattern, bits, group_size in self.overrides:
            if re.match(pattern, name):
                return replace(self, bits=bits, group_size=group_size)
        return self


def check_integers(weight: QuantizedWeight, method: str, name: str, bits: int, group_size: int) -> None:
    """`ConfigError` unless a weight is made of integers with whole zeros, of these bits and groups."""
    require(weight.kind == "int", method, name, f"its codes are {weight.kind}: use integers.")
    require(weight.offsets is None, method, name, "it has offsets: use zeros.")
    same = (weight.bits, weight.group_size) == (bits, group_size)
    found = f"{weight.bits} bits in groups of {weight.group_size}"
    require(same, method, name, f"it has {found}, and the config says {bits} in groups of {group_size}.")


def whole_zeros(weight: QuantizedWeight, method: str, name: str) -> Tensor:
    """uint8 [N, G]: the zeros of a weight of integers; `ConfigError` where they are fractions."""
    if weight.zeros is None:
        return torch.full(weight.scales.shape, 2 ** (weight.bits - 1), dtype=torch.uint8, device=weight.codes.device)
    zeros = weight.zeros.to(torch.uint8)
    require(bool((zeros == weight.zeros).all()), method, name, "its zeros are fractions: use whole ones.")
    return zeros


def half(scales: Tensor) -> Tensor:
    """Scales in the 16 bits that the layouts of GPTQ and AWQ have for them."""
    return scales if scales.dtype == torch.bfloat16 else scales.half()


def _one_more(packed: Tensor, bits: int, count: int) -> Tensor:
    """The zeros, [G, count], of version 1.

    Its writers take 1 from every zero of a word at once, and a zero of 0 borrows from its neighbour: adding to the
    whole word gives both back. With 3 bits, where zeros lie across words, they count each on its own.
    """
    if 32 % bits:
        return (unpack_words(packed, bits, count) + 1) & (2**bits - 1)
    ones = sum(1 << shift for shift in range(0, 32, bits))
    return unpack_words((packed.long() + ones).to(torch.int32), bits, count)


def _whole_words(stored: Stored, name: str, shape: tuple[int, int], bits: int) -> None:
    if any(count * bits % 32 for count in shape):
        raise ModelLoadError(
            f"{stored.where}: {name} of {shape[0]} x {shape[1]} cannot be stored in 32-bit words of {bits}-bit codes: "
            "the quantization_config belongs to another model."
        )


def _group_index(name: str, stored: Tensor | None, group_size: int, columns: int) -> Tensor | None:
    """The groups of the columns where they are not one behind the other."""
    if stored is None or torch.equal(stored, group_numbers(columns, group_size)):
        return None
    if int(stored.min()) < 0 or int(stored.max()) >= num_groups(columns, group_size):
        raise ModelLoadError(
            f"{name}.g_idx names groups from {int(stored.min())} to {int(stored.max())}, and there are "
            f"{num_groups(columns, group_size)}: the file is damaged, download it again."
        )
    return stored.clone()
