"""From documents to rows: hold-out, epochs, packing, truecasing and name swapping, on a small data folder."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from playground.training.data import Corpus, pack_rows, pack_stream
from playground.training.documents import is_held_out
from playground.training.model import IGNORE_INDEX
from playground.training.sources import chitchat, clean, picture_books
from playground.training.story_requests import StoryStatistics, story_request, swap_hero, truecase

PETS = ["otter", "rabbit", "kitten", "turtle", "pony"]
STORY = (
    "Once upon a time, there was a shy {pet} named {name}. {name} lived near a lake with her mom. "
    "One day she found a red "
    'lantern. "What is this?" asked {name}. She took the lantern home, and the lantern shone all night. Number {i} was '
    "happy. She showed the lantern to {friend}, and they were friends."
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    (root / "tinystories_fragments").mkdir()
    stories = [
        STORY.format(pet=PETS[i % 5], name=["Mira", "Tilda", "Una"][i % 3], i=i, friend=["Bob", "Ned"][i % 2])
        for i in range(300)
    ]
    for name, texts in (("cased", stories[:200]), ("lowercase", [s.lower() for s in stories[200:]])):
        lines = "".join(json.dumps({"text": t}) + "\n" for t in texts)
        (root / f"tinystories_fragments/stories_{name}.jsonl").write_text(lines)
    return root


@pytest.fixture(scope="module")
def corpus(data_dir: Path) -> Corpus:
    return Corpus(data_dir, {"story_chats", "cased_stories", "greetings"}, seed=1, generated_documents=10)


def test_no_held_out_document_enters_an_epoch(corpus: Corpus) -> None:
    mix = {"cased_stories": 3.0, "lowercase_stories": 3.0, "story_chats": 3.0}
    seen = {d.key for epoch in range(3) for d in corpus.epoch(mix, "s", epoch)}
    held = {d.key for documents in corpus.held_out.values() for d in documents}
    assert held and len(seen) > 200
    assert not seen & held
    assert all(is_held_out(key) for key in held)


def test_hold_out_ignores_case_and_spacing_and_takes_about_two_percent() -> None:
    assert is_held_out("A  b\nc") == is_held_out("a b c")
    assert 120 < sum(is_held_out(f"document {i}") for i in range(10_000)) < 280


def test_fractional_weights_show_every_document_equally_often(corpus: Corpus) -> None:
    counts: dict[str, int] = {}
    for epoch in range(10):
        for document in corpus.epoch({"cased_stories": 0.3}, "s", epoch):
            counts[document.key] = counts.get(document.key, 0) + 1
    assert set(counts.values()) == {3} and len(counts) == len(corpus.train["cased_stories"])


def test_epochs_are_reproducible_and_differ_from_each_other(corpus: Corpus) -> None:
    mix = {"story_chats": 0.5, "greetings": 1.0}
    first, again, second = corpus.epoch(mix, "s", 0), corpus.epoch(mix, "s", 0), corpus.epoch(mix, "s", 1)
    assert first == again != second


def test_a_story_request_names_what_is_in_the_story(corpus: Corpus) -> None:
    chats = [d for d in corpus.epoch({"story_chats": 1.0}, "s", 0) if d.turns]
    assert len(chats) > 100
    for document in chats:
        story = document.turns[-1][1]
        named = set(PETS) | {"lantern", "lake"}
        asked = [w.strip(".?!,") for w in document.turns[-2][1].split()]
        mentioned = [w for w in asked if w in named or (w[:1].isupper() and w in story)]
        assert mentioned and all(w in story for w in asked if w in named)


def test_truecasing_restores_names_sentence_starts_quotes_and_i() -> None:
    stats = StoryStatistics.of([STORY.format(pet="otter", name="Mira", i=1, friend="Bob")] * 5)
    text = 'one day, mira met bob. "can i come?" asked bob. "yes!" they ran.'
    assert truecase(text, stats) == 'One day, Mira met Bob. "Can I come?" asked Bob. "Yes!" They ran.'


def test_swapping_the_hero_renames_it_everywhere_and_keeps_the_gender() -> None:
    stats = StoryStatistics.of([STORY.format(pet="otter", name="Mira", i=1, friend="Bob")] * 5)
    text = STORY.format(pet="otter", name="Mira", i=1, friend="Bob")
    swapped = swap_hero(text, stats, random.Random(0))
    assert "Mira" not in swapped and "Bob" in swapped and " she " in swapped
    subject = story_request(swapped, stats, random.Random(0))
    assert subject is not None


def test_stream_packing_keeps_every_token_in_order() -> None:
    encoded = [([1, 2, 3, 4], [True] * 4), ([5, 6, 7], [False, True, True]), ([8, 9, 10, 11], [True] * 4)]
    rows = pack_stream(encoded, 5)
    assert rows.ids.tolist() == [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, 11]]
    assert rows.mask.tolist() == [[True, True, True, False, True], [True] * 5]
    inputs, targets = rows.batch(0, 2)
    assert inputs[0].tolist() == [1, 2, 3, 4, 5] and targets[0].tolist() == [2, 3, 4, IGNORE_INDEX, 6]


def test_row_packing_starts_rows_with_documents_and_never_splits_one() -> None:
    rng = random.Random(0)
    encoded = []
    for start in range(200):
        length = rng.randint(3, 30)
        encoded.append(([1000 + start] * length, [True] * length))
    rows = pack_rows(encoded, 63, pad=3)
    for document, _ in encoded:
        hits = np.argwhere((rows.ids == document[0]).any(axis=1))
        assert len(hits) == 1 and (rows.ids == document[0]).sum() == len(document)
    assert (rows.ids[:, 0] >= 1000).all()
    assert not rows.mask[rows.ids[:, 1:] == 3].any()


def test_readers_strip_page_marks_licences_and_markup(tmp_path: Path) -> None:
    (tmp_path / "african_storybook").mkdir()
    (tmp_path / "pratham_books").mkdir()
    page = "The goat and the dog\nwent to town. " * 8
    book = f"# Goat\n\n##\n{page}\n\n##\n* License: [CC-BY]\n* Text: Somebody\n"
    (tmp_path / "african_storybook/0001_goat.md").write_text(book)
    (document,) = picture_books(tmp_path)
    assert "License" not in document.text and "#" not in document.text and "dog went" in document.text
    (tmp_path / "ms_chitchat").mkdir()
    block = "> !# x\n\n# ? Hi you\n- Hello\n- Hello\n\n**Filters:**\n\n```markdown\nHey.\n```\n"
    (tmp_path / "ms_chitchat/qna_chitchat_friendly.qna").write_text(block)
    assert [d.turns for d in chitchat(tmp_path)] == [
        (("user", "Hi you"), ("assistant", "Hey.")),
        (("user", "Hello"), ("assistant", "Hey.")),
    ]
    assert clean("“Don’t”  go — now…") == '"Don\'t" go - now...'
