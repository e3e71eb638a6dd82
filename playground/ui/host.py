"""`EngineHost`: which engine the app runs at present, and how it becomes another one while the page is open.

Owns the engine, the hub that watches it and the feed that draws from both. Models are loaded on a thread of the host's
own, one at a time; the old model serves until the new one can, where memory has room for both, and comes back where the
new one fails. Knows nothing of gradio, of chats or of what a page shows.
"""

import gc
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from playground.config import EngineConfig
from playground.engine.engine import Engine
from playground.engine.events import EventStream
from playground.engine.kv_snapshot import KVSnapshot
from playground.engine.outputs import EngineStats
from playground.errors import ConfigError, PlaygroundError, RequestError, out_of_memory
from playground.models.config import DecoderConfig
from playground.telemetry import FrameFeed, TelemetryHub
from playground.telemetry.memory_model import Prediction
from playground.ui import fit

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.1
"""Progress is told at most this often."""
CANCELLED = "Loading was cancelled."
FAULT = "The model could not be loaded because of a fault in the playground; its log says more."
NO_MODEL = "No model is loaded: load one on the Models page."

Phase = Literal["looking", "downloading", "unloading", "reading", "done", "failed", "cancelled"]
"""What a load does: finds the model's files, downloads them, makes room, reads weights; or how it ended."""


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine at work."""

    engine: Engine
    config: EngineConfig
    """As it was asked for; `engine.config` is what became of it."""
    hub: TelemetryHub
    load_seconds: float
    predicted: Prediction
    """What it was to take."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load has come."""

    phase: Phase
    done: float = 0.0
    """Of the phase, from 0 to 1."""
    error: str | None = None
    """Why it failed, in one sentence."""
    note: str = ""
    """What to know beside: that the old model had to be unloaded first, or was put back."""

    @property
    def ended(self) -> bool:
        return self.phase in ("done", "failed", "cancelled")


class LoadCancelled(PlaygroundError):
    """The user has cancelled the load."""


_numbers = itertools.count(1)


class LoadTask:
    """One load, from `EngineHost.load` to its end."""

    def __init__(self, config: EngineConfig, on_change: Callable[[], None]) -> None:
        self.config = config
        self.number = next(_numbers)
        self.progress = LoadProgress("looking")
        self._on_change = on_change
        self._told_at = 0.0
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._error: PlaygroundError | None = None

    def cancel(self) -> None:
        """Have it end soon; the model that serves goes on."""
        self._cancelled.set()

    def result(self, timeout: float | None = None) -> None:
        """Wait for the end; raises what the load failed with."""
        if not self._ended.wait(timeout):
            raise TimeoutError
        if self._error is not None:
            raise self._error

    def say(self, phase: Phase, done: float = 0.0) -> None:
        """Tell how far it is; raises `LoadCancelled` where it was cancelled."""
        if self._cancelled.is_set():
            raise LoadCancelled(CANCELLED)
        before, now = self.progress, time.monotonic()
        self.progress = replace(before, phase=phase, done=done)
        if phase != before.phase or now - self._told_at >= PROGRESS_SECONDS:
            self._told_at = now
            self._on_change()

    def _end(self, error: PlaygroundError | None = None, note: str = "") -> None:
        phase: Phase = "done" if error is None else "cancelled" if isinstance(error, LoadCancelled) else "failed"
        said = str(error) if phase == "failed" else None
        self.progress = LoadProgress(phase, 1.0 if error is None else self.progress.done, said, note)
        self._error = error
        self._ended.set()


class _Nothing:
    """In place of an engine while none is loaded: nothing happens in it."""

    def __init__(self) -> None:
        self.config = EngineConfig()
        self.model_config: DecoderConfig | None = None
        self.events = EventStream()

    def stats(self) -> EngineStats:
        return EngineStats()

    def kv_snapshot(self) -> KVSnapshot:
        return KVSnapshot(time.perf_counter_ns(), 0, 0, (), ())


class EngineHost:
    """The app's engine, replaceable. All methods are thread-safe; a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._serving: Serving | None = None
        self._nothing = _Nothing()
        self._idle_hub = TelemetryHub(self._nothing)
        self._idle_hub.start()
        self.feed = FrameFeed(self._nothing, self._idle_hub)
        """Live frames of whatever engine there is at the time."""
        self.task: LoadTask | None = None
        """The load that is under way, or the latest one."""
        self.revision = 0
        """Counts the changes that `on_change` tells of."""
        self._busy: str | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._followers: tuple[tuple[Callable[[Serving], None], Callable[[Serving], None]], ...] = ()

    def __enter__(self) -> "EngineHost":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # What there is

    @property
    def serving(self) -> Serving | None:
        """The engine with its hub, taken together; None while nothing is loaded."""
        return self._serving

    @property
    def engine(self) -> Engine | None:
        serving = self._serving
        return None if serving is None else serving.engine

    @property
    def hub(self) -> TelemetryHub:
        """What watches the engine; one that hears nothing while there is none."""
        serving = self._serving
        return self._idle_hub if serving is None else serving.hub

    @property
    def loading(self) -> bool:
        return self.task is not None and not self.task.progress.ended

    @property
    def busy(self) -> str | None:
        """What has the host to itself, in a sentence without its full stop ("A comparison is running"); else None."""
        return self._busy

    def require(self) -> Engine:
        """The engine, for a request that is about to be sent. Raises `RequestError` where there is none."""
        engine = self.engine
        if engine is None:
            busy = self._busy
            raise RequestError(NO_MODEL if busy is None else f"{busy}: try again when that has ended.")
        return engine

    # Being told of changes

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every change of this host, on any thread. Returns how to end that."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def stop() -> None:
            with self._lock:
                self._listeners = tuple(one for one in self._listeners if one is not listener)

        return stop

    def follow(
        self,
        arrives: Callable[[Serving], None] = lambda serving: None,
        leaves: Callable[[Serving], None] = lambda serving: None,
    ) -> Callable[[], None]:
        """Call `arrives` with every engine before a request can reach it (with the present one now), and `leaves` when
        none can any more, before it is closed. Returns how to end that."""
        follower = (arrives, leaves)
        with self._lock:
            self._followers = (*self._followers, follower)
            serving = self._serving
        if serving is not None:
            arrives(serving)

        def stop() -> None:
            with self._lock:
                self._followers = tuple(one for one in self._followers if one is not follower)

        return stop

    def _changed(self) -> None:
        self.revision += 1
        for listener in self._listeners:
            try:
                listener()
            except Exception:
                logger.exception("a listener to the engine host failed")

    # Loading

    def load(self, config: EngineConfig) -> LoadTask:
        """Begin to load a model in place of the present one; returns at once. Raises `ConfigError` while the host is
        busy with another load or has been lent.

        What is being written by the old model when the new one takes over is stopped.
        """
        self._claim("A model is being loaded")
        task = self.task = LoadTask(config, self._changed)
        self._thread = threading.Thread(target=self._load, args=(task,), name="model-load", daemon=True)
        self._thread.start()
        return task

    def unload(self) -> None:
        """Stop the engine and free its memory; requests are refused until another is loaded."""
        self._claim("The model is being unloaded")
        try:
            self._swap(None)
        finally:
            self._release()

    @contextmanager
    def exclusive(self, label: str, *, free_memory: bool = False) -> Iterator[None]:
        """The machine for engines of one's own: for timing that nothing disturbs. Raises `ConfigError` while busy.

        The app's engine stops between two steps and gives back the threads that torch's work had; its requests wait
        and go on afterwards. With `free_memory` it is unloaded instead, so that there is room, and loaded again
        afterwards; requests are refused meanwhile with `label` ("A comparison is running").
        """
        self._claim(label)
        before = self._serving
        try:
            if before is None:
                yield
            elif free_memory:
                config = before.config
                before = None  # it would keep the engine's memory
                self._swap(None)
                try:
                    yield
                finally:
                    self._put_back(config)
            else:
                before.engine.pause()
                try:
                    yield
                finally:
                    before.engine.resume()
        finally:
            self._release()

    def close(self) -> None:
        """Cancel a load, close the engine, end the feed. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self.task is not None:
            self.task.cancel()
        if self._thread is not None:
            self._thread.join(10.0)
        self.feed.close()
        self._swap(None)
        self._idle_hub.stop()

    def _claim(self, label: str) -> None:
        with self._lock:
            if self._busy is not None or self._closed:
                raise ConfigError(f"{self._busy or 'The playground is being closed'}: wait for its end, or stop it.")
            self._busy = label
        self._changed()

    def _release(self) -> None:
        with self._lock:
            self._busy = None
        self._changed()

    def _load(self, task: LoadTask) -> None:
        error, note = None, ""
        before = self._serving
        old = None if before is None else before.config
        before = None
        try:
            self._swap(self._start(task.config, task))
        except PlaygroundError as problem:
            error = problem.with_traceback(None)  # which would keep half a model in memory
        except Exception as problem:
            logger.exception("loading a model failed")
            error = ConfigError(out_of_memory(problem) or FAULT)
        if error is not None:
            gc.collect()
            if old is not None and self._serving is None and not self._closed:
                note = self._put_back(old)
        with self._lock:
            self._busy = None
        task._end(error, note)
        self._changed()

    def _start(self, config: EngineConfig, task: LoadTask | None = None) -> Serving:
        """An engine of this configuration; where it needs the room, the present one is closed first."""
        found = fit.find(config, on_bytes=None if task is None else lambda n, of: task.say("downloading", n / of))
        present = self.engine
        fits = fit.check(
            found, None if present is None else present.config, None if present is None else present.stats()
        )
        if fits.refusal is not None:
            raise ConfigError(fits.refusal)
        if present is not None and not fits.beside:
            present = None
            if task is not None:
                task.say("unloading")
            self._swap(None)
        started = time.perf_counter()
        engine = Engine(found.config, on_progress=None if task is None else lambda n, of: task.say("reading", n / of))
        seconds = time.perf_counter() - started
        return Serving(engine, config, TelemetryHub(engine, device=engine.config.device), seconds, fits.prediction)

    def _put_back(self, config: EngineConfig) -> str:
        """Load the model that was unloaded to make room; what to say of it."""
        try:
            self._swap(self._start(config))
        except Exception as error:
            logger.exception("the model from before could not be loaded again")
            return f"The model from before could not be loaded again: {error}"
        return "The model from before was unloaded to make room, and has been loaded again."

    def _swap(self, new: Serving | None) -> None:
        """Have `new` serve, and close what did."""
        if new is not None:
            new.hub.start()
            for arrives, _ in self._followers:
                _told(arrives, new)
        with self._lock:
            old, self._serving = self._serving, new
        if new is not None:
            self.feed.watch(new.engine, new.hub)
        else:
            self.feed.watch(self._nothing, self._idle_hub)
        if old is not None:
            for _, leaves in self._followers:
                _told(leaves, old)
            old.hub.stop()
            old.engine.close()
        self._changed()


def _told(follower: Callable[[Serving], None], serving: Serving) -> None:
    try:
        follower(serving)
    except Exception:
        logger.exception("a follower of the engine host failed")
