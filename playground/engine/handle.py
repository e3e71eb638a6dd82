"""The caller's end of a running request: iterate over it, wait for it, cancel it, from any thread."""

import threading
from collections import deque
from collections.abc import Callable, Iterator

from playground.engine.outputs import Delta, Generation


class GenerationHandle:
    """Made by `Engine.submit`. The engine thread writes, any thread reads; nothing here waits for a reader."""

    def __init__(self, request_id: int, cancel: Callable[[], None]) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self._deltas: deque[Delta] = deque()
        self._generation: Generation | None = None
        self._changed = threading.Condition()

    def cancel(self) -> None:
        """Stop the request within one step; the text so far stays. Does nothing once it has ended."""
        self._cancel()

    @property
    def done(self) -> bool:
        return self._generation is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end (or `timeout` seconds); whether it has ended."""
        with self._changed:
            return self._changed.wait_for(lambda: self._generation is not None, timeout)

    def result(self, timeout: float | None = None) -> Generation:
        """The whole result, waiting for it. Raises `TimeoutError` after `timeout` seconds."""
        if not self.wait(timeout):
            raise TimeoutError(f"request {self.request_id} has not ended after {timeout} s")
        assert self._generation is not None
        return self._generation

    def poll(self) -> list[Delta]:
        """The deltas that came since the last look, without waiting."""
        with self._changed:
            deltas = list(self._deltas)
            self._deltas.clear()
        return deltas

    def __iter__(self) -> Iterator[Delta]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._deltas or self._generation is not None)
                if not self._deltas:
                    return
                delta = self._deltas.popleft()
            yield delta

    def _put(self, delta: Delta) -> None:
        with self._changed:
            self._deltas.append(delta)
            self._changed.notify_all()

    def _finish(self, generation: Generation) -> None:
        with self._changed:
            self._generation = generation
            self._changed.notify_all()
