"""The memory calculator of the Models page: its fields, its presets, what comes out. Pure: texts in, plain data out.

The arithmetic and its assumptions are in `playground.telemetry.memory_model`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from playground.telemetry.format import (
    Quantity,
    format_bytes,
    format_count,
    format_number,
)
from playground.telemetry.memory_model import Calculation
from playground.ui.config_form import FormError, parse_bytes
from playground.validation import shorten

Values = dict[str, str]

FIELDS: tuple[tuple[str, str, str], ...] = (
    ("parameters", "Parameters", "Of the whole model: 7 B, 350 M, or a plain number."),
    ("weight_bits", "Bits of a weight", "16 for bfloat16 and float16, 8 or 4 where weights are quantized."),
    ("layers", "Layers", "Decoder layers; each keeps keys and values of its own."),
    ("heads", "Attention heads", "Query heads. They decide nothing about the cache: KV heads do."),
    ("kv_heads", "KV heads", "As many as attention heads (MHA), fewer (GQA) or one (MQA)."),
    ("head_dim", "Head dimension", "Numbers in one key or value of one head."),
    ("kv_bits", "Bits of a KV number", "16 for bfloat16 and float16, 8 for fp8 and int8."),
    ("context", "Context", "Tokens of one sequence, prompt and reply together: 2048, or 32k."),
    ("sequences", "Sequences at once", "How many sequences are kept at the same time."),
    ("window", "Sliding window", "How many tokens a token sees, in every layer. Empty: all."),
    ("memory", "Device memory", "Of the GPU or the machine: 40 GB, 24 GiB. Empty: not asked."),
    (
        "kv_per_token",
        "KV a token, rounded",
        "In place of the exact figure, as estimates round it: 1 MB. Empty: exact.",
    ),
)
"""Name, label, definition."""

_LLAMA_7B = {
    "parameters": "6.74 B", "weight_bits": "16", "layers": "32", "heads": "32", "kv_heads": "32", "head_dim": "128",
    "kv_bits": "16", "context": "2048", "sequences": "1", "window": "", "memory": "24 GiB", "kv_per_token": "",
}  # fmt: skip
_LLAMA_70B = _LLAMA_7B | {"parameters": "68.98 B", "layers": "80", "heads": "64", "kv_heads": "8", "memory": "160 GiB"}
_OPT_13B = _LLAMA_7B | {"parameters": "13 B", "layers": "40", "heads": "40", "kv_heads": "40", "memory": "40 GB"}
PRESETS: dict[str, Values] = {
    "13 B on a 40 GB A100, 1 MB a token as published": _OPT_13B | {"kv_per_token": "1 MB"},
    "13 B on a 40 GB A100, exact (OPT-13B)": _OPT_13B,
    **{f"Llama 2 7B, {name}": _LLAMA_7B | {"context": name} for name in ("2k", "32k", "128k")},
    **{f"Llama 2 70B, {name}": _LLAMA_70B | {"context": name} for name in ("2k", "32k", "128k")},
}
CONTEXTS = (2048, 8192, 32_768, 131_072)
BATCHES = (1, 8, 32)


def form() -> dict[str, Any]:
    """The calculator's constant part, and what it shows first."""
    first = next(iter(PRESETS.values()))
    fields = [{"name": name, "label": label, "tip": tip} for name, label, tip in FIELDS]
    return {"fields": fields, "presets": PRESETS, "first": calculate(first)}


def calculate(values: Mapping[str, Any]) -> dict[str, Any]:
    """The results for what was typed; or {"error", "field"}."""
    try:
        return {"error": None, "field": None, **_results(read(values), values)}
    except FormError as error:
        return {"error": str(error), "field": error.field}


def read(values: Mapping[str, Any]) -> Calculation:
    """Raises `FormError`, one sentence about one field."""
    texts = {name: str(values.get(name, "")).strip() for name, _, _ in FIELDS}
    heads, kv_heads = _whole("heads", texts), _whole("kv_heads", texts)
    if heads % kv_heads:
        raise FormError(f"{heads} attention heads cannot share {kv_heads} KV heads: give a divisor.", "kv_heads")
    return Calculation(
        parameters=_scaled("parameters", texts),
        weight_bits=_number("weight_bits", texts),
        num_layers=_whole("layers", texts),
        num_kv_heads=kv_heads,
        head_dim=_whole("head_dim", texts),
        kv_bits=_number("kv_bits", texts),
        context=_whole("context", texts),
        sequences=_whole("sequences", texts),
        window=_whole("window", texts) if texts["window"] else None,
        memory_bytes=_size("memory", texts),
        rounded_kv_bytes_per_token=_size("kv_per_token", texts),
    )


def _results(calculation: Calculation, values: Mapping[str, Any]) -> dict[str, Any]:
    heads = int(float(str(values["heads"])))
    shape = (
        f"2 x {calculation.num_layers} layers x {calculation.num_kv_heads} KV heads x {calculation.head_dim} x "
        f"{calculation.kv_bits / 8:g} bytes"
    )
    per_token = "Rounded, as typed." if calculation.rounded_kv_bytes_per_token else f"{shape}."
    saved = f" Full attention heads would take {heads / calculation.num_kv_heads:g} times as much."
    fits = calculation.sequences_that_fit
    rows = [
        _row("Weights", format_bytes(calculation.weights_bytes), "Parameters x bits / 8."),
        _row("KV a token", format_bytes(calculation.kv_bytes_per_token), per_token + saved),
        _row("KV a sequence", format_bytes(calculation.kv_bytes_per_sequence), "Of the context, or of the window."),
        _row("KV of all sequences", format_bytes(calculation.kv_bytes), "Nothing shared, no block partly filled."),
        _row("Together", format_bytes(calculation.total_bytes), "Weights and KV; activations are left out."),
        _row("Left for KV", format_bytes(calculation.left_for_kv), "Device memory less the weights."),
        _row(
            "Tokens that fit",
            format_count(None if calculation.tokens_that_fit is None else int(calculation.tokens_that_fit)),
            "What is left for KV, by the bytes of a token.",
        ),
        _row("Sequences that fit", format_number(fits), "Of the context, with the part of one that is left over."),
    ]
    return {
        "rows": rows,
        "decimal": _decimal(calculation),
        "bar": [calculation.weights_bytes, calculation.kv_bytes, calculation.memory_bytes],
        "too_large": _too_large(calculation),
        "table": {
            "columns": [f"{batch} at once" if batch > 1 else "1 sequence" for batch in BATCHES],
            "rows": [[_short(context), *_by_batch(calculation, context)] for context in CONTEXTS],
        },
    }


def _by_batch(calculation: Calculation, context: int) -> list[Quantity]:
    return [format_bytes(replace(calculation, context=context, sequences=batch).kv_bytes) for batch in BATCHES]


def _too_large(calculation: Calculation) -> str | None:
    left = calculation.left_for_kv
    if left is None or calculation.kv_bytes <= left:
        return None
    if left <= 0:
        return "The weights alone do not fit: fewer bits, or more memory."
    return "These sequences do not fit beside the weights: fewer at once, a shorter context, or fewer bits."


def _decimal(calculation: Calculation) -> str:
    """The same in decimal units, which published figures use."""
    gb, left = 1e9, calculation.left_for_kv
    text = f"In decimal units: {calculation.weights_bytes / gb:.3g} GB of weights, "
    text += f"{calculation.kv_bytes_per_token / 1e6:.3g} MB a token"
    return f"{text}, {left / gb:.3g} GB left for KV." if left is not None else f"{text}."


def _row(label: str, quantity: Quantity, tip: str) -> dict[str, Any]:
    return {"label": label, "value": list(quantity), "tip": tip}


def _short(context: int) -> str:
    return f"{context // 1024}k tokens"


def _refused(name: str, text: str, allowed: str) -> FormError:
    label = next(label for field, label, _ in FIELDS if field == name)
    return FormError(f"{label}: {shorten(text) if text else 'nothing'} is not allowed, give {allowed}.", name)


def _number(name: str, texts: Values) -> float:
    try:
        value = float(texts[name].replace(",", "."))
    except ValueError:
        value = 0.0
    if not 0 < value <= 64:
        raise _refused(name, texts[name], "a number of bits above 0, at most 64")
    return value


def _whole(name: str, texts: Values) -> int:
    match = re.fullmatch(r"(\d{1,12})\s*([kK]?)", texts[name].replace(",", ""))
    value = int(match[1]) * (1024 if match[2] else 1) if match else 0
    if not 1 <= value <= 10**9:
        raise _refused(name, texts[name], "a whole number of at least 1")
    return value


def _scaled(name: str, texts: Values) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmbt]?)", texts[name].lower().replace(",", ""))
    value = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[match[2]] if match else 0.0
    if not 1 <= value <= 1e15:
        raise _refused(name, texts[name], "a number with K, M or B after it, as 7 B")
    return value


def _size(name: str, texts: Values) -> float | None:
    if not texts[name]:
        return None
    size = parse_bytes(texts[name])
    if size is None or size < 1:
        raise _refused(name, texts[name], "a size with its unit, as 24 GiB")
    return float(size)
