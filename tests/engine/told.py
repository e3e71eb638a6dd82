"""What an engine has told of the requests that have ended."""

from playground import Engine
from playground.engine.events import Event, Subscription


def told(engine: Engine, events: Subscription) -> list[Event]:
    """Drained between two steps: a step is told a moment after its tokens, when a caller may have them already."""
    engine.kv_snapshot()
    return events.drain()
