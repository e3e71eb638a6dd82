"""What the store promises: turns come back as they were given, branches are kept, search finds, delete deletes."""

import dataclasses
import sqlite3
import time

import pytest

from playground.engine.outputs import RequestMetrics
from playground.sessions import SessionStore, StorageError
from tests.sessions.conftest import contents, reply, turn

METRICS = RequestMetrics(
    num_prompt_tokens=12,
    num_output_tokens=34,
    num_cached_tokens=8,
    kv_blocks_peak=3,
    queue_time=0.001234567,
    time_to_first_token=0.123456789,
    inter_token_latencies=(0.01, 0.02),
    e2e_latency=1.5,
)


def test_a_turn_comes_back_with_its_metrics_configuration_and_parameters(store: SessionStore):
    chat = store.create_chat(system_prompt="Be brief.")
    config = {"model": "storyteller", "block_size": 16, "nested": {"speculation": None}}
    saved = turn(
        store,
        chat.id,
        None,
        "Hello",
        "Hi there",
        status="stopped",
        metrics=dataclasses.asdict(METRICS),
        config=config,
        params={"temperature": 0.7, "stop": ("a", "b")},
        seed=-(2**63),
    )
    question, answer = store.messages(chat.id)
    assert (question.role, question.content, question.parent_id, question.run) == ("user", "Hello", None, None)
    assert (answer.role, answer.content, answer.parent_id) == ("assistant", "Hi there", question.id)
    assert answer == saved
    assert answer.run is not None
    assert answer.run.status == "stopped"
    assert answer.run.seed == -(2**63)
    assert answer.run.config == config
    assert answer.run.params == {"temperature": 0.7, "stop": ["a", "b"]}
    lists = {"inter_token_latencies": [0.01, 0.02], "drafts_reached": [], "drafts_accepted": []}  # JSON has no tuples
    expected = dataclasses.asdict(METRICS) | lists
    assert answer.run.metrics == expected


def test_a_metric_that_was_not_measured_comes_back_as_none_and_not_as_zero(store: SessionStore):
    chat = store.create_chat()
    metrics = {"time_to_first_token": None, "acceptance_rate": float("nan"), "num_output_tokens": 0}
    saved = turn(store, chat.id, None, "q", "a", metrics=metrics)
    assert saved.run is not None
    assert saved.run.metrics == {"time_to_first_token": None, "acceptance_rate": None, "num_output_tokens": 0}


def test_a_configuration_is_stored_once_whatever_the_order_of_its_fields(file_store: SessionStore):
    chat = file_store.create_chat()
    first = turn(file_store, chat.id, None, "q", "a", config={"a": 1, "b": [1, 2]})
    second = turn(file_store, chat.id, first.id, "q", "a", config={"b": [1, 2], "a": 1})
    third = turn(file_store, chat.id, second.id, "q", "a", config={"a": 2, "b": [1, 2]})
    runs = [message.run for message in (first, second, third)]
    assert runs[0].config_id == runs[1].config_id != runs[2].config_id
    assert count_rows(file_store, "config") == 2
    assert count_rows(file_store, "run") == 3


def test_everything_is_still_there_after_closing_and_opening_again(tmp_path):
    path = tmp_path / "deep" / "folder?with%odd#names" / "chats.db"
    with SessionStore(path) as store:
        chat = store.create_chat(title="Kept")
        turn(store, chat.id, None, "question", "answer", metrics={"num_output_tokens": 3})
        before = (store.list_chats(), store.messages(chat.id))
    assert [file.name for file in path.parent.iterdir()] == ["chats.db"]  # no log left behind
    with SessionStore(path) as store:
        assert (store.list_chats(), store.messages(chat.id)) == before


def test_closing_twice_is_fine_and_a_closed_store_says_so(store: SessionStore):
    store.close()
    store.close()
    with pytest.raises(StorageError, match="closed"):
        store.create_chat()


# The name of a chat


def test_the_first_question_names_the_chat_in_one_short_line(store: SessionStore):
    chat = store.create_chat()
    assert chat.title == "New chat"
    first = store.append_user_message(
        chat.id, parent_id=None, text="  Tell me\na story\tabout a " + "very " * 30 + "old fox"
    )
    title = store.get_chat(chat.id).title
    assert title.startswith("Tell me a story about a very very")
    assert title.endswith("very…")
    assert len(title) <= 60
    store.append_user_message(chat.id, parent_id=first.id, text="Another question")
    assert store.get_chat(chat.id).title == title


def test_a_chat_named_by_the_user_keeps_its_name(store: SessionStore):
    given = store.create_chat(title="My title")
    renamed = store.create_chat()
    assert store.rename_chat(renamed.id, "  Chosen\n" + "x" * 100).title == "Chosen " + "x" * 52 + "…"
    for chat in (given, renamed):
        title = store.get_chat(chat.id).title
        turn(store, chat.id, None, "Question", "Answer")
        assert store.get_chat(chat.id).title == title


def test_a_blank_name_lets_the_next_question_name_the_chat(store: SessionStore):
    chat = store.create_chat(title="Old")
    assert store.rename_chat(chat.id, " \n ").title == "New chat"
    store.append_user_message(chat.id, parent_id=None, text="\x00\u202e \n")
    assert store.get_chat(chat.id).title == "New chat"
    store.append_user_message(chat.id, parent_id=None, text="Fox")
    assert store.get_chat(chat.id).title == "Fox"


# Branches


def test_undo_and_edit_make_a_branch_and_the_old_one_stays_reachable(store: SessionStore):
    chat = store.create_chat()
    first = turn(store, chat.id, None, "q1", "a1")
    old = turn(store, chat.id, first.id, "q2", "a2")
    store.set_head(chat.id, first.id)
    assert contents(store, chat.id) == ["q1", "a1"]
    new = turn(store, chat.id, first.id, "q2 edited", "a2 new")
    assert contents(store, chat.id) == ["q1", "a1", "q2 edited", "a2 new"]
    alternatives = store.siblings(new.parent_id)
    assert [message.content for message in alternatives] == ["q2", "q2 edited"]
    store.set_head(chat.id, store.newest_leaf(alternatives[0].id))
    assert store.get_chat(chat.id).head_message_id == old.id
    assert contents(store, chat.id) == ["q1", "a1", "q2", "a2"]


def test_undo_of_everything_empties_the_branch_but_not_the_tree(store: SessionStore):
    chat = store.create_chat()
    only = turn(store, chat.id, None, "q", "a")
    assert store.set_head(chat.id, None).head_message_id is None
    assert store.messages(chat.id) == []
    store.set_head(chat.id, only.id)
    assert contents(store, chat.id) == ["q", "a"]


def test_a_retried_reply_becomes_the_head_beside_the_old_one(store: SessionStore):
    chat = store.create_chat()
    old = turn(store, chat.id, None, "q", "a1")
    new = reply(store, chat.id, old.parent_id, "a2")
    assert contents(store, chat.id) == ["q", "a2"]
    assert [message.id for message in store.siblings(new.id)] == [old.id, new.id]


def test_a_stale_tab_begins_a_branch_and_overwrites_nothing(store: SessionStore):
    chat = store.create_chat()
    shared = turn(store, chat.id, None, "q1", "a1")
    newer = turn(store, chat.id, shared.id, "from tab one", "answer one")
    turn(store, chat.id, shared.id, "from the stale tab", "answer two")
    assert contents(store, chat.id) == ["q1", "a1", "from the stale tab", "answer two"]
    store.set_head(chat.id, newer.id)
    assert contents(store, chat.id) == ["q1", "a1", "from tab one", "answer one"]


def test_a_reply_that_comes_after_the_chat_went_on_elsewhere_does_not_pull_it_back(store: SessionStore):
    chat = store.create_chat()
    first = turn(store, chat.id, None, "q1", "a1")
    slow = store.append_user_message(chat.id, parent_id=first.id, text="slow")
    store.set_head(chat.id, first.id)
    quick = store.append_user_message(chat.id, parent_id=first.id, text="quick")
    late = reply(store, chat.id, slow.id, "late", status="stopped")
    assert contents(store, chat.id) == ["q1", "a1", "quick"]
    reply(store, chat.id, quick.id, "done")
    assert contents(store, chat.id) == ["q1", "a1", "quick", "done"]
    assert store.newest_leaf(slow.id) == late.id


def test_a_reply_to_an_undone_question_does_not_bring_it_back(store: SessionStore):
    chat = store.create_chat()
    question = store.append_user_message(chat.id, parent_id=None, text="q")
    store.set_head(chat.id, None)
    reply(store, chat.id, question.id, "too late")
    assert store.messages(chat.id) == []


def test_a_message_of_another_chat_is_neither_a_parent_nor_a_head(store: SessionStore):
    mine, other = store.create_chat(), store.create_chat()
    theirs = turn(store, other.id, None, "q", "a")
    for attempt in (
        lambda: store.set_head(mine.id, theirs.id),
        lambda: turn(store, mine.id, theirs.id, "q", "a"),
        lambda: reply(store, mine.id, 10**6, "a"),
    ):
        with pytest.raises(StorageError, match="is not in this chat: reload"):
            attempt()
    assert store.messages(mine.id) == []
    assert store.get_chat(mine.id) == mine


def test_a_turn_is_stored_as_a_whole_or_not_at_all(file_store: SessionStore):
    chat = file_store.create_chat()
    with pytest.raises(StorageError):
        turn(file_store, chat.id, None, "q", "a", seed=2**70)
    with pytest.raises(StorageError, match="status='half' is not allowed"):
        turn(file_store, chat.id, None, "q", "a", status="half")
    assert file_store.messages(chat.id) == []
    assert count_rows(file_store, "message") == 0


# Lists, search, delete


def test_chats_are_listed_with_the_latest_used_first_in_pages(store: SessionStore):
    made = [store.create_chat(title=f"chat {number}") for number in range(5)]
    time.sleep(0.003)
    turn(store, made[1].id, None, "q", "a")
    ids = [chat.id for chat in store.list_chats()]
    assert ids[0] == made[1].id
    assert sorted(ids) == sorted(chat.id for chat in made)
    assert [chat.id for page in range(3) for chat in store.list_chats(limit=2, offset=2 * page)] == ids
    assert store.list_chats(limit=0) == []


def test_search_finds_titles_and_messages_of_every_branch_in_any_case_and_script(store: SessionStore):
    fox = store.create_chat(title="About a FOX")
    street = store.create_chat(title="Other")
    turn(store, street.id, None, "Wo ist die Straße?", "ΣΊΣΥΦΟΣ rolled it")
    store.set_head(street.id, None)
    found = {
        needle: [chat.id for chat in store.list_chats(needle)]
        for needle in ("fox", "strasse", "ist die", "σίσυφος", "nothing like it", "  ")
    }
    assert found == {
        "fox": [fox.id],
        "strasse": [street.id],
        "ist die": [street.id],
        "σίσυφος": [street.id],
        "nothing like it": [],
        "  ": [street.id, fox.id],
    }


@pytest.mark.parametrize(
    "needle", ["%", "_", "100%", "a_b", "'", "'; DROP TABLE chat; --", '"', "\\", "*", "a\x00b", "[x]"]
)
def test_search_takes_every_character_literally(store: SessionStore, needle: str):
    plain = store.create_chat(title="plain")
    turn(store, plain.id, None, "100 apples, axb", "ab")
    odd = store.create_chat(title="odd")
    turn(store, odd.id, None, f"before {needle} after", "answer")
    assert [chat.id for chat in store.list_chats(needle)] == [odd.id]
    assert len(store.list_chats()) == 2


def test_deleting_a_chat_deletes_its_whole_tree_and_nothing_of_others(file_store: SessionStore):
    doomed, kept = file_store.create_chat(), file_store.create_chat()
    first = turn(file_store, doomed.id, None, "q1", "a1", config={"only": "here"})
    turn(file_store, doomed.id, first.id, "q2", "a2", config={"both": 1})
    turn(file_store, doomed.id, first.id, "q2 again", "a2", config={"both": 1})
    turn(file_store, kept.id, None, "q", "a", config={"both": 1})
    file_store.delete_chat(doomed.id)
    file_store.delete_chat(doomed.id)
    assert file_store.get_chat(doomed.id) is None
    assert file_store.messages(doomed.id) == []
    assert contents(file_store, kept.id) == ["q", "a"]
    assert [count_rows(file_store, name) for name in ("chat", "message", "run", "config")] == [1, 2, 1, 1]


def test_deleted_text_is_no_longer_in_the_file(tmp_path):
    path = tmp_path / "chats.db"
    with SessionStore(path) as store:
        chat = store.create_chat()
        turn(store, chat.id, None, "my secret word is xylophonist", "a" * 20_000)
        store.delete_chat(chat.id)
    assert b"xylophonist" not in path.read_bytes()


def test_a_chat_of_three_thousand_messages_opens_and_deletes(file_store: SessionStore):
    chat = file_store.create_chat()
    parent_id = None
    with sqlite3.connect(file_store.path) as connection:  # one by one through the store would take seconds
        for number in range(1, 3001):
            row = (number, chat.id, parent_id, "assistant" if number % 2 == 0 else "user", f"m{number}", 0)
            connection.execute("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?)", row)
            parent_id = number
    connection.close()
    file_store.set_head(chat.id, parent_id)
    assert contents(file_store, chat.id) == [f"m{number}" for number in range(1, 3001)]
    file_store.delete_chat(chat.id)
    assert count_rows(file_store, "message") == 0


def test_a_deleted_chat_refuses_everything_with_one_sentence(store: SessionStore):
    chat = store.create_chat()
    question = store.append_user_message(chat.id, parent_id=None, text="q")
    store.delete_chat(chat.id)
    for attempt in (
        lambda: reply(store, chat.id, question.id, "a"),
        lambda: turn(store, chat.id, None, "q", "a"),
        lambda: store.rename_chat(chat.id, "x"),
        lambda: store.set_system_prompt(chat.id, "x"),
        lambda: store.set_head(chat.id, None),
    ):
        with pytest.raises(StorageError, match="This chat no longer exists"):
            attempt()
    assert store.create_chat().id > chat.id  # the number is not used again, so a stale tab cannot reach the new chat


def test_the_system_prompt_can_change(store: SessionStore):
    chat = store.create_chat(system_prompt="one")
    assert store.set_system_prompt(chat.id, "two\n\x00 €").system_prompt == "two\n\x00 €"
    assert store.get_chat(chat.id).system_prompt == "two\n\x00 €"


def count_rows(store: SessionStore, table: str) -> int:
    connection = sqlite3.connect(store.path)
    try:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    finally:
        connection.close()
