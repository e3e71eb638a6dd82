"""A seeded grammar of short children's stories: hero, wish, trouble, helper, ending, in several plots.

Every story mentions what the request names and comes to an end. It makes no claim to art: it teaches a tiny model that
the subject of a request is the subject of the story, also when the subject is a toaster.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from playground.training.words import (
    ANIMALS,
    BOY_NAMES,
    COLOURS,
    FOODS,
    GIRL_NAMES,
    HEROES,
    MORE_ADJECTIVES,
    MORE_THINGS,
    NOUNS,
    PEOPLE,
    PLACES,
    RARE_NAMES,
    THINGS,
    TOPICS,
    article,
    pseudo_word,
    read_text,
)

_TEXT = read_text("stories.toml")
_SHE, _HE = set(_TEXT["she_nouns"]), set(_TEXT["he_nouns"])


@dataclass(frozen=True)
class Hero:
    noun: str
    adjective: str
    name: str
    she: str
    her: str
    object: str

    @property
    def full(self) -> str:
        return f"{self.adjective} {self.noun}".strip()


def make_hero(rng: random.Random, noun: str | None = None) -> Hero:
    noun = noun or any_noun(rng)
    if noun in _SHE or (noun not in _HE and rng.random() < 0.5):
        pronouns, names = ("she", "her", "her"), GIRL_NAMES
    else:
        pronouns, names = ("he", "his", "him"), BOY_NAMES
    name = rng.choice(names)
    way = rng.random()
    if way < 0.2:
        name = "".join(rng.choice(_TEXT["syllables"]) for _ in range(rng.choice([2, 2, 3]))).capitalize()
    elif way < 0.35:
        name = rng.choice(RARE_NAMES)
    adjective = "" if rng.random() < 0.35 else rng.choice(MORE_ADJECTIVES)
    return Hero(noun, adjective, name, *pronouns)


def any_noun(rng: random.Random) -> str:
    """Mostly uniform over all nouns, so that the usual ones are no safe guess; one in eight is a pseudo-word."""
    way = rng.random()
    if way < 0.125:
        return pseudo_word(rng)
    return rng.choice(NOUNS if way < 0.8 else rng.choice([ANIMALS, THINGS, PEOPLE, HEROES]))


def pick(rng: random.Random, first: Callable[[], str], *others: str) -> str:
    """The first draw that is none of the others."""
    while (word := first()) in others:
        pass
    return word


def grammar_story(rng: random.Random) -> tuple[str, str]:
    """(what the request names, the story)."""
    if rng.random() < 0.12:
        return topic_story(rng)
    hero = make_hero(rng)
    helper = pick(rng, lambda: rng.choice(ANIMALS + PEOPLE) if rng.random() < 0.8 else any_noun(rng), hero.noun)
    second = pick(rng, lambda: any_noun(rng), hero.noun)
    looks = rng.sample(_TEXT["looks"], 4)
    phrase, sentence, plot = rng.choice(_TEXT["traits"])
    thing = pick(rng, lambda: rng.choice(rng.choice([THINGS, MORE_THINGS])), hero.noun, helper, second)
    place = rng.choice(PLACES)
    words = {
        "name": hero.name,
        "Name": hero.name,
        "she": hero.she,
        "She": hero.she.capitalize(),
        "her": hero.her,
        "Her": hero.her.capitalize(),
        "object": hero.object,
        "noun": hero.noun,
        "a_full": article(hero.full),
        "a_noun": article(hero.noun),
        "A_noun": article(hero.noun).capitalize(),
        "place": place,
        "Place_cap": place[0].upper() + place[1:],
        "food": rng.choice(FOODS),
        "deed": rng.choice(_TEXT["deeds"]),
        "fear": rng.choice(_TEXT["fears"]),
        "thing": thing,
        "article_thing": article(thing),
        "colour": rng.choice(COLOURS),
        "helper": helper,
        "helper_a": article(helper),
        "Helper_a_cap": article(helper).capitalize(),
        "second": second,
        "second_a": article(second),
        "friend": second if plot in ("meet", "pair") else helper,
        **{f"look{i}": look for i, look in enumerate(looks, 1)},
    }
    words["trait"] = sentence.format(**words)
    opening = rng.choice(_TEXT["openings"]).format(**words)
    body = rng.choice(_TEXT["plots"][plot]).format(**words)
    ending = rng.choice(_TEXT["endings"]).format(**words)
    story = f"{opening}\n\n{body}\n\n{ending}"
    return _subject(rng, hero, phrase.format(**words), words, story), story


def topic_story(rng: random.Random) -> tuple[str, str]:
    """A story about what is no single hero: an idea, a plural, a place, or a made-up word."""
    topic = rng.choice(TOPICS) if rng.random() < 0.7 else pseudo_word(rng)
    hero = make_hero(rng, rng.choice(rng.choice([ANIMALS, PEOPLE])))
    helper = pick(rng, lambda: rng.choice(ANIMALS + PEOPLE), hero.noun)
    words = {
        "topic": topic,
        "Topic": topic[0].upper() + topic[1:],
        "name": hero.name,
        "a_full": article(hero.full),
        "she": hero.she,
        "She": hero.she.capitalize(),
        "her": hero.her,
        "object": hero.object,
        "helper": helper,
        "helper_a": article(helper),
        "place": rng.choice(PLACES),
        "food": rng.choice(FOODS),
        "look": rng.choice(_TEXT["looks"]),
    }
    return topic, rng.choice(_TEXT["topic_stories"]).format(**words).strip()


def _subject(rng: random.Random, hero: Hero, phrase: str, words: dict[str, str], story: str) -> str:
    """What the request says: the hero in one of several ways, and perhaps somebody or something else in the story."""
    who = article(rng.choice([hero.noun, hero.full]))
    if phrase.startswith("and "):
        return rng.choice([f"{who} {phrase}", f"{hero.name} {phrase}", f"{hero.name} the {hero.noun} {phrase}"])
    options = [who, f"{who} named {hero.name}", f"{hero.name} the {hero.noun}", hero.name, f"{who} {words['place']}"]
    options += [article(hero.noun)] * 6  # by far the most usual way to ask
    options += [f"the {hero.noun}", f"the {hero.full}", hero.noun]
    options += [f"{who} {phrase}", f"{who} {phrase}", f"{who} named {hero.name} {phrase}"]
    for other, weight in (("helper", 1), ("thing", 2)):
        if story.count(words[other]) >= 2:
            options += [f"{who} and {article(words[other])}", f"{hero.name} and {article(words[other])}"] * weight
    return rng.choice(options)
