"""A tiny Llama whose matrices are rounded here, by the formula, and written in any of the formats."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.quant_pack import NF4_LEVELS
from playground.quantization.formats import QuantizedFormat
from playground.quantization.weight import QuantizedWeight
from playground.quantization.writer import CheckpointWriter
from tests.tiny import write_tiny_tokenizer

GROUP = 32
LAYERS = 2


@functools.cache
def reference_weights() -> dict[str, Tensor]:
    """The model's tensors, float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_of({}).state_dict()


def model_of(weights: dict[str, Tensor]) -> Any:
    """transformers' model, float32, with these tensors."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(config()).eval()
    model.load_state_dict(weights, strict=False)
    return model


def config() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=288,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.15,
    )


def is_quantized(name: str) -> bool:
    return name.endswith("_proj.weight")


def round_to_integers(weight: Tensor, bits: int, group: int, symmetric: bool) -> tuple[QuantizedWeight, Tensor]:
    """Nearest codes with float16 scales and zeros from 1; and what they stand for, by the formula."""
    n, k = weight.shape
    group = k if group == -1 else group
    x = weight.view(n, k // group, group)
    top = 2**bits - 1
    if symmetric:
        scales = (2 * x.abs().amax(-1) / top).half()
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low, high = x.amin(-1).clamp(max=0), x.amax(-1).clamp(min=0)
        scales = ((high - low) / top).half()
        zeros = (-low / scales).round().clamp(1, top)
    codes = (x / scales[..., None].float() + zeros[..., None]).round().clamp(0, top)
    values = ((codes - zeros[..., None]) * scales[..., None].float()).view(n, k)
    codes = codes.view(n, k).to(torch.uint8)
    size = -1 if group == k else group
    return QuantizedWeight(codes, scales, bits, size, None if symmetric else zeros.to(torch.uint8)), values


def round_to_nf4(weight: Tensor, blocksize: int) -> tuple[QuantizedWeight, Tensor]:
    """Nearest levels with float32 scales; and what they stand for."""
    n, k = weight.shape
    x = weight.view(n, k // blocksize, blocksize)
    scales, levels = x.abs().amax(-1), torch.tensor(NF4_LEVELS)
    codes = (x[..., None] / scales[..., None, None] - levels).abs().argmin(-1)
    values = (levels[codes] * scales[..., None]).view(n, k)
    return QuantizedWeight(codes.view(n, k).to(torch.uint8), scales, 4, blocksize, kind="nf4"), values


def write_folder(
    folder: Path, quantized: QuantizedFormat, rounded: Callable[[Tensor], tuple[QuantizedWeight, Tensor]]
) -> dict[str, Tensor]:
    """Write the model in a format; returns its tensors as the rounded numbers."""
    source = folder.with_name(f"{folder.name}-source")
    source.mkdir(parents=True)
    write_tiny_tokenizer(source)
    parts = [*(f"model.layers.{number}." for number in range(LAYERS)), ""]
    writer = CheckpointWriter(folder, parts, {"method": quantized.method})
    stands_for, written = {}, set()
    for part in parts:
        tensors = {}
        for name, weight in reference_weights().items():
            if not name.startswith(part) or name in written:
                continue
            written.add(name)
            if is_quantized(name):
                small, stands_for[name] = rounded(weight)
                tensors.update(quantized.pack(name.removesuffix(".weight"), small))
            else:
                tensors[name] = stands_for[name] = weight
        writer.add(part, tensors)
    values = json.loads(config().to_json_string(use_diff=False))
    values |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    writer.finish(source, {**values, "quantization_config": quantized.config_entry()})
    return stands_for


def logits_of(weights: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """transformers' logits [T, vocab] of the model with these tensors."""
    with torch.inference_mode():
        return model_of(weights)(torch.tensor([tokens])).logits[0]
