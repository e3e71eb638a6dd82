"""Replies being written: one `ChatRun` a chat, owned here and not by a browser connection.

A run follows its request on its own thread and stores what there is of the reply, every second while it grows and when
it has ended, whatever ended it and whoever watches; so a closed tab, a reload, a cancelled handler or the end of the
process cannot lose the partial text. Knows nothing of gradio.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from playground.engine.engine import Engine
from playground.engine.outputs import Generation
from playground.errors import PlaygroundError, RequestError
from playground.sampling_params import SamplingParams
from playground.telemetry.token_trace import TokenTrace, TracedToken

logger = logging.getLogger(__name__)

SAVE_SECONDS = 1.0
"""How often what there is of a reply is saved while it grows."""
LAST_EVENTS_SECONDS = 1.0
"""How long a run that has ended waits at most for the engine's events of its last step."""

_numbers = itertools.count(time.time_ns() // 1_000_000)  # grows over restarts too, for pages that stay open


class Keeper(Protocol):
    """Stores the reply of one run."""

    def save(self, text: str, tokens: Sequence[TracedToken], metrics: Mapping[str, Any]) -> None:
        """What there is so far. Never waits and never raises."""
        ...

    def keep(self, generation: Generation, text: str, tokens: Sequence[TracedToken]) -> None:
        """The whole reply, whatever ended it."""
        ...


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a continued reply has already: the new text and tokens follow it."""

    text: str = ""
    tokens: tuple[TracedToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """A run at one moment."""

    text: str
    num_tokens: int
    """Of this run, what it began with not counted."""
    tokens: Sequence[TracedToken]
    metrics: Mapping[str, Any]


class ChatRun:
    """One reply of one chat, from its submission until it is stored."""

    def __init__(
        self,
        chat_id: int,
        owner: str,
        engine: Engine,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        num_left_out: int = 0,
        beginning: Beginning | None = None,
    ) -> None:
        """Submits the request. Raises `RequestError` where the engine refuses it."""
        self.chat_id = chat_id
        self.number = next(_numbers)
        """Which run it is, whatever engine writes it: a later one has a higher number."""
        self.owner = owner
        """The page in a browser tab that asked for it; closing that page cancels the run."""
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_left_out = num_left_out
        """Messages at the start of the chat that did not fit the model's context any more."""
        self.problem: str | None = None
        """Why the finished reply could not be stored, in one sentence."""
        self.cancelled_for: str | None = None
        """Why it was cancelled, where not by a user."""
        self._beginning = beginning or Beginning()
        self._engine_events = engine.events
        self._events = engine.events.subscribe()
        started_ns = time.perf_counter_ns()
        try:
            self._handle = engine.submit(prompt_token_ids, params)
        except BaseException:
            self._engine_events.unsubscribe(self._events)
            raise
        self._trace = TokenTrace(self._handle.request_id, engine.tokenizer, prompt_token_ids, started_ns)
        self._pieces = [self._beginning.text]
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

    def abandon(self) -> None:
        """Cancel it before anybody follows it."""
        self.cancel()
        self._engine_events.unsubscribe(self._events)

    def progress(self) -> Progress:
        with self._lock:
            self._observe()
            if len(self._pieces) > 1:
                self._pieces[:] = ["".join(self._pieces)]
            tokens = [*self._beginning.tokens, *self._trace.tokens]
            metrics = {"num_prompt_tokens": self.num_prompt_tokens, **self._trace.metrics()}
            return Progress(self._pieces[0], self._trace.num_kept, tokens, metrics)

    def follow(self, keeper: Keeper) -> None:
        """Collect the deltas, then `keep` the result. Runs on the run's own thread; never raises."""
        try:
            saved_at = time.monotonic()
            for delta in self._handle:
                with self._lock:
                    self._pieces.append(delta.text)
                    self._trace.add(delta)
                    self._observe()
                if time.monotonic() - saved_at >= SAVE_SECONDS:
                    now = self.progress()
                    keeper.save(self._text_of(now.tokens), now.tokens, now.metrics)
                    saved_at = time.monotonic()
            generation = self._handle.result()
            self._finish(generation)
            now = self.progress()
            keeper.keep(generation, now.text, now.tokens)
        except PlaygroundError as error:
            self.problem = str(error)
            logger.warning("the reply to request %d was not stored: %s", self.id, error)
        except Exception:
            self.problem = "The reply could not be stored because of a fault in the playground; see its log."
            logger.exception("storing the reply to request %d failed", self.id)
        finally:
            self._engine_events.unsubscribe(self._events)
            self._ended.set()

    def _text_of(self, tokens: Sequence[TracedToken]) -> str:
        """The text up to the last token of which all is known: its step is told a moment after it."""
        return self._beginning.text + "".join(token.text for token in tokens[len(self._beginning.tokens) :])

    def _observe(self) -> None:
        self._trace.observe(self._events.drain(), self._events.num_dropped)

    def _finish(self, generation: Generation) -> None:
        """The last step is told a moment after its tokens."""
        deadline = time.monotonic() + LAST_EVENTS_SECONDS
        while not self._trace.ended and time.monotonic() < deadline:
            self._events.wait(0.05)
            with self._lock:
                self._observe()
        with self._lock:
            self._pieces[:] = [self._beginning.text + generation.text]
            self._trace.finish(generation.text)


class RunRegistry:
    """The runs in progress, at most one a chat. Thread-safe."""

    def __init__(self) -> None:
        self._runs: dict[int, ChatRun] = {}
        self._starting: set[int] = set()
        self._problems: dict[int, str] = {}
        self._lock = threading.Lock()
        self._followers: tuple[tuple[Callable[[ChatRun], None], Callable[[ChatRun], None]], ...] = ()

    def follow(self, begins: Callable[[ChatRun], None], ends: Callable[[ChatRun], None]) -> None:
        """Call `begins` with every run before anybody is given it, and `ends` once it is over; neither may raise."""
        self._followers = (*self._followers, (begins, ends))

    def start(self, chat_id: int, make: Callable[[], tuple[ChatRun, Keeper]]) -> ChatRun:
        """Make and follow the run of a chat; `make` submits the request. Refused while the chat has one."""
        with self._lock:
            before = self._runs.get(chat_id)
            if chat_id in self._starting or (before is not None and not before.ended):
                raise RequestError("A reply is being written in this chat: wait for its end or stop it first.")
            self._starting.add(chat_id)
        try:
            run, keeper = make()
            for begins, _ in self._followers:
                begins(run)
            with self._lock:
                self._runs[chat_id] = run
                self._problems.pop(chat_id, None)
        finally:
            with self._lock:
                self._starting.discard(chat_id)
        threading.Thread(target=self._follow, args=(run, keeper), name=f"reply-{run.id}", daemon=True).start()
        return run

    def _follow(self, run: ChatRun, keeper: Keeper) -> None:
        run.follow(keeper)
        with self._lock:
            if self._runs.get(run.chat_id) is run:
                del self._runs[run.chat_id]
            if run.problem is not None:
                self._problems[run.chat_id] = run.problem
        for _, ends in self._followers:
            ends(run)

    def get(self, chat_id: int | None) -> ChatRun | None:
        """The run of a chat that has not ended."""
        with self._lock:
            run = None if chat_id is None else self._runs.get(chat_id)
        return None if run is None or run.ended else run

    def problem(self, chat_id: int | None) -> str | None:
        """Why the latest reply of a chat could not be stored, in one sentence; None where it was."""
        if chat_id is None:
            return None
        with self._lock:
            run = self._runs.get(chat_id)
            return self._problems.get(chat_id) if run is None else run.problem

    def cancel_owned(self, owner: str) -> None:
        """Cancel what a page that was closed was having written."""
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
