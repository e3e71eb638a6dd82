"""The detokenizer as an outsider sees it, on tokenizers whose tokens can be any piece of text or any byte.

`test_detokenizer_text.py` and `test_detokenizer_stops.py` go through the kinds of tokenizers and the rules of stops one
by one; here special tokens, half characters, prompts, stops and groups of tokens come together.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from playground import SamplingParams
from playground.engine.detokenizer import Detokenizer
from playground.engine.outputs import TokenLogprob
from playground.engine.stop_strings import StopMatcher
from tests.tiny import SPECIAL_TOKENS, write_tiny_tokenizer

SPECIAL = range(len(SPECIAL_TOKENS))
FAMILY = "👩‍👩‍👧‍👦"

texts = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.sampled_from([FAMILY, "👍🏽", "🇩🇪", "e\u0301", "日本語", " ", "\u200d", "\ufeff", "\x00"]),
    ),
    max_size=8,
).map("".join)


@cache
def tiny() -> PreTrainedTokenizerFast:
    """The tokenizer of the tests' checkpoint: every byte is a token, and three special ones come before them."""
    with TemporaryDirectory() as folder:
        write_tiny_tokenizer(Path(folder))
        return PreTrainedTokenizerFast.from_pretrained(folder)


@cache
def _name_of_byte() -> dict[int, str]:
    tokenizer = tiny().backend_tokenizer
    names = {tokenizer.id_to_token(i) for i in range(len(SPECIAL), tokenizer.get_vocab_size())}
    printable = {byte: chr(byte) for byte in range(256) if chr(byte) in names}
    others = sorted(names - set(printable.values()))
    return printable | dict(zip((byte for byte in range(256) if byte not in printable), others, strict=True))


def byte_ids(data: bytes) -> list[int]:
    ids: list[int] = tiny().convert_tokens_to_ids([_name_of_byte()[byte] for byte in data])
    return ids


def tokenizer_of(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose tokens are exactly these pieces of text; token i is piece i."""
    names = ["".join(_name_of_byte()[byte] for byte in piece.encode()) for piece in pieces]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def logprob(place: int, token_id: int) -> TokenLogprob:
    return TokenLogprob(token_id, -float(place), 1)


def run(
    tokenizer: Any, ids: Sequence[int], params: SamplingParams, prompt: Sequence[int] = (), cuts: Sequence[int] = ()
) -> tuple[Detokenizer, list[str]]:
    """Everything in groups that end at `cuts` (default: one by one); what must hold at every moment is checked."""
    detokenizer = Detokenizer(tokenizer, list(prompt), params)
    bounds = [0, *sorted(cuts), len(ids)] if cuts else range(len(ids) + 1)
    pieces, released, told = [], 0, []
    for start, end in pairwise(bounds):
        pieces.append(detokenizer.append(ids[start:end], [logprob(i, ids[i]) for i in range(start, end)]))
        assert "".join(pieces) == detokenizer.text
        assert released <= detokenizer.num_released_tokens <= len(detokenizer.token_ids)
        told += detokenizer.token_ids[released : detokenizer.num_released_tokens]
        released = detokenizer.num_released_tokens
    pieces.append(detokenizer.finish())
    assert detokenizer.finish() == ""
    assert "".join(pieces) == detokenizer.text
    for piece in pieces:
        piece.encode("utf-8")  # half a surrogate pair would raise
    kept = len(detokenizer.token_ids)
    assert released <= detokenizer.num_released_tokens == kept
    assert detokenizer.token_ids == list(ids[:kept]) == told + list(ids[released:kept])
    assert detokenizer.logprobs == [logprob(i, ids[i]) for i in range(kept)]
    return detokenizer, pieces


# Text


@given(text=texts, data=st.data())
@settings(max_examples=60)
@example(text=FAMILY, data=None)
def test_text_comes_out_whole_with_special_tokens_anywhere(text: str, data: st.DataObject | None) -> None:
    ids = byte_ids(text.encode())
    for _ in range(3 if data else 0):
        assert data is not None
        ids.insert(data.draw(st.integers(0, len(ids))), data.draw(st.sampled_from(SPECIAL)))
    params = SamplingParams(ignore_eos=True)
    detokenizer, pieces = run(tiny(), ids, params)
    assert detokenizer.text == text == tiny().decode(ids, skip_special_tokens=True)
    assert detokenizer.token_ids == ids
    assert all(piece == "" for piece, i in zip(pieces, ids, strict=False) if i in SPECIAL)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(data=st.binary(max_size=40), prompt=texts)
@example(data=b"\xed\xa0", prompt="")  # half a surrogate begins no character
@settings(max_examples=60)
def test_of_any_bytes_only_the_beginning_of_one_character_waits(data: bytes, prompt: str) -> None:
    detokenizer = Detokenizer(tiny(), byte_ids(prompt.encode()), SamplingParams())
    for count, token in enumerate(byte_ids(data), start=1):
        detokenizer.append([token])
        whole = tiny().decode(byte_ids(data[:count]))
        assert whole == data[:count].decode("utf-8", "replace")
        assert whole in (detokenizer.text, detokenizer.text + "\ufffd")
        if whole.endswith("\ufffd") and whole != detokenizer.text:
            assert any(0xC2 <= byte <= 0xF4 for byte in data[:count][-3:])
    detokenizer.finish()
    assert detokenizer.text == data.decode("utf-8", "replace")


# Stop strings


def splits(text: str) -> Iterator[list[str]]:
    """Every way to cut a text into pieces."""
    for mask in range(2 ** (len(text) - 1)):
        ends = [i + 1 for i in range(len(text) - 1) if mask >> i & 1]
        yield [text[a:b] for a, b in pairwise([0, *ends, len(text)])]


@pytest.mark.parametrize("text", ["aé<|🙂>b", "é<|🙂>", "<|🙂>b", "<|<|🙂>"])
def test_a_stop_is_found_however_it_is_split_over_tokens(text: str) -> None:
    stop = "<|🙂>"
    before = text[: text.index(stop)]
    for pieces in splits(text):
        vocabulary = list(dict.fromkeys(pieces))
        ids = [vocabulary.index(piece) for piece in pieces]
        detokenizer, _ = run(tokenizer_of(vocabulary), ids, SamplingParams(stop=stop))
        assert (detokenizer.text, detokenizer.matched_stop) == (before, stop), pieces
        starts = [len("".join(pieces[:i])) for i in range(len(pieces))]
        assert detokenizer.token_ids == [i for i, start in zip(ids, starts, strict=True) if start < len(before)]


@pytest.mark.parametrize("text", ["aé<|🙂b", "<|🙂<|🙂", "<|🙂"])
def test_what_only_looked_like_a_stop_is_given_back_however_it_is_split(text: str) -> None:
    for pieces in splits(text):
        vocabulary = list(dict.fromkeys(pieces))
        ids = [vocabulary.index(piece) for piece in pieces]
        detokenizer, _ = run(tokenizer_of(vocabulary), ids, SamplingParams(stop="<|🙂>"))
        assert (detokenizer.text, detokenizer.stopped, detokenizer.token_ids) == (text, False, ids)


@pytest.mark.parametrize("character", ["é", "日", "🙂"])
def test_a_stop_of_1024_multi_byte_characters_at_the_very_end(character: str) -> None:
    stop = character * 1023 + "!"
    for extra in (0, 1, 700):  # more of the same before it: the match must be able to move on by one
        ids = byte_ids(("a" + character * extra + stop).encode())
        detokenizer, pieces = run(tiny(), ids, SamplingParams(stop=stop), cuts=range(1, len(ids), 97))
        assert detokenizer.text == "a" + character * extra
        assert detokenizer.token_ids == ids[: len(("a" + character * extra).encode())]
        assert pieces[-1] == ""
    ids = byte_ids(stop[:-1].encode())
    _, pieces = run(tiny(), ids, SamplingParams(stop=stop), cuts=range(1, len(ids), 97))
    assert pieces == [""] * (len(pieces) - 1) + [stop[:-1]]


def test_the_stop_that_completes_first_wins_over_one_that_begins_first() -> None:
    ids = byte_ids(b"xabcdefgy")
    detokenizer, _ = run(tiny(), ids, SamplingParams(stop=["abcdefg", "cde"]))
    assert (detokenizer.text, detokenizer.matched_stop) == ("xab", "cde")
    detokenizer, _ = run(tiny(), ids, SamplingParams(stop=["cd", "abcd", "d"]))
    assert (detokenizer.text, detokenizer.matched_stop) == ("x", "abcd")


def _visible_starts(ids: Sequence[int]) -> list[int]:
    """How many characters are complete before each token, and after the last one."""
    return [len(tiny().decode(ids[:i], skip_special_tokens=True).rstrip("\ufffd")) for i in range(len(ids) + 1)]


def _expected(ids: Sequence[int], params: SamplingParams) -> tuple[str, list[int], str | None]:
    """Text, tokens and stop by trying every place and every stop."""
    text = tiny().decode(ids, skip_special_tokens=True)
    starts, minimum = _visible_starts(ids), min(params.min_tokens, len(ids))
    found = [
        (begin + len(stop), begin, stop)
        for stop in params.stop
        for begin in range(starts[minimum], len(text))
        if text.startswith(stop, begin)
    ]
    if not found:
        return text, list(ids), None
    _, begin, stop = min(found)  # the earliest end, and of those the earliest beginning
    kept = [i for place, i in enumerate(ids) if place < minimum or starts[place] < begin]
    return text[:begin], kept, stop


mixtures = st.lists(st.sampled_from(["a", "b", "é", "🙂"]) | st.sampled_from([*SPECIAL]), max_size=10)


@given(mixture=mixtures, stops=st.lists(st.text("abé🙂", min_size=1, max_size=4), max_size=3), data=st.data())
@settings(max_examples=150)
def test_text_tokens_and_logprobs_are_cut_together(
    mixture: list[str | int], stops: list[str], data: st.DataObject
) -> None:
    """Special tokens between and within characters; the same outcome one by one, in groups and after a prompt."""
    ids = [i for part in mixture for i in (byte_ids(part.encode()) if isinstance(part, str) else [part])]
    params = SamplingParams(stop=stops, min_tokens=data.draw(st.integers(0, 8)), ignore_eos=True)
    cuts = data.draw(st.lists(st.integers(0, len(ids)), min_size=1, max_size=4))
    wanted = _expected(ids, params)
    for prompt, groups in (([], []), ([], cuts), (byte_ids(b"ab"), cuts)):
        detokenizer, _ = run(tiny(), ids, params, prompt, groups)
        assert (detokenizer.text, detokenizer.token_ids, detokenizer.matched_stop) == wanted
        assert detokenizer.stopped == (wanted[2] is not None)


# A fault that these checks must find


def test_a_search_that_forgets_what_earlier_tokens_began_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = StopMatcher.feed

    def feed(self: StopMatcher, text: str) -> tuple[int, str] | None:
        self._matched = [0] * len(self._stops)
        return real(self, text)

    monkeypatch.setattr(StopMatcher, "feed", feed)
    with pytest.raises(AssertionError):
        test_a_stop_is_found_however_it_is_split_over_tokens("aé<|🙂>b")


def test_half_a_character_shown_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from playground.engine import token_text

    def feed(self: token_text.ByteStream, token_id: int) -> str:
        return (self._table.bytes_of(token_id) or b"").decode("utf-8", "replace")

    monkeypatch.setattr(token_text.ByteStream, "feed", feed)
    random_bytes = random.Random(1).randbytes(30)
    with pytest.raises(AssertionError):
        test_of_any_bytes_only_the_beginning_of_one_character_waits.hypothesis.inner_test(random_bytes, "")
