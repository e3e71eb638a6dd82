"""The only thread that writes to the chat database: a queue of units, each one transaction.

Callers get a Future with the result or the error. A unit that fails is rolled back and the next one runs; each has a
deadline from the moment it was queued, so that a locked database makes everybody wait once, not one after another.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from playground.sessions.database import WRITE_WAIT_MS
from playground.sessions.errors import StorageError, explained

T = TypeVar("T")
logger = logging.getLogger(__name__)
Unit = Callable[[Connection], T]

LOCK_WAIT_SECONDS = 5.0
MIN_LOCK_WAIT_MS = 20


class Writer:
    """Runs units one after another on its own connection. `close` runs what is queued, then ends the thread."""

    def __init__(self, engine: Engine, path: str, lock_wait: float = LOCK_WAIT_SECONDS) -> None:
        self._engine = engine
        self._path = path
        self._lock_wait = lock_wait
        self._queue: queue.SimpleQueue[tuple[Unit[Any], Future[Any], float] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="chat-store-writer", daemon=True)
        self._thread.start()

    def submit(self, unit: Unit[T], lock_wait: float | None = None) -> "Future[T]":
        """Queue one transaction. `lock_wait`: seconds that this one may wait for another program's lock."""
        future: Future[T] = Future()
        with self._lock:  # so that nothing can be queued behind the closing mark
            if self._closed:
                raise StorageError("The chat store is closed: restart the playground to go on saving chats.")
            self._queue.put((unit, future, time.monotonic() + (self._lock_wait if lock_wait is None else lock_wait)))
        return future

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            unit, future, deadline = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                with explained(self._path):
                    result = self._transaction(unit, deadline)
            except BaseException as error:  # the caller re-raises it; this thread must live on
                logger.warning("A change was not stored: %s", error)
                future.set_exception(error)
            else:
                future.set_result(result)

    def _transaction(self, unit: Unit[T], deadline: float) -> T:
        wait_ms = max(MIN_LOCK_WAIT_MS, int((deadline - time.monotonic()) * 1000))
        with self._engine.connect().execution_options(**{WRITE_WAIT_MS: wait_ms}) as connection, connection.begin():
            return unit(connection)
