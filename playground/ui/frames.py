"""How a reply that grows becomes a steady stream of small frames. Pure: no gradio, no engine, clocks are given.

Frames overlap, so that a lost one costs nothing, and every so often one carries the whole text. Nothing here measures
the engine: a frame's time says when it was drawn, never when a token was made.
"""

from collections import deque

OVERLAP = 2
FULL_EVERY = 12


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
