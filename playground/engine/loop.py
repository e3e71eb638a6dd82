"""The engine's own thread: takes commands from any thread, runs steps while there is work, sleeps otherwise.

Only this thread touches scheduler, executor and trackers; everybody else leaves a command in the inbox.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from playground.engine.core import EngineCore
from playground.errors import RequestError

logger = logging.getLogger(__name__)

CLOSED = "the engine was closed"
T = TypeVar("T")


class EngineLoop:
    """Runs an `EngineCore` until it is stopped."""

    def __init__(self, core: EngineCore) -> None:
        self._core: EngineCore | None = core
        self._inbox: deque[Callable[[EngineCore], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, args=(core,), name="engine-loop", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closing

    def post(self, command: Callable[[EngineCore], None]) -> bool:
        """Have `command` run on the engine thread before its next step; False if the loop is closed."""
        with self._wake:
            if self._closing:
                return False
            self._inbox.append(command)
            self._wake.notify()
        return True

    def call(self, command: Callable[[EngineCore], T]) -> T:
        """What `command` returns or raises on the engine thread, before its next step. Not for the engine thread."""
        answer: Future[T] = Future()

        def run(core: EngineCore) -> None:
            try:
                answer.set_result(command(core))
            except Exception as error:
                answer.set_exception(error)

        if not self.post(run):
            raise RequestError(f"{CLOSED}: make a new one.")
        return answer.result()

    def close(self) -> None:
        """Answer every request with an error, then end the thread. Waits for it."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._core = None

    def _run(self, core: EngineCore) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._inbox or self._closing or core.has_work)
                closing = self._closing
            try:
                while self._inbox:  # kept in no variable: a command holds on to the engine that posted it
                    self._inbox.popleft()(core)
                if closing:
                    core.fail_all(CLOSED)
                    return
                if core.has_work:
                    core.step()
            except Exception as error:
                # Whatever a step did not contain itself: nobody may be left waiting, and the next request is served.
                logger.exception("an engine step failed")
                core.fail_all(f"the engine step failed: {type(error).__name__}: {error}")
