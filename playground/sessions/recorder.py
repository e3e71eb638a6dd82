"""`RunRecorder`: one thread an engine that stores what its hub tells, four times a second, through the store's writer.

It can never slow the engine: its queue of events is bounded and drops the oldest, and what cannot be stored for long is
dropped too. What was dropped is counted, and the runs that it belongs to are never shown as if they were complete.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from playground.config import EngineConfig
from playground.engine.events import Subscription
from playground.engine.kv_snapshot import KVSnapshot
from playground.engine.outputs import EngineStats, Generation
from playground.errors import PlaygroundError, RequestError
from playground.models.config import DecoderConfig
from playground.sessions.errors import StorageError
from playground.sessions.run_store import RunStore
from playground.sessions.transcriber import Batch, Note, Transcriber
from playground.telemetry.ceilings import MachineRates
from playground.telemetry.feed import facts_of, with_rates
from playground.telemetry.hub import TelemetryHub
from playground.telemetry.rows import EngineFacts

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.25
MAX_PENDING_ROWS = 50_000
"""What is kept while the database cannot be written."""
MAX_PAUSE_SECONDS = 15.0
"""The longest pause between two attempts to write."""
NOTE_SECONDS = 30.0
"""How long a note waits for its request to end."""


class RecordedEngine(Protocol):
    """All that the recorder needs of an engine, beside what the hub hears of it."""

    tokenizer: Any

    @property
    def config(self) -> EngineConfig: ...

    @property
    def model_config(self) -> DecoderConfig | None: ...

    def stats(self) -> EngineStats: ...

    def kv_snapshot(self) -> KVSnapshot: ...


RatesOf = Callable[[RecordedEngine], MachineRates | None]
"""What was measured on the device of an engine, as far as it is known."""


class RunRecorder:
    """Records the engines that it is told to `watch`, one after another. Thread-safe."""

    def __init__(
        self,
        runs: RunStore,
        describe: Callable[[EngineConfig], Mapping[str, Any]],
        name: Callable[[str], str],
        rates_of: RatesOf = lambda engine: None,
    ) -> None:
        """`describe` says what machine and versions an engine runs on; `name` what its model is called."""
        self._runs = runs
        self._describe = describe
        self._name = name
        self._rates_of = rates_of
        self._lock = threading.Lock()
        self._watches: list[_Watch] = []
        self._num_lost = 0

    @property
    def num_lost(self) -> int:
        """Events that were not stored: the recorder was too slow, or the database could not be written."""
        with self._lock:
            return self._num_lost + sum(watch.num_lost for watch in self._watches)

    def watch(self, engine: RecordedEngine, hub: TelemetryHub) -> None:
        """Begin to record an engine, before its first request."""
        watch = _Watch(self._runs, engine, hub, self._describe, self._name, self._rates_of)
        with self._lock:
            self._watches.append(watch)

    def leave(self, engine: RecordedEngine) -> None:
        """Store what the engine's hub has told, and end."""
        with self._lock:
            left = [watch for watch in self._watches if watch.engine is engine]
        for watch in left:
            watch.close()
        with self._lock:
            self._watches = [watch for watch in self._watches if watch not in left]
            self._num_lost += sum(watch.num_lost for watch in left)

    def note(self, engine: RecordedEngine, generation: Generation, note: Note) -> None:
        """Tell which reply a request became, and what else is known of it. Returns at once."""
        with self._lock:
            found = [watch for watch in self._watches if watch.engine is engine]
        for watch in found:
            watch.note(generation.request_id, note)

    def recording_of(self, engine: RecordedEngine) -> int | None:
        """The id of the recording of an engine that is watched; None where it could not be begun."""
        with self._lock:
            return next((watch.recording_id for watch in self._watches if watch.engine is engine), None)

    def is_writing(self, request_id: int) -> bool:
        """Whether more is to come of a stored request."""
        with self._lock:
            recordings = [watch.recording_id for watch in self._watches]
        known = (self._runs.of_engine(one) for one in recordings if one is not None)
        found = any(request_id in requests.values() for requests in known)
        return found and self._runs.request(request_id).finish is None

    def flush(self, timeout: float = 5.0) -> None:
        """Wait until what has been told until now is stored, or has failed to be."""
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.flush(timeout)

    def close(self) -> None:
        """Store what there is and end all threads. May be called twice."""
        with self._lock:
            engines = [watch.engine for watch in self._watches]
        for engine in engines:
            self.leave(engine)


class _Watch:
    """The recording of one engine: its thread, and what could not be stored yet."""

    def __init__(
        self,
        runs: RunStore,
        engine: RecordedEngine,
        hub: TelemetryHub,
        describe: Callable[[EngineConfig], Mapping[str, Any]],
        name: Callable[[str], str],
        rates_of: RatesOf,
    ) -> None:
        self.engine = engine
        self.recording_id: int | None = None
        self.num_lost = 0
        self._runs = runs
        self._hub = hub
        self._describe = describe
        self._name = name
        self._rates_of = rates_of
        self._notes: dict[int, tuple[float, Note]] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._rounds = 0
        self._round = threading.Condition()
        self._events: Subscription = hub.subscribe()
        self._dropped_before = self._num_dropped
        self._thread = threading.Thread(target=self._run, name="run-recorder", daemon=True)
        self._thread.start()

    @property
    def _num_dropped(self) -> int:
        return self._hub.num_events_dropped + self._events.num_dropped

    def note(self, request_id: int, note: Note) -> None:
        with self._lock:
            self._notes[request_id] = (time.monotonic() + NOTE_SECONDS, note)

    def flush(self, timeout: float) -> None:
        self._catch_up()
        with self._round:
            after = self._rounds + 2  # the one that is under way may have drained before
            self._wake.set()
            self._round.wait_for(lambda: self._rounds >= after or not self._thread.is_alive(), timeout)

    def close(self) -> None:
        self._catch_up()
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _catch_up(self) -> None:
        """Have all that was told until now in the queue: the end of a request is known before it is told."""
        with contextlib.suppress(RequestError):  # closed: nothing is on its way any more
            self.engine.kv_snapshot()  # between two steps
        self._hub.hand_on()

    def _run(self) -> None:
        try:
            self._record()
        except PlaygroundError as error:
            logger.warning("Runs are not recorded: %s", error)
        except Exception:
            logger.exception("recording runs failed; the next engine is recorded again")
        finally:
            self._hub.unsubscribe(self._events)
            with self._round:
                self._rounds += 2
                self._round.notify_all()

    def _record(self) -> None:
        writer = self._begin()
        read_ns = 0
        while True:
            closing = self._closing
            events: list[Any] = list(self._events.drain())
            if events:
                fresh = [one for one in (self._hub.gpu(), self._hub.memory()) if one and one.time_ns > read_ns]
                read_ns = max((one.time_ns for one in fresh), default=read_ns)
                events = fresh + events  # a run that begins and ends with them has a reading, too
            writer.script.take(events)
            lost = self._num_dropped - self._dropped_before
            if lost:
                self.num_lost += lost
                self._dropped_before += lost
                writer.script.resync(self.engine.kv_snapshot())
            self._tell_notes(writer.script)
            if closing:
                writer.script.close()
            self.num_lost += writer.write(last=closing)
            writer.know(self._rates_of(self.engine))
            with self._round:
                self._rounds += 1
                self._round.notify_all()
            if closing:
                return
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()

    def _begin(self) -> "_BatchWriter":
        engine, config = self.engine, self.engine.config
        rates = self._rates_of(engine)
        facts, start = facts_of(engine, rates), engine.kv_snapshot()
        created_ms = time.time_ns() // 1_000_000 - (time.perf_counter_ns() - start.time_ns) // 1_000_000
        model = self._name(config.model or "")
        recording_id, config_id = self._runs.begin(
            created_ms=created_ms,
            config=config.model_dump(mode="json"),
            model=model,
            environment=self._describe(config),
            facts=facts,
        )
        self.recording_id = recording_id
        script = Transcriber(
            facts, start, created_ms=created_ms, config_id=config_id, model=model, tokenizer=engine.tokenizer
        )
        return _BatchWriter(self._runs, recording_id, script, facts, rates)

    def _tell_notes(self, script: Transcriber) -> None:
        with self._lock:
            notes, self._notes = self._notes, {}
        for request_id, (deadline, note) in notes.items():
            if not script.note(request_id, note) and time.monotonic() < deadline:
                with self._lock:
                    self._notes.setdefault(request_id, (deadline, note))


class _BatchWriter:
    """Stores batches; one that fails is tried again, less and less often, until it has become too large."""

    def __init__(
        self,
        runs: RunStore,
        recording_id: int,
        script: Transcriber,
        facts: EngineFacts,
        rates: MachineRates | None = None,
    ) -> None:
        """`facts` and `rates` are what the recording was begun with."""
        self.script = script
        self._runs = runs
        self._recording_id = recording_id
        self._facts = facts
        self._rates = rates
        self._waiting: list[Batch] = []
        self._pause = 0.0
        self._again_at = 0.0

    def know(self, rates: MachineRates | None) -> None:
        """Store what has been measured of the machine since the recording began; tried again where it cannot be."""
        if rates is None or rates is self._rates or self._waiting:
            return
        try:
            self._runs.know(self._recording_id, with_rates(self._facts, rates))
            self._rates = rates
        except StorageError as error:
            logger.debug("What the machine can do is stored later: %s", error)

    def write(self, *, last: bool) -> int:
        """Store what there is; returns how many rows were given up."""
        batch = self.script.drain()
        if batch.num_rows or batch.segments or batch.broken:
            self._waiting.append(batch)
        if time.monotonic() < self._again_at and not last:
            return self._give_up()
        while self._waiting:
            try:
                gone = self._runs.store(self._recording_id, self._waiting[0]).result()
            except StorageError as error:
                self._pause = min(MAX_PAUSE_SECONDS, max(FLUSH_SECONDS, 2 * self._pause))
                self._again_at = time.monotonic() + self._pause
                logger.debug("Recorded events wait: %s", error)
                return self._give_up()
            self._waiting.pop(0)
            self._pause = 0.0
            if self.script.num_segments in gone:
                self.script.break_segment()
        return 0

    def _give_up(self) -> int:
        """Let go of what waits where it is too much."""
        num_rows = sum(batch.num_rows for batch in self._waiting)
        if num_rows <= MAX_PENDING_ROWS:
            return 0
        for batch in self._waiting:
            self.script.lose(batch)
        self._waiting = []
        return num_rows
