"""Asking, retrying, editing and undoing against a real tiny engine and a real database."""

import pytest

from playground import Engine
from playground.errors import PlaygroundError, RequestError
from playground.sessions import MessageInfo, RunInfo, SessionStore
from playground.telemetry.token_trace import unpack
from playground.ui.host import EngineHost
from playground.ui.runs import RunRegistry
from playground.ui.turns import Turns, Wish, fit
from tests.ui.conftest import TAB
from tests.ui.endless import ENDLESS, ODD, SHORT

WISH = Wish(SHORT, "")


@pytest.fixture
def turns(host: EngineHost, store: SessionStore):
    turns = Turns(host, store, RunRegistry())
    yield turns
    turns.runs.close()


def ask(turns: Turns, chat_id: int | None, text: str, wish: Wish = WISH) -> int:
    run = turns.ask(chat_id, text, wish, TAB)
    assert run.wait(30) and run.problem is None
    return run.chat_id


def contents(store: SessionStore, chat_id: int) -> list[str]:
    return [message.content for message in store.messages(chat_id) if message.role == "user"]


def test_a_question_is_stored_before_its_reply_has_ended(turns: Turns, store: SessionStore) -> None:
    run = turns.ask(None, "hello", Wish(ENDLESS, ""), TAB)
    assert contents(store, run.chat_id) == ["hello"]
    run.cancel()
    assert run.wait(30)


def test_a_reply_is_stored_with_metrics_configuration_and_parameters(
    turns: Turns, store: SessionStore, engine: Engine
) -> None:
    reply = store.messages(ask(turns, None, "hello"))[1]
    assert reply.run is not None and reply.run.status == "done"
    assert reply.run.metrics["num_output_tokens"] == 12 and reply.run.metrics["finish_reason"] == "length"
    assert reply.run.metrics["time_to_first_token"] > 0 and reply.run.metrics["kv_blocks_peak"] >= 1
    assert reply.run.config["model"] == engine.config.model and reply.run.params["temperature"] == 0


def test_a_cancelled_reply_keeps_its_text_as_stopped_and_frees_the_engine(
    turns: Turns, store: SessionStore, engine: Engine
) -> None:
    run = turns.ask(None, "hello", Wish(ENDLESS, ""), TAB)
    while run.progress().num_tokens < 5:
        assert not run.ended
    seen = run.progress().text
    run.cancel()
    assert run.wait(30)
    reply = store.messages(run.chat_id)[1]
    assert reply.run is not None and reply.run.status == "stopped"
    assert reply.content.startswith(seen) and reply.content
    assert engine.stats().kv_blocks_in_use == 0 and engine.stats().num_running == 0


def test_one_chat_writes_one_reply_at_a_time(turns: Turns) -> None:
    run = turns.ask(None, "hello", Wish(ENDLESS, ""), TAB)
    with pytest.raises(RequestError, match="being written in this chat"):
        turns.ask(run.chat_id, "again", WISH, TAB)
    with pytest.raises(RequestError, match="stop it before"):
        turns.undo(run.chat_id)
    run.cancel()
    assert run.wait(30)


def test_a_refused_first_message_leaves_no_chat_behind(turns: Turns, store: SessionStore) -> None:
    for text, wish in (
        (" \n", WISH),
        ("x" * 9000, WISH),
        ("hi", Wish({"temperature": "-1"}, "")),
        ("hi", Wish(SHORT, "y" * 9000)),
    ):
        with pytest.raises(RequestError) as refusal:
            turns.ask(None, text, wish, TAB)
        assert "\n" not in str(refusal.value)
    assert store.list_chats() == []


def test_a_refused_later_message_leaves_the_chat_as_it_was(turns: Turns, store: SessionStore) -> None:
    chat_id = ask(turns, None, "hello")
    before = store.messages(chat_id)
    with pytest.raises(RequestError, match="too long"):
        turns.ask(chat_id, "x" * 9000, WISH, TAB)
    assert store.messages(chat_id) == before
    ask(turns, chat_id, "still works")


def test_a_deleted_chat_takes_no_message(turns: Turns, store: SessionStore) -> None:
    chat_id = ask(turns, None, "hello")
    turns.delete(chat_id)
    with pytest.raises(PlaygroundError, match="no longer exists"):
        turns.ask(chat_id, "hello?", WISH, TAB)
    assert store.list_chats() == []


def test_deleting_a_chat_in_mid_reply_stops_the_reply(turns: Turns, engine: Engine, store: SessionStore) -> None:
    run = turns.ask(None, "hello", Wish(ENDLESS, ""), TAB)
    turns.delete(run.chat_id)
    assert run.wait(30) and engine.stats().num_running == 0 and store.list_chats() == []


def test_retry_replaces_the_reply_and_keeps_the_question(turns: Turns, store: SessionStore) -> None:
    chat_id = ask(turns, None, "hello", Wish({**ODD, "seed": "1"}, ""))
    old = store.messages(chat_id)
    run = turns.retry(chat_id, Wish({**ODD, "seed": "2"}, ""), TAB)
    assert run.wait(30)
    new = store.messages(chat_id)
    assert new[0] == old[0] and len(new) == 2 and new[1].id != old[1].id and new[1].content != old[1].content
    assert {message.id for message in store.siblings(new[1].id)} == {old[1].id, new[1].id}


def test_a_retry_that_is_refused_keeps_the_old_reply(turns: Turns, store: SessionStore) -> None:
    chat_id = ask(turns, None, "hello")
    before = store.messages(chat_id)
    with pytest.raises(RequestError):
        turns.retry(chat_id, Wish({"top_p": "7"}, ""), TAB)
    assert store.messages(chat_id) == before


def test_edit_asks_again_from_the_same_point_and_keeps_the_old_branch(turns: Turns, store: SessionStore) -> None:
    chat_id = ask(turns, None, "one")
    ask(turns, chat_id, "two")
    run = turns.edit(chat_id, "two, but better", WISH, TAB)
    assert run.wait(30)
    assert contents(store, chat_id) == ["one", "two, but better"]
    edited = store.messages(chat_id)[2]
    assert [message.content for message in store.siblings(edited.id)] == ["two", "two, but better"]


def test_undo_takes_one_turn_back_and_returns_its_text(turns: Turns, store: SessionStore) -> None:
    chat_id = ask(turns, None, "one")
    ask(turns, chat_id, "two")
    assert turns.undo(chat_id) == "two"
    assert contents(store, chat_id) == ["one"] and len(store.messages(chat_id)) == 2
    assert turns.undo(chat_id) == "one"
    assert store.messages(chat_id) == []
    with pytest.raises(RequestError, match="no message yet"):
        turns.undo(chat_id)


def test_the_system_prompt_is_kept_with_the_chat_and_read_by_the_model(turns: Turns, store: SessionStore) -> None:
    plain = store.messages(ask(turns, None, "hello"))[1]
    chat_id = ask(turns, None, "hello", Wish(SHORT, "Speak like a pirate."))
    chat = store.get_chat(chat_id)
    assert chat is not None and chat.system_prompt == "Speak like a pirate."
    prompted = store.messages(chat_id)[1]
    assert prompted.run is not None and plain.run is not None
    assert prompted.run.metrics["num_prompt_tokens"] > plain.run.metrics["num_prompt_tokens"] + 15


def test_the_oldest_turns_are_left_out_when_the_context_is_full(store: SessionStore, engine: Engine) -> None:
    config = engine.config.replace(max_model_len=256, num_kv_blocks=64)
    with EngineHost() as small_host:
        small_host.load(config).result()
        small = small_host.require()
        turns = Turns(small_host, store, RunRegistry())
        chat_id = None
        for number in range(6):
            chat_id = ask(turns, chat_id, f"question {number} " + "x" * 20)
        assert chat_id is not None
        messages = store.messages(chat_id)
        fitted = fit(small, "", messages[:-1], 64)
        text = small.tokenizer.decode(fitted.token_ids)
    assert fitted.num_left_out > 0 and fitted.num_left_out % 2 == 0
    assert len(fitted.token_ids) + 64 <= 256
    assert text.count("question") == (len(messages) - fitted.num_left_out) // 2
    last = messages[-1].run
    assert last is not None and last.metrics["num_messages_left_out"] > 0


def test_a_reply_that_cannot_be_stored_says_so_and_the_chat_goes_on(
    turns: Turns, store: SessionStore, engine: Engine
) -> None:
    run = turns.ask(None, "hello", Wish(ENDLESS, ""), TAB)
    store.delete_chat(run.chat_id)  # as another tab may
    run.cancel()
    assert run.wait(30)
    assert run.problem is not None and "no longer exists" in run.problem
    ask(turns, None, "next")


def test_closing_the_registry_stores_what_was_being_written(turns: Turns, store: SessionStore) -> None:
    runs = [turns.ask(None, f"hello {n}", Wish(ENDLESS, ""), TAB) for n in range(3)]
    turns.runs.close(timeout=30)
    for run in runs:
        assert run.ended and store.messages(run.chat_id)[1].run.status == "stopped"


def run_of(message: MessageInfo) -> RunInfo:
    assert message.run is not None
    return message.run


def test_a_reply_is_stored_with_its_tokens(turns: Turns, store: SessionStore) -> None:
    wish = Wish(SHORT, "", probabilities=True)
    reply = store.messages(ask(turns, None, "hello", wish))[1]
    tokens = unpack(run_of(reply).metrics["tokens"])
    assert "".join(token.text for token in tokens) == reply.content and len(tokens) == 12
    assert {token.origin for token in tokens} == {"target"} and len({token.step for token in tokens}) == 12
    assert all(token.logprob is not None and len(token.top) == 5 for token in tokens)
    plain = store.messages(ask(turns, None, "hello"))[1]
    assert all(token.logprob is None for token in unpack(run_of(plain).metrics["tokens"]))


def test_a_reply_is_saved_while_it_grows(turns: Turns, store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("playground.ui.runs.SAVE_SECONDS", 0.02)
    run = turns.ask(None, "hello", Wish(ENDLESS, ""), TAB)
    lengths: set[int] = set()
    ids: set[int] = set()
    while len(lengths) < 3:
        assert not run.ended
        for reply in store.messages(run.chat_id)[1:]:
            assert run_of(reply).status == "stopped" and "was ended" in run_of(reply).metrics["error"]
            assert run_of(reply).metrics["time_to_first_token"] > 0
            assert "".join(t.text for t in unpack(run_of(reply).metrics["tokens"])) == reply.content
            lengths.add(len(reply.content))
            ids.add(reply.id)
    run.cancel()
    assert run.wait(30) and run.problem is None
    final = store.messages(run.chat_id)
    assert len(final) == 2 and ids == {final[1].id} and len(final[1].content) >= max(lengths)
    assert run_of(final[1]).status == "stopped" and "error" not in run_of(final[1]).metrics


def test_a_stale_tab_changes_nothing(turns: Turns, store: SessionStore) -> None:
    chat_id = ask(turns, None, "one")
    seen = store.messages(chat_id)[-1].id
    ask(turns, chat_id, "two")
    before = store.messages(chat_id)
    for act in (
        lambda: turns.ask(chat_id, "three", WISH, TAB, seen),
        lambda: turns.edit(chat_id, "three", WISH, TAB, seen),
        lambda: turns.retry(chat_id, WISH, TAB, seen),
        lambda: turns.extend(chat_id, WISH, TAB, seen),
        lambda: turns.undo(chat_id, seen),
    ):
        with pytest.raises(RequestError, match="gone on in another tab"):
            act()
    assert store.messages(chat_id) == before
    run = turns.ask(chat_id, "three", WISH, TAB, before[-1].id)
    assert run.wait(30) and run.problem is None


def test_an_earlier_question_can_be_asked_in_other_words_and_both_ways_are_there(
    turns: Turns, store: SessionStore
) -> None:
    chat_id = ask(turns, None, "one")
    ask(turns, chat_id, "two")
    old = store.messages(chat_id)
    run = turns.edit(chat_id, "another one", WISH, TAB, old[-1].id, old[0].id)
    assert run.wait(30)
    new = store.messages(chat_id)
    assert contents(store, chat_id) == ["another one"]
    assert store.versions(chat_id) == {None: [old[0].id, new[0].id]}
    turns.switch(chat_id, old[0].id)
    assert store.messages(chat_id) == old
    turns.switch(chat_id, new[0].id)
    assert store.messages(chat_id) == new
    with pytest.raises(PlaygroundError):
        turns.switch(chat_id, 10**9)


def test_a_reply_that_was_cut_goes_on_as_if_it_had_not_been(turns: Turns, store: SessionStore) -> None:
    whole = store.messages(ask(turns, None, "hello", Wish({**SHORT, "max_tokens": "24"}, "")))[1]
    chat_id = ask(turns, None, "hello")
    short = store.messages(chat_id)[1]
    run = turns.extend(chat_id, WISH, TAB, short.id)
    assert run.progress().text.startswith(short.content)
    assert run.wait(30) and run.problem is None
    longer = store.messages(chat_id)[1]
    assert longer.content == whole.content and longer.id != short.id
    assert store.versions(chat_id) == {short.parent_id: [short.id, longer.id]}
    assert "".join(token.text for token in unpack(run_of(longer).metrics["tokens"])) == longer.content
    assert run_of(longer).metrics["continues"] == short.id and run_of(longer).metrics["num_output_tokens"] == 12


def test_a_reply_that_the_model_has_ended_is_not_continued(turns: Turns, store: SessionStore) -> None:
    chat = store.create_chat()
    question = store.append_user_message(chat.id, parent_id=None, text="hi")
    metrics = {"finish_reason": "stop"}
    store.append_reply(chat.id, parent_id=question.id, text="a", status="done", metrics=metrics, config={}, params={})
    with pytest.raises(RequestError, match="has ended this reply"):
        turns.extend(chat.id, WISH, TAB)
