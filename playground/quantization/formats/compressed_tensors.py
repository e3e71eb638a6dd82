"""compressed-tensors checkpoints: pack-quantized (integers in 32-bit words), int-quantized and float-quantized.

A matrix W [N, K] is either `weight_packed` int32 [N, K * bits / 32], packed along K, with `weight_shape` int64 [2], or
plain `weight` int8 or float8 [N, K]; then `weight_scale` [N, G] and, where not symmetric, `weight_zero_point`. Integers
are signed: the codes are q + 2^(bits - 1). W[n, k] = (q - zero) * scale.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from playground.errors import ModelLoadError
from playground.quantization.formats.base import FLOATS, Entry, Stored, expect, group_numbers, num_groups, require
from playground.quantization.formats.gptq import check_integers, whole_zeros
from playground.quantization.formats.words import pack_words, unpack_words
from playground.quantization.weight import QuantizedWeight

PLAIN = ("int-quantized", "float-quantized", "naive-quantized")
_PACKED = "pack-quantized"
_LINEAR = "Linear"
Activations = Literal["int8", "fp8"]


@dataclass(frozen=True)
class Scheme:
    """How the matrices of one group of modules are stored."""

    bits: int
    group_size: int
    symmetric: bool = True
    packed: bool = True
    floating: bool = False
    """Codes are float8_e4m3fn, not integers."""
    per_tensor: bool = False
    """One scale for the whole matrix."""
    activations: Activations | None = None
    """What activations are rounded to, with a scale per token that is found while running."""
    activation_order: bool = False
    """Columns are in groups of their own order, `weight_g_idx`."""
    targets: tuple[str, ...] = (_LINEAR,)


@dataclass(frozen=True)
class CompressedTensorsFormat:
    """The layout of compressed-tensors; the first scheme whose targets name a module is its own."""

    method: ClassVar[str] = "compressed-tensors"

    schemes: tuple[Scheme, ...]
    ignore: tuple[str, ...] = ("lm_head",)
    """Modules that are not quantized: names, or "re:" and a regular expression."""

    @classmethod
    def packed(
        cls, bits: int, group_size: int, symmetric: bool, ignore: tuple[str, ...] = ("lm_head",)
    ) -> "CompressedTensorsFormat":
        """The pack-quantized layout with one scheme for every linear layer, as it is written."""
        return cls((Scheme(bits, group_size, symmetric),), ignore)

    @classmethod
    def from_config(cls, entry: Entry) -> "CompressedTensorsFormat":
        """From a `quantization_config`; `ModelLoadError` for what is not supported."""
        entry.one_of("quantization_status", ("compressed",), "compressed")
        for key in ("kv_cache_scheme", "transform_config"):
            if entry.get(key):
                entry.fail(f"{key} is not supported: use a checkpoint whose weights alone are quantized.")
        sparsity = entry.part("sparsity_config")
        if sparsity is not None and sparsity.raw.get("format", "dense") != "dense":
            entry.fail("sparsity_config is not supported: use a checkpoint that is not sparse.")
        groups = entry.part("config_groups")
        if groups is None or not groups.raw:
            entry.fail("config_groups is missing: restore the config.json.")
        parts = [groups.part(name) for name in groups.raw]
        schemes = tuple(_scheme(part, entry.get("format")) for part in parts if part is not None)
        ignore = entry.names("ignore")
        for target in (*ignore, *(target for scheme in schemes for target in scheme.targets)):
            _check_pattern(entry, target)
        return cls(schemes, ignore)

    def config_entry(self) -> dict[str, Any]:
        """See `QuantizedFormat.config_entry`. For formats of one scheme, `packed`."""
        scheme = self.schemes[0]
        weights = {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "strategy": "channel" if scheme.group_size == -1 else "group",
            "group_size": None if scheme.group_size == -1 else scheme.group_size,
            "dynamic": False,
        }
        group = {
            "targets": list(scheme.targets), "weights": weights,
            "input_activations": None, "output_activations": None,
        }  # fmt: skip
        return {
            "quant_method": self.method,
            "format": _PACKED,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
        }

    def holds(self, name: str, stored: Stored) -> bool:
        """See `QuantizedFormat.holds`."""
        return any(stored.described(f"{name}.{part}") is not None for part in ("weight_packed", "weight_scale"))

    def check(self, name: str, shape: tuple[int, int], stored: Stored) -> list[str]:
        """See `QuantizedFormat.check`."""
        scheme, (n, k) = self._scheme(name, stored.where), shape
        groups = num_groups(k, scheme.group_size)
        if scheme.packed:
            words = -(-k * scheme.bits // 32)
            names = [
                expect(stored, f"{name}.weight_packed", (n, words), ("I32",)),
                expect(stored, f"{name}.weight_shape", (2,), ("I64", "I32")),
            ]
            said = tuple(stored.small(f"{name}.weight_shape").tolist())
            if said != shape:
                raise ModelLoadError(
                    f"{stored.where}: {name}.weight_shape says {list(said)} where config.json asks for {list(shape)}: "
                    "the config.json belongs to another model."
                )
        else:
            names = [expect(stored, f"{name}.weight", shape, ("F8_E4M3",) if scheme.floating else ("I8",))]
        sizes = [(1,), (1, 1), ()] if scheme.per_tensor else [(n, groups), *([(n,)] if groups == 1 else [])]
        names.append(_one_shape(stored, f"{name}.weight_scale", sizes, FLOATS))
        zero_point = stored.described(f"{name}.weight_zero_point")
        if not scheme.symmetric:
            packed_zeros = scheme.packed and zero_point is not None and zero_point[0] == "I32"
            sizes = [(-(-n * scheme.bits // 32), groups)] if packed_zeros else sizes
            names.append(_one_shape(stored, f"{name}.weight_zero_point", sizes, ("I32",) if packed_zeros else ("I8",)))
        elif zero_point is not None:  # zeros, which some writers keep
            names.append(_one_shape(stored, f"{name}.weight_zero_point", sizes, ("I8", *FLOATS, "F8_E4M3")))
        if scheme.activation_order:
            names.append(expect(stored, f"{name}.weight_g_idx", (k,), ("I32",)))
        return names

    def unpack(self, name: str, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        """See `QuantizedFormat.unpack`."""
        scheme, (n, k) = self._scheme(name, "the checkpoint"), shape
        groups, middle = num_groups(k, scheme.group_size), 2 ** (scheme.bits - 1)
        scales = tensors[f"{name}.weight_scale"].reshape(-1, groups).expand(n, groups).clone()
        if scheme.floating:
            codes = tensors[f"{name}.weight"].view(torch.uint8).clone()
            return QuantizedWeight(codes, scales, 8, scheme.group_size, kind="fp8", activations=scheme.activations)
        if scheme.packed:
            codes = unpack_words(tensors[f"{name}.weight_packed"], scheme.bits, k)
        else:
            codes = _unsigned(tensors[f"{name}.weight"], middle)
        zeros = None
        if not scheme.symmetric:
            stored = tensors[f"{name}.weight_zero_point"]
            if stored.dtype == torch.int32:
                zeros = unpack_words(stored.t(), scheme.bits, n).t().contiguous()
            else:
                zeros = _unsigned(stored, middle).reshape(-1, groups).expand(n, groups).contiguous()
        index = None
        if scheme.activation_order:
            index = tensors[f"{name}.weight_g_idx"].clone()
            index = None if torch.equal(index, group_numbers(k, scheme.group_size)) else index
        return QuantizedWeight(
            codes, scales, scheme.bits, scheme.group_size, zeros=zeros, group_index=index,
            activations=scheme.activations,
        )  # fmt: skip

    def pack(self, name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
        """See `QuantizedFormat.pack`. Only for formats of one scheme, `packed`; scales keep their type."""
        scheme = self.schemes[0]
        check_integers(weight, self.method, name, scheme.bits, scheme.group_size)
        require(weight.group_index is None, self.method, name, "its columns are in groups of their own order.")
        require(weight.symmetric or not scheme.symmetric, self.method, name, "it has zeros: say symmetric=False.")
        tensors = {
            f"{name}.weight_packed": pack_words(weight.codes, scheme.bits),
            f"{name}.weight_scale": weight.scales.contiguous(),
            f"{name}.weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
        }
        if not scheme.symmetric:
            zeros = whole_zeros(weight, self.method, name)
            tensors[f"{name}.weight_zero_point"] = pack_words(zeros.t(), scheme.bits).t().contiguous()
        return tensors

    def _scheme(self, name: str, where: str) -> Scheme:
        for scheme in self.schemes:
            if any(target == _LINEAR or _matches(name, target) for target in scheme.targets):
                return scheme
        raise ModelLoadError(
            f"{where}: {name} is stored quantized, and no group of the quantization_config has it among its targets: "
            "restore the config.json."
        )


def _scheme(group: Entry, format_of_all: str | None) -> Scheme:
    """One of `config_groups`."""
    if group.get("output_activations"):
        group.fail("output_activations are not supported: use a checkpoint without.")
    weights = group.part("weights")
    if weights is None:
        group.fail("a group without weights is not supported: use a checkpoint whose weights are quantized.")
    layout = group.get("format") or format_of_all
    if layout not in (_PACKED, *PLAIN):
        group.fail(f"format={layout!r} is not supported: use one of {', '.join((_PACKED, *PLAIN))}.")
    packed = layout == _PACKED
    floating = weights.one_of("type", ("int", "float"), "int") == "float"
    bits = weights.one_of("num_bits", tuple(range(2, 9)) if packed else (8,), 8)
    if packed and floating:
        group.fail("format='pack-quantized' with weights of type float is not supported: use type int.")
    group_size = weights.group_size(-1)
    default = "tensor" if weights.get("group_size") is None else "channel" if group_size == -1 else "group"
    strategy = weights.one_of("strategy", ("group", "channel", "tensor"), default)
    if strategy == "group" and group_size == -1:
        weights.fail("strategy='group' needs a group_size: restore the config.json.")
    order = weights.get("actorder")
    symmetric = bool(weights.get("symmetric", True))
    if floating and not symmetric:
        weights.fail("symmetric=false is not supported with type float: use symmetric weights.")
    return Scheme(
        bits, group_size if strategy == "group" else -1, symmetric, packed, floating, strategy == "tensor",
        _activations(group), order in ("group", "dynamic"), group.names("targets") or (_LINEAR,),
    )  # fmt: skip


def _activations(group: Entry) -> Activations | None:
    """What a group says of its inputs."""
    inputs = group.part("input_activations")
    if inputs is None:
        return None
    if inputs.get("dynamic") is not True:
        inputs.fail("static activation scales are not supported: use a checkpoint with dynamic=true.")
    inputs.one_of("num_bits", (8,), 8)
    inputs.one_of("symmetric", (True,), True)
    inputs.one_of("strategy", ("token", "tensor"), "token")
    return "fp8" if inputs.one_of("type", ("int", "float"), "int") == "float" else "int8"


def _one_shape(stored: Stored, name: str, shapes: list[tuple[int, ...]], dtypes: tuple[str, ...]) -> str:
    """`expect` with several shapes that mean the same."""
    found = stored.described(name)
    return expect(stored, name, found[1] if found is not None and found[1] in shapes else shapes[0], dtypes)


def _unsigned(values: Tensor, middle: int) -> Tensor:
    """int8 -> uint8 codes, 0 becoming `middle`."""
    return (values.to(torch.int16) + middle).to(torch.uint8)


def _matches(name: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), name) is not None
    return name == target


def _check_pattern(entry: Entry, target: str) -> None:
    if target.startswith("re:"):
        try:
            re.compile(target.removeprefix("re:"))
        except re.error:
            entry.fail(f"{target!r} is no regular expression: restore the config.json.")
