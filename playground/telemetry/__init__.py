"""Watching an engine: the event hub, memory readings, headline figures, their definitions and their formatting.

Listens to the engine's events and is never imported by the engine; knows nothing of the interface.
"""

from playground.telemetry.definitions import DEFINITIONS, Definition, define
from playground.telemetry.feed import FrameFeed, FrameReader
from playground.telemetry.frames import EngineFacts, LiveState
from playground.telemetry.hub import TelemetryHub
from playground.telemetry.memory import MemoryReading, MemorySample, MemorySampler
from playground.telemetry.snapshot import HeadlineFrame, Reading

__all__ = [
    "DEFINITIONS",
    "Definition",
    "EngineFacts",
    "FrameFeed",
    "FrameReader",
    "HeadlineFrame",
    "LiveState",
    "MemoryReading",
    "MemorySample",
    "MemorySampler",
    "Reading",
    "TelemetryHub",
    "define",
]
