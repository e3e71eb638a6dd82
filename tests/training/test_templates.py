"""The template generator: seeded, without leftovers, true to the request, and always ending."""

from __future__ import annotations

import json
import random
import re

import pytest

from playground.training import words
from playground.training.story_grammar import grammar_story, make_hero
from playground.training.templates import KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_a_function_of_its_seed(kind: str) -> None:
    first, again, other = (KINDS[kind](random.Random(seed), 20) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 20


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_chats_alternate_end_with_the_assistant_and_have_no_unfilled_field(kind: str) -> None:
    for document in KINDS[kind](random.Random(5), 400):
        roles = [role for role, _ in document.turns if role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        for _, text in document.turns:
            assert text and text == text.strip()
            assert not re.search(r"\{[a-zA-Z_]+\}", text), text


def test_grammar_stories_mention_everything_the_request_names_and_come_to_an_end() -> None:
    lists = [words.NOUNS, words.FOODS, words.NAMES, words.MORE_ADJECTIVES, words.COLOURS, words.TOPICS]
    nameable = {part for entries in lists for entry in entries for part in entry.split()} - {"lost"}  # also a verb
    checked = 0
    for seed in range(800):
        subject, story = grammar_story(random.Random(seed))
        named = [w for w in re.findall(r"[A-Za-z]+", subject) if w in nameable or w[0].isupper()]
        checked += len(named)
        assert all(word in story or word.capitalize() in story for word in named), (subject, story)
        assert story.endswith((".", '"', "!"))
        assert story.count('"') % 2 == 0
    assert checked > 1200


def test_held_out_nouns_are_in_no_list_and_no_hero_of_a_story_is_one() -> None:
    lists = {name: value for name, value in vars(words).items() if name.isupper() and isinstance(value, list)}
    assert len(words.HELD_OUT) >= 28 and len(lists) >= 15
    for name, entries in lists.items():
        assert not [entry for entry in entries if words.HELD_OUT & set(entry.split())], name
    heroes = {make_hero(random.Random(seed)).noun for seed in range(3000)}
    assert not heroes & words.HELD_OUT
    assert len(heroes) > 900


@pytest.mark.parametrize(
    ("noun", "with_article"), [("owl", "an owl"), ("honest cat", "an honest cat"), ("unicorn", "a unicorn")]
)
def test_the_article_follows_the_sound(noun: str, with_article: str) -> None:
    assert words.article(noun) == with_article


def test_arithmetic_is_right() -> None:
    checked = 0
    for document in KINDS["arithmetic"](random.Random(7), 300):
        for a, op, b, result in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", document.turns[-1][1]):
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[op] == int(result)
            checked += 1
    assert checked > 200


def test_json_replies_are_json_and_repetitions_repeat() -> None:
    kinds = {"JSON": 0, "epeat": 0}
    for document in KINDS["formats"](random.Random(8), 300):
        question, answer = document.turns[-2][1], document.turns[-1][1]
        if "JSON" in question:
            kinds["JSON"] += 1
            assert json.loads(answer)["name"] in question
        if "epeat" in question:
            kinds["epeat"] += 1
            assert answer in question
    assert min(kinds.values()) > 20


def test_identity_questions_are_answered_with_the_name_and_what_it_is() -> None:
    answers = [d.turns[-1][1] for d in KINDS["greetings"](random.Random(9), 600) if "Who are you?" in d.turns[-2][1]]
    assert answers
    assert all("Storyteller" in a and "language model" in a for a in answers)
