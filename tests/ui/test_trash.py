"""Deleted chats: out of sight at once, gone when their time is over, back where they were taken back."""

import threading

from playground.ui.trash import Trash


def test_a_chat_that_is_taken_back_is_not_deleted() -> None:
    deleted: list[int] = []
    trash = Trash(deleted.append, seconds=60)
    trash.put(1)
    trash.put(1)
    assert 1 in trash and 2 not in trash
    assert trash.restore(1) and 1 not in trash and not trash.restore(1)
    trash.close()
    assert deleted == []


def test_what_is_not_taken_back_is_deleted_when_its_time_is_over() -> None:
    gone = threading.Event()
    trash = Trash(lambda chat_id: gone.set(), seconds=0.01)
    trash.put(1)
    assert gone.wait(10)


def test_while_a_chat_is_being_deleted_it_is_neither_seen_nor_brought_back() -> None:
    seen: list[bool] = []
    trash = Trash(lambda chat_id: seen.extend((chat_id in trash, trash.restore(chat_id))), seconds=60)
    trash.put(1)
    trash.close()
    assert seen == [True, False] and 1 not in trash


def test_closing_deletes_what_waits_although_one_fails() -> None:
    deleted: list[int] = []

    def delete(chat_id: int) -> None:
        if chat_id == 1:
            raise OSError("the disk is full")
        deleted.append(chat_id)

    trash = Trash(delete, seconds=60)
    for chat_id in (1, 2):
        trash.put(chat_id)
    trash.close()
    assert deleted == [2] and 1 not in trash
