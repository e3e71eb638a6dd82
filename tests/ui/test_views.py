"""The values the components draw: plain JSON, newest last, nothing left of a reply that is being replaced."""

import json

from playground.sessions import SessionStore
from playground.ui import views

HOSTILE = '<img src=x onerror="window.__pwned=1">${window.__pwned=1}{{value}}</script>'


def test_texts_travel_unchanged_and_revisions_grow(store: SessionStore) -> None:
    chat = store.create_chat()
    question = store.append_user_message(chat.id, parent_id=None, text=HOSTILE)
    metrics = {"num_output_tokens": 3}
    store.append_reply(
        chat.id, parent_id=question.id, text=HOSTILE, status="done", metrics=metrics, config={}, params={}
    )
    chat = store.get_chat(chat.id)
    first, second = (views.transcript(chat, store.messages(chat.id)) for _ in range(2))
    assert [message["text"] for message in json.loads(json.dumps(first))["messages"]] == [HOSTILE, HOSTILE]
    assert first["messages"][1]["figures"][0][0] == "3 tokens"
    assert first["rev"] < second["rev"]


def test_an_empty_page_has_no_chat_and_no_messages() -> None:
    view = views.transcript(None)
    assert view["chat"] is None and view["messages"] == [] and not view["running"] and view["title"] == ""


def test_messages_left_out_of_the_context_are_said(store: SessionStore) -> None:
    chat = store.create_chat()
    question = store.append_user_message(chat.id, parent_id=None, text="hi")
    metrics = {"num_messages_left_out": 4}
    store.append_reply(chat.id, parent_id=question.id, text="a", status="done", metrics=metrics, config={}, params={})
    view = views.transcript(store.get_chat(chat.id), store.messages(chat.id))
    assert (
        view["left_out"]
        == "The first 4 messages no longer fit the model's context and were not read for the latest reply."
    )


def test_a_chat_in_the_list_says_how_many_tokens_it_holds(store: SessionStore) -> None:
    empty, chat = store.create_chat(), store.create_chat()
    question = store.append_user_message(chat.id, parent_id=None, text="hi")
    for tokens in (100, 388):
        metrics = {"num_prompt_tokens": 24, "num_output_tokens": tokens}
        store.append_reply(
            chat.id, parent_id=question.id, text="a", status="done", metrics=metrics, config={}, params={}
        )
    store.append_user_message(chat.id, parent_id=store.messages(chat.id)[-1].id, text="and?")
    details = {one["id"]: one["detail"] for one in views.chat_list(store.list_chats())["sessions"]}
    assert details == {chat.id: "412 tokens", empty.id: ""}
