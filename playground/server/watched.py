"""What the routes need of whoever runs the engine of the moment: the app's engine host, seen from below."""

from collections.abc import Callable
from typing import Any, Protocol

from playground.engine.engine import Engine
from playground.telemetry import TelemetryHub


class Served(Protocol):
    """An engine at work with what watches it."""

    @property
    def engine(self) -> Engine: ...

    @property
    def hub(self) -> TelemetryHub: ...


class WatchedHost(Protocol):
    """Runs one engine at a time, or none."""

    @property
    def serving(self) -> Served | None: ...

    @property
    def busy(self) -> str | None:
        """What has the engine's machine to itself now, in a sentence without its full stop."""

    def follow(self, arrives: Callable[[Any], None], leaves: Callable[[Any], None]) -> Callable[[], None]:
        """Call `arrives` with every `Served`, the present one now, and `leaves` before it is closed. Returns how to end
        that."""
