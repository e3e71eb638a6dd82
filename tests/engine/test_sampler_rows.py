"""Rows that cannot be sampled, logprobs, and what holds for any row whatever its parameters."""

import math

import pytest
import torch

from playground.engine.sampler import Sampler
from playground.sampling_params import SamplingParams
from tests.engine.sampling_reference import draws, random_logits, row_of

GREEDY = SamplingParams(temperature=0)


def test_logits_made_in_inference_mode_can_be_sampled_outside_it():
    with torch.inference_mode():
        logits = random_logits(300).float().expand(2, -1) * 1.0
    params = SamplingParams(top_p=0.5, top_k=9, min_p=0.01, logit_bias={1: 3.0}, repetition_penalty=2.0, logprobs=3)
    tokens = Sampler(300).sample(logits, [row_of(params, [1, 2], [3]), row_of(GREEDY, [1])])
    assert [token.error for token in tokens] == [None, None]


def test_a_row_gives_the_same_whatever_the_number_of_threads():
    size, count = 50_000, 3
    rows = [row_of(SamplingParams(top_p=p, logprobs=2), seed=7) for p in (1.0, 0.9, 0.999)]
    logits = torch.stack([random_logits(size, seed) for seed in range(count)]).float()
    before = torch.get_num_threads()
    seen = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            seen.append([Sampler(size).sample(logits[i : i + 1], rows[i : i + 1])[0].token_id for i in range(count)])
            seen.append([token.token_id for token in Sampler(size).sample(logits, rows)])
    finally:
        torch.set_num_threads(before)
    assert seen == [seen[0]] * 4


def test_a_seed_and_a_position_decide_the_draw_for_ever():
    """Extreme seeds too: other places give other tokens, the same place the same."""
    logits = torch.zeros(5000)
    rows = [row_of(SamplingParams(), seed=s, position=p) for s in (0, 1, -1, 2**63 - 1, -(2**63)) for p in (0, 1, 9)]
    first = draws(logits, rows)
    assert first == draws(logits, rows)
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_smallest_temperature_and_the_widest_logits_give_the_best_token(dtype):
    logits = torch.tensor([-30000.0, 100.0, 30000.0, 29000.0], dtype=dtype)
    rows = [row_of(SamplingParams(temperature=1e-300, top_p=p), seed=i) for i, p in enumerate([1.0, 0.5])]
    assert draws(logits, rows) == [2, 2]


# Errors


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), SamplingParams(top_p=0.5, logprobs=2)])
def test_a_row_that_cannot_be_sampled_fails_alone_with_one_sentence(params):
    good = random_logits(300).float()
    nan, plus, minus = good.clone(), good.clone(), torch.full((300,), -math.inf)
    nan[299], plus[7] = math.nan, math.inf
    one_left = minus.clone()
    one_left[123] = -5.0
    rows = [row_of(params, position=i) for i in range(6)]
    tokens = Sampler(300).sample(torch.stack([good, nan, plus, minus, one_left, good]), rows)
    assert [token.error is None for token in tokens] == [True, False, False, False, True, True]
    for token, word in zip(tokens[1:4], ["NaN", "+infinity", "-infinity"], strict=True):
        assert token.token_id == -1
        assert token.logprob is None
        assert word in token.error
        assert "\n" not in token.error
    assert tokens[4].token_id == 123
    assert tokens[0] == Sampler(300).sample(good[None], rows[:1])[0]


def test_a_nan_and_an_infinity_in_one_row_are_an_error():
    logits = torch.zeros(1, 10)
    logits[0, 2], logits[0, 5] = math.inf, math.nan
    assert Sampler(10).sample(logits, [row_of(GREEDY)])[0].error is not None


def test_masks_that_leave_nothing_are_an_error_that_says_which_parameters():
    params = SamplingParams(allowed_token_ids=[2, 3], min_tokens=1, stop_token_ids=[3])
    bad, good = Sampler(10).sample(torch.zeros(2, 10), [row_of(params, eos=frozenset({2})), row_of(GREEDY)])
    assert "allowed_token_ids" in bad.error
    assert "min_tokens" in bad.error
    assert good.token_id == 0


def test_a_penalty_that_overflows_is_an_error_of_its_row():
    logits = torch.zeros(2, 10)
    logits[:, 4] = 3e38
    params = SamplingParams(temperature=0, repetition_penalty=0.01)
    bad, good = Sampler(10).sample(logits, [row_of(params, [4]), row_of(GREEDY)])
    assert "infinity" in bad.error
    assert good.token_id == 4


def test_no_rows_give_no_tokens():
    assert Sampler(10).sample(torch.zeros(0, 10), []) == []


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="2 rows"):
        Sampler(10).sample(torch.zeros(2, 11), [row_of(GREEDY)] * 2)


# Logprobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logprobs_are_those_of_the_unmodified_distribution(dtype):
    logits = torch.stack([random_logits(300, seed) for seed in range(6)]).to(dtype)
    params = SamplingParams(
        temperature=0.3, top_p=0.9, logit_bias={5: 9.0}, repetition_penalty=1.5, presence_penalty=2, logprobs=4
    )
    exact = logits.double().log_softmax(-1)
    rows = [row_of(params, [1, 2], [3], position=i) for i in range(6)]
    for i, token in enumerate(Sampler(300).sample(logits, rows)):
        entry = token.logprob
        assert entry.token_id == token.token_id
        assert entry.logprob == pytest.approx(exact[i, token.token_id].item(), abs=1e-5)
        assert entry.rank == 1 + sum(x > exact[i, token.token_id] for x in exact[i]).item()
        best = exact[i].topk(4)
        assert [t for t, _ in entry.top] == best.indices.tolist()
        assert [p for _, p in entry.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_rows_get_as_many_logprobs_as_they_ask_for():
    logits = torch.zeros(4, 10)
    logits[:, 8] = -math.inf
    asked = [None, 0, 2, 100]
    rows = [row_of(SamplingParams(temperature=0, logprobs=k)) for k in asked]
    tokens = Sampler(10).sample(logits, rows)
    assert tokens[0].logprob is None
    assert [len(token.logprob.top) for token in tokens[1:]] == [0, 2, 9]  # a token that cannot come is not listed
    assert [t for t, _ in tokens[3].logprob.top] == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert tokens[1].logprob.logprob == pytest.approx(-math.log(9))
    assert tokens[1].logprob.rank == 1


def test_prompt_logprobs_judge_the_token_that_came_next():
    logits = torch.stack([random_logits(50, seed) for seed in range(200)])
    next_ids = [(7 * i) % 50 for i in range(200)]
    exact = logits.log_softmax(-1)
    entries = Sampler(50).prompt_logprobs(logits, next_ids, 3)
    assert [entry.token_id for entry in entries] == next_ids
    for i, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(exact[i, next_ids[i]].item())
        assert entry.rank == int((exact[i] > exact[i, next_ids[i]]).sum()) + 1
        assert [t for t, _ in entry.top] == exact[i].topk(3).indices.tolist()
    assert Sampler(50).prompt_logprobs(logits[:0], [], 3) == []


@pytest.mark.parametrize("k", [0, 1, 5, 100])
def test_ranks_and_lists_of_logprobs_put_equal_logits_in_the_order_of_ids(k):
    logits = torch.stack([random_logits(60, seed).round() for seed in range(10)]).float()
    logits[:, 10:15] = -math.inf
    rows = [row_of(SamplingParams(logit_bias={20: 30.0}, logprobs=k), seed=i) for i in range(10)]
    for token, values in zip(Sampler(60).sample(logits, rows), logits.tolist(), strict=True):
        assert token.logprob.token_id == token.token_id == 20
        assert token.logprob.rank == 1 + sum(value > values[20] for value in values)
        ranked = sorted((t for t in range(60) if values[t] > -math.inf), key=lambda t: (-values[t], t))
        assert [t for t, _ in token.logprob.top] == ranked[:k]


def test_tied_logprobs_do_not_depend_on_what_the_other_rows_asked_for():
    logits = torch.zeros(2, 200)
    one, hundred = row_of(SamplingParams(logprobs=1)), row_of(SamplingParams(logprobs=100))
    alone = Sampler(200).sample(logits[:1], [one])[0]
    assert alone == Sampler(200).sample(logits, [one, hundred])[0]
    assert [t for t, _ in alone.logprob.top] == [0]
