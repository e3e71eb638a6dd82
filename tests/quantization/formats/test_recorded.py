"""Bytes that the formats' own libraries wrote (`record.py` says how) are read exactly, and ours are the same bytes."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.quant_pack import NF4_LEVELS
from playground.quantization.formats import (
    AWQFormat,
    BitsAndBytesFormat,
    CompressedTensorsFormat,
    GPTQFormat,
    QuantizedFormat,
)
from playground.quantization.formats.compressed_tensors import Scheme
from playground.quantization.weight import QuantizedWeight
from tests.quantization.formats.record import FILE, GROUP, K, N, floats, integers, orders, values


@cache
def recorded(case: str) -> dict[str, Tensor]:
    """What the library stored, under the names of a matrix "m"; its other notes without."""
    with np.load(FILE) as file:
        own = [key for key in file.files if key.startswith(f"{case}/")]
        return {f"m.{key.removeprefix(f'{case}/')}": torch.from_numpy(file[key]) for key in own}


def given(bits: int, *, groups: Tensor | None = None, scales: torch.dtype = torch.float16) -> QuantizedWeight:
    """The weight that was given to the library, in our form."""
    codes, steps, zeros = integers(bits)
    return QuantizedWeight(
        codes.to(torch.uint8), steps.to(scales), bits, GROUP, zeros.to(torch.uint8), group_index=groups
    )


def check(quantized: QuantizedFormat, weight: QuantizedWeight, wanted: Tensor, stored: dict[str, Tensor]) -> None:
    read = quantized.unpack("m", (N, K), stored)
    assert torch.equal(read.codes, weight.codes) and torch.equal(read.dequantize(), wanted)
    written = quantized.pack("m", weight)
    assert written.keys() == stored.keys()
    for name, tensor in written.items():
        assert tensor.dtype == stored[name].dtype and torch.equal(tensor, stored[name]), name


CASES = [(f"gptq-{bits}-v{version}", bits, version) for bits in (2, 3, 4, 8) for version in (1, 2)]


@pytest.mark.parametrize(("case", "bits", "version"), CASES)
def test_gptq_is_what_gptqmodel_writes(case: str, bits: int, version: int) -> None:
    weight, groups = given(bits), torch.arange(K) // GROUP
    wanted = values(*integers(bits), groups)
    check(GPTQFormat(bits, GROUP, symmetric=False, version=version), weight, wanted, recorded(case))


def test_gptq_with_columns_in_an_order_of_their_own_is_what_gptqmodel_writes() -> None:
    quantized = GPTQFormat(4, GROUP, symmetric=False, activation_order=True, version=2)
    check(quantized, given(4, groups=orders()), values(*integers(4), orders()), recorded("gptq-4-ordered"))


def test_awq_is_what_gptqmodel_writes() -> None:
    wanted = values(*integers(4), torch.arange(K) // GROUP)
    check(AWQFormat(GROUP), given(4), wanted, recorded("awq"))


@pytest.mark.parametrize("bits", range(2, 9))
def test_pack_quantized_is_what_compressed_tensors_writes(bits: int) -> None:
    quantized = CompressedTensorsFormat.packed(bits, GROUP, symmetric=False)
    wanted = values(*integers(bits), torch.arange(K) // GROUP)
    check(quantized, given(bits, scales=torch.float32), wanted, recorded(f"pack-quantized-{bits}"))


def test_symmetric_pack_quantized_is_what_compressed_tensors_writes() -> None:
    codes, scales, _ = integers(4)
    weight = QuantizedWeight(codes.to(torch.uint8), scales.float(), 4, GROUP)
    wanted = values(codes, scales, torch.full_like(scales, 8, dtype=torch.int64), torch.arange(K) // GROUP)
    quantized = CompressedTensorsFormat.packed(4, GROUP, symmetric=True)
    check(quantized, weight, wanted, recorded("pack-quantized-4-symmetric"))


@pytest.mark.parametrize("symmetric", [True, False])
def test_int_quantized_is_read(symmetric: bool) -> None:
    scheme = Scheme(8, -1, symmetric, packed=False, activations="int8")
    stored = recorded("int-quantized" if symmetric else "int-quantized-zeros")
    read = CompressedTensorsFormat((scheme,)).unpack("m", (N, K), stored)
    codes, scales, zeros = integers(8)
    zeros = torch.full((N, 1), 128) if symmetric else zeros[:, :1]
    assert read.activations == "int8" and read.symmetric == symmetric
    assert torch.equal(read.dequantize(), values(codes, scales[:, :1], zeros, torch.zeros(K)))


def test_float_quantized_is_read() -> None:
    stored = dict(recorded("float-quantized"))
    wanted = stored.pop("m.values")
    stored["m.weight"] = stored["m.weight"].view(torch.float8_e4m3fn)
    scheme = Scheme(8, -1, packed=False, floating=True, activations="fp8")
    read = CompressedTensorsFormat((scheme,)).unpack("m", (N, K), stored)
    assert read.kind == "fp8" and read.activations == "fp8"
    assert torch.equal(read.dequantize(), wanted)


def bytes_of(packed: Tensor) -> list[int]:
    """Codes of nf4, one by one: the first in the high half of its byte."""
    return [half for byte in packed.flatten().tolist() for half in (byte // 16, byte % 16)]


def test_nf4_is_what_bitsandbytes_writes() -> None:
    stored = dict(recorded("nf4"))
    wanted = stored.pop("m.values")
    read = BitsAndBytesFormat().unpack("m", (4, 128), stored)
    assert read.kind == "nf4" and read.group_size == 64
    assert torch.equal(read.dequantize(), wanted)
    written = BitsAndBytesFormat().pack("m", read)
    state = "m.weight.quant_state.bitsandbytes__nf4"
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[name], stored[name]) for name in stored)
    assert bytes(written[state].tolist()) == bytes(stored[state].tolist())


def test_nf4_blocks_that_end_within_rows_are_read() -> None:
    stored = dict(recorded("nf4-across-rows"))
    wanted = stored.pop("m.values")
    read = BitsAndBytesFormat().unpack("m", (4, 72), stored)
    assert read.group_size == 8 and torch.equal(read.dequantize(), wanted)


def test_nf4_with_double_quantization_is_read_as_bitsandbytes_reads_it() -> None:
    stored = dict(recorded("nf4-double"))
    scales = stored.pop("m.scales")
    read = BitsAndBytesFormat(double_quantization=True).unpack("m", (68, 128), stored)
    assert read.codes.flatten().tolist() == bytes_of(stored["m.weight"])
    assert torch.equal(read.scales.flatten(), scales)
    levels = torch.tensor(NF4_LEVELS)[read.codes.int()]
    assert torch.equal(read.dequantize(), levels * scales.view(68, 4).repeat_interleave(32, dim=1))


def test_double_quantization_rounds_as_bitsandbytes_does() -> None:
    stored = dict(recorded("nf4-double"))
    stored.pop("m.scales")
    codes = torch.tensor(bytes_of(stored["m.weight"]), dtype=torch.uint8).view(68, 128)
    absmax = floats(68, 128).view(-1, 32).abs().amax(dim=1)
    weight = QuantizedWeight(codes, absmax.view(68, 4), 4, 32, kind="nf4")
    written = BitsAndBytesFormat(double_quantization=True).pack("m", weight)
    assert written.keys() == stored.keys()
    # Its own code rounds some scales to the neighbour of the nearest code.
    apart = (written["m.weight.absmax"].int() - stored["m.weight.absmax"].int()).abs()
    assert int(apart.max()) <= 1 and float((apart > 0).float().mean()) <= 0.01
    for part in ("", ".quant_map", ".nested_quant_map", ".nested_absmax"):
        torch.testing.assert_close(written[f"m.weight{part}"], stored[f"m.weight{part}"], rtol=1e-6, atol=1e-8)


def test_llm_int8_is_read() -> None:
    stored = dict(recorded("llm-int8"))
    wanted = stored.pop("m.values")
    read = BitsAndBytesFormat(8).unpack("m", (N, K), stored)
    torch.testing.assert_close(read.dequantize(), wanted, rtol=1e-6, atol=0)
