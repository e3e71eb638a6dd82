"""Replies being written, as a stream of frames for everybody who watches; each is cut once, however many do.

Nothing is pushed: a frame is cut when the first reader asks for it, some 12 times a second, and the others are given
the same one. So a slow reader loses frames and never piles them up; they overlap, and every so often one is whole.
"""

import json
import threading
import time
from collections.abc import Callable

from playground.telemetry.pace import pause
from playground.ui.host import EngineHost
from playground.ui.runs import ChatRun, RunRegistry
from playground.ui.views import NO_REPLY, LiveFrames, View

STEPS_LOOKED_AT = 8


class LiveReply:
    """The frames of one run. Thread-safe."""

    def __init__(self, run: ChatRun, host: EngineHost) -> None:
        self.due = 0.0
        """When the next frame may be cut, on the monotonic clock."""
        self._run, self._host = run, host
        self._frames = LiveFrames(run)
        self._lock = threading.Lock()
        self._latest = (-1, "", False)

    def latest(self) -> tuple[int, str, bool]:
        """The latest frame: its number from 0, itself as JSON, and whether it is the last one."""
        with self._lock:
            if not self._latest[2] and time.monotonic() >= self.due:
                started = time.perf_counter()
                view = self._frames.next(*self._place())
                self._latest = view["seq"], _written(view), view["ended"]
                self.due = time.monotonic() + pause(time.perf_counter() - started)
            return self._latest

    def whole(self) -> View:
        with self._lock:
            self.due = 0.0  # who has it is given a frame that was cut after it, or the text would fall back
            return self._frames.whole(*self._place())

    def _place(self) -> tuple[int | None, int | None]:
        """How many requests wait before it, and how much of its prompt the engine's latest steps have read."""
        run, hub = self._run, self._host.hub
        for step in reversed(hub.recent_steps(STEPS_LOOKED_AT)):
            for share in step.requests:
                if share.request_id == run.id:
                    read = min(share.num_computed_tokens + share.num_tokens, run.num_prompt_tokens)
                    return hub.num_waiting_before(run.id), read
        return hub.num_waiting_before(run.id), None


class LiveReplies:
    """The replies of one registry. All methods are thread-safe."""

    name = "reply"
    """Of the event that carries a frame to the browser."""

    def __init__(self, runs: RunRegistry, host: EngineHost) -> None:
        self._host = host
        self._replies: dict[int, LiveReply] = {}
        self._readers: tuple[ReplyReader, ...] = ()
        self._lock = threading.Lock()
        runs.follow(self._begins, self._ends)

    @property
    def num_readers(self) -> int:
        return len(self._readers)

    def whole(self, run: ChatRun | None) -> View:
        """All of a reply until now; `NO_REPLY` where it has ended, or there is none."""
        with self._lock:
            reply = None if run is None else self._replies.get(run.number)
        return NO_REPLY if reply is None else reply.whole()

    def read(self, wake: Callable[[], None] = lambda: None) -> "ReplyReader":
        """Read every reply that is being written, and those to come: `wake` is called, on any thread, with each."""
        with self._lock:
            reader = ReplyReader(self, tuple(self._replies.values()), wake)
            self._readers = (*self._readers, reader)
        return reader

    def _begins(self, run: ChatRun) -> None:
        with self._lock:
            reply = self._replies[run.number] = LiveReply(run, self._host)
            readers = self._readers
        for reader in readers:
            reader._add(reply)

    def _ends(self, run: ChatRun) -> None:
        with self._lock:  # readers still have it, until they have read its last frame
            self._replies.pop(run.number, None)

    def _remove(self, reader: "ReplyReader") -> None:
        with self._lock:
            self._readers = tuple(one for one in self._readers if one is not reader)


class ReplyReader:
    """What one browser has been given of the replies."""

    def __init__(self, replies: LiveReplies, begun: tuple[LiveReply, ...], wake: Callable[[], None]) -> None:
        self._replies = replies
        self._wake = wake
        self._given = dict.fromkeys(begun, -1)
        """The number of the last frame of each reply that was taken."""

    def take(self) -> list[str]:
        """The frames that are new to this reader, at most one of each reply."""
        frames = []
        for reply, given in list(self._given.items()):
            seq, text, last = reply.latest()
            if seq != given:
                frames.append(text)
                self._given[reply] = seq
            if last:
                del self._given[reply]
        return frames

    @property
    def wait(self) -> float | None:
        """Seconds until there may be a new frame; None while nothing is being written."""
        due = [reply.due for reply in list(self._given)]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def close(self) -> None:
        """Read no more. May be called twice, and from any thread."""
        self._replies._remove(self)

    def _add(self, reply: LiveReply) -> None:
        self._given[reply] = -1
        self._wake()


def _written(view: View) -> str:
    return json.dumps(view, separators=(",", ":"), allow_nan=False)
