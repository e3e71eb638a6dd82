"""Predicted memory against the published estimates, and against what engines then take."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from playground import Engine, EngineConfig
from playground.config import QuantizationConfig, SpeculationConfig
from playground.models.config import DecoderConfig
from playground.telemetry.memory_model import Calculation, kv_bytes_per_token, weights_bytes
from playground.ui import fit
from tests.gguf_files import tiny_model, write_gguf

GB, GIB = 1e9, 2**30
LLAMA_7B = Calculation(6.74e9, 16, 32, 32, 128, 16, context=2048)
LLAMA_70B = Calculation(68.98e9, 16, 80, 8, 128, 16, context=2048)
OPT_13B = Calculation(13e9, 16, 40, 40, 128, 16, context=2048, memory_bytes=40 * GB)


def test_opt_13b_keeps_800_kb_a_token() -> None:
    """vLLM, arXiv 2309.06180: 2 x 5120 x 40 x 2 bytes."""
    assert OPT_13B.kv_bytes_per_token == kv_bytes_per_token(40, 40, 128, 2) == 2 * 5120 * 40 * 2 == 800 * 1024


def test_13b_on_a_40_gb_a100_as_published_has_room_for_14_thousand_tokens_or_7_sequences_of_2048() -> None:
    published = replace(OPT_13B, rounded_kv_bytes_per_token=1e6)
    assert published.weights_bytes == 26 * GB and published.left_for_kv == 14 * GB
    assert published.tokens_that_fit == 14_000
    assert round(published.sequences_that_fit or 0) == 7
    assert round(OPT_13B.tokens_that_fit or 0, -3) == 17_000  # not rounded up to 1 MB a token


@pytest.mark.parametrize(
    ("model", "context", "gib"),
    [
        (LLAMA_7B, 2048, 1), (LLAMA_7B, 32_768, 16), (LLAMA_7B, 131_072, 64),
        (LLAMA_70B, 2048, 0.625), (LLAMA_70B, 32_768, 10), (LLAMA_70B, 131_072, 40),
    ],
)  # fmt: skip
def test_llama_kv_cache_at_2k_32k_and_128k(model: Calculation, context: int, gib: float) -> None:
    assert replace(model, context=context).kv_bytes == gib * GIB


def test_batch_window_and_bits_scale_what_they_should() -> None:
    assert replace(LLAMA_7B, sequences=8).kv_bytes == 8 * LLAMA_7B.kv_bytes
    windowed = replace(LLAMA_7B, context=32_768, window=4096)
    assert windowed.kv_bytes == 2 * LLAMA_7B.kv_bytes
    assert replace(LLAMA_7B, kv_bits=8).kv_bytes == LLAMA_7B.kv_bytes / 2
    assert replace(LLAMA_7B, weight_bits=4).weights_bytes == LLAMA_7B.weights_bytes / 4
    assert replace(LLAMA_7B, memory_bytes=8 * GB).tokens_that_fit == 0


def test_weights_of_llama_7b_are_counted_from_its_shape() -> None:
    config = DecoderConfig.from_dict(
        {"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
         "num_attention_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 4096}
    )  # fmt: skip
    assert config.num_parameters == 6_738_415_616
    device = torch.device("cpu")
    assert weights_bytes(config, torch.float16, device) == 2 * 6_738_415_616
    eight = weights_bytes(config, torch.float16, device, QuantizationConfig.named("int8"))
    assert 0.5 < eight / (2 * 6_738_415_616) < 0.52


@pytest.mark.parametrize(
    ("fields", "tolerance"),
    [
        ({}, 0.0),
        ({"dtype": "float32"}, 0.0),
        ({"kv_cache": "contiguous"}, 0.0),
        ({"kv_cache": "none"}, 0.0),
        ({"load_format": "dummy", "kv_cache_memory": 2**23}, 0.0),
        ({"speculation": SpeculationConfig(method="draft")}, 0.0),
        ({"sliding_window": 64, "kv_cache_dtype": "float32"}, 0.0),
        ({"quantization": "int8"}, 0.0),
        ({"quantization": "int4"}, 0.03),
        ({"quantization": "nf4"}, 0.03),
    ],
)
def test_an_engine_takes_what_was_predicted(fields: dict[str, Any], tolerance: float) -> None:
    config = EngineConfig(device="cpu", **({"dtype": "bfloat16"} | fields))
    predicted = fit.predict_memory(fit.find(config))
    with Engine(config) as engine:
        stats, resolved = engine.stats(), engine.config
    weights = predicted.weights_bytes + predicted.draft_weights_bytes
    assert weights == pytest.approx(stats.memory_weights_bytes, rel=tolerance)
    assert predicted.kv_bytes == stats.memory_kv_bytes
    assert predicted.kv_tokens == stats.kv_blocks_total * stats.kv_block_size
    assert predicted.config.max_model_len == resolved.max_model_len and predicted.fits


def test_a_gguf_file_is_predicted_from_its_blocks(tmp_path: Path) -> None:
    path = write_gguf(tiny_model(), tmp_path / "tiny.gguf")
    config = EngineConfig(model=str(path), device="cpu", dtype="float32", num_kv_blocks=8)
    predicted = fit.predict_memory(fit.find(config))
    with Engine(config) as engine:
        assert predicted.weights_bytes == pytest.approx(engine.stats().memory_weights_bytes, rel=0.05)


def test_what_does_not_fit_is_refused_with_both_sizes() -> None:
    found = fit.find(EngineConfig(device="cpu", dtype="float32", num_kv_blocks=100_000_000))
    checked = fit.check(found)
    assert not checked.prediction.fits and checked.refusal is not None
    assert "This needs" in checked.refusal and "are free: choose a smaller model" in checked.refusal


def test_the_old_model_stays_only_where_the_new_one_gets_its_kv_cache_beside_it() -> None:
    found = fit.find(EngineConfig(device="cpu", dtype="float32", num_kv_blocks=64))
    with Engine(EngineConfig(device="cpu", dtype="float32", num_kv_blocks=64)) as engine:
        assert fit.check(found, engine.config, engine.stats()).beside
        huge = fit.find(EngineConfig(device="cpu", dtype="float32", num_kv_blocks=100_000_000))
        assert not fit.check(huge, engine.config, engine.stats()).beside
