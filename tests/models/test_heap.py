"""Memory goes back to the system even where that cannot be helped along; what it measures is in test_reliability."""

import threading

import pytest

from playground.models import heap


def test_a_thread_that_cannot_be_started_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    before, starts = set(threading.enumerate()), []
    start = threading.Thread.start

    def fail_later(self: threading.Thread) -> None:
        starts.append(self)
        if len(starts) > 1:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", fail_later)
    monkeypatch.setattr(heap.torch, "get_num_threads", lambda: 2)
    with heap.returning_memory_to_system():
        pass
    assert len(starts) == (2 if heap._glibc() is not None else 0)
    assert set(threading.enumerate()) == before
