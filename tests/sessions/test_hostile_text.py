"""Any text goes in and comes out the same, and a chat stays the tree that was built, whatever is done to it."""

import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from playground.sessions import SessionStore
from playground.sessions.codec import (
    TITLE_LIMIT,
    canonical_json,
    clean_text,
    config_id,
    join_metrics,
    split_metrics,
    title_from,
)
from playground.sessions.tables import Run, table
from tests.sessions.conftest import contents, reply, turn

HOSTILE = [
    "'; DROP TABLE message; --",
    '" OR 1=1 --',
    "100% _under_ \\ [a-z] *",
    "nul \x00 in the middle",
    "\x00",
    "",
    " \n\t ",
    "<img src=x onerror=alert(1)> ${alert(1)} {{7*7}} <script>",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301 \u202eturned\u202c \ufeff",
    "line\r\nline\rline\u2028line",
    "\U0010ffff\ufffe\x7f\x1b[31m",
    "x" * 1_000_000,
    "🦊" * 300_000,
]


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionStore]:
    with SessionStore(tmp_path_factory.mktemp("hostile") / "chats.db") as store:
        yield store


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_text_comes_back_unchanged_from_every_place_it_can_stand(shared_store: SessionStore, text: str):
    chat = shared_store.create_chat(system_prompt=text)
    saved = turn(shared_store, chat.id, None, text, text, params={"stop": [text]}, config={text[:50]: text})
    assert contents(shared_store, chat.id) == [text, text]
    assert shared_store.get_chat(chat.id).system_prompt == text
    assert saved.run.params == {"stop": [text]}
    assert saved.run.config == {text[:50]: text}
    assert len(shared_store.get_chat(chat.id).title) <= TITLE_LIMIT


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=60)
def test_any_text_comes_back_unchanged_and_can_be_searched_for(shared_store: SessionStore, text: str):
    chat = shared_store.create_chat(title="one of many")
    turn(shared_store, chat.id, None, f"a{text}b", text)
    assert contents(shared_store, chat.id) == [f"a{text}b", text]
    found = shared_store.list_chats(text, limit=1)
    assert [one.id for one in found] == [chat.id]
    shared_store.delete_chat(chat.id)


def test_half_a_surrogate_pair_becomes_a_replacement_mark_instead_of_an_error(shared_store: SessionStore):
    chat = shared_store.create_chat()
    turn(shared_store, chat.id, None, "bad \ud83d half", "fine", params={"stop": ["\udc00"]})
    assert contents(shared_store, chat.id)[0].startswith("bad \ufffd")
    assert shared_store.list_chats("\ud83d half") != []
    assert clean_text("\ud83d\ude00") == "😀"


@given(st.text(max_size=200))
@settings(max_examples=60)
def test_a_title_is_one_visible_line_of_at_most_sixty_characters(text: str):
    title = title_from(text)
    assert 0 < len(title) <= TITLE_LIMIT
    assert len(title.splitlines()) == 1
    assert title == title.strip()
    assert title_from(title) == title


JSON_VALUES = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)


@given(st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=6))
@settings(max_examples=40)
def test_canonical_json_does_not_depend_on_the_order_of_keys(config: dict):
    backwards = dict(reversed(config.items()))
    assert canonical_json(config) == canonical_json(backwards)
    assert config_id(canonical_json(config)) == config_id(canonical_json(backwards))


METRIC_NAMES = st.sampled_from(["num_output_tokens", "kv_blocks_peak", "time_to_first_token", "e2e_latency", "other"])
METRIC_VALUES = st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.booleans()


@given(st.dictionaries(METRIC_NAMES, METRIC_VALUES))
@settings(max_examples=60)
def test_any_metrics_survive_to_the_nanosecond_and_what_is_not_finite_is_none(metrics: dict):
    row = {column.name: None for column in table(Run).c} | split_metrics(metrics)
    back = join_metrics(row)
    assert back.keys() == metrics.keys()
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            assert back[name] is None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            assert back[name] == pytest.approx(value, abs=1e-9)
        elif isinstance(value, str):
            assert back[name] == clean_text(value)
        else:
            assert back[name] is value


class ChatTree(RuleBasedStateMachine):
    """A chat against a plain dict of parents: whatever happens, the branch shown is the path to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.store = SessionStore(":memory:")
        self.chat = self.store.create_chat().id
        self.parents: dict[int, int | None] = {}
        self.texts: dict[int, str] = {}
        self.head: int | None = None

    def teardown(self) -> None:
        self.store.close()

    def _pick(self, choice: int) -> int | None:
        return [None, *self.parents][choice % (len(self.parents) + 1)]

    def _added(self, message_id: int, parent: int | None, text: str) -> None:
        self.parents[message_id], self.texts[message_id] = parent, text

    @rule(choice=st.integers(0, 100), text=st.text(max_size=5))
    def ask(self, choice: int, text: str) -> None:
        parent = self._pick(choice)
        saved = self.store.append_user_message(self.chat, parent_id=parent, text=text)
        self._added(saved.id, parent, saved.content)
        self.head = saved.id

    @precondition(lambda self: self.parents)
    @rule(choice=st.integers(0, 100))
    def answer(self, choice: int) -> None:
        parent = self._pick(choice)
        saved = reply(self.store, self.chat, parent, "answer")
        self._added(saved.id, parent, "answer")
        replaces = self.head is not None and self.parents[self.head] == parent and self.texts[self.head] == "answer"
        if self.head == parent or replaces:
            self.head = saved.id

    @rule(choice=st.integers(0, 100))
    def move_head(self, choice: int) -> None:
        self.head = self._pick(choice)
        self.store.set_head(self.chat, self.head)

    @invariant()
    def the_branch_is_the_path_from_the_root_to_the_head(self) -> None:
        path: list[int] = []
        walker = self.head
        while walker is not None:
            path.insert(0, walker)
            walker = self.parents[walker]
        shown = self.store.messages(self.chat)
        assert [message.id for message in shown] == path
        assert [message.content for message in shown] == [self.texts[message_id] for message_id in path]

    @invariant()
    def no_message_is_ever_lost(self) -> None:
        for message_id, parent in self.parents.items():
            siblings = {message.id for message in self.store.siblings(message_id)}
            assert siblings == {other for other, its_parent in self.parents.items() if its_parent == parent}


ChatTree.TestCase.settings = settings(max_examples=12, stateful_step_count=12)
TestChatTree = ChatTree.TestCase
