"""Replies being written: one `ChatRun` a chat, owned here and not by a browser connection.

A run follows its request on its own thread and stores the result when it ends, whatever ended it and whoever watches;
so a closed tab, a reload or a cancelled handler cannot lose the partial text. Knows nothing of gradio.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from playground.engine.handle import GenerationHandle
from playground.engine.outputs import Generation
from playground.errors import PlaygroundError, RequestError

logger = logging.getLogger(__name__)

Keep = Callable[[Generation], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """A run at one moment."""

    text: str
    num_tokens: int
    seconds_since_first: float | None
    """Since the first token was seen here; None before it."""


class ChatRun:
    """One reply of one chat, from its submission until it is stored."""

    def __init__(
        self, chat_id: int, owner: str, handle: GenerationHandle, num_prompt_tokens: int, num_left_out: int = 0
    ) -> None:
        self.chat_id = chat_id
        self.owner = owner
        """The browser tab that asked for it; closing that tab cancels the run."""
        self.num_prompt_tokens = num_prompt_tokens
        self.num_left_out = num_left_out
        """Messages at the start of the chat that did not fit the model's context any more."""
        self.problem: str | None = None
        """Why the finished reply could not be stored, in one sentence."""
        self.cancelled_for: str | None = None
        """Why it was cancelled, where not by a user."""
        self._handle = handle
        self._pieces: list[str] = []
        self._num_tokens = 0
        self._first_at: float | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @property
    def id(self) -> int:
        return self._handle.request_id

    @property
    def ended(self) -> bool:
        """The request has ended and its reply is stored (or `problem` says why not)."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._ended.wait(timeout)

    def cancel(self, why: str | None = None) -> None:
        """Stop the engine's work on it within one step. The text so far is stored as "stopped"."""
        self.cancelled_for = self.cancelled_for or why
        self._handle.cancel()

    def progress(self) -> Progress:
        with self._lock:
            if len(self._pieces) > 1:
                self._pieces[:] = ["".join(self._pieces)]
            text = self._pieces[0] if self._pieces else ""
            elapsed = None if self._first_at is None else time.monotonic() - self._first_at
            return Progress(text, self._num_tokens, elapsed)

    def follow(self, keep: Keep) -> None:
        """Collect the deltas, then `keep` the result. Runs on the run's own thread; never raises."""
        try:
            for delta in self._handle:
                with self._lock:
                    if self._first_at is None and delta.token_ids:
                        self._first_at = time.monotonic()
                    self._pieces.append(delta.text)
                    self._num_tokens += len(delta.token_ids)
            keep(self._handle.result())
        except PlaygroundError as error:
            self.problem = str(error)
            logger.warning("the reply to request %d was not stored: %s", self.id, error)
        except Exception:
            self.problem = "The reply could not be stored because of a fault in the playground; see its log."
            logger.exception("storing the reply to request %d failed", self.id)
        finally:
            self._ended.set()


class RunRegistry:
    """The runs in progress, at most one a chat. Thread-safe."""

    def __init__(self) -> None:
        self._runs: dict[int, ChatRun] = {}
        self._starting: set[int] = set()
        self._lock = threading.Lock()

    def start(self, chat_id: int, make: Callable[[], tuple[ChatRun, Keep]]) -> ChatRun:
        """Make and follow the run of a chat; `make` submits the request. Refused while the chat has one."""
        with self._lock:
            if chat_id in self._starting or chat_id in self._runs:
                raise RequestError("A reply is being written in this chat: wait for its end or stop it first.")
            self._starting.add(chat_id)
        try:
            run, keep = make()
            with self._lock:
                self._runs[chat_id] = run
        finally:
            with self._lock:
                self._starting.discard(chat_id)
        threading.Thread(target=self._follow, args=(run, keep), name=f"reply-{run.id}", daemon=True).start()
        return run

    def _follow(self, run: ChatRun, keep: Keep) -> None:
        run.follow(keep)
        with self._lock:
            if self._runs.get(run.chat_id) is run:
                del self._runs[run.chat_id]

    def get(self, chat_id: int | None) -> ChatRun | None:
        with self._lock:
            return None if chat_id is None else self._runs.get(chat_id)

    def cancel_owned(self, owner: str) -> None:
        """Cancel what a browser tab that has gone was having written."""
        with self._lock:
            runs = [run for run in self._runs.values() if run.owner == owner]
        for run in runs:
            run.cancel()

    def end_all(self, why: str | None = None, timeout: float = 3.0) -> None:
        """Cancel all runs and wait until their replies are stored, `timeout` seconds at most."""
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            run.cancel(why)
        deadline = time.monotonic() + timeout
        for run in runs:
            run.wait(max(0.0, deadline - time.monotonic()))

    def close(self, timeout: float = 3.0) -> None:
        self.end_all(timeout=timeout)
