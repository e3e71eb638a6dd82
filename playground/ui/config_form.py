"""`EngineConfig` as a form: fields made from the pydantic models, and the way from what was typed to a configuration.

A form's values are one flat dict of texts, as a browser has them: {"model": "…", "speculation": "ngram",
"speculation.num_tokens": "4"}. What is empty, or is not shown for the choices made, is left at its default. What a
value may be is the configuration's own to judge, in one sentence. Drawn by `static/core/form.js`; knows no gradio.
"""

import re
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from playground.config import (
    NOT_YET,
    QUANTIZATION_SHORT_NAMES,
    EngineConfig,
    QuantizationConfig,
    SpeculationConfig,
)
from playground.errors import ConfigError
from playground.validation import Validated, shorten

Values = dict[str, str]
OFF, CUSTOM = "off", "custom"
ON, NO = "on", "off"
_UNITS = {"": 1, "b": 1, **{f"{u}b": 1000**i for i, u in enumerate("kmgt", 1)}}
_UNITS |= {f"{u}ib": 1024**i for i, u in enumerate("kmgt", 1)}


class FormError(ConfigError):
    """What was typed is no configuration. `field` names the input that is to blame, where it is known."""

    def __init__(self, sentence: str, field: str | None = None) -> None:
        super().__init__(sentence)
        self.field = field


class _Text(NamedTuple):
    label: str
    tip: str
    when: tuple[str, tuple[str, ...]] | None = None
    """Shown only where another field has one of these values."""


_DRAFTS = ("speculation", ("draft", "ngram", "layer_skip", "suffix", "eagle"))
_CUSTOM = ("quantization", (CUSTOM,))
_GPTQ = ("quantization.method", ("gptq",))

GROUPS: tuple[tuple[str, dict[str, _Text]], ...] = (
    (
        "Model",
        {
            "model": _Text("Model", "The weights and the tokenizer. Empty: the bundled model."),
            "revision": _Text("Revision", "Which version of a hub model. Empty: its main branch."),
            "load_format": _Text("File format", "How the weights are stored; dummy makes random ones of that shape."),
            "device": _Text("Device", "Where the model runs; auto takes a GPU where there is one."),
            "dtype": _Text("Number type", "Type of the weights and of the arithmetic; auto is the checkpoint's own."),
            "quantization": _Text(
                "Quantization",
                "Weights in fewer bits, made while they are loaded. On a CPU int8 and int4 are also quick ones; nf4, "
                "fp8 and int2 are written out for every product, several times slower than bfloat16.",
            ),
            "seed": _Text("Seed", "Where random numbers start, for requests that bring no seed of their own."),
        },
    ),
    (
        "Quantization in detail",
        {
            "quantization.method": _Text("Method", "How numbers are rounded to fewer bits.", _CUSTOM),
            "quantization.bits": _Text("Bits", "Bits of one weight.", _CUSTOM),
            "quantization.group_size": _Text("Group size", "Inputs that share one scale; -1 is one a row.", _CUSTOM),
            "quantization.symmetric": _Text("Symmetric", "As wide below zero as above: no zero points.", _CUSTOM),
            "quantization.head": _Text("Output head", "The matrix that scores every token of the vocabulary.", _CUSTOM),
            "quantization.scale_search": _Text(
                "Searched scales",
                "Scales that round a group with least error, not from its range.",
                ("quantization.method", ("rtn", "gptq")),
            ),
            "quantization.double_quant": _Text(
                "Quantized scales", "nf4: the scales are rounded to 8 bits too.", ("quantization.method", ("nf4",))
            ),
            "quantization.act_order": _Text("Activation order", "Columns with the largest inputs first.", _GPTQ),
            "quantization.static_groups": _Text("Static groups", "Groups stay neighbouring columns.", _GPTQ),
            "quantization.damping": _Text("Damping", "Share of the mean squared input that is added.", _GPTQ),
        },
    ),
    (
        "KV cache",
        {
            "kv_cache": _Text(
                "Layout", "paged: in blocks; contiguous: the longest sequence reserved for each; none: all recomputed."
            ),
            "kv_cache_dtype": _Text("Number type", "Type of the stored keys and values; auto is the model's."),
            "kv_cache_memory": _Text("Memory", "Bytes (2 GiB), or a share of what is free (0.5). Empty: automatic."),
            "num_kv_blocks": _Text("Blocks", "A fixed number of blocks. Empty: as many as the memory holds."),
            "block_size": _Text("Block size", "Tokens in one block."),
            "max_model_len": _Text("Longest sequence", "Prompt and reply together, in tokens. Empty: the model's own."),
            "sliding_window": _Text("Sliding window", "How many tokens a token sees. Empty: the model's own."),
        },
    ),
    (
        "Speculation",
        {
            "speculation": _Text(
                "Method", "Tokens are drafted cheaply and verified by the model, several in one step."
            ),
            "draft_model": _Text(
                "Draft model",
                "A small model with the same tokenizer, or an EAGLE head.",
                ("speculation", ("draft", "eagle")),
            ),
            "speculation.num_tokens": _Text("Drafts at once", "auto adapts it to what is accepted.", _DRAFTS),
            "speculation.max_num_tokens": _Text("Most drafts", "The limit of auto.", _DRAFTS),
            "speculation.verification": _Text(
                "Verification", "rejection keeps the distribution; coupled keeps the very text.", _DRAFTS
            ),
            "speculation.tree_width": _Text("Tree width", "Branches of a tree of drafts.", ("speculation", ("draft",))),
            "speculation.max_batch_size": _Text(
                "Off above", "No drafts while more requests than this run. Empty: no limit.", _DRAFTS
            ),
            "speculation.ngram_min": _Text(
                "Shortest match", "Tokens that must have occurred.", ("speculation", ("ngram",))
            ),
            "speculation.ngram_max": _Text("Longest match", "Tokens that are compared.", ("speculation", ("ngram",))),
            "speculation.skip_layers": _Text(
                "Layers left out",
                "Of the model, counted from 0. Empty: every second.",
                ("speculation", ("layer_skip",)),
            ),
        },
    ),
    (
        "Scheduling",
        {
            "max_num_seqs": _Text("Requests at once", "How many requests one step may serve."),
            "max_num_batched_tokens": _Text("Tokens in a step", "The token budget of one step. Empty: automatic."),
            "batching": _Text("Batching", "continuous: requests join and leave at every step; static: as one batch."),
            "chunked_prefill": _Text(
                "Chunked prefill", "Long prompts are computed in pieces beside the others' tokens."
            ),
        },
    ),
    (
        "Prefix cache",
        {
            "prefix_caching": _Text("Prefix cache", "KV blocks of a common beginning are computed once and shared."),
            "prefix_cache_ttl": _Text("Lifetime", "Seconds that an unused block stays. Empty: no limit."),
            "prefix_cache_max_blocks": _Text(
                "Most idle blocks", "Blocks kept while nobody uses them. Empty: no limit."
            ),
            "prefix_cache_max_pinned": _Text("Pinned share", "Share of the blocks that pinned prefixes may hold."),
            "prefix_cache_host_memory": _Text("Host memory", "Memory for evicted blocks (1 GiB). Empty: none."),
            "prefix_cache_dir": _Text("Folder", "Keeps the prefix cache across restarts. Empty: none."),
            "prefix_cache_dir_limit": _Text("Folder limit", "Bytes that the folder may hold."),
        },
    ),
    (
        "Kernels",
        {
            "attention": _Text("Attention", "naive writes the whole score matrix; the others never do."),
            "cuda_graphs": _Text("CUDA graphs", "Decode steps are recorded once and replayed."),
            "compile": _Text("Compile", "The model is compiled by torch.compile."),
            "deterministic": _Text("Deterministic", "The same bits whatever else is in the batch."),
            "tensor_parallel_size": _Text("GPUs", "Over how many GPUs the model is split."),
        },
    ),
)
"""Every field of the configuration, by the group it is shown in. "speculation.x" is a field of `SpeculationConfig`."""

_PARTS: dict[str, type[Validated]] = {"speculation": SpeculationConfig, "quantization": QuantizationConfig}
_BYTES = ("kv_cache_memory", "prefix_cache_host_memory", "prefix_cache_dir_limit")


@cache
def groups() -> list[dict[str, Any]]:
    """The form, for the browser: groups of fields in order, each field with all that is needed to draw it."""
    return [
        {"title": title, "fields": [_field(name, text) for name, text in fields.items()]} for title, fields in GROUPS
    ]


def field_names() -> list[str]:
    return [name for _, fields in GROUPS for name in fields]


def label(name: str) -> str:
    """What a field is called, with its part's name before it: "Speculation: drafts at once"."""
    text = next(fields[name] for _, fields in GROUPS if name in fields)
    if "." in name or name in ("kv_cache", "kv_cache_dtype", "kv_cache_memory", "speculation", "prefix_cache_dir"):
        group = next(title for title, fields in GROUPS if name in fields).removesuffix(" in detail")
        return f"{group}: {text.label[:1].lower()}{text.label[1:]}"
    return text.label


def default_values() -> Values:
    """The form of `EngineConfig()`."""
    return write(EngineConfig())


def read(values: Mapping[str, Any]) -> EngineConfig:
    """The configuration of what was typed. Raises `FormError`, one sentence that names the field as it is labelled."""
    texts = {name: str(values.get(name, "")).strip() for name in field_names()}
    shown = {name: text for name, text in texts.items() if is_shown(name, texts)}
    try:
        given = {name: _parse(name, text) for name, text in shown.items() if text and "." not in name}
        given = {name: value for name, value in given.items() if name in _PARTS or value != _info(name).default}
        for part in _PARTS:
            choice = given.pop(part, OFF)
            if choice != OFF:
                given[part] = _read_part(part, choice, shown)
        return EngineConfig(**given)
    except FormError:
        raise
    except ConfigError as error:
        raise FormError(str(error), _blamed(str(error))) from None


def write(config: EngineConfig) -> Values:
    """What a form of this configuration shows."""
    if config.draft_model is not None and config.speculation is None:  # what the engine makes of it
        config = config.replace(speculation=SpeculationConfig(method="draft", num_tokens="auto"))
    values = {}
    for name in field_names():
        part, dot, inner = name.partition(".")
        owner = getattr(config, part) if dot else config
        if dot and owner is None:
            values[name] = _written(_info(name).default)
        elif name == "speculation":
            values[name] = OFF if config.speculation is None else config.speculation.method
        elif name == "quantization":
            values[name] = _short_name(config)
        else:
            values[name] = _written(getattr(owner, inner or part))
    return values


def differing(configs: list[EngineConfig]) -> list[str]:
    """The fields in which configurations are not all alike, in the form's order."""
    written = [{name: value for name, value in one.items() if is_shown(name, one)} for one in map(write, configs)]
    return [name for name in field_names() if len({one.get(name) for one in written}) > 1]


# Parts


def _read_part(part: str, choice: str, shown: Mapping[str, str]) -> Any:
    if part == "quantization" and choice != CUSTOM:
        return choice
    fields = {name: text for name, text in shown.items() if name.startswith(f"{part}.") and text}
    parsed = {name: _parse(name, text) for name, text in fields.items()}
    given = {n.partition(".")[2]: value for n, value in parsed.items() if value != _info(n).default}
    if part == "speculation":
        given["method"] = choice
    return _PARTS[part](**given)


def _short_name(config: EngineConfig) -> str:
    if config.quantization is None:
        return OFF
    for name in QUANTIZATION_SHORT_NAMES:
        if QuantizationConfig.named(name).model_dump() == config.quantization.model_dump():  # type: ignore[union-attr]
            return name
    return CUSTOM


def is_shown(name: str, values: Mapping[str, str]) -> bool:
    """Whether the choices made in `values` call for this field."""
    text = next(fields[name] for _, fields in GROUPS if name in fields)
    if text.when is None:
        return True
    other, allowed = text.when
    return values.get(other) in allowed and is_shown(other, values)


def _info(name: str) -> FieldInfo:
    part, dot, inner = name.partition(".")
    return _PARTS[part].model_fields[inner] if dot else EngineConfig.model_fields[name]


def _field(name: str, text: _Text) -> dict[str, Any]:
    info = _info(name)
    choices = _choices(name)
    field: dict[str, Any] = {
        "name": name,
        "label": text.label,
        "tip": f"{text.tip} In code: {name}, {info.description}.",
        "kind": "choice" if choices else "text",
        "default": default_values()[name],
        "when": None if text.when is None else {"field": text.when[0], "values": list(text.when[1])},
    }
    if choices:
        return field | {"choices": [{"value": one, "missing": _is_missing(name, one)} for one in choices]}
    empty = "automatic" if info.default is None else _written(info.default)
    return field | {
        "placeholder": _EMPTY.get(name, empty),
        "wide": name in ("model", "draft_model", "prefix_cache_dir"),
    }


_EMPTY = {
    "model": "bundled model, folder or hub id",
    "draft_model": "bundled draft, folder or hub id",
    "revision": "main",
    "prefix_cache_dir": "none",
    "prefix_cache_ttl": "no limit",
    "prefix_cache_max_blocks": "no limit",
    "prefix_cache_host_memory": "none",
    "speculation.max_batch_size": "no limit",
    "speculation.skip_layers": "every second",
    "max_model_len": "the model's",
    "sliding_window": "the model's",
}


def _choices(name: str) -> list[str]:
    if name == "speculation":
        return [OFF, *get_args(SpeculationConfig.model_fields["method"].annotation)]
    if name == "quantization":
        return [OFF, *QUANTIZATION_SHORT_NAMES, CUSTOM]
    kind = _info(name).annotation
    if kind is bool:
        return [ON, NO]
    return [str(one) for one in get_args(kind)] if get_origin(kind) is Literal else []


def _is_missing(name: str, choice: str) -> bool:
    """Whether the engine refuses this choice as not built yet."""
    if "." in name or name in _PARTS:
        return False
    try:
        EngineConfig(**{name: _parse(name, choice)})
    except ConfigError as error:
        return NOT_YET in str(error)
    return False


def _parse(name: str, text: str) -> Any:
    """A typed text as the field's type wants it; texts that fit none stay texts, for the configuration to refuse."""
    kinds = _kinds(_info(name).annotation)
    if name in _PARTS or text in ("", "auto"):
        return text
    if name in _BYTES and (size := parse_bytes(text)) is not None:
        return size
    if bool in kinds:
        return text == ON
    if tuple in kinds:
        parts = [part for part in re.split(r"[\s,]+", text) if part]
        if not all(part.isdecimal() for part in parts):
            raise FormError(f"{label(name)}: {shorten(text)} is not allowed, give {_info(name).description}.", name)
        return tuple(int(part) for part in parts)
    if choices := _choices(name):  # Literal[2, 3, 4, 8] too
        options = {str(one): one for one in get_args(_info(name).annotation)}
        return options[text] if text in choices else text
    if int in kinds and re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if float in kinds:
        try:
            return float(text.replace(",", "."))
        except ValueError:
            pass
    if int in kinds or float in kinds:
        raise FormError(f"{label(name)}: {shorten(text)} is not allowed, give {_info(name).description}.", name)
    return text


def _kinds(annotation: Any) -> set[Any]:
    if isinstance(annotation, types.UnionType) or str(get_origin(annotation)) == "typing.Union":
        return {kind for one in get_args(annotation) for kind in _kinds(one)}
    return {get_origin(annotation) or annotation}


def parse_bytes(text: str) -> int | None:
    """ "2 GiB", "500 MB" or a whole number, as bytes; None for what is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.lower())
    if match is None or match[2] not in _UNITS or ("." in match[1] and not match[2]):
        return None
    return int(float(match[1]) * _UNITS[match[2]]) if match[2] else int(match[1])


def _written(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return ON if value else NO
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _blamed(sentence: str) -> str | None:
    """The field that a refusal begins with, as in "max_num_seqs=0 is not allowed: …"."""
    match = re.match(r"(\w+)[ =]", sentence)
    if match is None:
        return None
    return next((name for name in field_names() if name.rpartition(".")[2] == match[1]), None)
