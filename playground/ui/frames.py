"""How a reply that grows becomes a steady stream of small frames. Pure: no gradio, no engine, clocks are given.

Frames overlap, so that a lost one costs nothing, and every so often one carries the whole text. Nothing here measures
the engine: a frame's time says when it was drawn, never when a token was made.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T", bound=Sequence[Any])

OVERLAP = 2
FULL_EVERY = 12
TOKENS_FULL_EVERY = 36
"""Tokens take some ten times the room of their text."""


class ReplyFrames:
    """Cuts a growing text or list into overlapping windows `(at, part)`: the reader keeps its first `at` elements.

    A window starts where it ended `overlap` frames ago; the first and every `full_every`-th start at 0.
    """

    def __init__(self, overlap: int = OVERLAP, full_every: int = FULL_EVERY) -> None:
        self._lengths: deque[int] = deque([0], maxlen=overlap + 1)
        self._full_every = full_every
        self.seq = 0

    def next(self, whole: T, *, full: bool = False) -> tuple[int, T]:
        at = 0 if full or self.seq % self._full_every == 0 else min(self._lengths[0], len(whole))
        self._lengths.append(len(whole))
        self.seq += 1
        return at, whole[at:]  # type: ignore[return-value]  # a slice of its own kind
