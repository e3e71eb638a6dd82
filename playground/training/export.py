"""Writes a trained model as a Hugging Face folder: config, generation config, tokenizer and bfloat16 weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer

from playground.quantization.tensor_file import save_tensors
from playground.training.model import TrainableLlama
from playground.training.tokenizer import END_OF_TEXT, IM_END, PAD, save_tokenizer, token_id


def export_model(
    model: TrainableLlama, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    shape = model.shape
    eos = [token_id(tokenizer, IM_END), token_id(tokenizer, END_OF_TEXT)]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_position_embeddings,
        "initializer_range": 0.02,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": token_id(tokenizer, PAD),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }
    generation = {
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": token_id(tokenizer, PAD),
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
        "max_new_tokens": 400,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = {name: p.detach().to("cpu", dtype).contiguous() for name, p in model.named_weights().items()}
    save_tensors(weights, folder / "model.safetensors", {"format": "pt"})
    save_tokenizer(tokenizer, folder, shape.max_position_embeddings)
