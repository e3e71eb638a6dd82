"""The comparison that runs: on a thread of its own, with the machine to itself.

It is stored when it ends, whatever ended it and whoever watches. Knows nothing of gradio.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from playground.bench.compare.plan import Plan
from playground.bench.compare.runner import Comparison, EndOfCapture, Record
from playground.config import EngineConfig
from playground.engine.engine import Engine
from playground.errors import PlaygroundError
from playground.sessions import SessionStore
from playground.sessions.capture import RunCapture
from playground.sessions.run_records import COMPARISON, PURPOSE
from playground.sessions.run_store import RunStore
from playground.ui.comparing import view
from playground.ui.environment import describe
from playground.ui.host import EngineHost
from playground.ui.wording import model_name

logger = logging.getLogger(__name__)

_numbers = itertools.count(time.time_ns() // 1_000_000)
LABEL = "A comparison is running"
UNSHOWN = "The comparison cannot be shown because of a fault in the playground; see its log. It is saved when it ends."
FAULT = "The comparison could not be kept because of a fault in the playground; see its log."


class ComparisonRun:
    """One comparison from its start until it is stored."""

    def __init__(self, plan: Plan, setup: Mapping[str, Any], store: SessionStore) -> None:
        self.setup = dict(setup)
        self.number = next(_numbers)
        """Which comparison it is, also for pages that stay open while the playground is started anew."""
        self.revision = 0
        """Counts what there is to be shown anew."""
        self.saved_id: int | None = None
        self.problem: str | None = None
        """Why it could not be stored, in one sentence."""
        self.result: dict[str, Any] | None = None
        """What the page shows of it so far."""
        self._store = store
        self._prompts = plan.prompts
        self._comparison = Comparison(plan, self._on_change, self._capture)
        self._ended = threading.Event()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._ended.wait(timeout)

    def stop(self) -> None:
        self._comparison.stop()

    def progress(self) -> tuple[str, float]:
        return self._comparison.progress()

    def follow(self, lease: ExitStack) -> None:
        """Run it to its end and store it, then give the machine back. Never raises."""
        try:
            record = self._comparison.run()
            lease.close()
            if any(side["outputs"] for side in record["sides"]):
                data = {"setup": self.setup, "record": record}
                self.saved_id = self._store.save_comparison(view.title(self.setup), data).id
            self._draw(record)
        except PlaygroundError as error:
            self.problem = str(error)
        except Exception:
            logger.exception("a comparison failed")
            self.problem = FAULT
        finally:
            lease.close()
            self.revision += 1
            self._ended.set()

    def _capture(self, engine: Engine) -> EndOfCapture:
        """The texts' runs are recorded like a chat's, so that each can be played on the Requests page."""
        capture = RunCapture(RunStore(self._store), engine, _describe, model_name)
        return lambda generations, params: capture.end(generations, params, self._prompts[: len(generations)])

    def _on_change(self, is_record: bool) -> None:
        if is_record:
            self._draw(self._comparison.snapshot())
        self.revision += 1

    def _draw(self, record: Record) -> None:
        """A fault in what is shown spoils no measurement: it is said, and the comparison goes on and is stored."""
        try:
            self.result = view.result(record, self.setup, self.saved_id)
        except Exception:
            logger.exception("a comparison could not be shown")
            self.problem = UNSHOWN
        else:
            self.problem = None


def _describe(config: EngineConfig) -> dict[str, Any]:
    return {**describe(config), PURPOSE: COMPARISON}


class ComparisonRuns:
    """At most one comparison at a time. Thread-safe."""

    def __init__(self, host: EngineHost, store: SessionStore) -> None:
        self._host, self._store = host, store
        self.latest: ComparisonRun | None = None
        """The one that runs, or ran last."""
        self.on_start: Callable[[], None] = lambda: None
        """Called with every new one, on the thread that starts it."""

    @property
    def current(self) -> ComparisonRun | None:
        """The one that runs now."""
        run = self.latest
        return None if run is None or run.ended else run

    def start(self, plan: Plan, setup: Mapping[str, Any]) -> ComparisonRun:
        """Begin one. Raises `ConfigError` while the host is busy, with another comparison for instance.

        The app's engine rests meanwhile. On a GPU it is unloaded, as an engine takes most of its memory by default.
        """
        engine = self._host.engine
        on_gpu = engine is not None and str(engine.config.device).startswith("cuda")
        engine = None  # it would keep the engine's memory
        lease = ExitStack()
        lease.enter_context(self._host.exclusive(LABEL, free_memory=on_gpu))
        run = self.latest = ComparisonRun(plan, setup, self._store)
        threading.Thread(target=run.follow, args=(lease,), name="comparison", daemon=True).start()
        self.on_start()
        return run

    def close(self, timeout: float = 5.0) -> None:
        """Stop what runs and wait until it is stored."""
        run = self.current
        if run is not None:
            run.stop()
            run.wait(timeout)
