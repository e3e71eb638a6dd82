"""The headline strip's constant part: which figures stand above a conversation, what they are called, what they mean.

The figures themselves come with the live frames and are written in the browser.
"""

from typing import Any

from playground.telemetry import define
from playground.telemetry.definitions import ACCEPTANCE_WINDOW_SECONDS


def tiles() -> list[dict[str, Any]]:
    """One entry a tile, in order."""
    blocks = " ".join(define(f"kv_blocks_{state}").hover for state in ("in_use", "cached", "empty"))
    memory = {source: define(f"memory_{source}") for source in ("process", "nvml", "torch")}
    acceptance = (
        f"{define('acceptance_rate').hover} Of the steps of the last {ACCEPTANCE_WINDOW_SECONDS:g} s in which "
        "there were drafts."
    )
    return [
        {"name": "first_token", "short": "First token", **_named("time_to_first_token")},
        {"name": "rate", "short": "Tokens per s", **_named("generated_tokens_per_second")},
        {"name": "acceptance", "label": "Accepted drafts", "tip": acceptance},
        {"name": "blocks", "short": "KV blocks", "label": "KV blocks in use", "tip": blocks},
        {
            "name": "memory",
            "label": "Memory",
            "tip": memory["process"].hover,
            "tips": {source: definition.hover for source, definition in memory.items()},
        },
        {"name": "waiting", **_named("num_waiting")},
    ]


def _named(key: str) -> dict[str, str]:
    definition = define(key)
    return {"label": definition.label, "tip": definition.hover}
