"""What the Lab's formulas start from: shapes of models, limits of devices, and what was measured here and elsewhere.

The formulas themselves are in `static/lab/formulas.js`, so that a slider answers at once; the tests hold them to the
engine's own arithmetic.
"""

from typing import Any

from playground.bench.ceilings import limits
from playground.ui.host import EngineHost
from playground.ui.lab.reports.speculation import points
from playground.ui.lab.results import ResultError, ResultFiles
from playground.ui.wording import model_name

Entry = dict[str, Any]


def _shape(name: str, parameters: float, layers: int, heads: int, kv_heads: int, head_dim: int) -> Entry:
    return {
        "name": name, "parameters": parameters, "layers": layers, "heads": heads, "kv_heads": kv_heads,
        "head_dim": head_dim, "weight_bits": 16, "kv_dtype": "bfloat16",
    }  # fmt: skip


MODELS = (
    _shape("Llama 3.1 8B", 8.03e9, 32, 32, 8, 128),
    _shape("Llama 2 7B", 6.74e9, 32, 32, 32, 128),
    _shape("Llama 2 70B", 68.98e9, 80, 64, 8, 128),
    _shape("OPT-13B", 13e9, 40, 40, 40, 128),
    _shape("SmolLM2 135M", 134.5e6, 30, 9, 3, 64),
)
DEVICES = (
    {"name": "A100 SXM 40 GB, datasheet", "bandwidth": 1.555e12, "operations": 312e12},
    {"name": "H100 SXM, datasheet", "bandwidth": 3.35e12, "operations": 989e12},
    {"name": "L4, datasheet", "bandwidth": 0.3e12, "operations": 121e12},
)
"""Bytes and dense 16-bit operations per second, as their makers give them."""


def measured(host: EngineHost, results: ResultFiles) -> Entry:
    """The loaded model's shape, the newest speculation result's cases, and the ceilings measured with this app."""
    return {"model": _loaded(host), "speculation": _speculation(results), "ceilings": _ceilings(results)}


def _loaded(host: EngineHost) -> Entry | None:
    engine = host.engine
    if engine is None:
        return None
    model, config = engine.model_config, engine.config
    weights = engine.stats().memory_weights_bytes
    return {
        "name": model_name(config.model or ""),
        "parameters": model.num_parameters,
        "layers": model.num_layers,
        "heads": model.num_heads,
        "kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "weight_bits": weights * 8 / model.num_parameters,
        "kv_dtype": config.kv_cache_dtype,
        "window": model.sliding_window,
    }


def _speculation(results: ResultFiles) -> Entry | None:
    try:
        found = results.newest("speculation")
        if found is None:
            return None
        info, data = found
        return {
            "points": points(data),
            "machine": info.machine,
            "created": info.created,
            "shipped": info.shipped,
            "id": info.id,
        }
    except (ResultError, KeyError, TypeError, AttributeError):
        return None


def _ceilings(results: ResultFiles) -> list[Entry]:
    try:
        found = results.newest("ceilings", shipped=False)
        if found is None:
            return []
        info, data = found
        return [
            {
                "name": f"{info.machine}, measured, {dtype}",
                "bandwidth": bandwidth,
                "operations": operations,
            }
            for dtype, bandwidth, operations in limits(data)
        ]
    except (ResultError, KeyError, TypeError, AttributeError):
        return []
