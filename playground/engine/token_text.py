"""Turns token ids into text one at a time, so that the pieces join to exactly what decoding all at once gives.

Owns the knowledge of the tokenizers' decoders. Knows nothing of stop strings or requests, and never returns half a
character.

Two ways. Where every token stands for fixed bytes (byte-level BPE: GPT-2, Llama 3, Qwen; SentencePiece with byte
fallback: Llama 2, Mistral, Gemma; Metaspace) the bytes go through an incremental UTF-8 decoder: O(1) a token, and
bytes that are not UTF-8 become U+FFFD as soon as that is certain, so nothing can stall. Any other decoder is called on
a short window of tokens, with and without the new ones, and the difference is the new text.
"""

import codecs
import json
from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

REPLACEMENT = "\ufffd"
SPACE_MARK = "▁"


class TextStream(Protocol):
    """Text of a growing list of tokens."""

    def feed(self, token_id: int) -> str:
        """Characters that are complete now."""
        ...

    def finish(self) -> str:
        """What an unfinished character at the end becomes; nothing may be fed afterwards."""
        ...


def text_stream(tokenizer: Any, prompt_token_ids: Sequence[int]) -> TextStream:
    """A stream for the tokens that follow this prompt; `tokenizer` is a fast transformers tokenizer, or None for a
    model without one, whose output has no text."""
    if tokenizer is None:
        return NoText()
    table = _table_of(tokenizer)
    return ByteStream(table, prompt_token_ids) if table.kind else WindowStream(table, prompt_token_ids)


def token_label(tokenizer: Any, token_id: int) -> str:
    """A token on its own, for showing: a part of a character as U+FFFD, a special token by its name."""
    if tokenizer is None:
        return f"#{token_id}"
    table = _table_of(tokenizer)
    data = table.bytes_of(token_id) if table.kind else None
    if data is not None:
        return data.decode("utf-8", "replace")
    text = "" if table.kind else str(table.backend.decode([token_id], skip_special_tokens=True))
    return text or table.backend.id_to_token(token_id) or f"#{token_id}"


class NoText:
    """The stream of a model without a tokenizer."""

    def feed(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


class TokenTable:
    """What each token of one tokenizer stands for, found when first asked."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.kind, self.strips_first_space, self._mark, self._byte_fallback = _understand(backend.decoder)
        self._bytes: dict[int, bytes | None] = {}

    def bytes_of(self, token_id: int) -> bytes | None:
        """The token's bytes; None if it is special or unknown and so leaves no trace in the text."""
        if token_id not in self._bytes:
            token = None if token_id in self.special else self.backend.id_to_token(token_id)
            self._bytes[token_id] = None if token is None else self._to_bytes(token)
        return self._bytes[token_id]

    def first_bytes(self, token_id: int) -> bytes | None:
        """The same for the first token of a text, from which some decoders take the space that encoding put there."""
        data = self.bytes_of(token_id)
        if data is None or not self.strips_first_space:
            return data
        if self.kind == "metaspace":
            return self.backend.id_to_token(token_id).replace(self._mark, "").encode()
        return data.removeprefix(b" ")

    def _to_bytes(self, token: str) -> bytes:
        if self.kind == "byte-level":
            try:
                return bytes(_BYTE_OF_CHAR[char] for char in token)
            except KeyError:  # an added token in plain text
                return token.encode()
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.replace(self._mark, " ").encode()


_tables: WeakKeyDictionary[Any, TokenTable] = WeakKeyDictionary()


def _table_of(tokenizer: Any) -> TokenTable:
    table = _tables.get(tokenizer)
    if table is None:
        table = _tables[tokenizer] = TokenTable(tokenizer.backend_tokenizer)
    return table


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the 68 others for the characters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def _understand(decoder: Any) -> tuple[str, bool, str, bool]:
    """(kind, whether a first space is stripped, the space mark, byte fallback); kind "" is a decoder unknown here."""
    if decoder is None:
        return "", False, SPACE_MARK, False
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "byte-level", False, SPACE_MARK, False
    if kinds == ["Metaspace"]:
        return "metaspace", steps[0]["prepend_scheme"] != "never", steps[0]["replacement"], False
    if kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        mark = steps[0]["pattern"].get("String")
        strip = steps[3] if len(steps) == 4 else {"content": " ", "start": 0, "stop": 0}
        plain_strip = strip["content"] == " " and strip["start"] in (0, 1) and strip["stop"] == 0
        if mark and steps[0]["content"] == " " and plain_strip:
            return "sentencepiece", strip["start"] == 1, mark, True
    return "", False, SPACE_MARK, False


class ByteStream:
    """Decodes the tokens' bytes.

    A prompt may end within a character. Then its last bytes wait for the output to complete that character, which
    becomes the output's first; if the output goes on with something else, they were the prompt's and leave nothing
    here.
    """

    def __init__(self, table: TokenTable, prompt_token_ids: Sequence[int]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        before = _visible_bytes_backwards(table, prompt_token_ids)
        self._at_start = next(before, None) is None
        self._prompt_tail = _unfinished_character(table, prompt_token_ids)

    def feed(self, token_id: int) -> str:
        data = self._table.first_bytes(token_id) if self._at_start else self._table.bytes_of(token_id)
        if data is None:
            return ""
        self._at_start = False
        if data and self._prompt_tail:
            if _strictly_decoded(self._prompt_tail + data[:1]) is not None:
                data = self._prompt_tail + data
            self._prompt_tail = b""
        text = self._decoder.decode(data)
        waiting, _ = self._decoder.getstate()
        if waiting[:1] == b"\xed" and waiting[1:] >= b"\xa0":  # half a surrogate: Python waits, but it is no character
            text += self._decoder.decode(b"", final=True)
        return text

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def _visible_bytes_backwards(table: TokenTable, token_ids: Sequence[int]) -> Iterator[bytes]:
    for i in range(len(token_ids) - 1, -1, -1):
        data = table.bytes_of(token_ids[i])
        if data is not None:
            yield data


def _unfinished_character(table: TokenTable, token_ids: Sequence[int]) -> bytes:
    tail = b""
    for data in _visible_bytes_backwards(table, token_ids):
        tail = data + tail
        if len(tail) >= 3:
            break
    ends = (tail[-size:] for size in range(1, min(3, len(tail)) + 1))
    return next((end for end in ends if _strictly_decoded(end) == ""), b"")


def _strictly_decoded(data: bytes) -> str | None:
    """The characters complete in these bytes, "" while the first one still is not; None if they are not UTF-8."""
    try:
        return codecs.getincrementaldecoder("utf-8")("strict").decode(data)
    except UnicodeDecodeError:
        return None


class WindowStream:
    """Decodes the last few tokens again for each new one; for decoders that this module does not know.

    While the new text ends in U+FFFD it may be half a character and waits, for at most `_PATIENCE` tokens.
    """

    _CONTEXT = 6
    _PATIENCE = 8

    def __init__(self, table: TokenTable, prompt_token_ids: Sequence[int]) -> None:
        self._table = table
        self._context: list[int] = []
        for i in range(len(prompt_token_ids) - 1, -1, -1):
            if len(self._context) == self._CONTEXT:
                break
            if prompt_token_ids[i] not in table.special:
                self._context.insert(0, prompt_token_ids[i])
        self._waiting: list[int] = []

    def feed(self, token_id: int) -> str:
        if token_id in self._table.special:
            return ""
        self._waiting.append(token_id)
        text = self._new_text()
        if text.endswith(REPLACEMENT) and len(self._waiting) < self._PATIENCE:
            return ""
        self._context = (self._context + self._waiting)[-self._CONTEXT :]
        self._waiting = []
        return text

    def finish(self) -> str:
        text = self._new_text()
        self._waiting = []
        return text

    def _new_text(self) -> str:
        known = self._decode(self._context)
        return self._decode(self._context + self._waiting)[len(known) :]

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._table.backend.decode(token_ids, skip_special_tokens=True)
        return text
