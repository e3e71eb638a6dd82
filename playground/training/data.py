"""Builds what a stage trains on: documents of every source, weighted per epoch, shuffled, encoded and packed.

Everything is a function of (config, seed, stage, epoch), so a resumed run sees the same rows in the same order.
Held-out documents never enter an epoch.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from playground.errors import ConfigError
from playground.training import templates
from playground.training.documents import Document, Encoder, is_held_out
from playground.training.model import IGNORE_INDEX
from playground.training.sources import READERS
from playground.training.story_requests import StoryStatistics, story_chat, story_request, swap_hero, truecase
from playground.training.tokenizer import PAD, token_id

log = logging.getLogger(__name__)

STORY_CHATS = "story_chats"
CHITCHAT_VARIANTS = 10


@dataclass(frozen=True)
class Rows:
    """Packed rows: ids [n, length + 1], and mask [n, length] that says which of the targets ids[:, 1:] count."""

    ids: np.ndarray
    mask: np.ndarray

    def batch(self, index: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(index * batch_size, (index + 1) * batch_size)
        inputs, targets = self.ids[rows, :-1].astype(np.int64), self.ids[rows, 1:].astype(np.int64)
        return inputs, np.where(self.mask[rows], targets, IGNORE_INDEX)

    def num_batches(self, batch_size: int) -> int:
        return len(self.ids) // batch_size


class Corpus:
    """All documents of the folders below `data_dir`, split into training and held-out, plus the generated kinds."""

    def __init__(self, data_dir: Path, names: set[str], seed: int, generated_documents: int) -> None:
        self.seed = seed
        self.generated_documents = generated_documents
        unknown = names - set(READERS) - set(templates.KINDS) - {STORY_CHATS}
        if unknown:
            allowed = sorted([*READERS, *templates.KINDS, STORY_CHATS])
            raise ConfigError(
                f"unknown source {sorted(unknown)[0]!r} in a stage's mix; choose from {', '.join(allowed)}."
            )
        self.train: dict[str, list[Document]] = {}
        self.held_out: dict[str, list[Document]] = {}
        self.stats = StoryStatistics()
        needed = (names & set(READERS)) | ({"cased_stories", "lowercase_stories"} if STORY_CHATS in names else set())
        needed |= {"cased_stories"} if "lowercase_stories" in needed else set()
        if needed and not Path(data_dir).is_dir():
            raise ConfigError(f"no data folder at {data_dir}; set data_dir to the folder that holds the text sets.")
        for name in READERS:  # cased stories come first: their statistics truecase the others
            if name in needed:
                self._read(name, Path(data_dir))

    def _read(self, name: str, data_dir: Path) -> None:
        try:
            documents = list(READERS[name](data_dir))
        except FileNotFoundError as error:
            raise ConfigError(f"source {name!r} needs {error.filename}; check data_dir={data_dir}.") from None
        if name == "cased_stories":
            self.stats = StoryStatistics.of(d.text for d in documents if not is_held_out(d.key))
        if name == "lowercase_stories":
            documents = [Document(key=d.key, text=truecase(d.text, self.stats)) for d in documents]
        self.train[name] = [d for d in documents if not is_held_out(d.key)]
        self.held_out[name] = [d for d in documents if is_held_out(d.key)]
        log.info("%s: %d documents, %d held out", name, len(self.train[name]), len(self.held_out[name]))

    def epoch(self, mix: dict[str, float], stage: str, epoch: int) -> list[Document]:
        """The shuffled documents of one epoch of a stage."""
        documents: list[Document] = []
        for name, weight in mix.items():
            rng = random.Random(f"{self.seed}/{stage}/{epoch}/{name}")
            if name in templates.KINDS:
                documents += templates.KINDS[name](rng, round(weight * self.generated_documents))
            elif name == STORY_CHATS:
                pool = self.train["cased_stories"] + self.train["lowercase_stories"]
                documents += [self._as_chat(d, rng) for d in self._slice(STORY_CHATS, pool, weight, epoch)]
            elif name == "chitchat":
                documents += self._chitchat(weight, rng)
            elif name in ("cased_stories", "lowercase_stories"):
                for document in self._slice(name, self.train[name], weight, epoch):
                    text = swap_hero(document.text, self.stats, rng) if rng.random() < 0.5 else document.text
                    documents.append(Document(key=document.key, text=text))
            else:
                documents += self._slice(name, self.train[name], weight, epoch)
        random.Random(f"{self.seed}/{stage}/{epoch}").shuffle(documents)
        return documents

    def _slice(self, name: str, pool: list[Document], weight: float, epoch: int) -> list[Document]:
        """The epoch's share of a fixed permutation walked round and round: every document comes equally often."""
        if not pool:
            return []
        order = list(range(len(pool)))
        random.Random(f"{self.seed}/{name}").shuffle(order)
        start, end = round(epoch * weight * len(pool)), round((epoch + 1) * weight * len(pool))
        return [pool[order[i % len(pool)]] for i in range(start, end)]

    def _as_chat(self, document: Document, rng: random.Random) -> Document:
        text = swap_hero(document.text, self.stats, rng) if rng.random() < 0.75 else document.text
        subject = story_request(text, self.stats, rng)
        if subject is None:
            return Document(key=document.key, text=text)
        return story_chat(document.key, subject, text, rng)

    def _chitchat(self, weight: float, rng: random.Random) -> list[Document]:
        """At most ten variants of a question per answer and unit of weight: the answers would drown all else."""
        by_answer: dict[str, list[Document]] = {}
        for document in self.train["chitchat"]:
            by_answer.setdefault(document.turns[-1][1], []).append(document)
        picked = []
        for variants in by_answer.values():
            picked += rng.sample(variants, min(len(variants), max(1, round(CHITCHAT_VARIANTS * weight))))
        return picked


def pack_stream(encoded: list[tuple[list[int], list[bool]]], length: int) -> Rows:
    """All documents end to end, cut every `length` tokens; the ragged rest is dropped."""
    ids = np.fromiter((i for doc, _ in encoded for i in doc), dtype=np.int32)
    mask = np.fromiter((m for _, doc in encoded for m in doc), dtype=bool)
    count = (len(ids) - 1) // length
    starts = np.arange(count)[:, None] * length
    window = starts + np.arange(length + 1)
    return Rows(ids[window], mask[window[:, 1:]])


def pack_rows(encoded: list[tuple[list[int], list[bool]]], length: int, pad: int) -> Rows:
    """Whole documents per row (first fit over a small set of open rows), the rest padded; long ones are cut."""
    capacity = length + 1
    rows: list[tuple[list[int], list[bool]]] = []
    open_rows: list[tuple[list[int], list[bool]]] = []
    for ids, mask in encoded:
        ids, mask = ids[:capacity], mask[:capacity]
        fit = next((r for r in open_rows if len(r[0]) + len(ids) <= capacity), None)
        if fit is None:
            fit = ([], [])
            rows.append(fit)
            open_rows.append(fit)
        fit[0].extend(ids)
        fit[1].extend(mask)
        if capacity - len(fit[0]) < 24:
            open_rows.remove(fit)
        elif len(open_rows) > 64:
            open_rows.remove(max(open_rows, key=lambda r: len(r[0])))
    out_ids = np.full((len(rows), capacity), pad, dtype=np.int32)
    out_mask = np.zeros((len(rows), capacity), dtype=bool)
    for i, (ids, mask) in enumerate(rows):
        out_ids[i, : len(ids)] = ids
        out_mask[i, : len(mask)] = mask
    return Rows(out_ids, out_mask[:, 1:])


def build_rows(
    documents: list[Document], tokenizer: Tokenizer, length: int, assistant_only: bool, pack: str, seed: str
) -> Rows:
    """Encoded, packed and row-shuffled."""
    encoded = Encoder(tokenizer).encode(documents, assistant_only)
    pad = token_id(tokenizer, PAD)
    rows = pack_stream(encoded, length) if pack == "stream" else pack_rows(encoded, length, pad)
    order = np.array(random.Random(seed).sample(range(len(rows.ids)), len(rows.ids)), dtype=np.int64)
    return Rows(rows.ids[order], rows.mask[order])
