"""`HeadlineFrame`: the few figures above the chat, taken together, with their texts and definitions.

Plain data: built by the hub, drawn by the interface. None is "not measured" and is shown as a dash, never as 0.
"""

from dataclasses import dataclass
from typing import NamedTuple

from playground.telemetry.definitions import Definition, define
from playground.telemetry.format import (
    Quantity,
    format_bytes,
    format_count,
    format_percent,
    format_rate,
    format_seconds,
)
from playground.telemetry.memory import MemorySource


class Reading(NamedTuple):
    """One figure ready to be shown."""

    key: str
    quantity: Quantity
    definition: Definition


@dataclass(frozen=True, slots=True)
class HeadlineFrame:
    """The state of the engine at one moment. Equal frames need no redraw."""

    kv_blocks_in_use: int | None = None
    kv_blocks_cached: int | None = None
    kv_blocks_empty: int | None = None
    kv_blocks_total: int | None = None
    kv_block_size: int | None = None
    num_running: int = 0
    num_waiting: int = 0
    generated_tokens_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    time_to_first_token: float | None = None
    """Of the request that last got its first token."""
    acceptance_rate: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    memory_source: MemorySource = "process"
    num_events_dropped: int = 0
    """Events lost because the hub was too slow; above 0, rates are too low."""

    @property
    def busy(self) -> bool:
        return self.num_running + self.num_waiting > 0

    @property
    def memory_label(self) -> str:
        return define(f"memory_{self.memory_source}").label

    def readings(self) -> tuple[Reading, ...]:
        """All figures in the order of the strip."""
        memory_key = f"memory_{self.memory_source}"
        quantities = (
            ("kv_blocks_in_use", format_count(self.kv_blocks_in_use)),
            ("kv_blocks_cached", format_count(self.kv_blocks_cached)),
            ("kv_blocks_empty", format_count(self.kv_blocks_empty)),
            ("kv_blocks_total", format_count(self.kv_blocks_total)),
            ("num_running", format_count(self.num_running)),
            ("num_waiting", format_count(self.num_waiting)),
            ("generated_tokens_per_second", format_rate(self.generated_tokens_per_second)),
            ("time_to_first_token", format_seconds(self.time_to_first_token)),
            ("acceptance_rate", format_percent(self.acceptance_rate)),
            (memory_key, format_bytes(self.memory_used_bytes)),
        )
        return tuple(Reading(key, quantity, define(key)) for key, quantity in quantities)
