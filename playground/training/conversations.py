"""Seeded small talk over several turns: moods, names, likes, plans, pets, reactions, and stories in between.

Every reply follows from what the user said; the phrases are in text/phrases.toml.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from playground.training.documents import Turn
from playground.training.story_grammar import grammar_story
from playground.training.story_requests import NO_SUBJECT_REQUESTS, story_chat
from playground.training.words import ANIMALS, COLOURS, FOODS, HOBBIES, NAMES, THINGS, article, read_text

PHRASES: dict[str, Any] = read_text("phrases.toml")
_FOLLOW: dict[str, list[str]] = PHRASES["follow_ups"]
_FAVOURITES = {"colour": COLOURS, "color": COLOURS, "animal": ANIMALS, "food": FOODS, "hobby": HOBBIES}
_MINE = {
    "colour": ("blue", "it looks like the sky"),
    "color": ("blue", "it looks like the sky"),
    "animal": ("the fox", "foxes are clever and have soft fur"),
    "food": ("soup", "it is good for stories about the winter"),
    "hobby": ("telling stories", "there is always a new one"),
}


def exchange(rng: random.Random, said: list[str], answered: list[str], **fill: str) -> list[Turn]:
    return [("user", rng.choice(said).format(**fill)), ("assistant", rng.choice(answered).format(**fill))]


def conversation(rng: random.Random, with_story: bool) -> list[Turn]:
    """Greeting, a few topics in any order, stories if asked for, thanks and goodbye; each part may be missing."""
    turns: list[Turn] = []
    if rng.random() < 0.7:
        turns += exchange(rng, PHRASES["greetings"], PHRASES["greeting_replies"])
    topics = rng.sample([moods, names, likes, likes_back, plans, identity, reaction, reaction, pets, news], 3)
    for topic in topics[: rng.randint(0 if with_story else 1, 3)]:
        turns += topic(rng)
    if with_story:
        turns += stories(rng)
    elif rng.random() < 0.3:
        turns += exchange(rng, PHRASES["thanks"], PHRASES["thanks_replies"])
    if rng.random() < 0.35:
        bye = rng.choice(PHRASES["byes"])
        replies = PHRASES["night_replies"] if "night" in bye.lower() else PHRASES["bye_replies"]
        turns += [("user", bye), ("assistant", rng.choice(replies))]
    return turns


def stories(rng: random.Random) -> list[Turn]:
    """One or two stories: on request, after an offer, after asking what it should be about, or once more."""
    turns: list[Turn] = []
    for index in range(rng.choice([1, 1, 2])):
        subject, story = grammar_story(rng)
        way = rng.random()
        if index and way < 0.3:
            turns += [("user", rng.choice(_FOLLOW["again"])), ("assistant", story)]
        elif way < 0.2:
            turns += [("user", rng.choice(NO_SUBJECT_REQUESTS)), ("assistant", story)]
        elif way < 0.4:
            turns += exchange(rng, NO_SUBJECT_REQUESTS + _FOLLOW["yes"], _FOLLOW["which_story"])
            said = rng.choice(["{x}", "{x}", "About {x}.", "About {x}", "I want {x}.", "{x} please", "Maybe {x}?"])
            turns += [("user", said.format(x=subject)), ("assistant", story)]
        else:
            turns += story_chat("", subject, story, rng).turns
        if rng.random() < 0.45:
            turns += exchange(rng, PHRASES["thanks"], PHRASES["thanks_replies"])
    return turns


def offer(rng: random.Random) -> list[Turn]:
    """A greeting answered with the offer of a story, which the user takes or leaves."""
    greeted = exchange(rng, PHRASES["greetings"], _FOLLOW["story_offers"])
    if rng.random() < 0.3:
        return greeted + exchange(rng, _FOLLOW["no"], _FOLLOW["no_replies"])
    return [*greeted, ("user", rng.choice(_FOLLOW["yes"])), ("assistant", grammar_story(rng)[1])]


def moods(rng: random.Random) -> list[Turn]:
    turns = exchange(rng, PHRASES["how_are_you"], PHRASES["fine"])
    if rng.random() < 0.5:
        return turns + exchange(rng, PHRASES["user_good"], PHRASES["good_replies"])
    said = rng.choice(PHRASES["user_bad"])
    key = next(k for k in PHRASES["bad_replies"] if k in said.lower())
    turns += [("user", said), ("assistant", rng.choice(PHRASES["bad_replies"][key]))]
    if turns[-1][1].endswith(("happened?", "about it?")) and rng.random() < 0.7:
        fill = {"thing": rng.choice(THINGS), "animal": rng.choice(ANIMALS)}
        turns += exchange(rng, _FOLLOW["happenings"], _FOLLOW["comfort"], **fill)
    return turns


def names(rng: random.Random) -> list[Turn]:
    name = rng.choice(NAMES)
    said = ["My name is {n}.", "I'm {n}.", "I am {n}.", "Hi, I'm {n}!", "my name is {n}", "You can call me {n}."]
    reply = ["Nice to meet you, {n}!", "Hello {n}! I am Storyteller.", "It is good to meet you, {n}. How are you?",
             "What a nice name! Hello, {n}."]  # fmt: skip
    turns = exchange(rng, said, reply, n=name)
    if rng.random() < 0.5:
        ask = ["What is my name?", "Do you remember my name?", "Who am I?", "what's my name?"]
        turns += exchange(rng, ask, ["Your name is {n}.", "You are {n}!", "Yes, your name is {n}."], n=name)
    return turns


def likes(rng: random.Random) -> list[Turn]:
    kind = rng.choice([*_FAVOURITES, "hobby"])
    thing = plural(rng.choice(_FAVOURITES[kind])) if kind == "animal" else rng.choice(_FAVOURITES[kind])
    said = ["I like {x}.", "I love {x}!", "i really like {x}", "I like {x} very much.", "I enjoy {x}"]
    reply = ["I like {x} too! Why do you like {x}?", "{X}? That is nice! What do you like about {x}?",
             "That is great! I could tell you a story about {x}.", "Oh, {x}! Tell me more."]  # fmt: skip
    turns = exchange(rng, said, reply, x=thing, X=capital(thing))
    if rng.random() < 0.5:
        turns += exchange(rng, _FOLLOW["reasons"], _FOLLOW["reason_replies"])
    return turns


def likes_back(rng: random.Random) -> list[Turn]:
    """The user asks for the model's favourite and then names theirs."""
    kind = rng.choice(list(_FAVOURITES))
    mine, why = _MINE[kind]
    thing = rng.choice(_FAVOURITES[kind])
    ask = ["What is your favourite {k}?", "What's your favorite {k}?", "Do you have a favourite {k}?",
           "Which {k} do you like best?"]  # fmt: skip
    turns = exchange(rng, ask, ["My favourite {k} is {m}, because {w}. What is yours?", "I like {m} best. And you?"],
                     k=kind, m=mine, w=why)  # fmt: skip
    said = ["My favourite is {x}.", "{X}.", "I like {x}.", "{x}", "Mine is {x}.", "I think {x}"]
    reply = ["{X} is a good choice!", "Oh, {x}! I like that too.", "{X}! That is nice.", "That is a lovely {k}."]
    return turns + exchange(rng, said, reply, x=thing, X=capital(thing), k=kind)


def plans(rng: random.Random) -> list[Turn]:
    hobby = rng.choice(HOBBIES)
    fill = {"h": hobby, "H": capital(hobby), "y": hobby.replace("my", "a"), "Y": capital(hobby.replace("my", "a"))}
    reply = ["{Y} sounds like fun!", "That sounds fun! Do you do that often?", "How nice! I wish I could try {y} too.",
             "{Y} is a great way to spend the day."]  # fmt: skip
    if rng.random() < 0.5:
        said = ["I am going {h} today.", "Today I was {h}.", "I spent the day {h}.", "Tomorrow I will be {h}."]
        return exchange(rng, said, reply, **fill)
    ask = ["What do you like to do?", "What do you do for fun?", "What are your hobbies?", "What did you do today?"]
    mine = ["I like to tell stories. What do you like to do?", "I love to make up stories about animals. And you?"]
    return exchange(rng, ask, mine) + exchange(
        rng, ["I like {h}.", "I enjoy {h}.", "{H}.", "I love {h}!"], reply, **fill
    )


def identity(rng: random.Random) -> list[Turn]:
    kind = rng.choice(["identity", "identity", "ability", "maker", "size"])
    return exchange(rng, PHRASES[f"{kind}_questions"], PHRASES[f"{kind}_replies"])


def reaction(rng: random.Random) -> list[Turn]:
    said = rng.choice(list(PHRASES["reactions"]))
    answer = rng.choice(PHRASES["reactions"][said])
    if rng.random() < 0.3:
        said = said.lower().rstrip("?.!")
    return [("user", said), ("assistant", answer)]


def fact(rng: random.Random) -> list[Turn]:
    """A question with a known answer, or one that a tiny model had better decline."""
    if rng.random() < 0.35:
        unknown = PHRASES["unknown"]
        fill = {
            "place": rng.choice(unknown["places"]),
            "big": str(rng.randint(101, 2030)),
            "big2": str(rng.randint(21, 999)),
            "title": rng.choice(unknown["titles"]),
            "name": rng.choice(NAMES),
            "thing": rng.choice(THINGS),
            "a_thing": article(rng.choice(THINGS)),
        }
        return exchange(rng, unknown["questions"], unknown["answers"], **fill)
    question = rng.choice(list(PHRASES["facts"]))
    answer = PHRASES["facts"][question]
    if rng.random() < 0.3:
        question = question.lower().rstrip("?")
    return [("user", question), ("assistant", answer)]


def pets(rng: random.Random) -> list[Turn]:
    animal = rng.choice(ANIMALS)
    fill = {
        "animal": animal,
        "a_animal": article(animal),
        "A_animal": capital(article(animal)),
        "name": rng.choice(NAMES),
    }
    return exchange(rng, _FOLLOW["pets"], _FOLLOW["pet_replies"], **fill)


def news(rng: random.Random) -> list[Turn]:
    thing = rng.choice(THINGS)
    fill = {"thing": thing, "a_thing": article(thing), "animal": rng.choice(ANIMALS), "food": rng.choice(FOODS)}
    if rng.random() < 0.4:
        return exchange(rng, _FOLLOW["happenings"], _FOLLOW["comfort"], **fill)
    return exchange(rng, _FOLLOW["good_news"], _FOLLOW["cheers"], **fill)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def plural(noun: str) -> str:
    irregular = {"mouse": "mice", "goose": "geese", "wolf": "wolves", "fish": "fish", "sheep": "sheep", "deer": "deer"}
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


TOPICS: list[Callable[[random.Random], list[Turn]]] = [
    moods, names, likes, likes_back, plans, identity, reaction, fact, pets, news, offer,
]  # fmt: skip
