"""Makes `recorded.npz`: small matrices packed by the libraries that own the formats, and unpacked by them to be sure.

Run it from the repository's root with gptqmodel 7.7, compressed-tensors 0.20 and bitsandbytes 0.50 installed:
    python -m tests.quantization.formats.record
Keys are "case/tensor", what the library stores under its own names. Codes, scales and zeros of a case are those of
`integers`, which need no library; matrices of floats are those of `floats`.
"""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_name("recorded.npz")
N, K, GROUP = 32, 32, 16


def integers(bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K], float16 scales and zeros (1 .. 2^bits - 1) [N, K / GROUP]: the same everywhere."""
    source, groups = random.Random(bits), K // GROUP
    codes = torch.tensor([int(source.random() * 2**bits) for _ in range(N * K)]).view(N, K)
    scales = torch.tensor([0.01 + 0.04 * source.random() for _ in range(N * groups)]).half().view(N, groups)
    zeros = torch.tensor([1 + int(source.random() * (2**bits - 1)) for _ in range(N * groups)]).view(N, groups)
    return codes, scales, zeros


def floats(rows: int, columns: int) -> Tensor:
    """A normal matrix, the same everywhere."""
    source = random.Random(rows * columns)
    return torch.tensor([source.gauss(0, 0.05) for _ in range(rows * columns)]).view(rows, columns)


def orders() -> Tensor:
    """int32 [K]: groups of columns in an order of their own."""
    return torch.tensor(random.Random(1).sample([k // GROUP for k in range(K)], K), dtype=torch.int32)


def values(codes: Tensor, scales: Tensor, zeros: Tensor, groups: Tensor) -> Tensor:
    """What the numbers stand for, float32."""
    return (codes - zeros[:, groups.long()]).float() * scales.float()[:, groups.long()]


def agree(found: Tensor, wanted: Tensor) -> None:
    """The library unpacks what it packed into what it was given, up to rounding to float16."""
    torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=1e-3)


def linear(weight: Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(K, N, bias=False)
    layer.weight.data = weight
    return layer


def record_gptq(bits: int, version: int, *, ordered: bool = False) -> dict[str, Tensor]:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    codes, scales, zeros = integers(bits)
    groups = orders() if ordered else torch.arange(K, dtype=torch.int32) // GROUP
    weight = values(codes, scales, zeros, groups)
    layer = TorchLinear(bits, GROUP, False, ordered, K, N, bias=False, pack_dtype=torch.int32, register_buffers=True)
    layer.pack_original(linear(weight), scales.float(), zeros, groups)
    stored = {name: getattr(layer, name).clone() for name in ("qweight", "qzeros", "scales", "g_idx")}
    layer.qzero_format(2)
    agree(layer.eval().dequantize_weight().t(), weight)
    if version == 1:
        convert_gptq_v2_to_v1_format_module(layer, type("Config", (), {"bits": bits, "pack_dtype": torch.int32}))
        stored["qzeros"] = layer.qzeros.clone()
    return stored


def record_awq() -> dict[str, Tensor]:
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    codes, scales, zeros = integers(4)
    weight = values(codes, scales, zeros, torch.arange(K) // GROUP)
    layer = AwqTorchLinear(4, GROUP, False, False, K, N, bias=False, register_buffers=True)
    layer.pack(linear(weight), scales.float(), zeros)
    stored = {name: getattr(layer, name).clone() for name in ("qweight", "qzeros", "scales")}
    layer.post_init()
    agree(layer.eval()(torch.eye(K, dtype=torch.float16)).t(), weight)
    return stored


def record_compressed_tensors(kind: str, bits: int, *, symmetric: bool, group: int = GROUP) -> dict[str, Tensor]:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    codes, scales, zeros = (t[:, : K // group] if t.shape[1] < K else t for t in integers(bits))
    middle, floating = 2 ** (bits - 1), kind == "float-quantized"
    zeros = torch.full_like(zeros, middle) if symmetric else zeros
    args = QuantizationArgs(
        num_bits=bits,
        type="float" if floating else "int",
        symmetric=symmetric,
        strategy="channel" if group == K else "group",
        group_size=None if group == K else group,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    weight = floats(N, K) if floating else values(codes, scales, zeros, torch.arange(K) // group)
    state = {"weight": weight, "weight_scale": scales.float()}
    if not symmetric:
        state["weight_zero_point"] = (zeros - middle).to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(kind)
    stored = compressor.compress(state, scheme)
    back = compressor.decompress(stored, scheme)["weight"]
    if floating:
        return {**stored, "weight": stored["weight"].view(torch.uint8), "values": back}
    agree(back, weight)
    return stored


def record_nf4(rows: int, columns: int, blocksize: int, *, double: bool) -> dict[str, Tensor]:
    import bitsandbytes.functional as F

    packed, state = F.quantize_4bit(
        floats(rows, columns), blocksize=blocksize, quant_type="nf4", compress_statistics=double
    )
    parts = {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    if double:
        return {"weight": packed, **parts, "scales": F.dequantize_blockwise(state.absmax, state.state2) + state.offset}
    return {"weight": packed, **parts, "values": F.dequantize_4bit(packed, state)}


def record_llm_int8() -> dict[str, Tensor]:
    import bitsandbytes.functional as F

    codes, scb, _ = F.int8_vectorwise_quant(floats(N, K).half())
    return {"weight": codes, "SCB": scb, "values": F.int8_vectorwise_dequant(codes, scb)}


def record() -> dict[str, dict[str, Tensor]]:
    """Every case."""
    cases = {f"gptq-{bits}-v{version}": record_gptq(bits, version) for bits in (2, 3, 4, 8) for version in (1, 2)}
    cases["gptq-4-ordered"] = record_gptq(4, 2, ordered=True)
    cases["awq"] = record_awq()
    for bits in range(2, 9):
        cases[f"pack-quantized-{bits}"] = record_compressed_tensors("pack-quantized", bits, symmetric=False)
    cases["pack-quantized-4-symmetric"] = record_compressed_tensors("pack-quantized", 4, symmetric=True)
    cases["int-quantized"] = record_compressed_tensors("int-quantized", 8, symmetric=True, group=K)
    cases["int-quantized-zeros"] = record_compressed_tensors("int-quantized", 8, symmetric=False, group=K)
    cases["float-quantized"] = record_compressed_tensors("float-quantized", 8, symmetric=True, group=K)
    cases["nf4"] = record_nf4(4, 128, 64, double=False)
    cases["nf4-double"] = record_nf4(68, 128, 32, double=True)  # 272 scales: more than a block of 256
    cases["nf4-across-rows"] = record_nf4(4, 72, 64, double=False)  # its own code misreads rows of 48
    cases["llm-int8"] = record_llm_int8()
    return cases


if __name__ == "__main__":
    np.savez_compressed(
        FILE, **{f"{case}/{name}": t.numpy() for case, tensors in record().items() for name, t in tensors.items()}
    )
    print(f"{FILE}: {FILE.stat().st_size} bytes")
