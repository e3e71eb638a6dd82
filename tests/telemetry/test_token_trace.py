"""Deltas and step events of one request, joined by position into the tokens that the views show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from playground.engine.detokenizer import Detokenizer
from playground.engine.events import Event, RequestEvent, ScheduledSlice, StepEvent
from playground.engine.outputs import Delta, TokenLogprob
from playground.models.bundled import BUNDLED_MODEL
from playground.sampling_params import SamplingParams
from playground.telemetry import token_trace
from playground.telemetry.token_trace import TokenTrace, TracedToken, fitted, pack, unpack

ME, OTHER = 7, 8
TOKENIZER = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
WORDS = TOKENIZER.encode("Once upon a time there was a fox", add_special_tokens=False)


def step(number: int, *slices: ScheduledSlice) -> StepEvent:
    values = dict.fromkeys(StepEvent._fields, 0) | {"step": number, "time_ns": number * 10_000_000}
    return StepEvent(**values | {"forward_ns": 5_000_000, "requests": slices})  # type: ignore[arg-type]


def share(tokens: list[int], drafts: list[int] = [], accepted: int = 0, bonus: bool = False) -> ScheduledSlice:  # noqa: B006
    return ScheduledSlice(ME, 0, 1, len(tokens), tuple(drafts), tuple(range(accepted)), tuple(tokens), bonus)


def trace() -> TokenTrace:
    return TokenTrace(ME, TOKENIZER, [], started_ns=0)


def test_tokens_are_told_apart_by_what_made_them() -> None:
    one = trace()
    a, b, c, d, e, f, g, h = WORDS
    one.observe(
        [
            step(1, share([a])),
            step(2, share([b, c, d], [b, c], 2, bonus=True)),
            step(3, ScheduledSlice(OTHER, 0, 1, 1, (), (), (99,)), share([e, f], [e, h, g], 1)),
        ]
    )
    for ids in ((a,), (b, c, d), (e, f)):
        one.add(Delta("", ids))
    assert [token.origin for token in one.tokens] == [
        "target",
        "accepted",
        "accepted",
        "bonus",
        "accepted",
        "corrected",
    ]
    assert [token.step for token in one.tokens] == [1, 2, 2, 2, 3, 3]
    assert [token.time_ms for token in one.tokens] == [15, 25, 25, 25, 35, 35]
    assert one.tokens[5].rejected == tuple(TOKENIZER.decode([i]) for i in (h, g))
    assert all(not token.rejected for token in one.tokens[:5])
    metrics = one.metrics()
    assert metrics["num_draft_tokens"] == 5 and metrics["num_accepted_tokens"] == 3
    assert metrics["time_to_first_token"] == 0.015
    assert metrics["time_per_output_token"] == pytest.approx(0.020 / 5)


def test_a_token_waits_for_its_step_and_a_step_for_its_token() -> None:
    one = trace()
    one.add(Delta("", (WORDS[0],)))
    assert one.tokens == [] and one.num_kept == 1
    one.observe([step(1, share([WORDS[0]])), step(2, share([WORDS[1]]))])
    assert len(one.tokens) == 1
    one.add(Delta("", (WORDS[1],)))
    assert [token.step for token in one.tokens] == [1, 2]


def test_lost_events_leave_tokens_without_an_origin_and_never_with_a_wrong_one() -> None:
    for events, dropped in (([step(2, share([WORDS[1]]))], 0), ([step(2, share([WORDS[0]]))], 3)):
        one = trace()
        one.observe(events, dropped)
        for token_id in WORDS[:3]:
            one.add(Delta("", (token_id,)))
        assert [token.origin for token in one.tokens] == [None] * 3
        assert "".join(token.text for token in one.tokens) == TOKENIZER.decode(WORDS[:3])
        assert "time_to_first_token" not in one.metrics()


def test_probabilities_come_with_the_deltas_and_impossible_ones_are_left_out() -> None:
    entries = (
        TokenLogprob(WORDS[0], -0.5, 1, ((WORDS[0], -0.5), (WORDS[1], -1.25))),
        TokenLogprob(WORDS[1], float("-inf"), 9),
    )
    one = trace()
    one.add(Delta("", tuple(WORDS[:2]), logprobs=entries))
    one.finish(TOKENIZER.decode(WORDS[:2]))
    assert one.tokens[0].logprob == -0.5
    assert one.tokens[0].top == (("Once", -0.5), (TOKENIZER.decode([WORDS[1]]), -1.25))
    assert one.tokens[1].logprob is None


def test_the_end_is_heard_of() -> None:
    one = trace()
    events: list[Event] = [RequestEvent(1, OTHER, "finished"), RequestEvent(2, ME, "running", num_cached_tokens=16)]
    one.observe(events)
    assert not one.ended and one.metrics()["num_cached_tokens"] == 16
    one.observe([RequestEvent(3, ME, "finished")])
    assert one.ended


@given(
    st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=30),
    st.lists(st.integers(1, 4), min_size=1, max_size=30),
    st.sampled_from([(), ("e",), ("th", "\n")]),
    st.integers(0, 30),
)
def test_the_pieces_of_any_tokens_cut_anywhere_join_to_the_reply(
    ids: list[int], sizes: list[int], stop: tuple[str, ...], num_steps_told: int
) -> None:
    one = TokenTrace(ME, TOKENIZER, WORDS, started_ns=0)
    detokenizer = Detokenizer(TOKENIZER, WORDS, SamplingParams(stop=list(stop)))
    number = sent = 0
    while ids and not detokenizer.stopped:
        size = sizes[number % len(sizes)]
        now, ids, number = ids[:size], ids[size:], number + 1
        detokenizer.append(now)
        released = detokenizer.token_ids[sent : detokenizer.num_released_tokens]
        sent += len(released)
        one.add(Delta("", tuple(released)))
        if number <= num_steps_told:
            one.observe([step(number, share(now))])
    detokenizer.finish()
    one.add(Delta("", tuple(detokenizer.token_ids[sent:])))
    one.finish(detokenizer.text)
    assert "".join(token.text for token in one.tokens) == (detokenizer.text if detokenizer.token_ids else "")
    assert [token.token_id for token in one.tokens] == detokenizer.token_ids
    assert unpack(pack(one.tokens)) == one.tokens


def test_texts_are_fitted_to_a_reply_that_ends_within_a_token() -> None:
    tokens = [TracedToken(i, text, None, None, None, None) for i, text in enumerate(("ab", "cd", "ef"))]
    assert [token.text for token in fitted(tokens, "abc")] == ["ab", "c", ""]
    assert [token.text for token in fitted(tokens, "abcdef!")] == ["ab", "cd", "ef!"]
    assert fitted([], "abc") == []


def test_what_is_too_long_is_stored_without_rivals_and_then_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [TracedToken(i, f"{i}", "target", i, i / 7, -i / 3, (), ((f"x{i * i}", -i / 11),)) for i in range(200)]
    whole = pack(tokens)
    assert whole is not None and unpack(whole) == tokens
    monkeypatch.setattr(token_trace, "PACKED_LIMIT", len(whole) - 1)
    assert unpack(pack(tokens)) == [token._replace(top=()) for token in tokens]
    monkeypatch.setattr(token_trace, "PACKED_LIMIT", 100)
    assert pack(tokens) is None


@pytest.mark.parametrize("packed", [None, 5, "", "no base85 \x00", "00000", pack([])])
def test_what_cannot_be_read_is_no_tokens(packed: object) -> None:
    assert unpack(packed) == []


def test_a_model_without_a_tokenizer_has_numbers_for_labels() -> None:
    one = TokenTrace(ME, None, [], started_ns=0)
    one.observe([step(1, share([5], [9]))])
    one.add(Delta("", (5,)))
    assert one.tokens[0].rejected == ("#9",) and one.tokens[0].text == ""
    assert one.tokens[0].origin == "corrected"
