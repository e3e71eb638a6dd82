"""The values the components draw: plain JSON, newest last, nothing left of a reply that is being replaced."""

import json

from playground.sessions import SessionStore
from playground.telemetry import HeadlineFrame
from playground.telemetry.format import MISSING
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


def test_the_strip_has_a_value_for_every_tile_and_dashes_for_what_is_missing() -> None:
    view = views.strip(HeadlineFrame(), sample=False)
    assert set(view["tiles"]) == {tile["name"] for tile in views.strip_tiles()}
    assert view["tiles"]["in_use"]["text"] == view["tiles"]["first_token"]["text"] == MISSING
    assert all(len(tile["tip"]) > 20 for tile in views.strip_tiles())


def test_the_strip_tells_the_three_kinds_of_blocks_apart() -> None:
    frame = HeadlineFrame(
        kv_blocks_in_use=27, kv_blocks_cached=31, kv_blocks_empty=198, kv_blocks_total=256, num_waiting=2
    )
    tiles = views.strip(frame, sample=True)["tiles"]
    assert (tiles["in_use"]["text"], tiles["in_use"]["unit"], tiles["in_use"]["parts"]) == (
        "27",
        "of 256",
        [27, 31, 198],
    )
    assert (tiles["cached"]["text"], tiles["cached"]["unit"]) == ("31", "198 empty")
    assert tiles["requests"]["unit"] == "2 waiting"


def test_memory_says_whose_it_is() -> None:
    process = views.strip(HeadlineFrame(memory_used_bytes=2**30, memory_total_bytes=2**34), sample=False)["tiles"][
        "memory"
    ]
    gpu = views.strip(HeadlineFrame(memory_used_bytes=2**30, memory_source="nvml"), sample=False)["tiles"]["memory"]
    assert (process["label"], process["text"], process["unit"]) == ("Memory of this process", "1.00", "GiB")
    assert "Now: 1.00 GiB of 16.0 GiB." in process["tip"]
    assert gpu["label"] == "GPU memory" and "NVML" in gpu["tip"]
