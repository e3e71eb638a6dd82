"""The engine's own thread: builds the core, takes commands from any thread, runs steps while there is work.

Only this thread touches scheduler, executor and trackers; everybody else leaves a command in the inbox. That it also
loads the model keeps all parallel work of torch on one thread: GNU OpenMP gives each thread that asks for some workers
of its own, and with more workers than cores they stop spinning. Then every parallel region pays for waking them:
bundled model, 16 requests, bfloat16, two cores: 11.8 ms a step where the main thread had loaded it, 5.6 where not.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from playground.engine.core import EngineCore
from playground.engine.openmp import release_workers
from playground.errors import RequestError

logger = logging.getLogger(__name__)

CLOSED = "the engine was closed"
T = TypeVar("T")


class EngineLoop:
    """Builds an `EngineCore` and runs it until it is stopped."""

    def __init__(self, build: Callable[[], EngineCore]) -> None:
        """Returns once `build` has, which runs on the loop's thread; raises what it raises."""
        self._core: EngineCore | None = None
        self._inbox: deque[Callable[[EngineCore], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._pausing = False
        self._parked = False  # the thread has ended for a pause: who has a command carries it out
        built: Future[EngineCore] = Future()
        # In a list, which is emptied: a thread holds on to its arguments, and `build` to the engine.
        self._thread = threading.Thread(target=self._run, args=([build], built), name="engine-loop", daemon=True)
        self._thread.start()
        self._core = built.result()

    @property
    def core(self) -> EngineCore | None:
        """What runs; None once the loop is closed."""
        return self._core

    @property
    def closed(self) -> bool:
        return self._closing

    def post(self, command: Callable[[EngineCore], None]) -> bool:
        """Have `command` run on the engine thread before its next step; False if the loop is closed."""
        with self._wake:
            if self._closing:
                return False
            if self._parked:
                assert self._core is not None
                self._carry_out(command, self._core)
            else:
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
            if self._parked and self._core is not None:
                self._core.fail_all(CLOSED)
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._core = None

    def pause(self) -> None:
        """End the thread after the step that is being run: torch's workers for it end with it. Waits for that.

        Commands are carried out meanwhile, by whoever gives them, steps are not. Not for the engine thread.
        """
        with self._wake:
            self._pausing = True
            self._wake.notify()
        self._thread.join()

    def resume(self) -> None:
        """Run steps again, on a new thread."""
        with self._wake:
            self._pausing = False
            if self._closing or not self._parked:
                return
            self._parked = False
            self._thread = threading.Thread(target=self._serve, args=(self._core,), name="engine-loop", daemon=True)
            self._thread.start()

    def _run(self, build: list[Callable[[], EngineCore]], built: "Future[EngineCore]") -> None:
        try:
            core = build.pop()()
        except BaseException as error:
            built.set_exception(error)
            return
        built.set_result(core)
        del built
        self._serve(core)

    def _serve(self, core: EngineCore) -> None:
        while True:
            if not (core.has_work or self._inbox):
                release_workers()
            with self._wake:
                self._wake.wait_for(lambda: self._inbox or self._closing or self._pausing or core.has_work)
                closing = self._closing
                if self._pausing and not self._inbox and not closing:
                    self._parked = True
                    return
            try:
                while self._inbox:  # kept in no variable: a command holds on to the engine that posted it
                    self._inbox.popleft()(core)
                if closing:
                    core.fail_all(CLOSED)
                    return
                if core.has_work:
                    core.step()
            except Exception as error:
                _contain(error, core)

    def _carry_out(self, command: Callable[[EngineCore], None], core: EngineCore) -> None:
        try:
            command(core)
        except Exception as error:
            _contain(error, core)


def _contain(error: Exception, core: EngineCore) -> None:
    """What a step did not contain itself: nobody may be left waiting, and the next request is served."""
    logger.exception("an engine step failed")
    core.fail_all(f"the engine step failed: {type(error).__name__}: {error}")
