"""The prompt sets of comparisons: short stories, long texts, texts with a common beginning. Fixed, so runs compare."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptSet:
    key: str
    name: str
    prompts: tuple[str, ...]


STORIES = (
    "Tell me a story about a fox who could not sleep.",
    "Tell me a story about a girl and a little boat.",
    "Tell me a story about a bear who found a red ball.",
    "Tell me a story about two friends in the snow.",
    "Tell me a story about a bird who was afraid to fly.",
    "Tell me a story about a boy and his grandmother.",
    "Tell me a story about a cat who lost her hat.",
    "Tell me a story about a rabbit in a big garden.",
)
_PLACES = ("the old mill", "the quiet pond", "the hollow tree", "the stone bridge", "the apple field", "the red gate")


def diary(days: int) -> str:
    """A text of about 22 tokens a day."""
    lines = (
        f"On day {day} the fox walked to {_PLACES[day % len(_PLACES)]} and counted {day * 3 % 17 + 2} stars in the sky."
        for day in range(1, days + 1)
    )
    return " ".join(lines)


_TALK = (
    "Hello!",
    "Who are you?",
    "Good morning!",
    "How are you?",
    "Hi there!",
    "Thank you!",
    "Good night!",
    "Goodbye!",
)
_MIXED = tuple(one for i in range(4) for one in (STORIES[i], *_TALK[2 * i : 2 * i + 2]))
_DIARY = diary(28)
_COMMON = diary(22)

SETS: tuple[PromptSet, ...] = (
    PromptSet("stories", "stories", STORIES),
    PromptSet("mixed", "stories and small talk", _MIXED),
    PromptSet("story", "one story", STORIES[:1]),
    PromptSet("few", "three stories", STORIES[:3]),
    PromptSet("long", "long texts", tuple(f"{_DIARY} {ask}" for ask in ("Tell me a story.", "What did the fox see?"))),
    PromptSet(
        "shared",
        "a common beginning",
        tuple(
            f"{_COMMON} {ask}"
            for ask in ("What did the fox see?", "Tell me a story about the fox.", "Who are you?", "Where is the pond?")
        ),
    ),
    PromptSet("repeating", "repeating texts", tuple(f"{diary(days)} On day {days + 1} the fox" for days in (6, 8, 10))),
    PromptSet("joining", "short, then one long", (*STORIES[:3], f"{_DIARY} Tell me a story.")),
)
BY_KEY = {one.key: one for one in SETS}
