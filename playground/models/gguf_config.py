"""A `DecoderConfig` from the metadata of a GGUF file, and the names that its tensors have there.

llama.cpp writes every model that is built like Llama, Mistral among them, as architecture "llama".
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from torch import Tensor

from playground.errors import ModelLoadError
from playground.models.config import DecoderConfig, RopeConfig
from playground.models.families import FAMILIES, WeightNames
from playground.models.gguf_file import PLAIN_TYPES, GGUFFile

ROPE_FACTORS = "rope_freqs.weight"
"""What the rotation of every pair is slowed down by, where a model's context was stretched as Llama 3's was."""
_NAMES = WeightNames(
    embed="token_embd",
    positions="position_embd",
    final_norm="output_norm",
    head="output",
    attn_norm="blk.{}.attn_norm",
    qkv=("blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"),
    q_norm="blk.{}.attn_q_norm",
    k_norm="blk.{}.attn_k_norm",
    out="blk.{}.attn_output",
    mlp_norm="blk.{}.ffn_norm",
    up=("blk.{}.ffn_gate", "blk.{}.ffn_up"),
    down="blk.{}.ffn_down",
)


@dataclass(frozen=True)
class GGUFArchitecture:
    """How llama.cpp writes one architecture."""

    architecture: str
    names: WeightNames = _NAMES
    norm_eps: str = "attention.layer_norm_rms_epsilon"
    permuted: bool = False
    """Rows of q and k lie so that the pairs that rotate together are neighbours."""
    activation: str = "silu"


ARCHITECTURES = {
    "llama": GGUFArchitecture("LlamaForCausalLM", permuted=True),
    "qwen2": GGUFArchitecture("Qwen2ForCausalLM"),
    "qwen3": GGUFArchitecture("Qwen3ForCausalLM"),
    "gpt2": GGUFArchitecture(
        "GPT2LMHeadModel",
        names=replace(_NAMES, qkv=("blk.{}.attn_qkv",), up=("blk.{}.ffn_up",)),
        norm_eps="attention.layer_norm_epsilon",
        activation="gelu_new",
    ),
}
_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")


def architecture_of(file: GGUFFile) -> GGUFArchitecture:
    """The architecture that the file names. Raises `ModelLoadError` for one that is not supported."""
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelLoadError(
            f"{file.path} is of architecture {name!r}, which is not supported: use one of {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


def read_gguf_config(file: GGUFFile) -> DecoderConfig:
    """The model's shape and switches. Raises `ModelLoadError`."""
    architecture = architecture_of(file)
    metadata = _Metadata(file)
    keys = FAMILIES[architecture.architecture].config_keys
    said = {key: metadata.get(name) for key, name in _SIZES.items()}
    said["rms_norm_eps"] = metadata.get(architecture.norm_eps)
    said["num_key_value_heads"] = metadata.get("attention.head_count_kv", said["num_attention_heads"])
    said["hidden_act"] = architecture.activation
    raw: dict[str, Any] = {keys.get(key, key): value for key, value in said.items()}
    raw |= {
        "architectures": [architecture.architecture],
        "vocab_size": _rows(file, architecture.names.embed),
        "tie_word_embeddings": f"{architecture.names.head}.weight" not in file.entries,
        "dtype": _dtype(file),
        "bos_token_id": metadata.token("bos_token_id"),
        "eos_token_id": [token for name in _END_TOKENS if (token := metadata.token(name)) is not None],
    }
    if (head_dim := metadata.get("attention.key_length", None)) is not None:
        raw["head_dim"] = head_dim
    raw["rope_parameters"] = metadata.rope()
    _refuse_what_is_not_there(metadata)
    config = DecoderConfig.from_dict(raw, f"metadata of {file.path}")
    rotated = metadata.get("rope.dimension_count", config.head_dim)
    if config.positions == "rope" and rotated != config.head_dim:
        raise metadata.unsupported("rope.dimension_count", rotated, f"only the size of a head, {config.head_dim}, is")
    return _with_what_the_tensors_say(config, file, architecture.names)


class _Metadata:
    """Looks values of one architecture up."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._prefix = file.metadata["general.architecture"]

    def get(self, name: str, *default: Any) -> Any:
        key = f"{self._prefix}.{name}"
        if key not in self._file.metadata and not default:
            raise ModelLoadError(f"{self._file.path} has no {key} in its metadata: download or convert it again.")
        return self._file.metadata.get(key, *default)

    def token(self, name: str) -> int | None:
        return self._file.metadata.get(f"tokenizer.ggml.{name}")

    def unsupported(self, name: str, value: Any, allowed: str) -> ModelLoadError:
        return ModelLoadError(
            f"metadata of {self._file.path}: {self._prefix}.{name}={value!r} is not supported: {allowed}."
        )

    def rope(self) -> dict[str, Any]:
        """As `rope_parameters` of a config.json say it."""
        kind = self.get("rope.scaling.type", "none")
        values = {"rope_theta": self.get("rope.freq_base", 10_000.0)}
        if kind == "none":
            return values
        return values | {"rope_type": kind, "factor": self.get("rope.scaling.factor")}


def _refuse_what_is_not_there(metadata: _Metadata) -> None:
    """Refuse what would be computed wrongly without a word: mixtures of experts and windows."""
    for name, none in (("expert_count", 0), ("attention.sliding_window", 0)):
        if (value := metadata.get(name, none)) != none:
            raise metadata.unsupported(name, value, f"only {none} is")


def _with_what_the_tensors_say(config: DecoderConfig, file: GGUFFile, names: WeightNames) -> DecoderConfig:
    """Biases and rope factors are in no metadata: a model has them where the file has the tensors."""

    def biased(name: str) -> bool:
        return f"{name.format(0)}.bias" in file.entries

    if ROPE_FACTORS in file.entries and config.positions == "rope":
        config = replace(config, rope=_rope_with_factors(config, file))
    return replace(config, qkv_bias=biased(names.qkv[0]), out_bias=biased(names.out), mlp_bias=biased(names.down))


def _rope_with_factors(config: DecoderConfig, file: GGUFFile) -> RopeConfig:
    entry, read = file.entries[ROPE_FACTORS], list[Tensor]()
    if entry.shape != (config.head_dim // 2,) or entry.type_id not in PLAIN_TYPES:
        raise ModelLoadError(
            f"{file.path}: {ROPE_FACTORS} of shape {list(entry.shape)} is not one number for each of the "
            f"{config.head_dim // 2} pairs of a head: restore the file."
        )
    file.read_plain(ROPE_FACTORS, lambda tensor: read.append(tensor.float()))
    factors = read[0].tolist()
    if config.rope.kind != "default" or not all(np.isfinite(factors)) or min(factors) <= 0:
        raise ModelLoadError(f"{file.path}: {ROPE_FACTORS} must be positive, and the only scaling: restore the file.")
    return replace(config.rope, kind="factors", factors=tuple(factors))


def _rows(file: GGUFFile, name: str) -> int:
    entry = file.entries.get(f"{name}.weight")
    if entry is None or len(entry.shape) != 2:
        raise ModelLoadError(f"{file.path} has no matrix {name}.weight: it holds no language model, or part of one.")
    return entry.shape[0]


def _dtype(file: GGUFFile) -> str:
    """The narrowest type that the matrices are stored in; blocks are read as bfloat16, their scales have 11 bits."""
    kinds = {entry.type_id for entry in file.entries.values() if len(entry.shape) == 2}
    plain = {str(PLAIN_TYPES[kind]).removeprefix("torch.") for kind in kinds if kind in PLAIN_TYPES}
    if len(plain) == 1 and kinds <= set(PLAIN_TYPES):
        return plain.pop()
    return "bfloat16"


def names_in_file(config: DecoderConfig, names: WeightNames) -> dict[str, str]:
    """What every tensor of the config, by its name in a Hugging Face checkpoint, is called in a GGUF file."""
    family, found = config.family.names, dict[str, str]()
    for field in fields(WeightNames):
        if field.name == "optional_prefix":
            continue
        ours, theirs = getattr(family, field.name), getattr(names, field.name)
        pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
        for our, their in pairs:
            for layer in range(config.num_layers if "{}" in our else 1):
                found |= {f"{our.format(layer)}.{kind}": f"{their.format(layer)}.{kind}" for kind in ("weight", "bias")}
    return found
