"""How a reply that grows becomes a steady stream of small frames. Pure: no gradio, no engine, clocks are given.

Frames overlap, so that a lost one costs nothing, and every so often one carries the whole text. Nothing here measures
the engine: a frame's time says when it was drawn, never when a token was made.
"""

import time
from collections import deque
from collections.abc import Callable

FRAME_HZ = 12.0
SLOW_FRAME_HZ = 6.0
SLOW_BUILD_SECONDS = 0.040
"""A frame that took longer than this to build leaves the machine to the engine: the rate halves."""
TEXT_HZ = 4.0
"""Figures change at most this often: faster ones cannot be read."""
OVERLAP = 2
FULL_EVERY = 12


class Throttle:
    """Says yes at most `hz` times a second, and always the first time."""

    def __init__(self, hz: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1.0 / hz
        self._clock = clock
        self._next: float | None = None

    def due(self) -> bool:
        now = self._clock()
        if self._next is not None and now < self._next:
            return False
        # From the planned moment, so that a late frame does not lower the rate; after a pause from now: never a burst.
        planned = self._next if self._next is not None else now
        self._next = (planned if now - planned < self._interval else now) + self._interval
        return True


class ReplyFrames:
    """Cuts a growing text into overlapping windows `(at, text)`: the reader keeps its first `at` characters.

    A window starts where the text ended `overlap` frames ago; the first and every `full_every`-th start at 0.
    """

    def __init__(self, overlap: int = OVERLAP, full_every: int = FULL_EVERY) -> None:
        self._lengths: deque[int] = deque([0], maxlen=overlap + 1)
        self._full_every = full_every
        self.seq = 0

    def next(self, text: str) -> tuple[int, str]:
        at = 0 if self.seq % self._full_every == 0 else min(self._lengths[0], len(text))
        self._lengths.append(len(text))
        self.seq += 1
        return at, text[at:]


def pause(build_seconds: float, hz: float = FRAME_HZ) -> float:
    """Seconds to wait before the next frame, given how long this one took to build."""
    rate = SLOW_FRAME_HZ if build_seconds > SLOW_BUILD_SECONDS else hz
    return max(0.0, 1.0 / rate - build_seconds)
