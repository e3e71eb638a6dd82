"""Whether the engine is well: a step was completed recently, or there is nothing to do."""

from typing import NamedTuple

from playground.server.metrics import EngineMetrics
from playground.server.watched import WatchedHost

STALL_SECONDS = 60.0
"""Longer than any one step takes: a long prompt on a slow processor is not a fault."""


class Health(NamedTuple):
    healthy: bool
    status: str
    """In one word."""
    reason: str
    """In one sentence."""


def health(host: WatchedHost, metrics: EngineMetrics, stall_seconds: float = STALL_SECONDS) -> Health:
    """Judged now. An engine that stands still because something else was given the machine is well."""
    busy = host.busy
    if host.serving is None:
        return Health(False, "unloaded", f"{busy or 'No model is loaded'}.")
    stalled = metrics.stalled_seconds()
    if stalled is None:
        return Health(True, "idle", "No request is being served.")
    if stalled <= stall_seconds:
        return Health(True, "serving", f"The latest step, or the first request, was {stalled:.1f} s ago.")
    if busy is not None:
        return Health(True, "paused", f"{busy}: requests wait until that has ended.")
    return Health(False, "stalled", f"Requests wait, but no step was completed in the last {stalled:.0f} s.")
