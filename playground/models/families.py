"""Which model families exist and how each names its weights: adding one is a table entry and, if need be, a flag.

A family says what differs from a plain Llama; `tensor_shapes` says which tensors a checkpoint of a given config must
hold. Reads no files and builds no weights.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from playground.models.config import DecoderConfig


@dataclass(frozen=True)
class WeightNames:
    """Checkpoint names, without `.weight`/`.bias`; `{}` is the layer number. Tuples are joined along the outputs."""

    embed: str = "model.embed_tokens"
    positions: str = ""
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attn_norm: str = "model.layers.{}.input_layernorm"
    qkv: tuple[str, ...] = (
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
    )
    q_norm: str = "model.layers.{}.self_attn.q_norm"
    k_norm: str = "model.layers.{}.self_attn.k_norm"
    out: str = "model.layers.{}.self_attn.o_proj"
    mlp_norm: str = "model.layers.{}.post_attention_layernorm"
    up: tuple[str, ...] = ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj")
    down: str = "model.layers.{}.mlp.down_proj"
    optional_prefix: str = "model."
    """Bare base-model checkpoints leave this prefix out."""


GPT2_NAMES = WeightNames(
    embed="transformer.wte",
    positions="transformer.wpe",
    final_norm="transformer.ln_f",
    attn_norm="transformer.h.{}.ln_1",
    qkv=("transformer.h.{}.attn.c_attn",),
    out="transformer.h.{}.attn.c_proj",
    mlp_norm="transformer.h.{}.ln_2",
    up=("transformer.h.{}.mlp.c_fc",),
    down="transformer.h.{}.mlp.c_proj",
    optional_prefix="transformer.",
)


@dataclass(frozen=True)
class Family:
    """What one architecture is made of; the defaults are Llama's."""

    architecture: str
    model_type: str
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rope", "learned"] = "rope"
    gated_mlp: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    transposed: bool = False
    """Linear weights are stored [in, out] instead of [out, in]."""
    tied_by_default: bool = False
    window: Literal["never", "always", "flagged"] = "never"
    """Whether `sliding_window` counts: never, whenever written, or only with `use_sliding_window`."""
    names: WeightNames = field(default_factory=WeightNames)
    config_keys: dict[str, str] = field(default_factory=dict)
    """Our key -> this family's key in config.json, where they differ."""
    only_values: dict[str, Any] = field(default_factory=dict)
    """Keys of config.json for which one value is implemented."""
    ignored_suffixes: tuple[str, ...] = (".rotary_emb.inv_freq",)
    """Tensors found in checkpoints that are derived buffers, not weights."""


_FAMILIES = (
    Family("LlamaForCausalLM", "llama"),
    Family("MistralForCausalLM", "mistral", window="always"),
    Family("Qwen2ForCausalLM", "qwen2", qkv_bias=True, window="flagged"),
    Family("Qwen3ForCausalLM", "qwen3", qk_norm=True, window="flagged"),
    Family(
        "GPT2LMHeadModel",
        "gpt2",
        norm="layer",
        positions="learned",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        transposed=True,
        tied_by_default=True,
        names=GPT2_NAMES,
        config_keys={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "num_key_value_heads": "n_head",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
            "rms_norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation_function",
        },
        only_values={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        ignored_suffixes=(".attn.bias", ".attn.masked_bias"),
    ),
)
FAMILIES: dict[str, Family] = {family.architecture: family for family in _FAMILIES}


def linear_parts(config: "DecoderConfig", role: Literal["qkv", "out", "up", "down"]) -> list[tuple[str, int]]:
    """The checkpoint's matrices that make up one of ours, in order: (name with `{}`, number of outputs)."""
    names, q_size = config.family.names, config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    if role == "out":
        return [(names.out, config.hidden_size)]
    if role == "down":
        return [(names.down, config.hidden_size)]
    if role == "up":
        return [(name, config.intermediate_size) for name in names.up]
    if len(names.qkv) == 1:
        return [(names.qkv[0], q_size + 2 * kv_size)]
    return list(zip(names.qkv, (q_size, kv_size, kv_size), strict=True))


def linear_inputs(config: "DecoderConfig", role: Literal["qkv", "out", "up", "down"]) -> int:
    """Input width of the matrix in this role."""
    widths = {"out": config.num_heads * config.head_dim, "down": config.intermediate_size}
    return widths.get(role, config.hidden_size)


def linear_bias(config: "DecoderConfig", role: Literal["qkv", "out", "up", "down"]) -> bool:
    """Whether the matrix in this role has a bias."""
    return {"qkv": config.qkv_bias, "out": config.out_bias}.get(role, config.mlp_bias)


ROLES: tuple[Literal["qkv", "out", "up", "down"], ...] = ("qkv", "out", "up", "down")


def tensor_shapes(config: "DecoderConfig") -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this config must hold, by its name there, with its shape there."""
    family, names, hidden = config.family, config.family.names, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {f"{names.embed}.weight": (config.vocab_size, hidden)}
    if config.positions == "learned":
        shapes[f"{names.positions}.weight"] = (config.max_position_embeddings, hidden)
    norms = [names.final_norm]
    for layer in range(config.num_layers):
        norms += [names.attn_norm.format(layer), names.mlp_norm.format(layer)]
        if config.qk_norm:
            shapes[f"{names.q_norm.format(layer)}.weight"] = (config.head_dim,)
            shapes[f"{names.k_norm.format(layer)}.weight"] = (config.head_dim,)
        for role in ROLES:
            inputs = linear_inputs(config, role)
            for name, outputs in linear_parts(config, role):
                shape = (inputs, outputs) if family.transposed else (outputs, inputs)
                shapes[f"{name.format(layer)}.weight"] = shape
                if linear_bias(config, role):
                    shapes[f"{name.format(layer)}.bias"] = (outputs,)
    for norm in norms:
        shapes[f"{norm}.weight"] = (hidden,)
        if config.norm == "layer":
            shapes[f"{norm}.bias"] = (hidden,)
    if not config.tie_embeddings:
        shapes[f"{names.head}.weight"] = (config.vocab_size, hidden)
    return shapes
