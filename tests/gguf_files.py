"""Writes small models as GGUF files with the `gguf` library's own writer and quantizers."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS

MERGES = ["Ġ t", "h e"]
EOS = SPECIAL_TOKENS.index("<|im_end|>")
# Block types that the library cannot make: random codes under scales that give weights of about 0.1, centred.
RANDOM_SCALES = {
    "Q2_K": (0.01, 0.015),
    "Q3_K": (0.0025,),
    "Q4_K": (0.0007, 0.00525),
    "Q5_K": (0.0004, 0.0062),
    "Q6_K": (0.00008,),
}
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}


def tiny_model(kind: str = "Llama", **differences: Any) -> Any:
    """A random transformers model of two layers, float32, wide enough for blocks of 256."""
    import torch
    import transformers

    shape = {
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 512,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    if kind == "GPT2":
        shape = {
            "n_embd": 256,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 1024,
        }  # transformers reads no other number of GPT2's from GGUF
    ids = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": None}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(vocabulary()), initializer_range=0.1, **{**shape, **ids, **differences}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms start at 1 and biases at 0, where a forgotten one would not show
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def write_gguf(
    model: Any,
    file: Path,
    quantization: str = "Q8_0",
    *,
    special: dict[str, str] | None = None,
    metadata: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """`model` as a file: matrices in `quantization` (in `special` where a part of their name is there), the rest F32.

    `metadata` replaces values, None and `without` leave keys out; `tensors` are written besides, in float32.
    """
    import gguf

    config = model.config
    name = config.model_type
    writer = gguf.GGUFWriter(file, name)
    values: dict[str, Any] = {
        f"{name}.context_length": config.max_position_embeddings,
        f"{name}.embedding_length": config.hidden_size,
        f"{name}.block_count": config.num_hidden_layers,
        f"{name}.feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        f"{name}.attention.head_count": config.num_attention_heads,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "tokenizer.ggml.eos_token_id": EOS,
    }
    if name == "gpt2":
        values[f"{name}.attention.layer_norm_epsilon"] = config.layer_norm_epsilon
    else:
        values[f"{name}.attention.head_count_kv"] = config.num_key_value_heads
        values[f"{name}.attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
        values[f"{name}.rope.freq_base"] = config.rope_parameters["rope_theta"]
        usual = config.hidden_size // config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or usual
        if name == "llama":
            values[f"{name}.rope.dimension_count"] = head_dim
        if head_dim != usual:
            values[f"{name}.attention.key_length"] = head_dim
    for key, value in {**values, **(metadata or {})}.items():
        if key not in without:
            _add(writer, key, value)
    if "tokenizer" not in without:
        _add_tokenizer(writer)
    for key, data in _tensors(model, config):
        kind = next((kind for part, kind in (special or {}).items() if part in key), quantization)
        _add_tensor(writer, key, data, kind if data.ndim == 2 and "position" not in key else "F32")
    for key, data in (tensors or {}).items():
        writer.add_tensor(key, data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def vocabulary() -> list[str]:
    """Byte-level tokens by their ids: every byte, and two pairs that merge."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL_TOKENS, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]


def _add_tokenizer(writer: Any) -> None:
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    writer.add_token_merges(MERGES)


def _tensors(model: Any, config: Any) -> list[tuple[str, np.ndarray]]:
    """What the file holds: names, and values as llama.cpp's converter lays them out."""
    found = []
    for name, value in model.state_dict().items():
        data, (owner, _, kind) = value.numpy(), name.rpartition(".")
        if owner == "lm_head" and config.tie_word_embeddings:
            continue
        if owner in _WHOLE:
            found.append((f"{_WHOLE[owner]}.{kind}", data))
            continue
        _, _, number, part = owner.split(".", 3)
        if config.model_type == "gpt2" and data.ndim == 2:
            data = data.T
        heads = {"self_attn.q_proj": config.num_attention_heads}
        if config.model_type == "llama":
            heads["self_attn.k_proj"] = config.num_key_value_heads
            if part in heads:
                data = data.reshape(heads[part], 2, -1, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
        found.append((f"blk.{number}.{_LAYER[part]}.{kind}", np.ascontiguousarray(data)))
    return found


def _add_tensor(writer: Any, name: str, data: np.ndarray, kind: str) -> None:
    import gguf

    type_id = gguf.GGMLQuantizationType[kind]
    if kind in ("F32", "F16"):
        writer.add_tensor(name, data.astype(np.float32 if kind == "F32" else np.float16))
        return
    blocks = random_blocks(kind, *data.shape) if kind in RANDOM_SCALES else gguf.quants.quantize(data, type_id)
    writer.add_tensor(name, blocks, raw_dtype=type_id)


def random_blocks(kind: str, rows: int, columns: int) -> np.ndarray:
    """uint8 [rows, bytes of a row]: a matrix of any codes in a K-quant, with weights of the size of a model's."""
    import gguf

    size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    generator = np.random.default_rng(rows * columns)
    blocks = generator.integers(0, 256, (rows, columns // size, nbytes), dtype=np.uint8)
    scales = np.array(RANDOM_SCALES[kind], dtype=np.float16).view(np.uint8)
    at = {"Q4_K": 0, "Q5_K": 0}.get(kind, nbytes - len(scales))
    blocks[:, :, at : at + len(scales)] = scales
    if kind in ("Q4_K", "Q5_K"):  # a group's minimum belongs to its scale, as in real files: it is centred
        blocks[:, :, 8:12] = blocks[:, :, 4:8]
        blocks[:, :, 12:16] = (blocks[:, :, 12:16] & 15) * 17
    elif kind == "Q2_K":
        blocks[:, :, :16] = (blocks[:, :, :16] & 15) * 17
    return blocks.reshape(rows, -1)
