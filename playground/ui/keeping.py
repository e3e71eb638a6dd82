"""`ReplyKeeper`: how a reply gets into the store, while it grows and when it has ended. Knows nothing of gradio.

What is stored in mid-reply already says "stopped": whoever opens the chat after the process was killed sees the text so
far, marked as what it is.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from playground.engine.engine import Engine
from playground.engine.outputs import Generation
from playground.errors import PlaygroundError
from playground.sampling_params import SamplingParams
from playground.sessions import MessageInfo, RunStatus, SessionStore
from playground.sessions.recorder import RunRecorder
from playground.sessions.transcriber import Note
from playground.telemetry.token_trace import TracedToken, pack
from playground.ui.runs import ChatRun
from playground.ui.wording import metrics_dict

INTERRUPTED = "the playground was ended while this was written"
_ENDED: dict[str, RunStatus] = {"abort": "stopped", "error": "error"}


class ReplyKeeper:
    """Stores the reply of one run, as the answer to one question."""

    def __init__(
        self,
        store: SessionStore,
        run: ChatRun,
        question_id: int,
        params: SamplingParams,
        engine: Engine,
        recorder: RunRecorder | None = None,
    ) -> None:
        """`recorder` is told which message a recorded run became."""
        self._store = store
        self._run = run
        self._question_id = question_id
        self._params = params
        self._config = engine.config.model_dump(mode="json")
        self._engine = engine
        self._recorder = recorder
        self._saving: Future[MessageInfo] | None = None
        self._message_id: int | None = None
        self.extra: dict[str, Any] = {"num_messages_left_out": run.num_left_out}
        """What is stored among the metrics beside those of the engine."""

    def save(self, text: str, tokens: Sequence[TracedToken], metrics: Mapping[str, Any]) -> None:
        """What there is so far, as "stopped". Skipped while the last saving is under way; a failure is only logged."""
        if not text or (self._saving is not None and not self._saving.done()):
            return
        self._settle()
        try:
            self._saving = self._append(text, "stopped", {**metrics, "error": INTERRUPTED}, tokens)
        except PlaygroundError:  # the store is closed: the end of the run will say so
            self._saving = None

    def keep(self, generation: Generation, text: str, tokens: Sequence[TracedToken]) -> None:
        """The whole reply. Raises `StorageError` where it cannot be stored."""
        self._settle()
        metrics = {**metrics_dict(generation.metrics), "finish_reason": generation.finish_reason}
        if generation.error or self._run.cancelled_for:
            metrics["error"] = generation.error or self._run.cancelled_for
        reply = self._append(text, _ENDED.get(generation.finish_reason, "done"), metrics, tokens).result()
        if self._recorder is not None:
            logprobs = [one.logprob for one in generation.logprobs or ()]
            note = Note(self._run.chat_id, reply.id, self._params.model_dump(mode="json"), metrics, logprobs)
            self._recorder.note(self._engine, generation, note)

    def _settle(self) -> None:
        """Wait for the saving that is under way; from the first that succeeds on, the message is known."""
        if self._saving is not None and self._saving.exception() is None:
            self._message_id = self._saving.result().id
        self._saving = None

    def _append(
        self, text: str, status: RunStatus, metrics: Mapping[str, Any], tokens: Sequence[TracedToken]
    ) -> "Future[MessageInfo]":
        return self._store.append_reply_soon(
            self._run.chat_id,
            parent_id=self._question_id,
            text=text,
            status=status,
            metrics={**metrics, **self.extra, "tokens": pack(tokens)},
            config=self._config,
            params=self._params.model_dump(mode="json"),
            seed=self._params.seed,
            message_id=self._message_id,
        )
