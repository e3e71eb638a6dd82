"""The one shape that all training text takes: a plain text or a chat, with a key that decides the hold-out.

It turns documents into token ids and a loss mask; it never reads files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tokenizers import Tokenizer

from playground.training.tokenizer import END_OF_TEXT, IM_END, IM_START, token_id

Turn = tuple[str, str]  # role ("system", "user", "assistant"), content

HOLD_OUT_EVERY = 50


@dataclass(frozen=True)
class Document:
    """`key` is the text the document was made from: two variants of one story share it, and so their hold-out."""

    key: str
    text: str = ""
    turns: tuple[Turn, ...] = ()


def is_held_out(key: str) -> bool:
    """About 2 % of all documents, decided by a hash of the document alone."""
    digest = hashlib.sha256(" ".join(key.split()).lower().encode()).digest()
    return int.from_bytes(digest[:4], "little") % HOLD_OUT_EVERY == 0


def chat(key: str, *turns: Turn) -> Document:
    return Document(key=key, turns=tuple((role, content.strip()) for role, content in turns))


class Encoder:
    """Token ids and loss mask of documents; a chat comes out exactly as the chat template renders it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end_of_text = token_id(tokenizer, END_OF_TEXT)
        self.im_start, self.im_end = token_id(tokenizer, IM_START), token_id(tokenizer, IM_END)
        self.newline: list[int] = tokenizer.encode("\n").ids
        self.headers = {role: tokenizer.encode(role + "\n").ids for role in ("system", "user", "assistant")}

    def encode(self, documents: list[Document], assistant_only: bool) -> list[tuple[list[int], list[bool]]]:
        """(ids, mask) per document; mask says which ids are worth predicting. Ends with end-of-text."""
        pieces = [content for d in documents for content in ([c for _, c in d.turns] if d.turns else [d.text])]
        encoded = iter([e.ids for e in self.tokenizer.encode_batch_fast(pieces)])
        out = []
        for document in documents:
            if not document.turns:
                ids = [*next(encoded), self.end_of_text]
                out.append((ids, [True] * len(ids)))
                continue
            ids, mask = [], []
            for role, _ in document.turns:
                content = next(encoded)
                learn = not assistant_only or role == "assistant"
                header = [self.im_start, *self.headers[role]]
                ids += [*header, *content, self.im_end, *self.newline]
                mask += [not assistant_only] * len(header) + [learn] * (len(content) + 1)
                mask += [not assistant_only] * len(self.newline)
            ids.append(self.end_of_text)
            mask.append(not assistant_only)
            out.append((ids, mask))
        return out
