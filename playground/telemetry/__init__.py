"""Watching an engine: the event hub, live frames, memory readings, definitions and formatting of figures.

Listens to the engine's events and is never imported by the engine; knows nothing of the interface.
"""

from playground.telemetry.definitions import define
from playground.telemetry.feed import FrameFeed, FrameReader
from playground.telemetry.frames import LiveState
from playground.telemetry.hub import TelemetryHub

__all__ = ["FrameFeed", "FrameReader", "LiveState", "TelemetryHub", "define"]
