"""Where a stop ends the output, against a search that looks at the whole text again for every character."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.engine import detokenizer as detokenizer_module
from playground.engine import stop_strings
from playground.engine.detokenizer import Detokenizer
from playground.engine.outputs import TokenLogprob
from playground.engine.stop_strings import StopMatcher
from playground.sampling_params import SamplingParams
from tests.engine.tokenizers import byte_ids, byte_level, decode, encode, sentencepiece


def logprob(token_id: int) -> TokenLogprob:
    return TokenLogprob(token_id, -0.5 * token_id, 1)


def starts_of(tokenizer, token_ids) -> list[int]:
    """How many characters were complete before each token."""
    texts = [decode(tokenizer, token_ids[:i]).rstrip("\ufffd") for i in range(len(token_ids))]
    return [len(text) for text in texts]


def earliest_stop(text: str, stops, begin: int) -> tuple[int, str] | None:
    """(where it starts, stop) of the stop that completes first behind `begin`, the longest of several."""
    for end in range(begin, len(text) + 1):
        done = [s for s in stops if end - len(s) >= begin and text[:end].endswith(s)]
        if done:
            stop = max(done, key=len)
            return end - len(stop), stop
    return None


def expected_end(tokenizer, token_ids, params) -> tuple[str, int, str | None]:
    """(text, number of tokens kept, stop string) by the documented rules."""
    text = decode(tokenizer, token_ids)
    starts = [*starts_of(tokenizer, token_ids), len(text)]
    begin = starts[min(params.min_tokens, len(token_ids))]
    found = earliest_stop(text, params.stop, begin)
    if found is None:
        return text, len(token_ids), None
    start, stop = found
    kept = sum(at < start for at in starts[:-1])
    return text[:start], max(kept, min(params.min_tokens, len(token_ids))), stop


def expected_shown(text: str, stops, begin: int) -> str:
    """The text without its longest end that begins a stop string."""
    held = [n for s in stops for n in range(1, len(s)) if len(text) - n >= begin and text.endswith(s[:n])]
    return text[: len(text) - max(held, default=0)]


def check(tokenizer, token_ids: list[int], params: SamplingParams) -> None:
    """One output, token by token: what is shown when, and everything at the end."""
    detokenizer = Detokenizer(tokenizer, [], params, frozenset())
    text, kept, stop = expected_end(tokenizer, token_ids, params)
    begin = ([*starts_of(tokenizer, token_ids), len(decode(tokenizer, token_ids))])[
        min(params.min_tokens, len(token_ids))
    ]
    shown, released = "", 0
    for i, token in enumerate(token_ids):
        piece = detokenizer.append([token], [logprob(token)])
        shown += piece
        if detokenizer.stopped:
            break
        complete = decode(tokenizer, token_ids[: i + 1]).rstrip("\ufffd")
        assert shown == expected_shown(complete, params.stop, begin)
        assert detokenizer.num_released_tokens >= released
        released = detokenizer.num_released_tokens
        assert released <= kept
    shown += detokenizer.finish()
    assert shown == detokenizer.text == text
    assert detokenizer.matched_stop == stop
    assert detokenizer.stopped == (stop is not None)
    assert detokenizer.token_ids == token_ids[:kept]
    assert detokenizer.logprobs == [logprob(token) for token in token_ids[:kept]]
    assert detokenizer.num_released_tokens == kept

    together = Detokenizer(tokenizer, [], params, frozenset())
    assert together.append(token_ids, [logprob(t) for t in token_ids]) + together.finish() == text
    assert together.token_ids == token_ids[:kept]


def ab_tokens() -> list[int]:
    vocabulary = byte_level().get_vocab()
    return sorted(i for token, i in vocabulary.items() if set(token) <= {"a", "b"})


@given(data=st.data())
@settings(max_examples=150)
def test_random_stops_in_random_tokens(data):
    """Two letters, so that stops overlap each other and themselves; the tokens are of one to four letters."""
    tokens = ab_tokens()
    assert len(tokens) >= 5
    ids = data.draw(st.lists(st.sampled_from(tokens), max_size=14))
    stops = data.draw(st.lists(st.text("ab", min_size=1, max_size=6), min_size=0, max_size=4))
    minimum = data.draw(st.integers(0, 6))
    check(byte_level(), ids, SamplingParams(stop=stops, min_tokens=minimum))


@given(
    text=st.text("aé🙂", max_size=10),
    stops=st.lists(st.text("aé🙂", min_size=1, max_size=3), max_size=3),
    minimum=st.integers(0, 6),
)
@settings(max_examples=60)
def test_stops_of_multi_byte_characters_over_single_byte_tokens(text, stops, minimum):
    check(byte_level(), byte_ids(byte_level(), text.encode()), SamplingParams(stop=stops, min_tokens=minimum))


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
def test_every_piece_of_a_text_works_as_a_stop(kind):
    tokenizer = kind()
    text = "the cat 日本 🙂 sat"
    ids = encode(tokenizer, text)
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            detokenizer = Detokenizer(tokenizer, [], SamplingParams(stop=text[start:end]), frozenset())
            shown = "".join(detokenizer.append([token]) for token in ids) + detokenizer.finish()
            assert shown == text[: text.index(text[start:end])]
            assert detokenizer.stopped


def test_a_stop_in_the_middle_of_a_token_keeps_the_token_it_begins_in():
    tokenizer = byte_level()
    ids = encode(tokenizer, "the cat")
    assert [decode(tokenizer, [i]) for i in ids] == ["the", " cat"]
    detokenizer = Detokenizer(tokenizer, [], SamplingParams(stop="ca"), frozenset())
    assert detokenizer.append(ids) == "the "
    assert detokenizer.token_ids == ids
    at_the_border = Detokenizer(tokenizer, [], SamplingParams(stop=" c"), frozenset())
    assert at_the_border.append(ids) == "the"
    assert at_the_border.token_ids == ids[:1]


def test_a_stop_at_the_very_start_leaves_nothing():
    detokenizer = Detokenizer(byte_level(), [], SamplingParams(stop="the"), frozenset())
    assert detokenizer.append(encode(byte_level(), "the cat"), []) == ""
    assert (detokenizer.text, detokenizer.token_ids, detokenizer.stopped) == ("", [], True)
    assert detokenizer.append([5]) == detokenizer.finish() == ""


def test_the_prompt_is_not_searched_for_stops():
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, encode(tokenizer, "ab"), SamplingParams(stop="abc"), frozenset())
    detokenizer.append(byte_ids(tokenizer, b"cabd"))
    assert detokenizer.text == "cabd"


def test_what_was_held_back_for_a_stop_that_never_came_is_released_at_the_end():
    detokenizer = Detokenizer(byte_level(), [], SamplingParams(stop="END."), frozenset())
    assert detokenizer.append(byte_ids(byte_level(), b"the END")) == "the "
    assert detokenizer.num_released_tokens == 4
    assert detokenizer.finish() == "END"
    assert detokenizer.num_released_tokens == 7


def test_an_unfinished_character_can_complete_a_stop_at_the_end():
    detokenizer = Detokenizer(byte_level(), [], SamplingParams(stop="x\ufffd"), frozenset())
    assert detokenizer.append(byte_ids(byte_level(), b"ax\xf0\x9f")) == "a"
    assert detokenizer.finish() == ""
    assert (detokenizer.text, detokenizer.stopped) == ("a", True)


@pytest.mark.parametrize("by", ["eos", "stop_token_ids"])
def test_an_ending_token_is_kept_without_text_and_later_ones_are_not_taken(by):
    tokenizer = byte_level()
    ids = encode(tokenizer, "the cat sat")
    params = SamplingParams(stop_token_ids=[ids[1]] if by == "stop_token_ids" else [])
    eos = frozenset({ids[1]}) if by == "eos" else frozenset()
    detokenizer = Detokenizer(tokenizer, [], params, eos)
    assert detokenizer.append(ids, [logprob(i) for i in ids]) == "the"
    assert detokenizer.finish() == ""
    assert detokenizer.token_ids == ids[:2]
    assert [entry.token_id for entry in detokenizer.logprobs] == ids[:2]
    assert (detokenizer.stopped, detokenizer.matched_stop) == (True, ids[1])


def test_text_held_back_is_released_when_an_ending_token_comes():
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, [], SamplingParams(stop="cats"), frozenset({1}))
    assert detokenizer.append([*byte_ids(tokenizer, b"a cat"), 1]) == "a "
    assert detokenizer.stopped
    assert detokenizer.finish() == "cat"


def test_ignore_eos_goes_on_past_it_but_not_past_a_stop_token():
    tokenizer = byte_level()
    ids = encode(tokenizer, "the cat")
    params = SamplingParams(ignore_eos=True, stop_token_ids=[2])
    detokenizer = Detokenizer(tokenizer, [], params, frozenset({1}))
    detokenizer.append([ids[0], 1, ids[1], 2, ids[0]])
    assert (detokenizer.text, detokenizer.token_ids) == ("the cat", [ids[0], 1, ids[1], 2])


@pytest.mark.parametrize("minimum", range(5))
def test_nothing_ends_the_output_before_min_tokens(minimum):
    tokenizer = byte_level()
    ids = [*byte_ids(tokenizer, b"xx"), 1, *byte_ids(tokenizer, b"xx")]
    eos = Detokenizer(tokenizer, [], SamplingParams(min_tokens=minimum), frozenset({1}))
    eos.append(ids)
    eos.finish()
    assert len(eos.token_ids) == (3 if minimum <= 2 else 5)
    stop = Detokenizer(tokenizer, [], SamplingParams(min_tokens=minimum, stop="x"), frozenset())
    stop.append(ids)
    stop.finish()
    assert stop.text == "x" * min(minimum, 2) + "x" * max(0, minimum - 3)
    assert len(stop.token_ids) >= min(minimum, len(ids))


def test_without_stops_nothing_is_held_back():
    tokenizer = byte_level()
    for token in byte_ids(tokenizer, b"plain"):
        detokenizer = Detokenizer(tokenizer, [], SamplingParams(), frozenset())
        assert detokenizer.append([token]) == decode(tokenizer, [token])
        assert detokenizer.num_released_tokens == 1


def test_logprobs_may_be_left_out():
    detokenizer = Detokenizer(byte_level(), [], SamplingParams(stop="b"), frozenset())
    detokenizer.append(byte_ids(byte_level(), b"ab"))
    assert (detokenizer.text, detokenizer.logprobs) == ("a", [])


def test_stops_of_ten_kilobytes_that_fail_at_their_last_character():
    """20,000 near misses: a search that looked back each time would make 2 * 10**8 comparisons a stop, for minutes."""
    matcher = StopMatcher(("a" * 10_000 + "b", "a" * 9_999 + "c"))
    for _ in range(20_000):
        assert matcher.feed("a") is None
    assert matcher.held == 10_000
    assert matcher.feed("b") == (1, "a" * 10_000 + "b")


# Faults planted on purpose


def check_many() -> None:
    rng = random.Random(3)
    tokens = ab_tokens()
    for _ in range(300):
        ids = rng.choices(tokens, k=rng.randint(1, 10))
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3))]
        check(byte_level(), ids, SamplingParams(stop=stops, min_tokens=rng.choice([0, 0, 1, 4])))


def nothing_held_back(monkeypatch):
    monkeypatch.setattr(StopMatcher, "held", property(lambda self: 0, lambda self, value: None), raising=False)


def always_the_longest_stop_held_back(monkeypatch):
    whole = StopMatcher.feed

    def feed(self, text):
        found = whole(self, text)
        self.held = min(self.fed + len(text), max(len(stop) for stop, _ in self._stops) - 1)
        self.fed += len(text)
        return found

    monkeypatch.setattr(StopMatcher, "fed", 0, raising=False)
    monkeypatch.setattr(StopMatcher, "feed", feed)


def no_second_try_inside_a_failed_match(monkeypatch):
    monkeypatch.setattr(stop_strings, "_fallbacks", lambda stop: (0,) * (len(stop) + 1))


def the_first_listed_stop_wins(monkeypatch):
    whole = StopMatcher.feed

    def feed(self, text):
        found = whole(self, text)
        return found and (found[0], self._stops[0][0] if text[: found[0]].endswith(self._stops[0][0]) else found[1])

    monkeypatch.setattr(StopMatcher, "feed", feed)


def tokens_are_not_cut(monkeypatch):
    whole = Detokenizer._cut

    def cut(self, size, stop):
        ids, logprobs = list(self.token_ids), list(self.logprobs)
        whole(self, size, stop)
        self.token_ids[:], self.logprobs[:] = ids, logprobs

    monkeypatch.setattr(Detokenizer, "_cut", cut)


def min_tokens_ignored(monkeypatch):
    whole = Detokenizer.__init__

    def init(self, *args):
        whole(self, *args)
        self._min_tokens = 0

    monkeypatch.setattr(Detokenizer, "__init__", init)


def the_stop_is_part_of_the_text(monkeypatch):
    whole = Detokenizer._cut
    monkeypatch.setattr(
        detokenizer_module.Detokenizer, "_cut", lambda self, size, stop: whole(self, size + len(stop), stop)
    )


def test_stops_pass_without_a_planted_fault():
    check_many()


@pytest.mark.parametrize(
    "plant",
    [
        nothing_held_back,
        always_the_longest_stop_held_back,
        no_second_try_inside_a_failed_match,
        the_first_listed_stop_wins,
        tokens_are_not_cut,
        min_tokens_ignored,
        the_stop_is_part_of_the_text,
    ],
)
def test_a_planted_fault_in_stopping_is_caught(monkeypatch, plant):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_many()
