"""Token by token, the text is what decoding everything at once gives, for each kind of tokenizer."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.engine import token_text
from playground.engine.detokenizer import Detokenizer
from playground.sampling_params import SamplingParams
from tests.engine.tokenizers import (
    LINES,
    SPECIAL,
    byte_ids,
    byte_level,
    decode,
    encode,
    metaspace,
    sentencepiece,
    wordpiece,
)

KINDS = [byte_level, sentencepiece, metaspace, wordpiece]
GRAPHEMES = [
    "🙂",
    "👩‍👩‍👧",
    "🇩🇪",
    "👍🏽",
    "é",
    "é",
    "ß",
    "日本",
    "한",
    " ",
    "  ",
    "\n",
    "a",
    "the cat",
    "\ufffd",
    "\U0010ffff",
]
texts = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from(GRAPHEMES), max_size=20).map("".join), st.sampled_from(LINES)
)


def stream(tokenizer, token_ids, prompt=(), cuts=()) -> list[str]:
    """The pieces a caller sees, the tokens arriving in groups that end at `cuts`."""
    detokenizer = Detokenizer(tokenizer, list(prompt), SamplingParams(), frozenset())
    bounds = [0, *sorted(cuts), len(token_ids)]
    pieces = [detokenizer.append(token_ids[a:b]) for a, b in itertools.pairwise(bounds)]
    pieces.append(detokenizer.finish())
    assert "".join(pieces) == detokenizer.text
    assert detokenizer.token_ids == list(token_ids)
    assert detokenizer.finish() == ""
    for piece in pieces:
        piece.encode("utf-8")  # a lone surrogate would raise
    return pieces


@pytest.mark.parametrize("kind", [byte_level, sentencepiece, metaspace])
@given(data=st.data(), text=texts)
@settings(max_examples=60)
def test_pieces_join_to_what_decoding_at_once_gives(kind, data, text):
    tokenizer = kind()
    ids = encode(tokenizer, text)
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=4))
    assert "".join(stream(tokenizer, ids, cuts=cuts)) == decode(tokenizer, ids)


@pytest.mark.parametrize("kind", [byte_level, metaspace])
@given(data=st.data())
@settings(max_examples=60)
def test_any_tokens_at_all_join_to_what_decoding_at_once_gives(kind, data):
    tokenizer = kind()
    beyond = len(tokenizer) + 3  # models pad their vocabularies, so ids without a token can be drawn
    ids = data.draw(st.lists(st.integers(0, beyond), max_size=40))
    assert "".join(stream(tokenizer, ids)) == decode(tokenizer, ids)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=st.sampled_from(LINES), text=texts)
@settings(max_examples=40)
def test_after_a_prompt_only_the_continuation_comes(kind, prompt, text):
    tokenizer = kind()
    before, ids = encode(tokenizer, prompt), encode(tokenizer, text)
    if kind is wordpiece:
        ids = [i for i in ids if i != tokenizer.unk_token_id]  # special: skipped, as everywhere
    whole, known = decode(tokenizer, before + ids), decode(tokenizer, before)
    assert whole.startswith(known)
    assert "".join(stream(tokenizer, ids, prompt=before)) == whole[len(known) :]


@given(data=st.binary(max_size=40), prompt=st.sampled_from(["", *LINES[:2]]))
@settings(max_examples=80)
def test_bytes_that_are_not_utf8_become_replacement_characters(data, prompt):
    for kind in (byte_level, sentencepiece):
        tokenizer = kind()
        before = encode(tokenizer, prompt)
        expected = data.decode("utf-8", errors="replace")
        if kind is sentencepiece and not prompt:
            expected = expected.removeprefix(" ")
        assert "".join(stream(tokenizer, byte_ids(tokenizer, data), prompt=before)) == expected


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
def test_invalid_bytes_never_stall_the_stream(kind):
    tokenizer = kind()
    detokenizer = Detokenizer(tokenizer, [], SamplingParams(), frozenset())
    for count, token in enumerate(byte_ids(tokenizer, b"\xe2\x82\xf0\x9f\x80\xff" * 30), start=1):
        detokenizer.append([token])
        # One U+FFFD stands for at most three bytes, and at most three bytes wait.
        assert len(detokenizer.text) >= (count - 3) / 3
    assert detokenizer.text + detokenizer.finish() == (b"\xe2\x82\xf0\x9f\x80\xff" * 30).decode("utf-8", "replace")


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
def test_a_character_appears_with_its_last_byte_and_not_before(kind):
    tokenizer = kind()
    ids = byte_ids(tokenizer, "é€🙂".encode())
    pieces = stream(tokenizer, ids, cuts=range(1, len(ids)))
    assert pieces == ["", "é", "", "", "€", "", "", "", "🙂", ""]


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
def test_an_unfinished_character_at_the_end_becomes_one_replacement_character(kind):
    tokenizer = kind()
    ids = byte_ids(tokenizer, "ab🙂".encode()[:-1])
    assert stream(tokenizer, ids) == ["ab", "\ufffd"]


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
@pytest.mark.parametrize("split", [1, 2, 3])
def test_output_completes_the_character_a_prompt_ended_within(kind, split):
    tokenizer = kind()
    data = "🙂".encode()
    prompt = encode(tokenizer, "hi") + byte_ids(tokenizer, data[:split])
    assert "".join(stream(tokenizer, byte_ids(tokenizer, data[split:] + b"!"), prompt=prompt)) == "🙂!"


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
@pytest.mark.parametrize("tail", [b"\xf0", b"\xf0\x9f", b"\xf0\x9f\x99", b"\xe2", b"\xe2\x82", b"\xc3"])
def test_output_that_leaves_the_prompts_character_unfinished_shows_nothing_of_it(kind, tail):
    tokenizer = kind()
    prompt = encode(tokenizer, "hi") + byte_ids(tokenizer, tail)
    assert "".join(stream(tokenizer, byte_ids(tokenizer, b"ok"), prompt=prompt)) == "ok"
    assert stream(tokenizer, [], prompt=prompt) == ["", ""]


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
@pytest.mark.parametrize("end", ["é", "€", "🙂", "a🙂", "éé", "\u0800", "x"])
def test_nothing_of_a_prompt_that_ends_in_a_whole_character_is_repeated(kind, end):
    tokenizer = kind()
    prompt = byte_ids(tokenizer, end.encode())
    assert "".join(stream(tokenizer, byte_ids(tokenizer, b"\xa9ok"), prompt=prompt)) == "\ufffdok"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_kept_as_tokens_and_leave_no_text(kind):
    tokenizer = kind()
    special = tokenizer.convert_tokens_to_ids(SPECIAL)
    ids = encode(tokenizer, "the cat")
    mixed = [special[2], *ids[:1], special[0], *ids[1:], special[1]]
    assert "".join(stream(tokenizer, mixed)) == decode(tokenizer, ids)


def test_added_tokens_that_are_not_special_are_text():
    tokenizer = byte_level()
    ids = encode(tokenizer, "a<think>two words b")
    assert len(ids) < 8
    assert "".join(stream(tokenizer, ids)) == "a<think>two words b"


@pytest.mark.parametrize("kind", [sentencepiece, metaspace, wordpiece])
def test_the_first_space_goes_only_where_a_text_starts(kind):
    tokenizer = kind()
    bos = [tokenizer.bos_token_id]
    ids = encode(tokenizer, "the cat")
    assert "".join(stream(tokenizer, ids)) == "the cat"
    assert "".join(stream(tokenizer, ids, prompt=bos)) == "the cat"
    assert "".join(stream(tokenizer, ids, prompt=bos + encode(tokenizer, "mat"))) == " the cat"


def test_each_decoder_is_read_the_way_meant_for_it():
    kinds = {kind.__name__: token_text.TokenTable(kind().backend_tokenizer).kind for kind in KINDS}
    assert kinds == {
        "byte_level": "byte-level",
        "sentencepiece": "sentencepiece",
        "metaspace": "metaspace",
        "wordpiece": "",
    }


def test_a_decoder_of_another_shape_goes_through_the_window():
    """The same byte-level tokens, but found through the window: the general way must agree with the exact one."""
    tokenizer = byte_level()
    table = token_text.TokenTable(tokenizer.backend_tokenizer)
    for line in LINES:
        ids = encode(tokenizer, line)
        window = token_text.WindowStream(table, [])
        assert "".join([*(window.feed(i) for i in ids), window.finish()]) == line


def test_the_window_gives_up_waiting_for_bytes_that_complete_nothing():
    tokenizer = byte_level()
    window = token_text.WindowStream(token_text.TokenTable(tokenizer.backend_tokenizer), [])
    pieces = [window.feed(i) for i in byte_ids(tokenizer, b"\xff" * 30)]
    assert len("".join(pieces)) >= 20


def test_a_model_without_a_tokenizer_has_tokens_and_no_text():
    detokenizer = Detokenizer(None, [1, 2], SamplingParams(), frozenset({9}))
    assert [detokenizer.append([5, 6]), detokenizer.append([9]), detokenizer.finish()] == ["", "", ""]
    assert detokenizer.token_ids == [5, 6, 9]
    assert detokenizer.stopped


# Faults planted on purpose


def check_texts() -> None:
    rng = random.Random(7)
    alphabet = [c for line in LINES for c in line]
    for tokenizer in (byte_level(), sentencepiece()):
        for _ in range(30):
            text = "".join(rng.choices(alphabet, k=rng.randint(1, 12)))
            data = text.encode()
            split = rng.randint(0, len(data))
            prompt = encode(tokenizer, "the") + byte_ids(tokenizer, data[:split])
            expected = data.decode()[len(data[:split].decode("utf-8", "ignore")) :]
            assert "".join(stream(tokenizer, byte_ids(tokenizer, data[split:]), prompt=prompt)) == expected
        ids = encode(tokenizer, "the cat")
        assert "".join(stream(tokenizer, ids)) == "the cat"
        assert "".join(stream(tokenizer, byte_ids(tokenizer, b"a\xffb"))) == "a\ufffdb"


def no_prompt_tail(monkeypatch):
    monkeypatch.setattr(token_text, "_unfinished_character", lambda table, ids: b"")


def a_whole_character_taken_for_the_tail(monkeypatch):
    monkeypatch.setattr(token_text, "_unfinished_character", lambda table, ids: table.bytes_of(ids[-1]) or b"")


def each_token_decoded_alone(monkeypatch):
    def feed(self, token_id):
        return (self._table.bytes_of(token_id) or b"").decode("utf-8", "replace")

    monkeypatch.setattr(token_text.ByteStream, "feed", feed)


def the_first_space_kept(monkeypatch):
    monkeypatch.setattr(token_text.TokenTable, "first_bytes", token_text.TokenTable.bytes_of)


def invalid_bytes_dropped(monkeypatch):
    import codecs

    whole = codecs.getincrementaldecoder
    monkeypatch.setattr(
        codecs, "getincrementaldecoder", lambda name: lambda errors: whole(name)(errors.replace("replace", "ignore"))
    )


def test_texts_pass_without_a_planted_fault():
    check_texts()


@pytest.mark.parametrize(
    "plant",
    [
        no_prompt_tail,
        a_whole_character_taken_for_the_tail,
        each_token_decoded_alone,
        the_first_space_kept,
        invalid_bytes_dropped,
    ],
)
def test_a_planted_fault_in_decoding_is_caught(monkeypatch, plant):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_texts()
