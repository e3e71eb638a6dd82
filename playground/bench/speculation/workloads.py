"""What the speculation benchmark says to the model: small talk, stories, and stories asked for a second time.

Plain data; imports nothing heavy. Prompts are made by rule, in an order that is the same in every run, so that any
number of them is there and nobody picked them: a proposer that remembers earlier answers must not meet one again.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Literal

_GREETINGS = (
    "Hello!", "Who are you?", "How are you?", "What can you do?", "Good morning!", "Thank you!", "Where do you live?",
    "Can you help me?", "I am a bit sad today.", "Tell me something nice.", "It is raining.", "What is your name?",
    "I went to the park today.", "Who made you?", "I am bored.", "Good night!", "What should we talk about?",
)  # fmt: skip
_SMALL_TALK = (
    "I like {}.", "Do you like {}?", "My friend Anna likes {}.", "What do you know about {}?", "Tell me about {}.",
    "Let us talk about {}.", "Why do people like {}?",
)  # fmt: skip
_THINGS = (
    "painting", "soup", "music", "cats", "swimming", "books", "the sea", "cake", "football", "birds", "stories",
    "gardens", "apples", "trains", "drawing", "dogs", "snow", "singing", "boats", "pancakes",
    "honey", "rain", "horses", "chess", "running", "the moon", "cheese", "frogs", "bread", "robots", "summer", "fish",
)  # fmt: skip
_ADJECTIVES = (
    "shy", "brave", "tired", "clever", "lonely", "kind", "tiny", "proud", "hungry", "quiet", "silly", "old", "happy",
)  # fmt: skip
_HEROES = (
    "fox", "dragon", "robot", "mouse", "lighthouse", "bear", "pirate", "snail", "kite", "baker", "owl", "train",
    "princess", "frog", "snowman", "goat", "boat", "queen", "turtle", "teapot", "wolf", "whale", "farmer", "rabbit",
)  # fmt: skip

BEGUN_TOKENS = 16
"""About the first sentence."""


@dataclass(frozen=True)
class Workload:
    """Requests of one kind, drawn in one way."""

    name: str
    kind: Literal["chat", "story", "again"]
    does: str
    """What the prompts are, for people."""
    temperature: float
    max_tokens: int
    requests: int
    """Requests of one pass at batch size 1."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


PLAIN_WORKLOADS = ("chat", "story")
"""What people send; greedy."""
COPY_WORKLOAD = "copy"
_STORY = "requests for a story"
WORKLOADS = (
    Workload("chat", "chat", "first turns of small talk; replies of about a dozen tokens", 0, 64, 6),
    Workload("story", "story", _STORY, 0, 96, 2),
    Workload("story-0.7", "story", f"{_STORY}, sampled at temperature 0.7", 0.7, 96, 2),
    Workload("story-1.0", "story", f"{_STORY}, sampled at temperature 1", 1.0, 96, 2),
    Workload(
        COPY_WORKLOAD,
        "again",
        f"a story asked for a second time in one chat, and the first {BEGUN_TOKENS} tokens of the answer given. The "
        "bundled model is too small to copy just any text; its own story it tells again, mostly word for word",
        0,
        64,
        3,
    ),
)


def questions(kind: Literal["chat", "story", "again"], count: int) -> list[str]:
    """The first `count` things that a user says, all different. Raises ValueError where there are fewer."""
    if kind == "chat":
        small_talk = (
            _SMALL_TALK[(i + j) % len(_SMALL_TALK)].format(_THINGS[i])
            for j in range(len(_SMALL_TALK))
            for i in range(len(_THINGS))
        )
        everything = [*_GREETINGS, *small_talk]
    else:
        # Every adjective meets every hero once: neighbours differ in both.
        pairs = (
            (_ADJECTIVES[(i + j) % len(_ADJECTIVES)], _HEROES[i])
            for j in range(len(_ADJECTIVES))
            for i in range(len(_HEROES))
        )
        everything = [f"Tell me a story about {'an' if a[0] in 'aeiou' else 'a'} {a} {hero}." for a, hero in pairs]
    found = list(islice(everything, count))
    if len(found) < count:
        raise ValueError(f"{count} different prompts of kind {kind!r} are wanted; there are {len(found)}")
    return found
