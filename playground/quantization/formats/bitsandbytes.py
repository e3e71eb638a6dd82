"""bitsandbytes checkpoints: nf4 of QLoRA (arXiv 2305.14314), with and without double quantization, and LLM.int8().

nf4: `weight` uint8 [N * K / 2, 1], the flattened matrix, the first of two codes in the high half of a byte;
`weight.absmax`, a scale for every block of the flattened matrix; `weight.quant_map` [16], the levels;
`weight.quant_state.bitsandbytes__nf4`, the bytes of a JSON object. With double quantization `weight.absmax` is uint8,
numbers in `weight.nested_quant_map` [256] of `weight.nested_absmax`, less `nested_offset`.
LLM.int8(): `weight` int8 [N, K] and `SCB` [N], the largest magnitude of every row.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kernels.quant_pack import NF4_LEVELS
from playground.errors import ModelLoadError
from playground.quantization.double_quantization import SCALES_PER_BLOCK, DoubleQuantized, dynamic_map
from playground.quantization.formats.base import Entry, Stored, expect, require
from playground.quantization.weight import QuantizedWeight

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_STATE = "weight.quant_state.bitsandbytes__nf4"
_STORAGE = ("U8", "BF16", "F16", "F32")
_ITEM_BYTES = {"U8": 1, "BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class BitsAndBytesFormat:
    """The layout of bitsandbytes."""

    method: ClassVar[str] = "bitsandbytes"

    bits: int = 4
    """4 is nf4, 8 is LLM.int8()."""
    double_quantization: bool = False
    kept: tuple[str, ...] = ()
    """Modules that are not quantized; without any, a reader leaves out the output head alone."""

    @classmethod
    def from_config(cls, entry: Entry) -> "BitsAndBytesFormat":
        """From a `quantization_config`; `ModelLoadError` for what is not supported."""
        four, eight = (entry.get(key, entry.get(f"_{key}", False)) for key in ("load_in_4bit", "load_in_8bit"))
        if bool(four) == bool(eight):
            entry.fail("one of load_in_4bit and load_in_8bit must be true: restore the config.json.")
        if four:
            entry.one_of("bnb_4bit_quant_type", ("nf4",), "fp4")
        kept = entry.names("llm_int8_skip_modules")
        return cls(4 if four else 8, bool(entry.get("bnb_4bit_use_double_quant", False)), kept)

    def config_entry(self) -> dict[str, Any]:
        """See `QuantizedFormat.config_entry`."""
        entry: dict[str, Any] = {
            "quant_method": self.method,
            "load_in_4bit": self.bits == 4,
            "load_in_8bit": self.bits == 8,
            "llm_int8_skip_modules": list(self.kept) or None,
        }
        if self.bits == 4:
            entry |= {
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": self.double_quantization,
                "bnb_4bit_compute_dtype": "float32",
                "bnb_4bit_quant_storage": "uint8",
            }
        return entry

    def holds(self, name: str, stored: Stored) -> bool:
        """See `QuantizedFormat.holds`."""
        parts = ("weight.absmax", _STATE) if self.bits == 4 else ("SCB",)
        return any(stored.described(f"{name}.{part}") is not None for part in parts)

    def check(self, name: str, shape: tuple[int, int], stored: Stored) -> list[str]:
        """See `QuantizedFormat.check`."""
        if self.bits == 8:
            scb = expect(stored, f"{name}.SCB", shape[:1], ("F32", "F16", "BF16"))
            names = [expect(stored, f"{name}.weight", shape, ("I8",)), scb]
            if stored.described(f"{name}.weight_format") is not None:
                expect(stored, f"{name}.weight_format", (), ("U8",))
                if int(stored.small(f"{name}.weight_format")) != 0:
                    raise ModelLoadError(f"{stored.where}: {name} is not stored row by row, which is not supported.")
                names.append(f"{name}.weight_format")
            return names
        return self._check_4bit(name, shape, stored)

    def _check_4bit(self, name: str, shape: tuple[int, int], stored: Stored) -> list[str]:
        state_name = f"{name}.{_STATE}"
        described = stored.described(state_name)
        expect(stored, state_name, described[1] if described else (0,), ("U8",))
        state = _State.read(stored.small(state_name), state_name)
        if state.shape != shape:
            raise ModelLoadError(
                f"{stored.where}: {state_name} says {list(state.shape)} where config.json asks for {list(shape)}: "
                "the config.json belongs to another model."
            )
        storage = stored.described(f"{name}.weight")
        item = _ITEM_BYTES.get(storage[0], 1) if storage else 1
        count, blocks = math.prod(shape), math.ceil(math.prod(shape) / state.blocksize)
        names = [
            state_name,
            expect(stored, f"{name}.weight", (-(-count // (2 * item)), 1), _STORAGE),
            expect(stored, f"{name}.weight.quant_map", (16,), ("F32",)),
        ]
        if state.nested_blocksize is None:
            return [*names, expect(stored, f"{name}.weight.absmax", (blocks,), ("F32",))]
        nested = math.ceil(blocks / state.nested_blocksize)
        return [
            *names,
            expect(stored, f"{name}.weight.absmax", (blocks,), ("U8",)),
            expect(stored, f"{name}.weight.nested_absmax", (nested,), ("F32",)),
            expect(stored, f"{name}.weight.nested_quant_map", (256,), ("F32",)),
        ]

    def unpack(self, name: str, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        """See `QuantizedFormat.unpack`.

        Blocks of nf4 that do not end with the rows become smaller groups that do.
        """
        n, k = shape
        if self.bits == 8:
            codes = (tensors[f"{name}.weight"].to(torch.int16) + 128).to(torch.uint8)
            return QuantizedWeight(codes, (tensors[f"{name}.SCB"].float() / 127).view(n, 1), 8, -1)
        state = _State.read(tensors[f"{name}.{_STATE}"], name)
        levels = tensors[f"{name}.weight.quant_map"]
        if not torch.allclose(levels, torch.tensor(NF4_LEVELS), atol=1e-6):
            raise ModelLoadError(f"{name}.weight.quant_map holds other levels than nf4's, which is not supported.")
        packed = tensors[f"{name}.weight"].contiguous().view(torch.uint8).flatten()
        codes = torch.stack((packed >> 4, packed & 15), dim=1).flatten()[: n * k].view(n, k)
        absmax = tensors[f"{name}.weight.absmax"]
        if state.nested_blocksize is not None:
            nested = tensors[f"{name}.weight.nested_absmax"].repeat_interleave(state.nested_blocksize)[: len(absmax)]
            absmax = tensors[f"{name}.weight.nested_quant_map"][absmax.int()] * nested + state.nested_offset
        group_size = math.gcd(k, state.blocksize)
        block = torch.arange(0, n * k, group_size) // state.blocksize
        return QuantizedWeight(codes.clone(), absmax[block].view(n, -1), 4, group_size, kind="nf4")

    def pack(self, name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
        """See `QuantizedFormat.pack`. With double quantization scales are rounded to what that can store."""
        n, k = weight.shape
        require(self.bits == 4 and weight.kind == "nf4", self.method, name, f"its codes are {weight.kind}: use nf4.")
        fits = weight.group_size in BLOCK_SIZES and k % weight.group_size == 0
        require(
            fits, self.method, name,
            f"groups of {weight.group_size} in {k} columns: use one of {BLOCK_SIZES} that divides the columns.",
        )  # fmt: skip
        codes = weight.codes.flatten().view(-1, 2)
        absmax = weight.scales.float().flatten()
        tensors = {
            f"{name}.weight": (codes[:, 0] << 4 | codes[:, 1]).view(-1, 1),
            f"{name}.weight.quant_map": torch.tensor(NF4_LEVELS),
        }
        state: dict[str, Any] = {
            "quant_type": "nf4",
            "blocksize": weight.group_size,
            "dtype": str(weight.scales.dtype).removeprefix("torch."),
            "shape": [n, k],
        }
        if self.double_quantization:
            double = DoubleQuantized.of(absmax)
            absmax = double.codes
            tensors[f"{name}.weight.nested_absmax"] = double.largest
            tensors[f"{name}.weight.nested_quant_map"] = dynamic_map().clone()  # a file's tensors share no memory
            state |= {
                "nested_blocksize": SCALES_PER_BLOCK, "nested_dtype": "float32", "nested_offset": double.offset,
            }  # fmt: skip
        tensors[f"{name}.weight.absmax"] = absmax.clone()
        tensors[f"{name}.{_STATE}"] = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
        return tensors


@dataclass(frozen=True)
class _State:
    """What the JSON object beside a matrix says."""

    shape: tuple[int, ...]
    blocksize: int
    nested_blocksize: int | None
    nested_offset: float

    @classmethod
    def read(cls, stored: Tensor, name: str) -> "_State":
        try:
            state = json.loads(bytes(stored.tolist()))
            nested = state.get("nested_blocksize")
            read = cls(
                tuple(int(size) for size in state["shape"]),
                int(state["blocksize"]),
                None if nested is None else int(nested),
                float(state.get("nested_offset", 0.0)),
            )
            if read.blocksize < 1 or (nested is not None and int(nested) < 1):
                raise ValueError("a block of nothing")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelLoadError(f"{name} does not say how the matrix is stored: download the file again.") from None
        return read
