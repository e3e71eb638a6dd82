"""A chat as a file, and what the page fetches beside its events."""

import json
import re

from starlette.applications import Starlette
from starlette.testclient import TestClient

from playground.sessions import ChatInfo, SessionStore
from playground.sessions.recorder import RunRecorder
from playground.sessions.run_store import RunStore
from playground.telemetry.token_trace import TracedToken, pack
from playground.ui.chat_routes import chat_routes
from playground.ui.exporting import chat_json, chat_markdown, file_name

HOSTILE = '<img src=x onerror="window.__pwned=1">${window.__pwned=1}{{value}}</script>'
TOKENS = [TracedToken(5, "a", "accepted", 3, 12.5, -0.25, ("<b>",), ((HOSTILE, -1.0),))]


def make_chat(store: SessionStore) -> tuple[ChatInfo, int]:
    """A question with two replies; its head is the second."""
    chat = store.create_chat(system_prompt="Be kind.")
    question = store.append_user_message(chat.id, parent_id=None, text=HOSTILE)
    reply = None
    for text in ("first", "a"):
        metrics = {"num_output_tokens": 1, "tokens": pack(TOKENS) if text == "a" else None}
        config = {"model": "/models/storyteller"}
        reply = store.append_reply(
            chat.id, parent_id=question.id, text=text, status="stopped", metrics=metrics, config=config, params={}
        )
    found = store.get_chat(chat.id)
    assert found is not None and reply is not None
    return found, reply.id


def test_markdown_has_the_branch_that_is_shown_and_its_figures(store: SessionStore) -> None:
    chat, _ = make_chat(store)
    text = chat_markdown(chat, store.messages(chat.id))
    assert text.startswith(f"# {chat.title}\n") and "Be kind." in text and f"## You\n\n{HOSTILE}" in text
    assert "## storyteller\n\na\n\n*stopped · 1 token · " in text and "first\n" not in text


def test_json_has_all_branches_with_runs_and_tokens(store: SessionStore) -> None:
    chat, reply_id = make_chat(store)
    value = json.loads(chat_json(chat, store.all_messages(chat.id)))
    assert [message["content"] for message in value["messages"]] == [HOSTILE, "first", "a"]
    assert value["head_message_id"] == reply_id and value["token_columns"][1] == "text"
    run = value["messages"][2]["run"]
    assert run["tokens"] == json.loads(json.dumps(TOKENS)) and "tokens" not in run["metrics"]


def test_a_file_name_has_nothing_that_a_header_or_a_disk_could_trip_over(store: SessionStore) -> None:
    for title in ("A fox", '"; rm -rf /\r\nX: y', "../../etc", "üñî 日本", "con\x00"):
        chat = store.create_chat(title)
        assert re.fullmatch(r"[A-Za-z0-9 _-]{1,60}\.md", file_name(chat, "md"))
    assert file_name(store.create_chat("日本"), "json").startswith("chat ")


def test_the_routes_answer_with_files_and_tokens_and_refuse_calmly(store: SessionStore) -> None:
    chat, reply_id = make_chat(store)
    client = TestClient(Starlette(routes=chat_routes(store)))
    for suffix, kind in (("md", "text/markdown"), ("json", "application/json")):
        answer = client.get(f"/chats/{chat.id}/export.{suffix}")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-disposition"].startswith("attachment; ")
        assert answer.headers["x-content-type-options"] == "nosniff"
    rows = client.get(f"/chats/tokens/{reply_id}").json()
    assert rows == json.loads(json.dumps(TOKENS))
    assert client.get(f"/chats/tokens/{reply_id - 1}").json() == []
    for path in (
        "/chats/tokens/999",
        "/chats/999/export.md",
        f"/chats/{chat.id}/export.exe",
        f"/chats/tokens/{10**30}",
    ):
        assert client.get(path).status_code == 404


def test_a_reply_without_a_recorded_run_has_none_whatever_its_number(store: SessionStore) -> None:
    recorder = RunRecorder(RunStore(store), lambda config: {}, str)
    client = TestClient(Starlette(routes=chat_routes(store, recorder)))
    for message_id in (1, 2**63 - 1, 2**63, 10**30):
        answer = client.get(f"/chats/run/{message_id}")
        assert answer.status_code == 200 and answer.json() is None
