"""What a user can do to a conversation: ask, retry, edit, continue, undo, go to another branch.

Talks to the engine and the store, never to gradio. A question is stored as soon as the engine took it, a reply while it
grows. Nothing is overwritten: retries, edits and continuations are branches of the saved chat; and what a tab asks for
is refused where the chat has gone on since it was drawn there.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from playground.engine.engine import Engine
from playground.errors import RequestError
from playground.sampling_params import SamplingParams
from playground.sessions import MessageInfo, SessionStore, StorageError
from playground.sessions.recorder import RunRecorder
from playground.telemetry.token_trace import unpack
from playground.ui.host import EngineHost
from playground.ui.keeping import ReplyKeeper
from playground.ui.runs import Beginning, ChatRun, Keeper, RunRegistry
from playground.ui.settings import sampling_params

ROOM_SHARE = 4
"""Old messages are left out until at least 1/4 of the context (or max_tokens, if less) is free for the reply."""
NUM_RIVALS = 5
"""The most probable tokens that are asked for at each place where a tab shows them."""
STALE = "This chat has gone on in another tab, and is shown now as it is: look at it, then try again."
GONE = "This chat no longer exists, it may have been deleted in another tab: start a new chat."


@dataclass(frozen=True, slots=True)
class Wish:
    """How the reply is to be made: the settings as they were typed, and the chat's system prompt."""

    settings: Mapping[str, Any]
    system_prompt: str
    probabilities: bool = False
    """Whether each token's probability and its rivals' are to be told."""

    def params(self) -> SamplingParams:
        params = sampling_params(self.settings)
        return params.model_copy(update={"logprobs": NUM_RIVALS}) if self.probabilities else params


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation as token ids, after the oldest turns that do not fit were left out."""

    token_ids: list[int]
    num_left_out: int


def fit(
    engine: Engine,
    system_prompt: str,
    messages: Sequence[MessageInfo],
    max_tokens: int,
    reply_ids: Sequence[int] = (),
) -> Fitted:
    """The newest turns that fit the model's context and leave room for a reply. The last question is never left out.

    `reply_ids` is what the reply has already.
    """
    limit = engine.config.max_model_len or 0
    room = max(1, min(max_tokens, limit // ROOM_SHARE))
    start = 0
    while True:
        chat = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
        chat += [{"role": message.role, "content": message.content} for message in messages[start:]]
        token_ids = [*engine.chat_prompt(chat), *reply_ids]
        following = [i for i in range(start + 1, len(messages)) if messages[i].role == "user"]
        if len(token_ids) + room <= limit or not following:
            return Fitted(token_ids, start)
        start = following[0]


def can_continue(reply: MessageInfo) -> bool:
    """Whether the reply ended before its model had ended it: it was stopped, or reached its most tokens."""
    run = reply.run
    if run is None or not reply.content.strip():
        return False
    return run.status == "stopped" or run.metrics.get("finish_reason") == "length"


class Turns:
    """The conversation's verbs, for the engine of the moment and one store.

    `seen` is what a tab shows as the last message of the chat: its id, 0 for an empty chat, None where it does not say.
    Every method may block: call it off the event loop.
    """

    def __init__(
        self,
        host: EngineHost,
        store: SessionStore,
        runs: RunRegistry,
        discarded: Container[int] = (),
        recorder: RunRecorder | None = None,
    ) -> None:
        """`discarded`: chats that are about to be deleted."""
        self._host = host
        self._store = store
        self._discarded = discarded
        self.runs = runs
        self._recorder = recorder

    def ask(self, chat_id: int | None, text: str, wish: Wish, owner: str, seen: int | None = None) -> ChatRun:
        """Send a question at the end of a chat (None: a new one) and start the reply."""
        if not text.strip():
            raise RequestError("The message is empty: write something first.")
        params = wish.params()
        if chat_id is not None:
            self._require(chat_id)
            return self._question(chat_id, lambda: self._branch(chat_id, seen), text, wish, params, owner)
        self._check(self._host.require(), text, wish, params)
        chat = self._store.create_chat(system_prompt=wish.system_prompt)
        try:
            return self._question(chat.id, list, text, wish, params, owner)
        except BaseException:
            self._store.delete_chat(chat.id)
            raise

    def edit(
        self,
        chat_id: int,
        text: str,
        wish: Wish,
        owner: str,
        seen: int | None = None,
        message_id: int | None = None,
    ) -> ChatRun:
        """Ask a question (None: the last one) again in other words; the old one and what followed stay as a branch."""
        if not text.strip():
            raise RequestError("The message is empty: write something, or cancel the edit.")

        def before() -> list[MessageInfo]:
            branch = self._branch(chat_id, seen)
            return branch[: self._question_at(branch, message_id)]

        return self._question(chat_id, before, text, wish, wish.params(), owner)

    def retry(self, chat_id: int, wish: Wish, owner: str, seen: int | None = None) -> ChatRun:
        """Write the last reply again. The old reply stays the chat's end until there is something of the new one."""
        params = wish.params()

        def make() -> tuple[ChatRun, Keeper]:
            branch = self._branch(chat_id, seen)
            end = self._question_at(branch)
            return self._reply(chat_id, branch[: end + 1], wish, params, owner)

        return self.runs.start(chat_id, make)

    def extend(self, chat_id: int, wish: Wish, owner: str, seen: int | None = None) -> ChatRun:
        """Go on with the last reply where it was stopped or cut off by its limit; the shorter one stays as a branch."""
        params = wish.params()

        def make() -> tuple[ChatRun, Keeper]:
            branch = self._branch(chat_id, seen)
            end = self._question_at(branch)
            reply = branch[-1]
            if end == len(branch) - 1 or not can_continue(reply):
                raise RequestError("The model has ended this reply: there is nothing to continue. Retry it instead.")
            return self._reply(chat_id, branch[: end + 1], wish, params, owner, continued=reply)

        return self.runs.start(chat_id, make)

    def undo(self, chat_id: int, seen: int | None = None) -> str:
        """Take the last question and its reply back; returns the question's text."""
        self._refuse_while_writing(chat_id, "take the message back")
        branch = self._branch(chat_id, seen)
        question = branch[self._question_at(branch)]
        self._store.set_head(chat_id, question.parent_id)
        return question.content

    def switch(self, chat_id: int, message_id: int) -> None:
        """Show the newest branch that passes through this message."""
        self._refuse_while_writing(chat_id, "go to another version")
        self._require(chat_id)
        self._store.set_head(chat_id, self._store.newest_leaf(message_id))

    def silence(self, chat_id: int) -> None:
        """End the reply that is being written in a chat, if there is one."""
        run = self.runs.get(chat_id)
        if run is not None:
            run.cancel()
            run.wait(2.0)

    def delete(self, chat_id: int) -> None:
        self.silence(chat_id)
        self._store.delete_chat(chat_id)

    # Parts

    def _require(self, chat_id: int) -> None:
        if chat_id in self._discarded or self._store.get_chat(chat_id) is None:
            raise StorageError(GONE)

    def _refuse_while_writing(self, chat_id: int, what: str) -> None:
        if self.runs.get(chat_id) is not None:
            raise RequestError(f"A reply is being written in this chat: stop it before you {what}.")

    def _branch(self, chat_id: int, seen: int | None) -> list[MessageInfo]:
        """The chat's messages; refused where the tab that asks shows others."""
        branch = self._store.messages(chat_id)
        if seen is not None and seen != (branch[-1].id if branch else 0):
            raise RequestError(STALE)
        return branch

    def _question_at(self, branch: Sequence[MessageInfo], message_id: int | None = None) -> int:
        """The index of a question: of the last one where none is named."""
        for index in range(len(branch) - 1, -1, -1):
            if branch[index].role == "user" and message_id in (None, branch[index].id):
                return index
        if message_id is not None:
            raise RequestError(STALE)
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
        self,
        chat_id: int,
        read_before: Callable[[], list[MessageInfo]],
        text: str,
        wish: Wish,
        params: SamplingParams,
        owner: str,
    ) -> ChatRun:
        def make() -> tuple[ChatRun, Keeper]:
            before = read_before()
            parent_id = before[-1].id if before else None
            engine = self._host.require()
            self._check(engine, text, wish, params)
            draft = MessageInfo(0, chat_id, parent_id, "user", text, 0)
            fitted = fit(engine, wish.system_prompt, [*before, draft], params.max_tokens)
            run = ChatRun(chat_id, owner, engine, fitted.token_ids, params, num_left_out=fitted.num_left_out)
            try:
                self._store.set_system_prompt(chat_id, wish.system_prompt)
                question = self._store.append_user_message(chat_id, parent_id=parent_id, text=text)
            except BaseException:
                run.abandon()
                raise
            return run, ReplyKeeper(self._store, run, question.id, params, engine, self._recorder)

        return self.runs.start(chat_id, make)

    def _reply(
        self,
        chat_id: int,
        messages: Sequence[MessageInfo],
        wish: Wish,
        params: SamplingParams,
        owner: str,
        continued: MessageInfo | None = None,
    ) -> tuple[ChatRun, Keeper]:
        """Another reply to the last of `messages`."""
        self._require(chat_id)
        self._store.set_system_prompt(chat_id, wish.system_prompt)
        engine = self._host.require()
        beginning, ids = Beginning(), list[int]()
        if continued is not None:
            beginning, ids = _beginning(continued, engine)
        fitted = fit(engine, wish.system_prompt, messages, params.max_tokens, ids)
        run = ChatRun(
            chat_id, owner, engine, fitted.token_ids, params, num_left_out=fitted.num_left_out, beginning=beginning
        )
        keeper = ReplyKeeper(self._store, run, messages[-1].id, params, engine, self._recorder)
        if continued is not None:
            keeper.extra["continues"] = continued.id
        return run, keeper


def _beginning(reply: MessageInfo, engine: Engine) -> tuple[Beginning, list[int]]:
    """What a reply has already, for the screen and for the model: its very tokens, where they are known."""
    assert reply.run is not None, "a reply has a run"
    tokens = unpack(reply.run.metrics.get("tokens"))
    known = "".join(token.text for token in tokens) == reply.content
    whole = not reply.content.endswith("\ufffd")  # half a character would be completed, or not, behind its mark
    if known and whole and reply.run.config.get("model") == engine.config.model:
        return Beginning(reply.content, tuple(tokens)), [token.token_id for token in tokens]
    content = reply.content.rstrip("\ufffd")
    assert engine.tokenizer is not None, "a model without a tokenizer writes no text"
    ids = list(engine.tokenizer.encode(content, add_special_tokens=False))
    return Beginning(content, tuple(tokens) if known and whole else ()), ids
