"""Saved comparisons: kept as they were given, listed newest first, decided once, deleted for good."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from playground.sessions import SessionStore, StorageError

DATA = {
    "setup": {"sides": [{"name": "a"}, {"name": "<b>"}]},
    "record": {"value": 0.1, "missing": None, "text": "fox ☃"},
}


def test_a_comparison_is_read_back_as_it_was_given(store: SessionStore) -> None:
    info = store.save_comparison("  KV cache\non / off ", DATA)
    assert info.title == "KV cache on / off" and info.vote is None and info.created_ms > 0
    assert store.get_comparison(info.id) == (info, DATA)


def test_the_newest_comes_first_and_a_deleted_one_is_gone(store: SessionStore) -> None:
    first, second = (store.save_comparison(name, DATA).id for name in ("one", "two"))
    assert [one.id for one in store.list_comparisons()] == [second, first]
    store.delete_comparison(second)
    store.delete_comparison(second)
    assert [one.id for one in store.list_comparisons()] == [first]
    with pytest.raises(StorageError, match="no longer exists"):
        store.get_comparison(second)
    assert store.save_comparison("three", DATA).id > second  # an id is never used twice


def test_only_the_first_vote_counts(store: SessionStore) -> None:
    comparison = store.save_comparison("one", DATA).id
    store.vote_on_comparison(comparison, "1")
    store.vote_on_comparison(comparison, "0")
    assert store.get_comparison(comparison)[0].vote == "1"


def test_comparisons_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with SessionStore(path) as store:
        store.save_comparison("kept", DATA)
    with SessionStore(path) as store:
        assert [one.title for one in store.list_comparisons()] == ["kept"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM comparison").fetchone() == (1,)
