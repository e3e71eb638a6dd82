"""When the database cannot be used: one sentence that says what to do, nothing lost, and usable again afterwards."""

import os
import resource
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import event

from playground.sessions import SessionStore, StorageError
from tests.sessions.conftest import contents, ordinary_user, turn


def one_sentence(caught: pytest.ExceptionInfo[StorageError], *, about: Path) -> str:
    """The message, checked for what holds of all of them: one line, the file, what to do, no SQL."""
    message = str(caught.value)
    assert "\n" not in message
    assert str(about) in message
    assert message.endswith(".")
    assert "INSERT" not in message
    assert "sqlite3" not in message
    assert ":" in message.removeprefix(str(about))
    return message


def saved_chat(path: Path) -> int:
    with SessionStore(path) as store:
        chat = store.create_chat()
        turn(store, chat.id, None, "q", "a")
    return chat.id


# Read-only


def test_a_read_only_file_shows_its_chats_and_refuses_changes_with_one_sentence(open_folder: Path):
    path = open_folder / "chats.db"
    chat_id = saved_chat(path)
    path.chmod(0o444)
    open_folder.chmod(0o777)
    with ordinary_user(), SessionStore(path) as store:
        assert contents(store, chat_id) == ["q", "a"]
        with pytest.raises(StorageError) as caught:
            turn(store, chat_id, None, "q2", "a2")
        assert "is read-only: make the file and its folder writable" in one_sentence(caught, about=path)
        assert contents(store, chat_id) == ["q", "a"]
    path.chmod(0o644)
    with SessionStore(path) as store:
        assert contents(store, chat_id) == ["q", "a"]
        turn(store, chat_id, None, "q2", "a2")


def test_a_file_in_a_read_only_folder_gives_one_sentence(open_folder: Path):
    path = open_folder / "chats.db"
    saved_chat(path)
    path.chmod(0o444)
    open_folder.chmod(0o555)
    with ordinary_user(), pytest.raises(StorageError) as caught:
        SessionStore(path)
    assert "is read-only: make the file and its folder writable" in one_sentence(caught, about=path)


def test_a_new_file_in_a_read_only_folder_gives_one_sentence_and_makes_nothing(open_folder: Path):
    open_folder.chmod(0o555)
    path = open_folder / "chats.db"
    with ordinary_user(), pytest.raises(StorageError) as caught:
        SessionStore(path)
    assert "cannot be opened: check that it is a file in a writable folder" in one_sentence(caught, about=path)
    assert os.listdir(open_folder) == []


def test_a_folder_that_cannot_be_made_gives_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError) as caught:
        SessionStore(tmp_path / "file" / "chats.db")
    assert "cannot be made" in one_sentence(caught, about=tmp_path / "file")


def test_a_folder_in_place_of_the_file_gives_one_sentence(tmp_path: Path):
    with pytest.raises(StorageError) as caught:
        SessionStore(tmp_path)
    assert "cannot be opened" in one_sentence(caught, about=tmp_path)


# Not a database, damaged


def test_a_file_that_is_no_database_is_refused_and_not_touched(tmp_path: Path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, this is no database. " * 100)
    before = path.read_bytes()
    with pytest.raises(StorageError) as caught:
        SessionStore(path)
    assert "is not a chat database: choose another file with --db" in one_sentence(caught, about=path)
    assert path.read_bytes() == before


def test_a_damaged_file_gives_one_sentence_instead_of_wrong_text(tmp_path: Path):
    path = tmp_path / "chats.db"
    with SessionStore(path) as store:
        chat = store.create_chat()
        parent_id = None
        for number in range(50):
            parent_id = turn(store, chat.id, parent_id, f"question {number} " * 50, "answer " * 50).id
    content = bytearray(path.read_bytes())
    content[4096 * 8 :] = b"\xff" * (len(content) - 4096 * 8)
    path.write_bytes(content)
    with pytest.raises(StorageError) as caught, SessionStore(path) as store:
        store.list_chats()
        store.messages(chat.id)
    assert "is damaged: restore a copy of it" in one_sentence(caught, about=path)


# Locked


def test_a_locked_file_makes_everybody_wait_once_then_gives_one_sentence_and_works_again(tmp_path: Path):
    path = tmp_path / "chats.db"
    chat_id = saved_chat(path)
    errors: list[StorageError] = []

    def write(store: SessionStore) -> None:
        try:
            turn(store, chat_id, None, "lost", "lost")
        except StorageError as error:
            errors.append(error)

    with SessionStore(path, lock_wait=1.0) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        threads = [threading.Thread(target=write, args=(store,)) for _ in range(8)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        assert contents(store, chat_id) == ["q", "a"]  # reading goes on
        for thread in threads:
            thread.join()
        assert 0.9 < time.monotonic() - started < 6  # not 8 times the wait
        other.execute("ROLLBACK")
        assert len(errors) == 8
        with pytest.raises(StorageError) as caught:
            raise errors[0]
        assert "is locked by another program: close it and try again" in one_sentence(caught, about=path)
        turn(store, chat_id, None, "works", "again")
        assert contents(store, chat_id) == ["works", "again"]


def test_a_short_lock_is_waited_for(tmp_path: Path):
    path = tmp_path / "chats.db"
    chat_id = saved_chat(path)
    with (
        SessionStore(path, lock_wait=5) as store,
        closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
        release.start()
        turn(store, chat_id, None, "patient", "reply")
        release.join()
        assert contents(store, chat_id) == ["patient", "reply"]


# Disk full


def test_a_full_disk_loses_only_the_change_it_has_no_room_for(tmp_path: Path):
    path = tmp_path / "chats.db"
    chat_id = saved_chat(path)
    with SessionStore(path) as store:
        limit = 40  # pages: SQLite then answers as on a full disk

        @event.listens_for(store._engine, "checkout")
        def _limit(connection, _record, _proxy):
            connection.execute(f"PRAGMA max_page_count={limit}")

        with pytest.raises(StorageError) as caught:
            turn(store, chat_id, None, "x" * 1_000_000, "a")
        assert "cannot grow, the disk is full: free some space" in one_sentence(caught, about=path)
        assert contents(store, chat_id) == ["q", "a"]
        limit = 1_000_000
        turn(store, chat_id, None, "x" * 1_000_000, "a")
        assert contents(store, chat_id) == ["x" * 1_000_000, "a"]


def test_a_write_that_the_system_refuses_loses_only_that_change(tmp_path: Path):
    path = tmp_path / "chats.db"
    chat_id = saved_chat(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SessionStore(path) as store:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
            with pytest.raises(StorageError) as caught:
                turn(store, chat_id, None, "x" * 1_000_000, "a")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "disk" in one_sentence(caught, about=path)
        assert contents(store, chat_id) == ["q", "a"]
        turn(store, chat_id, None, "works", "again")
    with SessionStore(path) as store:
        assert contents(store, chat_id) == ["works", "again"]


# Bugs of a caller


def test_an_error_that_is_not_the_databases_reaches_its_caller_and_the_writer_lives_on(store: SessionStore):
    chat = store.create_chat()
    with pytest.raises(AttributeError):
        store.append_user_message(chat.id, parent_id=None, text=None)
    assert store.append_user_message(chat.id, parent_id=None, text="fine").content == "fine"


def test_a_number_that_no_database_holds_is_refused_with_one_sentence(store: SessionStore):
    with pytest.raises(StorageError, match="cannot hold a value this large"):
        store.get_chat(2**80)
    assert store.list_chats() == []


def test_a_saving_that_nobody_waited_for_is_done_before_the_store_closes(tmp_path: Path):
    path = tmp_path / "chats.db"
    chat_id = saved_chat(path)
    store = SessionStore(path)
    (question, _) = store.messages(chat_id)
    run = {"status": "stopped", "metrics": {}, "config": {}, "params": {}}
    futures = [
        store.append_reply_soon(chat_id, parent_id=question.id, text=f"part {number}", **run) for number in range(50)
    ]
    store.close()
    assert [future.result(timeout=0).content for future in futures] == [f"part {number}" for number in range(50)]
    assert not [thread for thread in threading.enumerate() if thread.name == "chat-store-writer"]


def test_a_failure_that_nobody_waited_for_is_logged(store: SessionStore, caplog: pytest.LogCaptureFixture):
    future = store.append_reply_soon(12345, parent_id=None, text="a", status="done", metrics={}, config={}, params={})
    assert isinstance(future.exception(timeout=5), StorageError)
    assert "A change was not stored: This chat no longer exists" in caplog.text
