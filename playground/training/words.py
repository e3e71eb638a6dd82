"""Word lists of the template generator and of name swapping, read from text/words.toml, and the article of a noun."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any


def read_text(name: str) -> dict[str, Any]:
    """One of the TOML files below text/."""
    return tomllib.loads((Path(__file__).parent / "text" / name).read_text(encoding="utf-8"))


_WORDS: dict[str, list[str]] = read_text("words.toml")

GIRL_NAMES = _WORDS["girl_names"]
BOY_NAMES = _WORDS["boy_names"]
NAMES = GIRL_NAMES + BOY_NAMES
ANIMALS = _WORDS["animals"]
THINGS = _WORDS["things"]
PEOPLE = _WORDS["people"]
HEROES = _WORDS["heroes"]
ADJECTIVES = _WORDS["adjectives"]
PLACES = _WORDS["places"]
FOODS = _WORDS["foods"]
COLOURS = _WORDS["colours"]
HOBBIES = _WORDS["hobbies"]
COUNTABLE = _WORDS["countable"]


def article(phrase: str) -> str:
    """With "a" or "an", by sound."""
    low = phrase.lower()
    vowel = low.startswith(("honest", "hour")) or (low[0] in "aeiou" and not low.startswith(("uni", "use")))
    return ("an " if vowel else "a ") + phrase
