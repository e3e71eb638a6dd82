"""Readers of the training text folders: each yields cleaned documents of one source, in a fixed order.

They know file formats and what to strip (page marks, licence footers, book headers, calculator marks); they never
decide weights, hold-outs or order.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from playground.training.documents import Document, Turn, chat

TASK_SYSTEM = "You are a booking assistant. Help the user with reservations, travel, events and appointments."
COFFEE_SYSTEM = "You take orders at a coffee shop."
STORY_QUESTION_SYSTEM = "Answer the question about the story."


def clean(text: str) -> str:
    """Straight quotes and plain dashes, no stray spaces: fewer byte tokens and one way to write everything."""
    table = {
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "–": "-",
        "—": " - ",
        "…": "...",
        "\u00a0": " ",
        "\u200b": "",
        "\r": "",
    }
    for old, new in table.items():
        text = text.replace(old, new)
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" *\n *", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _json_lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def cased_stories(root: Path) -> Iterator[Document]:
    for row in _json_lines(root / "tinystories_fragments/stories_cased.jsonl"):
        text = re.sub(r"\n+", "\n\n", clean(row["text"]))
        if len(text) > 200 and "�" not in text and "â€" not in text:
            yield Document(key=text, text=text)


def lowercase_stories(root: Path) -> Iterator[Document]:
    """Still lower-cased; see truecase.py."""
    for row in _json_lines(root / "tinystories_fragments/stories_lowercase.jsonl"):
        text = re.sub(r"\n+", "\n\n", clean(row["text"]))
        if len(text) > 200 and "�" not in text and "â€" not in text:
            yield Document(key=text, text=text)


def fables(root: Path) -> Iterator[Document]:
    """Fables with their long prompt rewritten as one short request; kept only if they end with an end mark."""
    for row in _json_lines(root / "tinyfabulist/fables.jsonl"):
        fable = clean(re.sub(r"[*#]+", "", row["fable"]))
        hero = re.search(r"Main Character: an? (.+)", row["prompt"])
        place = re.search(r"Setting: an? (.+?)(?: where our story unfolds)?\n", row["prompt"])
        if not hero or not place or not fable.endswith((".", "!", '"')) or not 300 < len(fable) < 3000:
            continue
        fable = re.sub(r"^(?:Title: .*|Once upon a Fable.*)\n+", "", fable)
        who, where = hero.group(1).strip(), place.group(1).strip()
        noun = who.split()[-1].lower()
        if noun not in fable.lower():
            continue
        options = [
            f"Write a fable about a {who}.",
            f"Tell me a fable about a {who} in a {where}.",
            f"I would like a fable with a {who}, please.",
            f"Can you tell me a fable about a {noun}?",
        ]
        request = re.sub(r"\b([Aa]) ([aeiou])", r"\1n \2", options[len(fable) % 4])
        yield chat(fable, ("user", request), ("assistant", fable))


def _turns(pairs: list[list[str]], user: str = "U") -> list[Turn]:
    """Alternating turns from [speaker, text] pairs: merged when one speaker goes twice, starting with the user."""
    turns: list[Turn] = []
    for speaker, text in pairs:
        role, text = ("user" if speaker == user else "assistant"), clean(text)
        if not text or (not turns and role == "assistant"):
            continue
        if turns and turns[-1][0] == role:
            turns[-1] = (role, turns[-1][1] + " " + text)
        else:
            turns.append((role, text))
    if turns and turns[-1][0] == "user":
        turns.pop()
    return turns


def task_dialogues(root: Path) -> Iterator[Document]:
    for name in ("train", "dev"):
        for row in _json_lines(root / f"sgd_dialogues/{name}.jsonl"):
            turns = _turns(row["turns"])
            if turns:
                yield chat(" ".join(t for _, t in turns), ("system", TASK_SYSTEM), *turns)


def coffee_orders(root: Path) -> Iterator[Document]:
    for row in _json_lines(root / "taskmaster4_coffee/dialogs.jsonl"):
        turns = _turns(row["turns"])
        if turns:
            yield chat(" ".join(t for _, t in turns), ("system", COFFEE_SYSTEM), *turns)


def chitchat(root: Path, persona: str = "friendly") -> Iterator[Document]:
    """One document per (question variant, answer)."""
    text = (root / f"ms_chitchat/qna_chitchat_{persona}.qna").read_text(encoding="utf-8")
    for block in text.split("# ? ")[1:]:
        answer = re.search(r"```markdown\n(.*?)\n```", block, re.S)
        lines = block.splitlines()
        questions = [lines[0].strip()] + [line[2:].strip() for line in lines[1:] if line.startswith("- ")]
        if not answer or not answer.group(1).strip():
            continue
        for question in dict.fromkeys(questions):
            if 2 <= len(question) <= 120:
                yield chat(question, ("user", clean(question)), ("assistant", clean(answer.group(1))))


def persona_chats(root: Path) -> Iterator[Document]:
    csv.field_size_limit(1 << 24)
    for name in ("valid", "test"):
        path = root / f"synthetic_persona_chat/Synthetic-Persona-Chat_{name}.csv"
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found = re.findall(r"User ([12]): (.*)", row["Best Generated Conversation"])
                turns = _turns([["U" if who == "1" else "A", said] for who, said in found])
                if len(turns) >= 4:
                    yield chat(" ".join(t for _, t in turns), *turns)


def topical_chats(root: Path) -> Iterator[Document]:
    for name in ("valid_freq", "test_freq", "valid_rare", "test_rare"):
        for row in json.loads((root / f"topical_chat/{name}.json").read_text(encoding="utf-8")).values():
            turns = _turns([["U" if m["agent"] == "agent_1" else "A", m["message"]] for m in row["content"]])
            if len(turns) >= 4:
                yield chat(" ".join(t for _, t in turns), *turns)


def assistant_threads(root: Path) -> Iterator[Document]:
    for row in _json_lines(root / "openassistant_seed/threads.jsonl"):
        turns = _turns(row["turns"])
        whole = " ".join(t for _, t in turns)
        if turns and len(whole) < 2500 and turns[-1][1].endswith((".", "!", "?")):
            yield chat(whole, *turns)


def short_instructions(root: Path) -> Iterator[Document]:
    for row in json.loads((root / "rasbt_instruct/instruction-data.json").read_text(encoding="utf-8")):
        request = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
        if row["output"].strip():
            yield chat(request + row["output"], ("user", clean(request)), ("assistant", clean(row["output"])))


def fairy_tales(root: Path) -> Iterator[Document]:
    """Sections of the tales as plain text, a few sections at a time."""
    for path in sorted((root / "fairytaleqa/section-stories").glob("*/*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            sections = [clean(row["text"]) for row in csv.DictReader(file)]
        yield from (Document(key=path.stem, text="\n".join(sections[i : i + 3])) for i in range(0, len(sections), 3))


def fairy_tale_questions(root: Path) -> Iterator[Document]:
    """A section, then questions about it, as a chat."""
    for path in sorted((root / "fairytaleqa/section-stories").glob("*/*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            sections = {row["section"]: clean(row["text"]) for row in csv.DictReader(file)}
        key = path.stem
        questions = root / "fairytaleqa/questions" / path.parent.name / (key.removesuffix("-story") + "-questions.csv")
        if not questions.exists():
            continue
        grouped: dict[str, list[Turn]] = {}
        with questions.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["local-or-sum"] == "local" and row["cor_section"] in sections and row["answer1"]:
                    answer = clean(row["answer1"]).strip()
                    answer = answer[:1].upper() + answer[1:].rstrip(".") + "."
                    turns = grouped.setdefault(row["cor_section"], [])
                    turns += [("user", clean(row["question"])), ("assistant", answer)]
        for section, turns in grouped.items():
            first = ("user", sections[section] + "\n\n" + turns[0][1])
            yield chat(key, ("system", STORY_QUESTION_SYSTEM), first, *turns[1:])


def picture_books(root: Path) -> Iterator[Document]:
    """African Storybook and Pratham stories: page marks and the licence footer go, lines of a page are joined."""
    for folder in ("african_storybook", "pratham_books"):
        for path in sorted((root / folder).glob("*.md")):
            pages = re.split(r"^##.*$", path.read_text(encoding="utf-8"), flags=re.M)
            title = pages[0].strip().removeprefix("#").strip()
            body = [re.sub(r"\s*\n\s*", " ", page).strip() for page in pages[1:] if "* License:" not in page]
            text = clean("\n".join(p for p in body if p))
            if "License" not in text and len(text) > 200 and sum(ord(c) > 127 for c in text) < len(text) / 20:
                yield Document(key=title + text, text=text)


def classic_books(root: Path) -> Iterator[Document]:
    """Chapters cut into passages of whole paragraphs."""
    for path in sorted((root / "classic_childrens_books").glob("* - *.md")):
        body = path.read_text(encoding="utf-8").split("-------", 1)[-1]
        passage: list[str] = []
        for paragraph in clean(re.sub(r"^#.*$", "", body, flags=re.M)).split("\n\n"):
            passage.append(paragraph)
            if sum(map(len, passage)) > 2500:
                text = "\n\n".join(passage)
                yield Document(key=text, text=text)
                passage = []


def word_problems(root: Path) -> Iterator[Document]:
    for row in _json_lines(root / "gsm8k/train.jsonl"):
        answer = re.sub(r"<<.*?>>", "", row["answer"])
        answer = re.sub(r"\n#### (.*)", r"\nThe answer is \1.", answer)
        yield chat(row["question"], ("user", clean(row["question"])), ("assistant", clean(answer)))


READERS: dict[str, Callable[[Path], Iterator[Document]]] = {
    "cased_stories": cased_stories,
    "lowercase_stories": lowercase_stories,
    "fables": fables,
    "task_dialogues": task_dialogues,
    "coffee_orders": coffee_orders,
    "chitchat": chitchat,
    "persona_chats": persona_chats,
    "topical_chats": topical_chats,
    "assistant_threads": assistant_threads,
    "short_instructions": short_instructions,
    "fairy_tales": fairy_tales,
    "fairy_tale_questions": fairy_tale_questions,
    "picture_books": picture_books,
    "classic_books": classic_books,
    "word_problems": word_problems,
}
