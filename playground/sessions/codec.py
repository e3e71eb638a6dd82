"""How a run's metrics, parameters and configuration become columns and JSON text, and back.

Canonical JSON (sorted keys, no blanks) makes equal configurations equal texts. A number that is not finite was not
measured, so it is stored as null.
"""

import dataclasses
import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

TITLE_LIMIT = 60
DEFAULT_TITLE = "New chat"

COUNT_COLUMNS = (
    "num_prompt_tokens",
    "num_output_tokens",
    "num_cached_tokens",
    "num_cache_write_tokens",
    "num_preemptions",
    "num_draft_tokens",
    "num_accepted_tokens",
    "kv_blocks_peak",
)
# The engine's names, in seconds, to the columns, in nanoseconds.
TIME_COLUMNS = {
    "queue_time": "queue_ns",
    "time_to_first_token": "time_to_first_token_ns",
    "time_per_output_token": "time_per_output_token_ns",
    "e2e_latency": "e2e_latency_ns",
}
INT64_LIMIT = 2**63
NS_PER_S = 1_000_000_000


def plain(value: Any) -> Any:
    """`value` as JSON types; what has no JSON form becomes its text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {clean_text(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return clean_text(str(value))


def canonical_json(value: Any) -> str:
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def config_id(json_text: str) -> str:
    return hashlib.sha256(json_text.encode()).hexdigest()


def clean_text(text: str) -> str:
    """The text as SQLite can hold it: half a surrogate pair, which has no UTF-8 form, becomes the replacement mark."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def title_from(text: str) -> str:
    """One line of at most `TITLE_LIMIT` characters, cut between words; the default title where nothing is visible."""
    visible = "".join(" " if _is_unprintable(char) else char for char in clean_text(text[:4096]))
    line = " ".join(visible.split())
    if len(line) > TITLE_LIMIT:
        kept = line[: TITLE_LIMIT - 1]
        words, _, _ = kept.rpartition(" ")
        line = (words if len(words) > TITLE_LIMIT // 2 else kept).rstrip() + "…"
    return line or DEFAULT_TITLE


def _is_unprintable(char: str) -> bool:
    """Control characters, and the marks that turn the reading direction of whatever follows."""
    return unicodedata.category(char) == "Cc" or char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def split_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Column values for `metrics`; names without a column, and values of another type, go to the JSON in `metrics`."""
    columns: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in metrics.items():
        if name in COUNT_COLUMNS and _is_count(value):
            columns[name] = value
        elif name in TIME_COLUMNS and _is_seconds(value):
            columns[TIME_COLUMNS[name]] = round(value * NS_PER_S)
        else:
            rest[name] = value
    columns["metrics"] = canonical_json(rest)
    return columns


def join_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split_metrics`: the engine's names, times in seconds, what was not measured left out."""
    metrics: dict[str, Any] = {name: row[name] for name in COUNT_COLUMNS if row[name] is not None}
    for name, column in TIME_COLUMNS.items():
        if row[column] is not None:
            metrics[name] = row[column] / NS_PER_S
    metrics.update(json.loads(row["metrics"]))
    return metrics


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < INT64_LIMIT


def _is_seconds(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) * NS_PER_S < INT64_LIMIT
