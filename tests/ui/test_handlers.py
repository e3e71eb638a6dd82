"""The event handlers against a real tiny engine: what a tab is sent, and what happens when it goes away."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from playground import Engine
from playground.sessions import SessionStore, StorageError
from playground.ui.handlers import ChatHandlers
from tests.ui.conftest import TAB, event, request
from tests.ui.endless import ENDLESS, LONG, ODD, SHORT
from tests.ui.watching import frames_of, watch


def is_view(value: Any) -> bool:
    return isinstance(value, dict) and "__type__" not in value


async def collect(frames: Any) -> list[tuple[Any, ...]]:
    async with aclosing(frames) as stream:
        return [outputs async for outputs in stream]


def send(
    handlers: ChatHandlers, text: str = "hello", settings: Any = SHORT, chat: int | None = None, tab: str = TAB
) -> Any:
    data = event(chat=chat, text=text, settings=settings, system="", page=f"page of {tab}")
    return watch(handlers, handlers.send(data))


def views_of(outputs: list[tuple[Any, ...]], index: int) -> list[dict[str, Any]]:
    return [output[index] for output in outputs if is_view(output[index])]


def test_a_reply_is_sent_as_question_then_frames_then_transcript(handlers: ChatHandlers) -> None:
    outputs = asyncio.run(collect(send(handlers, settings=LONG)))
    first, last = views_of(outputs, 0)
    assert first["running"] and [message["role"] for message in first["messages"]] == ["user"]
    assert not last["running"] and [message["role"] for message in last["messages"]] == ["user", "assistant"]
    assert last["messages"][1]["status"] == "done" and last["tokens"] is not None
    whole, *frames, none = views_of(outputs, 1)
    assert frames and {frame["chat"] for frame in [whole, *frames]} == {last["chat"]}
    assert [frame["seq"] for frame in frames] == list(range(len(frames))) and whole["seq"] < frames[0]["seq"]
    assert [frame["ended"] for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert none == {"number": None}
    assert [session["id"] for session in views_of(outputs, 2)[-1]["sessions"]] == [last["chat"]]


def test_frames_come_at_about_12_hz(handlers: ChatHandlers) -> None:
    async def scenario() -> tuple[float, list[tuple[Any, ...]]]:
        started = asyncio.get_running_loop().time()
        outputs = await collect(send(handlers, settings={**LONG, "max_tokens": "400"}))
        return asyncio.get_running_loop().time() - started, outputs

    seconds, outputs = asyncio.run(scenario())
    assert len(views_of(outputs, 1)) <= 12 * seconds + 3


def test_stop_ends_the_stream_with_the_partial_text(handlers: ChatHandlers, engine: Engine) -> None:
    async def scenario() -> list[tuple[Any, ...]]:
        outputs = []
        async with aclosing(send(handlers, settings=ENDLESS)) as stream:
            async for output in stream:
                outputs.append(output)
                frame = output[1]
                if is_view(frame) and frame.get("text"):
                    await handlers.stop(event(chat=frame["chat"]))
        return outputs

    outputs = asyncio.run(scenario())
    reply = views_of(outputs, 0)[-1]["messages"][1]
    assert reply["status"] == "stopped" and reply["text"]
    assert engine.stats().num_running == 0 and engine.stats().kv_blocks_in_use == 0


def test_a_reply_that_ends_before_its_tab_is_answered_is_in_the_answer(handlers: ChatHandlers) -> None:
    begin = handlers._turns.ask

    def ask_and_wait(*arguments: Any) -> Any:
        run = begin(*arguments)
        assert run.wait(30)
        return run

    handlers._turns.ask = ask_and_wait  # type: ignore[method-assign]
    ((transcript, live, _),) = asyncio.run(collect(send(handlers)))
    assert not transcript["running"] and transcript["messages"][1]["status"] == "done" and live == {"number": None}


def test_a_tab_that_opens_another_chat_lets_its_reply_go_on(handlers: ChatHandlers, store: SessionStore) -> None:
    async def scenario() -> int:
        async with aclosing(send(handlers, settings=LONG)) as stream:
            _, live, _ = await anext(stream)
            await handlers.new()
        return int(live["chat"])

    chat_id = asyncio.run(scenario())
    run = handlers.runs.get(chat_id)
    assert run is None or run.wait(30)
    assert store.messages(chat_id)[1].run.status == "done"


def test_opening_a_chat_in_mid_reply_joins_its_stream(handlers: ChatHandlers) -> None:
    async def scenario() -> list[tuple[Any, ...]]:
        joined: list[tuple[Any, ...]] = []
        async with aclosing(send(handlers, settings=LONG)) as stream:
            async for output in stream:
                if is_view(output[1]) and output[1].get("text") and not joined:
                    joined = await collect(watch(handlers, handlers.open(event(id=output[1]["chat"]))))
        return joined

    joined = asyncio.run(scenario())
    assert views_of(joined, 0)[0]["running"]
    whole, *frames, _ = views_of(joined, 1)
    text, rows = whole["text"], list(whole["rows"])
    assert text and rows
    for frame in frames[:-1]:  # the last one has everything anew
        assert frame["at"] <= len(text) and frame["tokens_at"] <= len(rows)
        text, rows = text[: frame["at"]] + frame["text"], rows[: frame["tokens_at"]] + frame["rows"]
        assert len(text) >= len(whole["text"])
    assert frames[-1]["text"].startswith(text) and frames[-1]["at"] == frames[-1]["tokens_at"] == 0
    assert views_of(joined, 0)[-1]["messages"][1]["status"] == "done"


def test_a_closed_tab_cancels_its_reply_and_no_other(handlers: ChatHandlers, store: SessionStore) -> None:
    async def scenario() -> tuple[Any, Any]:
        mine, other = send(handlers, settings=ENDLESS), send(handlers, settings=LONG, tab="tab-2")
        ids = [(await anext(stream))[0]["chat"] for stream in (mine, other)]
        runs = [handlers.runs.get(chat_id) for chat_id in ids]
        handlers.leave("nobody's page")
        handlers.leave(f"page of {TAB}")
        for stream in (mine, other):
            async for _ in stream:
                pass
        return runs[0], runs[1]

    mine, other = asyncio.run(scenario())
    assert mine.wait(30) and other.wait(30)
    assert store.messages(mine.chat_id)[1].run.status == "stopped"
    assert store.messages(other.chat_id)[1].run.status == "done"


def test_a_refusal_is_said_in_place_and_gives_the_text_back(handlers: ChatHandlers) -> None:
    (output,) = asyncio.run(collect(send(handlers, "tell me", {"temperature": "hot"})))
    assert output[0]["error"] == "Temperature: 'hot' is not allowed, give a number from 0 (greedy) to 100."
    assert output[0]["restore"] == "tell me" and output[0]["chat"] is None and not output[0]["running"]


def test_a_tab_whose_message_is_refused_because_another_tab_is_being_answered_joins_that_reply(
    handlers: ChatHandlers,
) -> None:
    async def scenario() -> list[tuple[Any, ...]]:
        refused: list[tuple[Any, ...]] = []
        async with aclosing(send(handlers, settings=LONG)) as stream:
            async for output in stream:
                if is_view(output[1]) and output[1].get("text") and not refused:
                    refused = await collect(send(handlers, "me too", chat=output[1]["chat"], tab="tab-2"))
        return refused

    first, *_, last = views_of(asyncio.run(scenario()), 0)
    assert "being written" in first["error"] and first["restore"] == "me too" and first["running"]
    assert not last["running"] and len(last["messages"]) == 2


def test_the_page_opens_the_chat_of_its_address_and_an_empty_one_for_nonsense(
    handlers: ChatHandlers, store: SessionStore
) -> None:
    chat_id = asyncio.run(collect(send(handlers)))[-1][0]["chat"]
    output = asyncio.run(handlers.load(request(chat=str(chat_id))))
    assert output[0]["chat"] == chat_id and len(output[0]["messages"]) == 2
    for nonsense in ("", "99999", "-1", "1;drop", "²", "9" * 40, "<img>"):
        output = asyncio.run(handlers.load(request(chat=nonsense)))
        assert output[0]["chat"] is None and output[0]["messages"] == [], nonsense


def test_rename_delete_and_search_answer_with_the_list(handlers: ChatHandlers) -> None:
    chat_id = asyncio.run(collect(send(handlers, "about whales")))[-1][0]["chat"]
    asyncio.run(collect(send(handlers, "about trains")))
    found = asyncio.run(handlers.search(event(query="WHALES")))
    assert [session["id"] for session in found["sessions"]] == [chat_id] and found["query"] == "WHALES"
    again, chats = asyncio.run(handlers.rename(event(id=chat_id, title="The sea", query="", chat=chat_id)))
    assert again["title"] == "The sea" and "The sea" in [session["title"] for session in chats["sessions"]]
    transcript, live, chats = asyncio.run(handlers.delete(event(id=chat_id, query="", chat=chat_id)))
    assert transcript["chat"] is None and live == {"number": None} and len(chats["sessions"]) == 1


def test_undo_gives_the_text_back(handlers: ChatHandlers) -> None:
    chat_id = asyncio.run(collect(send(handlers)))[-1][0]["chat"]
    transcript, _ = asyncio.run(handlers.undo(event(chat=chat_id)))
    assert transcript["restore"] == "hello" and transcript["messages"] == []
    transcript, _ = asyncio.run(handlers.undo(event(chat=chat_id)))
    assert "no message yet" in transcript["error"]


def test_retry_and_edit_stream_a_new_reply(handlers: ChatHandlers) -> None:
    chat_id = asyncio.run(collect(send(handlers)))[-1][0]["chat"]
    retried = asyncio.run(collect(watch(handlers, handlers.retry(event(chat=chat_id, settings=LONG, system="")))))
    assert [len(view["messages"]) for view in views_of(retried, 0)] == [1, 2]
    other = event(chat=chat_id, text="other", settings=SHORT, system="")
    edited = asyncio.run(collect(watch(handlers, handlers.edit(other))))
    assert views_of(edited, 0)[-1]["messages"][0]["text"] == "other"


def test_malformed_events_are_answered_and_not_raised(handlers: ChatHandlers) -> None:
    for data in (
        {},
        {"chat": "1", "text": 5, "settings": [1], "system": None},
        {"chat": True, "text": "", "settings": {}},
    ):
        outputs = asyncio.run(collect(watch(handlers, handlers.send(event(**data)))))
        assert (outputs and outputs[-1][0]["chat"] is None) or outputs[-1][0]["messages"]


def test_the_frames_carry_every_token_with_its_step(handlers: ChatHandlers) -> None:
    outputs = asyncio.run(collect(send(handlers, settings=LONG)))
    rows: list[Any] = []
    frames = views_of(outputs, 1)[1:-1]
    for frame in frames:
        assert frame["tokens_at"] <= len(rows)
        rows = rows[: frame["tokens_at"]] + list(frame["rows"])
    reply = views_of(outputs, 0)[-1]["messages"][1]
    assert "".join(row[1] for row in rows) == reply["text"] and reply["tokens"] is True
    assert len(rows) == 200 and all(row[2] == "target" for row in rows)
    assert frames[-1]["phase"] == "writing" and frames[-1]["figures"][0][0] == "200 tokens"


def test_versions_are_told_and_switched(handlers: ChatHandlers) -> None:
    chat = views_of(asyncio.run(collect(send(handlers, settings={**ODD, "seed": "1"}))), 0)[-1]
    old = chat["messages"][1]
    data = {"chat": chat["chat"], "head": old["id"], "settings": {**ODD, "seed": "2"}, "system": ""}
    new = views_of(asyncio.run(collect(watch(handlers, handlers.retry(event(**data))))), 0)[-1]["messages"][1]
    assert new["versions"] == [old["id"], new["id"]] and "versions" not in old
    back = asyncio.run(handlers.switch(event(chat=chat["chat"], message=old["id"])))
    assert back["messages"][1]["id"] == old["id"] and back["messages"][1]["text"] == old["text"]
    stale, _, _ = asyncio.run(handlers.retry(event(**{**data, "head": new["id"]})))
    assert "another tab" in stale["error"] and stale["messages"][1]["id"] == old["id"]


def test_a_cut_reply_is_continued(handlers: ChatHandlers) -> None:
    chat = views_of(asyncio.run(collect(send(handlers))), 0)[-1]
    reply = chat["messages"][1]
    assert reply["continuable"] and reply["cut"]
    data = {"chat": chat["chat"], "head": reply["id"], "settings": SHORT, "system": ""}
    outputs = asyncio.run(collect(watch(handlers, handlers.extend(event(**data)))))
    longer = views_of(outputs, 0)[-1]["messages"][1]
    assert longer["text"].startswith(reply["text"]) and len(longer["text"]) > len(reply["text"])
    assert "continued" in [text for text, _ in longer["figures"]]


def test_a_deleted_chat_can_be_brought_back_and_is_not_seen_meanwhile(
    handlers: ChatHandlers, store: SessionStore
) -> None:
    chat = views_of(asyncio.run(collect(send(handlers))), 0)[-1]["chat"]
    empty, _, chats = asyncio.run(handlers.delete(event(id=chat, chat=chat)))
    assert empty["chat"] is None and chats["sessions"] == []
    (refused,) = asyncio.run(collect(send(handlers, chat=chat)))
    assert "no longer exists" in refused[0]["error"]
    opened, _, chats = asyncio.run(handlers.restore(event(id=chat, open=True)))
    assert [session["id"] for session in chats["sessions"]] == [chat] and len(opened["messages"]) == 2
    late = asyncio.run(handlers.restore(event(id=chat)))
    assert "too late" in late[2]["error"]
    asyncio.run(handlers.delete(event(id=chat)))
    handlers.close()
    assert store.get_chat(chat) is None


def test_eight_tabs_are_written_to_at_once(handlers: ChatHandlers, engine: Engine) -> None:
    async def scenario() -> list[list[tuple[Any, ...]]]:
        return await asyncio.gather(*(collect(send(handlers, f"hello {n}", LONG, tab=f"tab-{n}")) for n in range(8)))

    for outputs in asyncio.run(scenario()):
        reply = views_of(outputs, 0)[-1]["messages"][1]
        assert reply["status"] == "done" and reply["tokens"]
    assert engine.stats().num_running == 0 and len(engine.events._subscriptions) == 1  # the hub's
    assert handlers.replies.num_readers == 0 and not handlers.replies._replies


def test_two_readers_are_given_the_same_frames_and_a_slow_one_loses_some(handlers: ChatHandlers) -> None:
    async def scenario() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        one, slow = handlers.replies.read(), handlers.replies.read()
        _, live, _ = await handlers.send(event(text="hello", settings=LONG))
        number = live["number"]
        frames = [frame async for frame in frames_of(one, number)]
        late = [frame async for frame in frames_of(slow, number)]
        for reader in (one, slow):
            assert reader.wait is None and reader.take() == []
            reader.close()
        return frames, late

    frames, late = asyncio.run(scenario())
    assert len(frames) > 3 and late == frames[-1:], "what a slow reader has missed was not kept for it"
    assert late[0]["ended"] and late[0]["at"] == 0 and len(late[0]["rows"]) == 200


def test_a_reply_that_could_not_be_stored_says_so_until_the_next_one(
    handlers: ChatHandlers, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **more: Any) -> Any:
        raise StorageError("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(store, "append_reply_soon", full)
        last = views_of(asyncio.run(collect(send(handlers))), 0)[-1]
    assert last["error"] == "The disk is full." and len(last["messages"]) == 1
    again = views_of(asyncio.run(collect(send(handlers, "and now?", chat=last["chat"]))), 0)[-1]
    assert again["error"] is None and len(again["messages"]) == 3


def test_a_chat_that_is_renamed_in_mid_reply_goes_on_being_written(
    handlers: ChatHandlers, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("playground.ui.runs.SAVE_SECONDS", 0.02)

    async def scenario() -> None:
        transcript, _, _ = await handlers.send(event(text="hello", settings=ENDLESS))
        chat = transcript["chat"]
        while len(store.messages(chat)) < 2:  # what there is of the reply is stored, as stopped
            await asyncio.sleep(0.01)
        renamed, _ = await handlers.rename(event(id=chat, title="Other", chat=chat))
        assert renamed["running"] and len(renamed["messages"]) == 1 and renamed["title"] == "Other"
        refused, _ = await handlers.undo(event(chat=chat))
        assert refused["running"] and "being written" in refused["error"]
        await handlers.stop(event(chat=chat))

    asyncio.run(scenario())
