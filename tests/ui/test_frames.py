"""The frames of a growing reply: what a reader that loses some of them still sees, and how often they come."""

import random

from playground.telemetry.pace import FRAME_HZ, SLOW_FRAME_HZ, pause
from playground.ui.frames import FULL_EVERY, OVERLAP, ReplyFrames


def read(frames: list[tuple[int, str]]) -> str:
    """What the browser does with the frames that reach it."""
    written = ""
    for at, text in frames:
        if at <= len(written):
            written = written[:at] + text
    return written


def growing(rng: random.Random, steps: int = 60) -> list[str]:
    texts = [""]
    for _ in range(steps):
        texts.append(texts[-1] + "".join(rng.choice("ab \nü😀") for _ in range(rng.randrange(0, 9))))
    return texts


def test_frames_joined_give_the_text() -> None:
    texts = growing(random.Random(1))
    cutter = ReplyFrames()
    assert read([cutter.next(text) for text in texts]) == texts[-1]


def test_losing_as_many_frames_as_overlap_loses_no_character() -> None:
    texts = growing(random.Random(2))
    cutter = ReplyFrames()
    frames = [cutter.next(text) for text in texts]
    for start in range(1, len(frames) - OVERLAP):
        kept = frames[:start] + frames[start + OVERLAP :]
        assert read(kept) == texts[-1], start


def test_a_reader_that_lost_many_frames_has_everything_after_the_next_full_one() -> None:
    texts = growing(random.Random(3), steps=3 * FULL_EVERY)
    cutter = ReplyFrames()
    frames = [cutter.next(text) for text in texts]
    assert frames[FULL_EVERY][0] == 0
    assert read(frames[FULL_EVERY:]) == texts[-1]


def test_a_window_stays_small_while_the_text_grows() -> None:
    cutter = ReplyFrames()
    sizes = [len(cutter.next("x" * 10 * n)[1]) for n in range(200)]
    assert max(size for n, size in enumerate(sizes) if n % FULL_EVERY) <= 10 * (OVERLAP + 1)


def test_a_slow_frame_halves_the_rate_and_a_wait_is_never_negative() -> None:
    assert pause(0.0) == 1 / FRAME_HZ
    assert pause(0.05) == 1 / SLOW_FRAME_HZ - 0.05
    assert pause(9.0) == 0.0


def test_a_list_is_cut_as_a_text_is_and_can_be_sent_whole() -> None:
    cutter = ReplyFrames(full_every=100)
    whole: list[int] = []
    shown: list[int] = []
    for number in range(40):
        whole += [number] * (number % 3)
        at, part = cutter.next(whole)
        shown = shown[:at] + part
        assert shown == whole and len(part) <= 6
    assert cutter.next(whole, full=True) == (0, whole)
