"""What the Models page says, as plain data: what is loaded, what a configuration would take, which models there are.

Every number is a (number, unit) pair; a measured one stands beside what was predicted of it. Pure functions.
"""

from collections.abc import Sequence
from typing import Any

from playground.errors import PlaygroundError
from playground.models.hub import NotDownloaded
from playground.quantization.crossover import Crossover, known_crossovers
from playground.quantization.formats import QuantizedFormat
from playground.telemetry.format import (
    NOTHING,
    Quantity,
    format_bytes,
    format_count,
    format_number,
    format_percent,
    format_seconds,
)
from playground.telemetry.memory_model import Prediction
from playground.ui.config_form import FormError, write
from playground.ui.fit import Fit
from playground.ui.host import Serving
from playground.ui.model_list import KnownModel
from playground.ui.wording import model_name, parameter_count

View = dict[str, Any]
SAME = 0.0005
"""A difference of less than this is none: every layer of a KV cache has one row that belongs to no token."""
_EMPTY: View = {"name": "", "rows": [], "bar": None, "error": None, "field": None, "note": "", "blocked": False}


def loaded(serving: Serving) -> View:
    """The engine that runs: its facts, and its memory as it was predicted and as it is."""
    engine, predicted = serving.engine, serving.predicted
    config, model, stats = engine.config, engine.model_config, engine.stats()
    paged = stats.kv_blocks_total > 0
    per_token = stats.memory_kv_bytes / ((stats.kv_blocks_total + 1) * stats.kv_block_size) if paged else None
    capacity = stats.kv_blocks_total * stats.kv_block_size if paged else None
    facts = [
        ("Model", model_name(config.model or ""), config.model or ""),
        ("Architecture", f"{model.family.model_type}, {model.num_layers} layers", _heads(model)),
        ("Parameters", parameter_count(model.num_parameters), f"{model.num_parameters:,} weights."),
        ("Number type", config.dtype, "Type of the weights that are not quantized, and of the arithmetic."),
        ("Quantization", _quantization(serving), _quantization_tip(known_crossovers())),
        ("Speculation", _speculation(serving), config.draft_model or "No draft model."),
        ("KV cache", _cache(serving), "Layout, number type, and tokens in a block."),
        ("Longest sequence", f"{format_count(config.max_model_len)} tokens", "Prompt and reply together."),
        ("Attention", config.attention, "The implementation that runs."),
        ("Loaded in", str(format_seconds(serving.load_seconds)), "From the first byte until it could be asked."),
    ]
    weights = predicted.weights_bytes + predicted.draft_weights_bytes
    rows = [
        _compared("Weights", weights, stats.memory_weights_bytes, "Of the model and of its draft model."),
        _compared("KV cache", predicted.kv_bytes, stats.memory_kv_bytes, "Allocated at load, whether used or not."),
        _compared("KV a token", predicted.kv_bytes_per_token, per_token, "Over all layers, the draft model's too."),
        _compared("KV capacity", predicted.kv_tokens, capacity, "Tokens that the KV cache holds.", _tokens),
    ]
    return {
        "facts": [{"label": label, "text": text, "tip": tip} for label, text, tip in facts],
        "rows": rows,
        "values": write(serving.config),
        "shape": _shape(serving),
    }


def fit_view(fit: Fit, name: str) -> View:
    """What a configuration would take."""
    it = fit.prediction
    rows = [
        _row("Weights", format_bytes(it.weights_bytes), f"{parameter_count(it.parameters)} parameters."),
        _row("Weights of the draft", format_bytes(it.draft_weights_bytes or None), "Loaded beside the model."),
        _row("KV cache", format_bytes(it.kv_bytes or None), _kv_tip(it)),
        _row("KV a token", format_bytes(it.kv_bytes_per_token), "2 x layers x KV heads x head dim x bytes a number."),
        _row("KV capacity", _tokens(it.kv_tokens or None), "Tokens that the KV cache holds."),
        _row(
            "Longest sequences", format_number(it.kv_sequences or None), f"Of {it.config.max_model_len:,} tokens each."
        ),
        _row("Together", format_bytes(it.total_bytes), "Weights and KV cache; activations come on top."),
        _row("Free", format_bytes(it.available_bytes), "Now, and with what the present model gives back if it must."),
    ]
    beside = (
        "The present model serves until this one is there."
        if fit.beside
        else "There is no room for both: the present model is unloaded first, and comes back if this one fails."
    )
    return {
        "name": name,
        "rows": rows,
        "bar": [it.weights_bytes, it.draft_weights_bytes, it.kv_bytes, it.available_bytes],
        "error": fit.refusal,
        "field": None,
        "note": beside if fit.refusal is None else "",
        "blocked": fit.refusal is not None,
    }


def refused(error: PlaygroundError) -> View:
    """In place of a fit: why there is none."""
    if isinstance(error, NotDownloaded):
        note = "It is not on this machine yet: it is downloaded first, and checked before it is loaded."
        return _EMPTY | {"note": note}
    field = error.field if isinstance(error, FormError) else None
    return _EMPTY | {"error": str(error), "field": field, "blocked": True}


def listed(models: Sequence[KnownModel], error: str | None = None, asked: str | None = None) -> View:
    """`asked` is the folder that was to be put on the list or taken off it, and `error` why that failed; None where the
    list was only read anew."""
    return {
        "error": error,
        "asked": asked,
        "models": [
            {
                "name": model.name,
                "value": model.value,
                "source": model.source,
                "parameters": "—" if model.parameters is None else parameter_count(model.parameters),
                "dtype": model.dtype or "—",
                "architecture": model.architecture,
                "context": str(format_count(model.context)),
                "size": list(format_bytes(model.size_bytes)),
                "problem": model.problem,
                "folder": model.folder,
            }
            for model in models
        ],
    }


# Parts


def _tokens(count: int | None) -> Quantity:
    return NOTHING if count is None else Quantity(format_count(count).number, "tokens")


def _row(label: str, quantity: Quantity, tip: str) -> View:
    return {"label": label, "value": list(quantity), "tip": tip}


def _compared(label: str, predicted: float, measured: float | None, tip: str, write: Any = format_bytes) -> View:
    error = measured / predicted - 1 if predicted and measured else None
    if error is not None and abs(error) < SAME:
        error = 0.0
    said = NOTHING if error is None else format_percent(error)
    return {
        "label": label,
        "predicted": list(write(predicted or None)),
        "measured": list(write(measured or None)),
        "error": [f"+{said.number}" if error and error > 0 else said.number, said.unit],
        "tip": tip,
    }


def _heads(model: Any) -> str:
    return (
        f"{model.num_heads} attention heads and {model.num_kv_heads} KV heads of {model.head_dim}, hidden size "
        f"{model.hidden_size}, {model.vocab_size:,} tokens in the vocabulary."
    )


def _quantization(serving: Serving) -> str:
    stored: QuantizedFormat | None = serving.engine.model_config.quantization
    if stored is not None:
        return f"{stored.method}, as the files have it"
    if serving.engine.config.load_format == "gguf":
        return "as the GGUF file has it"
    how = serving.engine.config.quantization
    if how is None or isinstance(how, str):
        return "none"
    return f"{how.method}, {how.bits} bits, {'rows' if how.group_size == -1 else f'groups of {how.group_size}'}"


def _quantization_tip(measured: Sequence[Crossover]) -> str:
    """With what this process has measured of packed products: nothing before a quantized layer has run."""
    found = "; ".join(f"{one.layout} {one.outputs} x {one.inputs}: {one.rows} rows" for one in measured)
    tip = "How the matrices of the layers are stored."
    return f"{tip} The packed product is the faster one here up to (measured): {found}." if found else tip


def _speculation(serving: Serving) -> str:
    config = serving.engine.config.speculation
    if config is None:
        return "off"
    draft = serving.engine.config.draft_model
    return f"{config.method}, K = {config.num_tokens}" + (f", {model_name(draft)}" if draft else "")


def _cache(serving: Serving) -> str:
    config = serving.engine.config
    if config.kv_cache == "none":
        return "none: all is computed again"
    return f"{config.kv_cache}, {config.kv_cache_dtype}, blocks of {serving.engine.stats().kv_block_size}"


def _kv_tip(prediction: Prediction) -> str:
    config = prediction.config
    if config.kv_cache == "none":
        return "None is kept: every token is computed again."
    given = "as asked" if config.kv_cache_memory or config.num_kv_blocks else "from what is free"
    return f"{prediction.kv_tokens:,} tokens, {given}, and one block that stays empty."


def _shape(serving: Serving) -> dict[str, str]:
    """The loaded model's numbers, for the calculator."""
    model, bits = serving.engine.model_config, {"float64": "64", "float32": "32"}
    config = serving.engine.config
    return {
        "parameters": str(model.num_parameters),
        "weight_bits": bits.get(config.dtype, "16"),
        "layers": str(model.num_layers),
        "heads": str(model.num_heads),
        "kv_heads": str(model.num_kv_heads),
        "head_dim": str(model.head_dim),
        "kv_bits": bits.get(config.kv_cache_dtype, "16"),
        "context": str(config.max_model_len),
        "window": "" if model.sliding_window is None else str(model.sliding_window),
        "kv_per_token": "",
    }
