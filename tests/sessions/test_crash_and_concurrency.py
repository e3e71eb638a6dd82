"""Many threads and processes on one file, and `kill -9` in the middle of a turn."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from playground.sessions import SessionStore
from tests.sessions.conftest import contents, turn

ROOT = Path(__file__).parents[2]

# Stores finished turns, then a question whose reply is never finished, and reports each as soon as it is stored.
CHATTING = """
import sys, time
from playground.sessions import SessionStore

store = SessionStore(sys.argv[1])
chat = store.create_chat()
parent = None
for number in range(5):
    run = dict(status="done", metrics={"num_output_tokens": number}, config={}, params={})
    parent = store.append_turn(
        chat.id, parent_id=parent, user_text=f"q{number}", reply_text=f"a{number}", **run
    ).id
store.append_user_message(chat.id, parent_id=parent, text="asked just before the crash")
print(chat.id, flush=True)
time.sleep(60)
"""

# Writes without pause until it is killed; reports the number of each turn after it was stored.
BUSY = """
import itertools, sys
from playground.sessions import SessionStore

store = SessionStore(sys.argv[1])
chat = store.create_chat()
print(chat.id, flush=True)
parent = None
for number in itertools.count():
    run = dict(status="done", metrics={}, config={}, params={})
    parent = store.append_turn(
        chat.id, parent_id=parent, user_text=f"q{number}", reply_text="a" * 5000, **run
    ).id
    print(number, flush=True)
"""

# Ends without closing the store, right after handing it a reply to save.
LEAVING = """
import sys
from playground.sessions import SessionStore

store = SessionStore(sys.argv[1])
chat = store.create_chat()
run = dict(status="stopped", metrics={}, config={}, params={})
for number in range(200):
    store.append_reply_soon(chat.id, parent_id=None, text=f"part {number}", **run)
print(chat.id, flush=True)
"""


def start(script: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
    )


def test_kill_9_during_a_reply_keeps_every_finished_turn_and_the_question(tmp_path: Path):
    path = tmp_path / "chats.db"
    with start(CHATTING, path) as process:
        chat_id = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with SessionStore(path) as store:
        shown = store.messages(chat_id)
        expected = [text for number in range(5) for text in (f"q{number}", f"a{number}")]
        assert [message.content for message in shown] == [*expected, "asked just before the crash"]
        assert shown[-1].role == "user"
        assert shown[-2].run.metrics == {"num_output_tokens": 4}
        turn(store, chat_id, shown[-1].id, "goes", "on")


def test_a_process_that_ends_without_closing_still_stores_what_it_queued(tmp_path: Path):
    path = tmp_path / "chats.db"
    with start(LEAVING, path) as process:
        chat_id = int(process.stdout.readline())
    assert process.returncode == 0
    with SessionStore(path) as store:
        (shown,) = store.messages(chat_id)
        assert len(store.siblings(shown.id)) == 200


def test_kill_9_while_writing_leaves_whole_turns_only_and_all_that_were_reported(tmp_path: Path):
    path = tmp_path / "chats.db"
    with start(BUSY, path) as process:
        chat_id = int(process.stdout.readline())
        for _ in range(30):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        last = max([last, *(int(line) for line in process.stdout if line.endswith("\n"))])
    with SessionStore(path) as store:
        shown = store.messages(chat_id)
        assert len(shown) in (2 * (last + 1), 2 * (last + 2))  # one more may be stored and not yet reported
        assert [message.role for message in shown] == ["user", "assistant"] * (len(shown) // 2)
        assert all(message.run is not None for message in shown[1::2])
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.mark.parametrize("where", ["file", "memory"])
def test_twenty_threads_write_and_read_without_an_error_and_nothing_is_lost(tmp_path: Path, where: str):
    errors: list[BaseException] = []
    rounds = 10

    def chat_along(store: SessionStore, number: int) -> None:
        try:
            chat = store.create_chat(title=f"thread {number}")
            parent_id = None
            for turn_number in range(rounds):
                question, answer = f"{number}:{turn_number}?", f"{number}:{turn_number}!"
                parent_id = turn(store, chat.id, parent_id, question, answer, config={"of": turn_number}).id
                assert contents(store, chat.id)[-2:] == [question, answer]
                assert len(store.list_chats(f"thread {number}", limit=100)) >= 1
        except BaseException as error:
            errors.append(error)

    with SessionStore(tmp_path / "chats.db" if where == "file" else ":memory:") as store:
        threads = [threading.Thread(target=chat_along, args=(store, number)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        chats = store.list_chats(limit=100)
        assert len(chats) == 20
        for chat in chats:
            number = chat.title.removeprefix("thread ")
            expected = [f"{number}:{turn}{mark}" for turn in range(rounds) for mark in "?!"]
            assert contents(store, chat.id) == expected


def test_twenty_tabs_on_one_chat_make_twenty_branches(file_store: SessionStore):
    chat = file_store.create_chat()
    root = turn(file_store, chat.id, None, "q", "a")
    tabs = [
        threading.Thread(target=turn, args=(file_store, chat.id, root.id, f"tab {number}", f"answer {number}"))
        for number in range(20)
    ]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    shown = contents(file_store, chat.id)
    questions = file_store.siblings(file_store.messages(chat.id)[2].id)
    assert Counter(message.content for message in questions) == Counter(f"tab {number}" for number in range(20))
    assert shown[:2] == ["q", "a"]
    assert shown[3] == shown[2].replace("tab", "answer")


def test_two_processes_share_one_file(tmp_path: Path):
    path = tmp_path / "chats.db"
    with SessionStore(path) as store, start(BUSY, path) as process:
        chat_id = int(process.stdout.readline())
        mine = store.create_chat()
        parent_id = None
        for number in range(20):
            parent_id = turn(store, mine.id, parent_id, f"mine {number}", "a").id
        process.stdout.readline()
        process.kill()
        assert len(store.messages(chat_id)) >= 2
        assert len(store.messages(mine.id)) == 40
