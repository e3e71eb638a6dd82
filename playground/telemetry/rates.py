"""What is worked out from the event stream: rolling token rates, and the time to the first token of requests.

Plain state machines fed with events in order; no threads, no clocks of their own (the caller passes the time).
"""

from collections import OrderedDict, deque

from playground.engine.events import RequestEvent, StepEvent
from playground.telemetry.definitions import RATE_WINDOW_SECONDS

NS_PER_S = 1_000_000_000
MAX_PENDING_REQUESTS = 10_000
"""Requests waiting for their first token that are remembered; the oldest is forgotten beyond."""


class RollingRates:
    """Tokens per second over the steps that ended in the last window."""

    def __init__(self, window_seconds: float = RATE_WINDOW_SECONDS) -> None:
        self._window_ns = round(window_seconds * NS_PER_S)
        self._steps: deque[tuple[int, int, int, int]] = deque()  # start, end, generated, prompt tokens
        self._generated = 0
        self._prompt = 0

    def add(self, step: StepEvent) -> None:
        self._steps.append(
            (step.time_ns, step.time_ns + step.duration_ns, step.num_emitted_tokens, step.num_prefill_tokens)
        )
        self._generated += step.num_emitted_tokens
        self._prompt += step.num_prefill_tokens

    def read(self, now_ns: int) -> tuple[float | None, float | None]:
        """Generated and prompt tokens per second; None where no step ended within the window."""
        while self._steps and self._steps[0][1] <= now_ns - self._window_ns:
            _, _, generated, prompt = self._steps.popleft()
            self._generated -= generated
            self._prompt -= prompt
        if not self._steps:
            return None, None
        elapsed = self._steps[-1][1] - self._steps[0][0]
        if elapsed <= 0:
            return None, None
        return self._generated * NS_PER_S / elapsed, self._prompt * NS_PER_S / elapsed


class FirstTokenTimes:
    """Pairs each request's "queued" with its "first_token"; keeps the latest time to first token."""

    def __init__(self) -> None:
        self._queued_ns: OrderedDict[int, int] = OrderedDict()
        self.latest_seconds: float | None = None

    def add(self, event: RequestEvent) -> None:
        if event.state == "queued":
            # A preempted request is not queued again, so the first time stands.
            self._queued_ns.setdefault(event.request_id, event.time_ns)
            if len(self._queued_ns) > MAX_PENDING_REQUESTS:
                self._queued_ns.popitem(last=False)
        elif event.state == "first_token":
            queued_ns = self._queued_ns.pop(event.request_id, None)
            if queued_ns is not None:
                self.latest_seconds = (event.time_ns - queued_ns) / NS_PER_S
        elif event.state == "finished":
            self._queued_ns.pop(event.request_id, None)
