"""Corpus statistics that turn stories into chats: truecasing, who a story is about, and swapping that name.

A request must name what its story is about, or the model learns to ignore requests. Swapping the hero's name for a
random one of the same gender, in request and story alike, forces it to copy the name from the request.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from playground.training.documents import Document, chat
from playground.training.words import ANIMALS, BOY_NAMES, GIRL_NAMES, MORE_ANIMALS, article, read_text

_TEXT = read_text("stories.toml")
_WORD = re.compile(r"[A-Za-z']+")
_INTRODUCED = re.compile(
    r"(?:there (?:was|lived|were|is)|named [A-Z]\w+ was|[A-Z]\w+ was) (an? (?:[a-z]+,? ){0,3}?[a-z]+)"
    r"(?= (?:named|called|who|that|in|with)\b|[.,])( (?:named|called) [A-Z][a-z]+)?"
)
_NOT_NOUNS = set(_TEXT["not_nouns"])


@dataclass
class StoryStatistics:
    """Counts over the cased stories; cheap to recompute, so never stored."""

    capitalised: Counter[str] = field(default_factory=Counter)
    lowercase: Counter[str] = field(default_factory=Counter)
    pronouns: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    determined: Counter[str] = field(default_factory=Counter)
    document_count: Counter[str] = field(default_factory=Counter)
    num_documents: int = 0

    @classmethod
    def of(cls, stories: Iterable[str]) -> StoryStatistics:
        stats = cls()
        for text in stories:
            stats.num_documents += 1
            inner = re.findall(r"(?<=[a-z,] )[A-Za-z']+", text)
            for word in inner:
                (stats.capitalised if word[0].isupper() else stats.lowercase)[word.lower()] += 1
            for word in re.findall(r"\b(?:an?|the|his|her|their|some) ([a-z]+)\b", text):
                stats.determined[word] += 1
            stats.document_count.update(set(_WORD.findall(text.lower())))
            he, she = len(re.findall(r"\b[Hh]e\b", text)), len(re.findall(r"\b[Ss]he\b", text))
            for name in {w for w in inner if w[0].isupper()}:
                stats.pronouns[name.lower()]["he" if he > 2 * she else "she" if she > 2 * he else "?"] += 1
        return stats

    def is_name(self, word: str) -> bool:
        low = word.lower()
        return self.capitalised[low] >= 3 and self.capitalised[low] > 8 * self.lowercase[low]

    def is_noun(self, word: str) -> bool:
        return self.determined[word] >= 3 and self.determined[word] > 0.45 * self.lowercase[word]


_SPEECH = "said|asked|replied|shouted|yelled|cried|answered|exclaimed|whispered|called|thought|screamed"
_SAYS = rf"(?:[a-z]+ ){{0,3}}?(?:{_SPEECH})\b"
_SENTENCE_START = re.compile(rf"(^|[.!?] +|\n+|[.!?]\" +(?!{_SAYS}))(\"?)([a-z])")


def truecase(text: str, stats: StoryStatistics) -> str:
    """Capitals at sentence starts, after an opening quote, for "I" and for words the cased corpus capitalises."""
    text = re.sub(r"\b[a-z]+\b", lambda m: m.group().capitalize() if stats.is_name(m.group()) else m.group(), text)
    text = re.sub(r"\bi\b", "I", text)
    text = _SENTENCE_START.sub(lambda m: m[1] + m[2] + m[3].upper(), text)
    return re.sub(r"((?:^|[\s])\")([a-z])", lambda m: m[1] + m[2].upper(), text)


def main_name(text: str, stats: StoryStatistics) -> str | None:
    """The name mentioned most, if it is in the opening and comes back."""
    counts = Counter(w for w in re.findall(r"\b[A-Z][a-z]+\b", text) if stats.is_name(w))
    counts.pop("I", None)
    for name, count in counts.most_common(2):
        if count >= 2 and name in text[:220]:
            return name
    return None


def salient_nouns(text: str, stats: StoryStatistics, limit: int = 2) -> list[str]:
    """Nouns that this story repeats and most others do not use."""
    counts = Counter(w for w in re.findall(r"\b[a-z]{3,}\b", text))
    scored = [
        (count * (6.0 - min(6.0, stats.document_count[word] / max(1, stats.num_documents) * 60)), word)
        for word, count in counts.items()
        if count >= 3 and word not in _NOT_NOUNS and stats.is_noun(word) and (word[-1] != "s" or word[-2:] == "ss")
    ]
    return [word for score, word in sorted(scored, reverse=True)[:limit] if score > 0]


def story_request(text: str, stats: StoryStatistics, rng: random.Random) -> str | None:
    """A subject phrase that really names what the story is about, or None."""
    name = main_name(text, stats)
    nouns = salient_nouns(text, stats)
    options: list[str] = []
    introduced = _INTRODUCED.search(text[:260])
    if introduced and (stats.is_noun(introduced.group(1).split()[-1]) or introduced.group(2)):
        options.append(introduced.group(1) + (introduced.group(2) or ""))
    if name and nouns:
        options += [f"{name} and {article(nouns[0])}", f"{name} and the {nouns[-1]}"]
    if name:
        options.append(name)
    if nouns:
        options.append(article(nouns[0]))
        if len(nouns) > 1:
            options.append(f"{article(nouns[0])} and {article(nouns[1])}")
    return rng.choice(options) if options else None


REQUESTS: list[str] = _TEXT["requests"]
NO_SUBJECT_REQUESTS: list[str] = _TEXT["no_subject_requests"]
LEAD_INS: list[str] = _TEXT["lead_ins"]


def story_chat(key: str, subject: str, story: str, rng: random.Random) -> Document:
    """Request and story; now and then with a short lead-in on a line of its own."""
    lead = ""
    if rng.random() < 0.08:
        lead = rng.choice(LEAD_INS).format(x=subject).rstrip() + "\n\n"
    return chat(key, ("user", rng.choice(REQUESTS).format(x=subject)), ("assistant", lead + story))


def swap_hero(text: str, stats: StoryStatistics, rng: random.Random) -> str:
    """The story with its main name (and sometimes its animal) replaced throughout; unchanged where unsafe."""
    name = main_name(text, stats)
    if name:
        gender = stats.pronouns[name.lower()].most_common(1)
        sure = gender and gender[0][0] != "?" and gender[0][1] >= 0.6 * sum(stats.pronouns[name.lower()].values())
        if sure:
            fresh = rng.choice(GIRL_NAMES if gender[0][0] == "she" else BOY_NAMES)
            if fresh not in text:
                text = re.sub(rf"\b{name}\b", fresh, text)
    animals = [a for a, n in Counter(re.findall(r"\b[a-z]+\b", text)).most_common() if n >= 2 and a in ANIMALS]
    if len(animals) == 1 and rng.random() < 0.6:
        fresh = rng.choice(ANIMALS + MORE_ANIMALS)
        if fresh not in text:
            text = re.sub(rf"\b([Aa])n? ((?:[a-z]+ )?){animals[0]}\b", lambda m: _swapped(m, fresh), text)
            text = re.sub(rf"\b{animals[0]}\b", fresh, text)
            text = re.sub(rf"\b{animals[0].capitalize()}\b", fresh.capitalize(), text)
    return text


def _swapped(match: re.Match[str], noun: str) -> str:
    phrase = article(match.group(2) + noun)
    return phrase.capitalize() if match.group(1) == "A" else phrase
