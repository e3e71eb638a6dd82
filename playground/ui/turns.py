"""What a user can do to a conversation: ask, retry, edit, undo. Talks to the engine and the store, never to gradio.

A question is stored as soon as the engine took it, a reply when it ended, whatever ended it. Nothing is overwritten:
retries and edits are branches of the saved chat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from playground.engine.engine import Engine
from playground.engine.outputs import Generation
from playground.errors import RequestError
from playground.sampling_params import SamplingParams
from playground.sessions import MessageInfo, RunStatus, SessionStore, StorageError
from playground.sessions.recorder import RunRecorder
from playground.sessions.transcriber import Note
from playground.ui.host import EngineHost
from playground.ui.runs import ChatRun, Keep, RunRegistry
from playground.ui.settings import sampling_params
from playground.ui.wording import metrics_dict

ROOM_SHARE = 4
"""Old messages are left out until at least 1/4 of the context (or max_tokens, if less) is free for the reply."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How the reply is to be made: the settings as they were typed, and the chat's system prompt."""

    settings: Mapping[str, Any]
    system_prompt: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation as token ids, after the oldest turns that do not fit were left out."""

    token_ids: list[int]
    num_left_out: int


def fit(engine: Engine, system_prompt: str, messages: Sequence[MessageInfo], max_tokens: int) -> Fitted:
    """The newest turns that fit the model's context and leave room for a reply. The last question is never left out."""
    limit = engine.config.max_model_len or 0
    room = max(1, min(max_tokens, limit // ROOM_SHARE))
    start = 0
    while True:
        chat = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
        chat += [{"role": message.role, "content": message.content} for message in messages[start:]]
        token_ids = engine.chat_prompt(chat)
        following = [i for i in range(start + 1, len(messages)) if messages[i].role == "user"]
        if len(token_ids) + room <= limit or not following:
            return Fitted(token_ids, start)
        start = following[0]


class Turns:
    """The conversation's verbs, for the engine of the moment and one store.

    Every method may block: call it off the event loop.
    """

    def __init__(
        self, host: EngineHost, store: SessionStore, runs: RunRegistry, recorder: RunRecorder | None = None
    ) -> None:
        self._host = host
        self._store = store
        self.runs = runs
        self._recorder = recorder

    def ask(self, chat_id: int | None, text: str, wish: Wish, owner: str) -> ChatRun:
        """Send a question at the end of a chat (None: a new one) and start the reply."""
        if not text.strip():
            raise RequestError("The message is empty: write something first.")
        params = sampling_params(wish.settings)
        if chat_id is not None:
            self._require(chat_id)
            return self._question(chat_id, self._store.messages(chat_id), text, wish, params, owner)
        self._check(self._host.require(), text, wish, params)
        chat = self._store.create_chat(system_prompt=wish.system_prompt)
        try:
            return self._question(chat.id, [], text, wish, params, owner)
        except BaseException:
            self._store.delete_chat(chat.id)
            raise

    def edit(self, chat_id: int, text: str, wish: Wish, owner: str) -> ChatRun:
        """Ask the last question again in other words; the old one and its reply stay as a branch."""
        if not text.strip():
            raise RequestError("The message is empty: write something, or cancel the edit.")
        before, _, _ = self._last_turn(chat_id)
        return self._question(chat_id, before, text, wish, sampling_params(wish.settings), owner)

    def retry(self, chat_id: int, wish: Wish, owner: str) -> ChatRun:
        """Write the last reply again. The old reply stays the chat's end until the new one is stored."""
        before, question, _ = self._last_turn(chat_id)
        params = sampling_params(wish.settings)

        def make() -> tuple[ChatRun, Keep]:
            self._store.set_system_prompt(chat_id, wish.system_prompt)
            engine = self._host.require()
            run = self._submit(engine, chat_id, [*before, question], wish, params, owner)
            return run, self._keeper(run, question.id, params, engine)

        return self.runs.start(chat_id, make)

    def undo(self, chat_id: int) -> str:
        """Take the last question and its reply back; returns the question's text."""
        if self.runs.get(chat_id) is not None:
            raise RequestError("A reply is being written in this chat: stop it before you take the message back.")
        _, question, _ = self._last_turn(chat_id)
        self._store.set_head(chat_id, question.parent_id)
        return question.content

    def delete(self, chat_id: int) -> None:
        run = self.runs.get(chat_id)
        if run is not None:
            run.cancel()
            run.wait(2.0)
        self._store.delete_chat(chat_id)

    # Parts

    def _require(self, chat_id: int) -> None:
        if self._store.get_chat(chat_id) is None:
            raise StorageError("This chat no longer exists, it may have been deleted in another tab: start a new chat.")

    def _last_turn(self, chat_id: int) -> tuple[list[MessageInfo], MessageInfo, MessageInfo | None]:
        """What came before the last question, the question, its reply."""
        messages = self._store.messages(chat_id)
        for index in range(len(messages) - 1, -1, -1):
            if messages[index].role == "user":
                return messages[:index], messages[index], messages[index + 1] if index + 1 < len(messages) else None
        raise RequestError("This chat has no message yet: write one first.")

    def _check(self, engine: Engine, text: str, wish: Wish, params: SamplingParams) -> None:
        """Refuse what the engine would refuse, before anything is stored."""
        question = MessageInfo(0, 0, None, "user", text, 0)
        fitted = fit(engine, wish.system_prompt, [question], params.max_tokens)
        limit = (engine.config.max_model_len or 0) - 1
        if len(fitted.token_ids) > limit:
            raise RequestError(
                f"The message is too long: it makes a prompt of {len(fitted.token_ids)} tokens, and this model takes "
                f"at most {limit}. Shorten it, or the system prompt."
            )

    def _question(
        self, chat_id: int, before: Sequence[MessageInfo], text: str, wish: Wish, params: SamplingParams, owner: str
    ) -> ChatRun:
        parent_id = before[-1].id if before else None

        def make() -> tuple[ChatRun, Keep]:
            engine = self._host.require()
            self._check(engine, text, wish, params)
            draft = MessageInfo(0, chat_id, parent_id, "user", text, 0)
            run = self._submit(engine, chat_id, [*before, draft], wish, params, owner)
            try:
                self._store.set_system_prompt(chat_id, wish.system_prompt)
                question = self._store.append_user_message(chat_id, parent_id=parent_id, text=text)
            except BaseException:
                run.cancel()
                raise
            return run, self._keeper(run, question.id, params, engine)

        return self.runs.start(chat_id, make)

    def _submit(
        self,
        engine: Engine,
        chat_id: int,
        messages: Sequence[MessageInfo],
        wish: Wish,
        params: SamplingParams,
        owner: str,
    ) -> ChatRun:
        fitted = fit(engine, wish.system_prompt, messages, params.max_tokens)
        handle = engine.submit(fitted.token_ids, params)
        return ChatRun(chat_id, owner, handle, len(fitted.token_ids), fitted.num_left_out)

    def _keeper(self, run: ChatRun, question_id: int, params: SamplingParams, engine: Engine) -> Keep:
        def keep(generation: Generation) -> None:
            ended: dict[str, RunStatus] = {"abort": "stopped", "error": "error"}
            metrics = metrics_dict(generation.metrics)
            metrics |= {"finish_reason": generation.finish_reason, "num_messages_left_out": run.num_left_out}
            if generation.error or run.cancelled_for:
                metrics["error"] = generation.error or run.cancelled_for
            reply = self._store.append_reply(
                run.chat_id,
                parent_id=question_id,
                text=generation.text,
                status=ended.get(generation.finish_reason, "done"),
                metrics=metrics,
                config=engine.config.model_dump(mode="json"),
                params=params.model_dump(mode="json"),
                seed=params.seed,
            )
            if self._recorder is not None:
                logprobs = [one.logprob for one in generation.logprobs or ()]
                note = Note(run.chat_id, reply.id, params.model_dump(mode="json"), metrics, logprobs)
                self._recorder.note(engine, generation, note)

        return keep
