"""Word lists of the template generator and of name swapping, read from text/, and the article of a noun."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any


def read_text(name: str) -> dict[str, Any]:
    """One of the TOML files below text/."""
    return tomllib.loads((Path(__file__).parent / "text" / name).read_text(encoding="utf-8"))


_WORDS: dict[str, list[str]] = read_text("words.toml")
_NOUNS: dict[str, list[str]] = read_text("nouns.toml")

HELD_OUT = frozenset(_NOUNS["held_out"])
"""Nouns that no list below has: to ask a model for one of them shows whether it copies or knows a list by heart."""


def _kept(*lists: list[str]) -> list[str]:
    """Without repetitions and without whatever holds a held-out noun."""
    return [entry for entry in dict.fromkeys(e for words in lists for e in words) if not HELD_OUT & set(entry.split())]


GIRL_NAMES = _WORDS["girl_names"]
BOY_NAMES = _WORDS["boy_names"]
NAMES = GIRL_NAMES + BOY_NAMES
RARE_NAMES = _NOUNS["names"]
ANIMALS = _kept(_WORDS["animals"])
THINGS = _kept(_WORDS["things"])
PEOPLE = _kept(_WORDS["people"])
HEROES = _kept(_WORDS["heroes"])
MORE_ANIMALS = _kept(_NOUNS["animals"])
MORE_THINGS = _kept(_NOUNS["things"], _NOUNS["vehicles"])
MORE_PEOPLE = _kept(_NOUNS["people"])
NOUNS = _kept(
    *(ANIMALS, THINGS, PEOPLE, HEROES, MORE_ANIMALS, MORE_THINGS, MORE_PEOPLE),
    *(_NOUNS["foods"], _NOUNS["places_and_nature"], _NOUNS["ideas"]),
)
"""Everything countable that a story may be about."""
TOPICS = _kept(_NOUNS["topics"])
ADJECTIVES = _WORDS["adjectives"]
MORE_ADJECTIVES = _kept(_WORDS["adjectives"], _NOUNS["adjectives"])
PLACES = _kept(_WORDS["places"])
FOODS = _WORDS["foods"]
COLOURS = _WORDS["colours"]
HOBBIES = _WORDS["hobbies"]
COUNTABLE = _kept(_WORDS["countable"])


def pseudo_word(rng: random.Random) -> str:
    """A pronounceable word that is (nearly always) none."""
    while True:
        syllables = [
            rng.choice(_NOUNS["onsets"]) + rng.choice(_NOUNS["vowels"]) + rng.choice(_NOUNS["codas"])
            for _ in range(rng.choice([1, 1, 2]))
        ]
        word = "".join(syllables) + rng.choice(_NOUNS["tails"])
        if 5 <= len(word) <= 10 and word not in HELD_OUT:
            return word


def article(phrase: str) -> str:
    """With "a" or "an", by sound."""
    low = phrase.lower()
    vowel = low.startswith(("honest", "hour")) or (low[0] in "aeiou" and not low.startswith(("uni", "use")))
    return ("an " if vowel else "a ") + phrase
