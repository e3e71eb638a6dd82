"""`TelemetryHub`: one thread that drains the engine's events some 20 times a second and hands them on.

Keeps the recent steps, who waits, and the latest readings of memory and GPU; consumers subscribe to the hub, each with
a bounded queue of its own. Never touches the engine's locks and can never slow it: what is late is dropped and counted.
"""

import threading
import time
from collections import deque
from types import TracebackType
from typing import Protocol

from playground.engine.events import Event, EventStream, RequestEvent, StepEvent, Subscription
from playground.telemetry.gpu import GpuSample, GpuSampler
from playground.telemetry.memory import MemorySample, MemorySampler

DRAIN_SECONDS = 0.05
IDLE_WAIT_SECONDS = 0.25
"""How long the thread sleeps at most: what `stop` may have to wait."""
MEMORY_SECONDS = 0.5
RECENT_STEPS = 4096
CONSUMER_EVENTS = 65_536


class WatchedEngine(Protocol):
    """All that the hub needs of an engine."""

    @property
    def events(self) -> EventStream: ...


class TelemetryHub:
    """Watches one engine from `start` to `stop`. All methods are thread-safe."""

    def __init__(self, engine: WatchedEngine, *, device: str = "cpu", recent_steps: int = RECENT_STEPS) -> None:
        self._engine = engine
        self._device = device
        self._lock = threading.Lock()
        self._handing = threading.Lock()  # whoever hands events on does so in order
        self._steps: deque[StepEvent] = deque(maxlen=recent_steps)
        self._waiting: set[int] = set()
        self._memory = MemorySample(0, "process")
        self._gpu: GpuSample | None = None
        self._out = EventStream()
        self._source: Subscription | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def __enter__(self) -> "TelemetryHub":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to watch; does nothing where it already does."""
        with self._lock:
            if self._thread is not None:
                return
            self._stopping.clear()
            self._source = self._engine.events.subscribe()
            self._thread = threading.Thread(target=self._run, args=(self._source,), name="telemetry-hub", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop watching and end the thread; what came until now is still handed on. May be called twice."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        thread.join()

    def subscribe(self, maxlen: int = CONSUMER_EVENTS, ready: threading.Event | None = None) -> Subscription:
        """A bounded queue of all events from now on, for one consumer; it counts what it dropped.

        `ready` is set when there is something in it, for who waits for other things too.
        """
        return self._out.subscribe(maxlen, ready)

    def unsubscribe(self, subscription: Subscription) -> None:
        self._out.unsubscribe(subscription)

    def hand_on(self) -> None:
        """Hand on now what the engine has told until now, which the hub's thread would a moment later."""
        with self._handing:
            if self._source is not None:
                self._take(self._source.drain())

    def recent_steps(self, limit: int | None = None) -> list[StepEvent]:
        """The latest steps, oldest first."""
        with self._lock:
            steps = list(self._steps)
        return steps if limit is None else steps[max(0, len(steps) - limit) :]

    def num_waiting_before(self, request_id: int) -> int | None:
        """How many requests wait that came before this one; None where it does not wait itself."""
        with self._lock:
            if request_id not in self._waiting:
                return None
            return sum(other < request_id for other in self._waiting)

    def memory(self) -> MemorySample:
        """The latest reading of the memory."""
        with self._lock:
            return self._memory

    def gpu(self) -> GpuSample | None:
        """The latest reading of the GPU; None without one, or without NVML."""
        with self._lock:
            return self._gpu

    @property
    def num_events_dropped(self) -> int:
        """Events that the engine emitted and the hub was too slow to take."""
        return 0 if self._source is None else self._source.num_dropped

    def _run(self, source: Subscription) -> None:
        memory, gpu = MemorySampler(self._device), GpuSampler(self._device)
        next_memory = 0.0
        while not self._stopping.is_set():
            if source.wait(IDLE_WAIT_SECONDS):
                self._stopping.wait(DRAIN_SECONDS)  # let events gather: one lock for many
                self.hand_on()
            if time.monotonic() >= next_memory:
                used, load = memory.sample(), gpu.sample()
                with self._lock:
                    self._memory, self._gpu = used, load
                next_memory = time.monotonic() + MEMORY_SECONDS
        self._engine.events.unsubscribe(source)
        self.hand_on()
        memory.close()
        gpu.close()

    def _take(self, events: list[Event]) -> None:
        with self._lock:
            for event in events:
                if isinstance(event, StepEvent):
                    self._steps.append(event)
                elif isinstance(event, RequestEvent):
                    if event.state in ("queued", "preempted"):
                        self._waiting.add(event.request_id)
                    else:
                        self._waiting.discard(event.request_id)
        if events and self._out.active:
            self._out.emit(events)
