"""The project's own seeded chat generator: greetings, identity, small talk, arithmetic, lists, JSON, repeat-after-me.

Each kind maps (random generator, count) to documents and depends on nothing else; no training data is read.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from playground.training.conversations import PHRASES, TOPICS, conversation, exchange, fact, plural, reaction
from playground.training.documents import Document, Turn, chat
from playground.training.story_grammar import grammar_story
from playground.training.story_requests import story_chat
from playground.training.words import ANIMALS, COLOURS, COUNTABLE, FOODS, HOBBIES, NAMES, PLACES, THINGS, article


def greetings(rng: random.Random, count: int) -> list[Document]:
    """Single exchanges: greeting, identity, abilities, how-are-you, reactions, facts, thanks, goodbye."""
    pools = [
        ("greetings", "greeting_replies", 4),
        ("identity_questions", "identity_replies", 5),
        ("maker_questions", "maker_replies", 1),
        ("ability_questions", "ability_replies", 2),
        ("size_questions", "size_replies", 1),
        ("how_are_you", "fine", 3),
        ("thanks", "thanks_replies", 1),
        ("byes", "bye_replies", 1),
    ]
    out = []
    for _ in range(count):
        if rng.random() < 0.35:
            turns = rng.choice([reaction, fact])(rng)
        else:
            (pool,) = rng.choices(pools, [weight for _, _, weight in pools])
            turns = exchange(rng, PHRASES[pool[0]], PHRASES[pool[1]])
        out.append(_chat(rng, turns))
    return out


def small_talk(rng: random.Random, count: int) -> list[Document]:
    """Whole conversations, and single topics from the first turn on."""
    out = []
    for _ in range(count):
        turns = rng.choice(TOPICS)(rng) if rng.random() < 0.35 else conversation(rng, with_story=False)
        out.append(_chat(rng, turns))
    return out


def sessions(rng: random.Random, count: int) -> list[Document]:
    """Small talk with one or two stories in it, as people use a chat page."""
    return [_chat(rng, conversation(rng, with_story=True)) for _ in range(count)]


def grammar_stories(rng: random.Random, count: int) -> list[Document]:
    out = []
    for _ in range(count):
        subject, story = grammar_story(rng)
        out.append(_chat(rng, list(story_chat(story, subject, story, rng).turns)))
    return out


def arithmetic(rng: random.Random, count: int) -> list[Document]:
    """Sums and differences of one digit mostly, small products, counting."""
    return [_chat(rng, rng.choice([_sum, _sum, _sum, _counting, _word_problem])(rng)) for _ in range(count)]


def formats(rng: random.Random, count: int) -> list[Document]:
    """Replies of a given form: lists, JSON, repetition, spelling."""
    makers = [_list, _list, _json, _json, _repeat, _repeat, _spelling]
    return [_chat(rng, rng.choice(makers)(rng)) for _ in range(count)]


def _chat(rng: random.Random, turns: list[Turn]) -> Document:
    """One chat in eight gets a system prompt, so that a page with one (or without) meets nothing new."""
    if rng.random() < 0.125:
        turns = [("system", rng.choice(PHRASES["systems"])), *turns]
    return chat(" ".join(text for _, text in turns), *turns)


def _sum(rng: random.Random) -> list[Turn]:
    top = 30 if rng.random() < 0.1 else 10
    kind = rng.choice(["+", "+", "+", "-", "-", "*"])
    a, b = rng.randint(0, top), rng.randint(0, top)
    if kind == "*":
        a, b = a % 7, b % 7
    if kind == "-" and a < b:
        a, b = b, a
    result = {"+": a + b, "-": a - b, "*": a * b}[kind]
    word = {"+": "plus", "-": "minus", "*": "times"}[kind]
    asked = [f"What is {a} {kind} {b}?", f"{a} {kind} {b} = ?", f"What is {a} {word} {b}?", f"{a}{kind}{b}",
             f"what is {a}{kind}{b}", f"How much is {a} {word} {b}?"]  # fmt: skip
    return [("user", rng.choice(asked)), ("assistant", f"{a} {kind} {b} = {result}.")]


def _counting(rng: random.Random) -> list[Turn]:
    n = rng.randint(3, 12)
    ask = rng.choice([f"Count to {n}.", f"Count to {n}", f"Can you count to {n}?", f"Count from 1 to {n}."])
    return [("user", ask), ("assistant", ", ".join(str(i) for i in range(1, n + 1)) + ".")]


def _word_problem(rng: random.Random) -> list[Turn]:
    thing, name = plural(rng.choice(COUNTABLE)), rng.choice(NAMES)
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    question = f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have?"
    return [("user", question), ("assistant", f"{a} + {b} = {a + b}. {name} has {a + b} {thing}.")]


def _list(rng: random.Random) -> list[Turn]:
    pools = {"animals": ANIMALS, "colours": COLOURS, "colors": COLOURS, "foods": FOODS, "hobbies": HOBBIES,
             "things": THINGS, "names": NAMES}  # fmt: skip
    kind = rng.choice(list(pools))
    n = rng.randint(2, 6)
    number = rng.choice([str(n), {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}[n]])
    ask = ["List {n} {k}.", "Name {n} {k}.", "Give me a list of {n} {k}.", "Tell me {n} {k}.", "Can you name {n} {k}?"]
    items = rng.sample(pools[kind], n)
    numbered = rng.random() < 0.7
    lines = [f"{i}. {item}" if numbered else f"- {item}" for i, item in enumerate(items, 1)]
    return [("user", rng.choice(ask).format(n=number, k=kind)), ("assistant", "\n".join(lines))]


def _json(rng: random.Random) -> list[Turn]:
    name, age, animal, colour = rng.choice(NAMES), rng.randint(2, 12), rng.choice(ANIMALS), rng.choice(COLOURS)
    if rng.random() < 0.5:
        question = f"Answer in JSON: {name} is {age} years old and has {article(animal)}."
        reply: dict[str, object] = {"name": name, "age": age, "pet": animal}
    else:
        question = f"Write this as JSON: {article(colour + ' ' + animal)} named {name}."
        reply = {"name": name, "animal": animal, "colour": colour}
    return [("user", question), ("assistant", json.dumps(reply))]


def _repeat(rng: random.Random) -> list[Turn]:
    shapes = [
        "The {a} sat {p}.",
        "{n} likes {f}.",
        "A {c} {t} is {p}.",
        "{n} and the {a}",
        "{c} {t}",
        "{n} has {f} and a {t}.",
    ]
    text = rng.choice(shapes).format(
        a=rng.choice(ANIMALS), p=rng.choice(PLACES), n=rng.choice(NAMES), f=rng.choice(FOODS), c=rng.choice(COLOURS),
        t=rng.choice(THINGS),
    )  # fmt: skip
    ask = ["Repeat after me: {x}", "Say: {x}", "Please repeat: {x}", 'Repeat this: "{x}"', "Say this back to me: {x}"]
    return [("user", rng.choice(ask).format(x=text)), ("assistant", text)]


def _spelling(rng: random.Random) -> list[Turn]:
    word = rng.choice(ANIMALS + COLOURS + COUNTABLE)
    ask = rng.choice([f"Spell the word {word}.", f"How do you spell {word}?", f"Spell {word}."])
    return [("user", ask), ("assistant", "-".join(word))]


KINDS: dict[str, Callable[[random.Random, int], list[Document]]] = {
    "greetings": greetings,
    "small_talk": small_talk,
    "sessions": sessions,
    "grammar_stories": grammar_stories,
    "arithmetic": arithmetic,
    "formats": formats,
}
