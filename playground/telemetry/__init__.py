"""Watching an engine: the event hub, memory readings, headline figures, their definitions and their formatting.

Listens to the engine's events and is never imported by the engine; knows nothing of the interface.
"""

from playground.telemetry.definitions import DEFINITIONS, Definition, define
from playground.telemetry.hub import TelemetryHub
from playground.telemetry.memory import MemoryReading, MemorySampler
from playground.telemetry.snapshot import HeadlineFrame, Reading

__all__ = [
    "DEFINITIONS",
    "Definition",
    "HeadlineFrame",
    "MemoryReading",
    "MemorySampler",
    "Reading",
    "TelemetryHub",
    "define",
]
