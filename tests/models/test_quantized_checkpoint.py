"""Quantized checkpoints: read as what they stand for, the same by us and by transformers, and refused where broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from playground.models.checkpoint import Checkpoint
from playground.models.config import DecoderConfig
from playground.models.loader import check_names
from playground.quantization.formats import (
    AWQFormat,
    BitsAndBytesFormat,
    CompressedTensorsFormat,
    GPTQFormat,
    QuantizedFormat,
)
from playground.quantization.weight import QuantizedWeight
from tests.models.driver import load, prompt, whole_batch
from tests.quantization.folders import (
    GROUP,
    is_quantized,
    logits_of,
    model_of,
    reference_weights,
    round_to_integers,
    round_to_nf4,
    write_folder,
)

TOKENS = prompt(24, 256)
Rounded = Callable[[Tensor], tuple[QuantizedWeight, Tensor]]


def integers(bits: int, symmetric: bool, group: int = GROUP) -> Rounded:
    return lambda weight: round_to_integers(weight, bits, group, symmetric)


def nf4(weight: Tensor) -> tuple[QuantizedWeight, Tensor]:
    return round_to_nf4(weight, 32)


WRITTEN: dict[str, tuple[QuantizedFormat, Rounded]] = {
    "gptq": (GPTQFormat(4, GROUP), integers(4, True)),
    "gptq-asymmetric": (GPTQFormat(4, GROUP, symmetric=False), integers(4, False)),
    "gptq-v2": (GPTQFormat(4, GROUP, symmetric=False, version=2), integers(4, False)),
    "gptq-rows": (GPTQFormat(8, -1), integers(8, True, -1)),
    "gptq-3": (GPTQFormat(3, GROUP, symmetric=False, version=2), integers(3, False)),
    "gptq-2": (GPTQFormat(2, GROUP, symmetric=False, version=2), integers(2, False)),
    "awq": (AWQFormat(GROUP), integers(4, False)),
    "compressed-tensors": (CompressedTensorsFormat.packed(4, GROUP, True), integers(4, True)),
    "compressed-tensors-8": (CompressedTensorsFormat.packed(8, -1, True), integers(8, True, -1)),
    "compressed-tensors-asymmetric": (CompressedTensorsFormat.packed(4, GROUP, False), integers(4, False)),
    "bitsandbytes": (BitsAndBytesFormat(), nf4),
}


def ours(folder: Path, **options: Any) -> Tensor:
    return load(folder, **options).model.forward(whole_batch([TOKENS]), None)


def theirs(folder: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu").eval()
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits[0].float()


def apart(logits: Tensor, others: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((logits - others).abs().max() / others.abs().max())


@pytest.mark.parametrize("case", WRITTEN)
def test_logits_are_those_of_the_rounded_weights(case: str, tmp_path: Path) -> None:
    weights = write_folder(tmp_path / "model", *WRITTEN[case])
    logits = ours(tmp_path / "model")
    assert apart(logits, logits_of(weights, TOKENS)) < 1e-5
    assert apart(logits, logits_of(reference_weights(), TOKENS)) > 1e-3  # it is the rounded model, not the original


def test_quantized_matrices_stay_packed_and_the_rest_is_plain(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", *WRITTEN["gptq"])
    plain, packed = model_of(reference_weights()), load(tmp_path / "model")
    plain.save_pretrained(tmp_path / "plain")
    bits = sum(weight.numel() for name, weight in reference_weights().items() if is_quantized(name)) * (
        32 - 4 - 16 / 32
    )
    assert load(tmp_path / "plain").weights_bytes - packed.weights_bytes == pytest.approx(bits / 8, rel=0.1)
    assert packed.config.quantization == GPTQFormat(4, GROUP)


# What transformers makes of what we write


@pytest.mark.parametrize("case", ["compressed-tensors", "compressed-tensors-8"])
def test_transformers_reads_what_we_write_as_compressed_tensors(case: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the format's own library is not installed")
    weights = write_folder(tmp_path / "model", *WRITTEN[case])
    assert apart(theirs(tmp_path / "model"), logits_of(weights, TOKENS)) < 1e-3


@pytest.mark.parametrize("double", [False, True])
def test_transformers_reads_what_we_write_as_bitsandbytes(double: bool, tmp_path: Path) -> None:
    weights = write_folder(tmp_path / "model", BitsAndBytesFormat(double_quantization=double), nf4)
    found = dequantized_by_bitsandbytes(load_with_bitsandbytes(tmp_path / "model"))
    assert found.keys() == {name for name in weights if is_quantized(name)}
    for name, values in found.items():
        torch.testing.assert_close(values, weights[name], rtol=0, atol=0.02 if double else 0)
    assert apart(ours(tmp_path / "model"), logits_of({**weights, **found}, TOKENS)) < 1e-5


@pytest.mark.parametrize("case", [case for case in WRITTEN if case.startswith(("gptq", "awq"))])
def test_transformers_reads_what_we_write_as_gptq_and_awq(case: str, tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel", reason="the format's own library is not installed")
    pytest.importorskip("optimum", reason="transformers reads this format with optimum, which is not installed")
    weights = write_folder(tmp_path / "model", *WRITTEN[case])
    assert apart(theirs(tmp_path / "model", torch.float16), logits_of(weights, TOKENS)) < 1e-2  # it runs in float16


# What others write


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_nf4_that_transformers_wrote_is_read(family: str, double: bool, tmp_path: Path) -> None:
    model = gpt2() if family == "gpt2" else model_of(reference_weights())
    model.save_pretrained(tmp_path / "plain")
    options = {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double,
    }  # fmt: skip
    quantized = load_with_bitsandbytes(tmp_path / "plain", **options)
    quantized.save_pretrained(tmp_path / "model")
    found = dequantized_by_bitsandbytes(quantized)
    assert len(found) == (8 if family == "gpt2" else 14)
    assert apart(ours(tmp_path / "model"), logits_with(model, found)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_llm_int8_that_transformers_wrote_is_read(family: str, tmp_path: Path) -> None:
    model = gpt2() if family == "gpt2" else model_of(reference_weights())
    model.save_pretrained(tmp_path / "plain")
    quantized = load_with_bitsandbytes(tmp_path / "plain", load_in_8bit=True)
    quantized.save_pretrained(tmp_path / "model")
    found = dequantized_by_bitsandbytes(quantized)
    assert len(found) == (8 if family == "gpt2" else 14)
    assert apart(ours(tmp_path / "model"), logits_with(model, found)) < 1e-5


COMPRESSED = {
    "pack-quantized": {"num_bits": 4, "strategy": "group", "group_size": GROUP},
    "pack-quantized-channel": {"num_bits": 8, "strategy": "channel"},
    "int-quantized": {"num_bits": 8, "strategy": "channel"},
    "int-quantized-tensor": {"num_bits": 8, "strategy": "tensor"},
    "float-quantized": {"num_bits": 8, "strategy": "channel", "type": "float"},
    "float-quantized-tensor": {"num_bits": 8, "strategy": "tensor", "type": "float"},
}


@pytest.mark.parametrize(
    ("case", "symmetric"), [(c, s) for c in COMPRESSED for s in (True, False) if s or not c.startswith("float")]
)
def test_what_compressed_tensors_wrote_is_read(case: str, symmetric: bool, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the format's own library is not installed")
    weights = compress_with_its_own_library(tmp_path / "model", case, symmetric)
    with Checkpoint(tmp_path / "model") as files:
        source = check_names(DecoderConfig.from_folder(tmp_path / "model"), files)
        for name, wanted in weights.items():
            source.read(name, lambda found, wanted=wanted: torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0))
    logits = ours(tmp_path / "model")
    error = apart(logits, logits_of(weights, TOKENS))
    if case.startswith("int") and symmetric:  # W8A8: inputs are rounded too, as the file says and transformers does
        assert 1e-3 < error < 0.06
        # Every layer alone is the library's to the last bit, but a token's largest value is a tie between two codes.
        assert apart(logits, theirs(tmp_path / "model")) < 0.02
    else:
        assert error < 1e-5


def compress_with_its_own_library(folder: Path, case: str, symmetric: bool) -> dict[str, Tensor]:
    """Compress the tiny Llama; returns the tensors as the library decompresses them."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    kind = "-".join(case.split("-")[:2])
    weights = {**COMPRESSED[case], "symmetric": symmetric}
    inputs = None
    if kind != "pack-quantized":
        number = {"num_bits": 8, "type": weights.get("type", "int")}
        inputs = {**number, "strategy": "token", "dynamic": True, "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    settings = QuantizationConfig(config_groups={"group_0": group}, format=kind, ignore=["lm_head"])
    model = model_of(reference_weights())
    apply_quantization_config(model, settings)
    for name, module in model.named_modules():
        if not name.endswith("_proj"):
            continue
        weight, args = module.weight.data, module.quantization_scheme.weights
        width = {"group": GROUP, "channel": weight.shape[1], "tensor": weight.numel()}[args.strategy]
        grouped = weight.reshape(-1, width)
        scale, zero = calculate_qparams(grouped.amin(1), grouped.amax(1), args)
        module.weight_scale.data = scale.view(module.weight_scale.shape)
        if not symmetric:
            module.weight_zero_point.data = zero.view(module.weight_zero_point.shape)
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=kind)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    compressor.decompress_model(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name in reference_weights()}


def load_with_bitsandbytes(folder: Path, **options: Any) -> Any:
    """Load with transformers on the CPU, quantizing where options say so."""
    pytest.importorskip("bitsandbytes", reason="the format's own library is not installed")
    pytest.importorskip("accelerate", reason="transformers reads this format with accelerate, which is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    given = {"quantization_config": BitsAndBytesConfig(**options)} if options else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **given)


def dequantized_by_bitsandbytes(model: Any) -> dict[str, Tensor]:
    """The quantized matrices as the library dequantizes them, [N, K]: its own forward may round to bfloat16."""
    import bitsandbytes.functional as F

    values = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "Linear4bit":
            values[f"{name}.weight"] = F.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif kind == "Linear8bitLt":
            values[f"{name}.weight"] = F.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
    return values


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"vocab_size": 259, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
        return GPT2LMHeadModel(GPT2Config(**shape, initializer_range=0.15, bos_token_id=2, eos_token_id=2)).eval()


def logits_with(model: Any, matrices: dict[str, Tensor]) -> Tensor:
    """Logits of a model with these matrices [N, K] in it, which GPT-2 holds as [K, N]."""
    state = model.state_dict()
    turned = type(model).__name__.startswith("GPT2")
    model.load_state_dict({**state, **{name: w.t() if turned else w for name, w in matrices.items()}})
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits[0]
