"""`FrameFeed`: one thread that builds the live frames for everybody who watches, some 12 times a second, while there is
something to tell.

Each frame is built and written as JSON once, whoever reads it. Readers have short queues of their own: one that falls
behind loses frames, which are counted, and starts anew from an opening frame. With no reader the feed lets go of
everything after a short while; an idle engine with readers costs nothing but a sleeping thread.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from playground.config import EngineConfig
from playground.engine.events import Subscription
from playground.engine.kv_snapshot import KVSnapshot
from playground.engine.outputs import EngineStats
from playground.errors import PlaygroundError
from playground.telemetry.ceilings import MachineRates
from playground.telemetry.frames import Frame, LiveState
from playground.telemetry.hub import TelemetryHub
from playground.telemetry.pace import pause
from playground.telemetry.roofline import ModelWork, model_work
from playground.telemetry.rows import EngineFacts

if TYPE_CHECKING:
    from playground.models.config import DecoderConfig

QUEUED_FRAMES = 12
FULL_SECONDS = 10.0
"""While something happens, one frame in so many seconds carries the whole state."""
IDLE_HZ = 4.0
"""Rate of the frames in which only time passes."""
SLEEP_SECONDS = 0.5
"""How long the thread sleeps at most when nothing happens: what `close` may have to wait."""
LINGER_SECONDS = 30.0
"""How long the state outlives its last reader: a page that is reloaded goes on where it was."""

logger = logging.getLogger(__name__)


class FramedEngine(Protocol):
    """All that the feed needs of an engine, beside what the hub hears of it."""

    @property
    def config(self) -> EngineConfig: ...

    @property
    def model_config(self) -> "DecoderConfig | None":
        """None where no model is loaded."""

    def stats(self) -> EngineStats: ...

    def kv_snapshot(self) -> KVSnapshot: ...


def facts_of(engine: FramedEngine, rates: MachineRates | None = None) -> EngineFacts:
    """`rates` are those of the engine's device, where they have been measured."""
    stats, config = engine.stats(), engine.config
    num_blocks = stats.kv_blocks_total
    facts = EngineFacts(
        model=config.model or "",
        num_blocks=num_blocks,
        block_size=stats.kv_block_size,
        block_bytes=stats.memory_kv_bytes / (num_blocks + 1) if num_blocks else 0,  # one more: the null block
        weights_bytes=stats.memory_weights_bytes,
        max_num_seqs=config.max_num_seqs,
        max_model_len=config.max_model_len or 0,
        speculation=config.speculation.method if config.speculation is not None else None,
        draft_tree=config.speculation is not None and config.speculation.tree_width > 1,
        draft_kv_bytes_per_token=_draft_kv_bytes(config) if num_blocks else 0,
        work=work_of(engine),
    )
    return facts if rates is None else with_rates(facts, rates)


def with_rates(facts: EngineFacts, rates: MachineRates) -> EngineFacts:
    """The facts with what was measured on the engine's device."""
    return facts if facts.work is None else replace(facts, ceilings=rates.ceilings(facts.work.weights_bytes))


def work_of(engine: FramedEngine) -> ModelWork | None:
    """The coefficients of the engine's model; None while no model is loaded."""
    from playground.models.kv_cache import kv_dtype  # torch, which reading a recording does without

    stats, config, model = engine.stats(), engine.config, engine.model_config
    if model is None:
        return None
    kv_bytes = model.kv_bytes_per_token(kv_dtype(config.kv_cache_dtype)) if stats.kv_blocks_total else 0
    return model_work(model, stats.step_weights_bytes, kv_bytes)


def _draft_kv_bytes(config: EngineConfig) -> int | None:
    """Of the KV that a draft model or head keeps beside the model's."""
    from playground.models.kv_cache import kv_dtype
    from playground.models.loader import read_config

    if config.speculation is None or config.draft_model is None:
        return 0
    try:
        return read_config(Path(config.draft_model)).kv_bytes_per_token(kv_dtype(config.kv_cache_dtype))
    except PlaygroundError:
        return None


class FrameReader:
    """One reader's frames, as JSON. `on_ready` is called from the feed's thread whenever there is something new."""

    def __init__(self, feed: "FrameFeed", on_ready: Callable[[], None]) -> None:
        self.num_dropped = 0
        """Frames lost because this reader was too slow."""
        self._feed = feed
        self._on_ready = on_ready
        self._frames: deque[str] = deque()
        self._lock = threading.Lock()
        self._lost = True
        self._ended = False

    @property
    def ended(self) -> bool:
        """The feed was closed: nothing comes any more."""
        return self._ended

    def take(self) -> str | None:
        """The oldest frame not read yet; None if there is none now."""
        with self._lock:
            return self._frames.popleft() if self._frames else None

    def close(self) -> None:
        """Read no more. May be called twice, and from any thread."""
        self._feed._remove(self)

    def _put(self, frame: str, *, opening: bool = False) -> None:
        with self._lock:
            if opening:
                self._lost = False
            elif self._lost:
                return
            elif len(self._frames) >= QUEUED_FRAMES:  # what follows a gap is of no use: it starts anew when it is back
                self.num_dropped += len(self._frames) + 1
                self._frames.clear()
                self._lost = True
                return
            self._frames.append(frame)
        self._on_ready()

    def _end(self) -> None:
        self._ended = True
        self._on_ready()


class FrameFeed:
    """Live frames of one engine at a time. All methods are thread-safe."""

    def __init__(self, engine: FramedEngine, hub: TelemetryHub, *, linger_seconds: float = LINGER_SECONDS) -> None:
        """`hub` watches `engine`, and is started and stopped by whoever made it."""
        self._engine = engine
        self._hub = hub
        self._linger_seconds = linger_seconds
        self._readers: tuple[FrameReader, ...] = ()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._rates: tuple[FramedEngine, MachineRates] | None = None
        self.num_frames = 0
        """Frames built so far, for all readers together."""

    @property
    def num_readers(self) -> int:
        return len(self._readers)

    def read(self, on_ready: Callable[[], None] = lambda: None) -> FrameReader:
        """Begin to read: the first frame is an opening one, and comes at once."""
        reader = FrameReader(self, on_ready)
        with self._lock:
            if self._closed:
                reader._end()
                return reader
            self._readers = (*self._readers, reader)
            self._start()
        self._wake.set()
        return reader

    def watch(self, engine: FramedEngine, hub: TelemetryHub) -> None:
        """Go on with another engine: every reader starts anew."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._engine, self._hub = engine, hub
        self._wake.set()
        if thread is not None:
            thread.join()
        with self._lock:
            for reader in self._readers:
                reader._lost = True
            if self._readers and not self._closed:
                self._start()

    def know_rates(self, engine: FramedEngine, rates: MachineRates) -> None:
        """What was measured on the device of `engine`, which is watched now or soon."""
        self._rates = (engine, rates)
        self._wake.set()

    def rates_of(self, engine: FramedEngine) -> MachineRates | None:
        """What is known of the device of `engine`."""
        known = self._rates
        return known[1] if known is not None and known[0] is engine else None

    def close(self) -> None:
        """End the thread and all readers. May be called twice."""
        with self._lock:
            self._closed = True
            readers, self._readers = self._readers, ()
            thread, self._thread = self._thread, None
        self._wake.set()
        for reader in readers:
            reader._end()
        if thread is not None:
            thread.join()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(self._engine, self._hub), name="frame-feed", daemon=True
            )
            self._thread.start()

    def _remove(self, reader: FrameReader) -> None:
        with self._lock:
            self._readers = tuple(one for one in self._readers if one is not reader)

    def _run(self, engine: FramedEngine, hub: TelemetryHub) -> None:
        events = hub.subscribe(ready=self._wake)
        try:
            self._build(_Builder(engine, hub, events, partial(self.rates_of, engine)))
        except PlaygroundError as error:  # the engine was closed while it was being read
            logger.debug("The live frames end: %s", error)
        except Exception:
            logger.exception("building live frames failed; the next reader starts anew")
        finally:
            hub.unsubscribe(events)
            self._leave()

    def _leave(self, *, if_alone: bool = False) -> bool:
        """Let the next reader start a thread of its own; with `if_alone` only if none has come in the meantime."""
        with self._lock:
            if if_alone and self._readers:
                return False
            if self._thread is threading.current_thread():
                self._thread = None
            return True

    def _build(self, builder: "_Builder") -> None:
        read_at = time.monotonic()
        while self._thread is threading.current_thread():
            started = time.perf_counter()
            frame = builder.next()
            readers = self._readers
            if frame is not None:
                self.num_frames += 1
                text = _written(frame)
                for reader in readers:
                    reader._put(text)
            newcomers = [reader for reader in readers if reader._lost]
            if newcomers:
                opening = _written(builder.opening())
                for reader in newcomers:
                    reader._put(opening, opening=True)
            if readers:
                read_at = time.monotonic()
            elif time.monotonic() - read_at >= self._linger_seconds and self._leave(if_alone=True):
                return
            time.sleep(pause(time.perf_counter() - started))
            self._wake.wait(1 / IDLE_HZ if builder.is_moving else SLEEP_SECONDS)


class _Builder:
    """Feeds one engine's events to a `LiveState` and cuts its frames."""

    def __init__(
        self,
        engine: FramedEngine,
        hub: TelemetryHub,
        events: Subscription,
        read_rates: Callable[[], MachineRates | None],
    ) -> None:
        self._engine = engine
        self._hub = hub
        self._events = events
        self._read_rates = read_rates
        self._rates = read_rates()
        self._state = LiveState(facts_of(engine, self._rates), time.perf_counter_ns())
        self._state.resync(engine.kv_snapshot())
        self._lost_before = self._num_lost
        self._full_at = time.monotonic() + FULL_SECONDS
        self._was_moving = True

    @property
    def _num_lost(self) -> int:
        return self._hub.num_events_dropped + self._events.num_dropped

    @property
    def is_moving(self) -> bool:
        return self._state.is_moving(time.perf_counter_ns())

    def next(self) -> Frame | None:
        """The next frame, or None where it would show what the one before showed."""
        events = self._events.drain()
        for event in events:
            self._state.apply(event)
        num_lost = self._num_lost - self._lost_before
        resynced = num_lost > self._state.num_dropped
        if resynced:
            self._state.num_dropped = num_lost
            self._state.resync(self._engine.kv_snapshot())
        moving, rates = self.is_moving, self._read_rates()
        measured = rates is not self._rates
        if measured:
            self._rates = rates
            self._state.facts = facts_of(self._engine, rates)
        if not events and not moving and not self._was_moving and not measured:
            return None
        self._was_moving = moving  # the frame after the last movement shows the rest
        self._read_samples()
        full = time.monotonic() >= self._full_at or resynced or measured
        if full:
            self._full_at = time.monotonic() + FULL_SECONDS
        return self._state.frame(time.perf_counter_ns(), full=full, final=not moving)

    def opening(self) -> Frame:
        """Where a new reader starts."""
        self._read_samples()
        return self._state.opening(time.perf_counter_ns())

    def _read_samples(self) -> None:
        self._state.apply(self._hub.memory())
        gpu = self._hub.gpu()
        if gpu is not None:
            self._state.apply(gpu)


def _written(frame: Frame) -> str:
    return json.dumps(frame, separators=(",", ":"), allow_nan=False)
