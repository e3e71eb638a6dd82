"""Masks, bias, penalties, filters, logprobs and errors, against plain loops and transformers' own processors."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from playground.engine.logit_rules import apply_filters, apply_token_rules, scale
from playground.engine.sampler import Sampler, SamplingRow
from playground.sampling_params import SamplingParams
from tests.engine.sampling_reference import kept_tokens, ruled_logits

GREEDY = SamplingParams(temperature=0)


def row_of(params: SamplingParams, prompt=(), output=(), eos=frozenset(), seed=5, position=9) -> SamplingRow:
    return SamplingRow(params, seed, position, prompt, output, eos)


def sample_one(logits: torch.Tensor, params: SamplingParams, **history) -> int:
    (token,) = Sampler(len(logits)).sample(logits[None], [row_of(params, **history)])
    assert token.error is None
    return token.token_id


def survivors(logits: torch.Tensor, params: SamplingParams) -> set[int]:
    """Token ids with any chance, out of the code under test."""
    scaled = scale(logits[None], logits.max()[None], [params.temperature])
    apply_filters(scaled, [params])
    return set((scaled[0] > -math.inf).nonzero().flatten().tolist())


def random_logits(size: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


small = st.floats(-8, 8, width=32)
coarse = st.integers(-512, 512).map(lambda n: n / 64) | st.integers(-3, 3).map(float)
"""Equal or clearly apart: the last bit of two roundings decides nothing."""
histories = st.lists(st.integers(0, 11), max_size=12)
param_sets = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.01, 1.0),
    min_p=st.sampled_from([0.0, 0.0, 0.03, 0.4, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.4, 0.6]),
    presence_penalty=st.sampled_from([0.0, 0.9, -0.9]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -0.5]),
    logit_bias=st.dictionaries(st.integers(0, 13), st.floats(-5, 5, width=32), max_size=3),
    allowed_token_ids=st.none() | st.lists(st.integers(0, 13), min_size=1, max_size=8, unique=True),
    min_tokens=st.integers(0, 12),
    stop_token_ids=st.lists(st.integers(0, 13), max_size=2),
    ignore_eos=st.booleans(),
)


@given(st.lists(small, min_size=12, max_size=12), param_sets, histories, histories)
@settings(max_examples=120)
def test_token_rules_are_those_of_the_plain_loops(logits, params, prompt, output):
    """Ids 12 and 13 are outside the vocabulary: they have no effect."""
    row = row_of(params, prompt, output, frozenset({0, 12}))
    result = torch.tensor(logits, dtype=torch.float64)
    apply_token_rules(result, row)
    torch.testing.assert_close(result, torch.tensor(ruled_logits(logits, row), dtype=torch.float64), rtol=1e-12, atol=0)


@given(st.lists(small, min_size=12, max_size=12), param_sets, histories, histories)
@settings(max_examples=80)
def test_a_token_is_one_of_those_that_survive_and_the_best_one_when_greedy(logits, params, prompt, output):
    row = row_of(params, prompt, output, frozenset({0}))
    (token,) = Sampler(12).sample(torch.tensor([logits], dtype=torch.float64), [row])
    ruled = ruled_logits(logits, row)
    if max(ruled) == -math.inf:
        assert token.token_id == -1
        assert "leave no token" in token.error
    elif params.greedy:
        assert ruled[token.token_id] == pytest.approx(max(ruled))
    else:
        assert ruled[token.token_id] > -math.inf


@given(
    st.lists(coarse, min_size=1, max_size=30),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(0, 32),
    st.floats(0.001, 1.0),
    st.sampled_from([0.0, 0.03, 0.4, 1.0]),
)
@settings(max_examples=200)
def test_filters_keep_what_the_plain_loops_keep(logits, temperature, top_k, top_p, min_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = kept_tokens(logits, temperature, min_p, top_k, top_p)
    assert survivors(torch.tensor(logits, dtype=torch.float64), params) == set(expected)
    assert expected


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.9, 4), (1e-9, 1)])
def test_top_p_keeps_the_shortest_beginning_that_reaches_p_and_ties_go_by_id(top_p, kept):
    """Four equal tokens: cumulated 1/4, 2/4, 3/4 and 1, all exact."""
    logits = torch.full((300,), -math.inf)
    ids = [290, 7, 256, 31]
    logits[ids] = 1.5
    assert survivors(logits, SamplingParams(top_p=top_p)) == set(sorted(ids)[:kept])


def test_top_k_keeps_exactly_k_where_tokens_tie():
    logits = torch.zeros(5_000)
    logits[4_000] = 1.0
    assert survivors(logits, SamplingParams(top_k=4)) == {4_000, 0, 1, 2}


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.3, 3.0])
@pytest.mark.parametrize(
    "params", [{"top_p": 0.97}, {"top_k": 6_000}, {"top_k": 9_000, "top_p": 0.5}, {"top_k": 2_048}]
)
def test_filters_that_keep_thousands_of_tokens_keep_the_right_ones(spread, params):
    """More than the first look at the largest logits shows, with many ties."""
    logits = (random_logits(20_000, spread=spread) * 64).round() / 64
    everything = {"top_k": 0, "top_p": 1.0} | params
    expected = _kept_by_sorting(logits, everything["top_k"], everything["top_p"])
    assert survivors(logits, SamplingParams(**params)) == expected


def _kept_by_sorting(logits: torch.Tensor, top_k: int, top_p: float) -> set[int]:
    """kept_tokens without its quadratic sums, for large vocabularies."""
    order = sorted(range(len(logits)), key=lambda t: (-logits[t].item(), t))[: top_k or None]
    weights = [math.exp(logits[t].item() - logits[order[0]].item()) for t in order]
    total, mass, kept = math.fsum(weights), 0.0, 0
    while kept < len(order) and (kept == 0 or mass < top_p * total * (1 - 1e-13) or top_p == 1):
        mass += weights[kept]
        kept += 1
    return set(order[:kept])


@pytest.mark.parametrize("size", [50, 5_000])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_filters_agree_with_transformers(size, spread):
    none = torch.zeros(1, 0, dtype=torch.long)
    for seed in range(4):
        logits = random_logits(size, seed, spread)
        for temperature in (0.7, 1.0, 1.9):
            warm = TemperatureLogitsWarper(temperature)(none, logits[None])
            cases = [
                ({"top_k": 17}, [TopKLogitsWarper(17)]),
                ({"top_p": 0.83}, [TopPLogitsWarper(0.83)]),
                ({"min_p": 0.06}, [MinPLogitsWarper(0.06)]),
                (
                    {"min_p": 0.01, "top_k": 9, "top_p": 0.7},
                    [MinPLogitsWarper(0.01), TopKLogitsWarper(9), TopPLogitsWarper(0.7)],
                ),
            ]
            for given_params, warpers in cases:
                scores = warm
                for warper in warpers:
                    scores = warper(none, scores)
                kept = set((scores[0] > -math.inf).nonzero().flatten().tolist())
                assert survivors(logits, SamplingParams(temperature=temperature, **given_params)) == kept


@pytest.mark.parametrize("penalty", [1.3, 0.6, 5.0])
def test_the_repetition_penalty_agrees_with_transformers(penalty):
    for seed in range(10):
        logits = random_logits(200, seed).float()
        history = torch.randint(200, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
        expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([history]), logits[None].clone())[0]
        mine = logits.clone()
        apply_token_rules(mine, row_of(SamplingParams(repetition_penalty=penalty), history[:25], history[25:]))
        torch.testing.assert_close(mine, expected)


def test_presence_and_frequency_count_the_output_and_not_the_prompt():
    params = SamplingParams(temperature=0, presence_penalty=1.0, frequency_penalty=0.5)
    logits = torch.zeros(10)
    logits[3], logits[4] = 2.0, 1.0
    assert sample_one(logits, params, prompt=[3] * 50) == 3
    assert sample_one(logits, params, prompt=[3] * 50, output=[3]) == 4  # 2 - 1.5 is less than 1
    assert sample_one(logits, params, output=[4, 4, 3]) == 3


def test_of_equal_best_tokens_greedy_takes_the_smallest_id():
    logits = torch.zeros(3, 600)
    logits[0, [300, 200]] = 1.0
    logits[1, [599, 598]] = 1.0
    tokens = Sampler(600).sample(logits, [row_of(GREEDY)] * 3)
    assert [token.token_id for token in tokens] == [200, 598, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_min_tokens_forbids_the_ending_tokens_until_there_are_enough(dtype):
    logits = torch.zeros(10, dtype=dtype)
    logits[2], logits[3], logits[4] = 3.0, 2.0, 1.0
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=[3])
    eos = frozenset({2})
    assert sample_one(logits, params, output=[], eos=eos) == 4
    assert sample_one(logits, params, output=[4], eos=eos) == 4
    assert sample_one(logits, params, output=[4, 4], eos=eos) == 2
    assert sample_one(logits, params.model_copy(update={"ignore_eos": True}), output=[], eos=eos) == 2


def test_rules_come_before_the_filters():
    """A biased token can enter the top k, and a forbidden one leaves its place to the next."""
    logits = torch.arange(10.0)
    assert sample_one(logits, SamplingParams(top_k=1, logit_bias={0: 50.0})) == 0
    assert sample_one(logits, SamplingParams(top_k=1, min_tokens=1), eos=frozenset({9})) == 8
    assert sample_one(logits, SamplingParams(top_p=0.01, allowed_token_ids=[4, 2])) == 4


def test_the_logits_given_are_left_as_they_were():
    logits = random_logits(300).expand(3, -1).contiguous()
    before = logits.clone()
    params = SamplingParams(top_p=0.5, top_k=9, min_p=0.01, logit_bias={1: 3.0}, repetition_penalty=2.0, logprobs=3)
    Sampler(300).sample(logits, [row_of(params, [1, 2], [3]), row_of(SamplingParams(top_p=0.4)), row_of(GREEDY)])
    assert torch.equal(logits, before)


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


def test_the_plain_loops_themselves_count_as_they_should():
    """The oracle's penalties by hand: 2 / 1.5 - (0.5 + 2 * 0.25) for a token said twice."""
    params = SamplingParams(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25)
    result = ruled_logits([2.0, -2.0, 1.0], row_of(params, [1], [0, 0]))
    assert result == pytest.approx([2 / 1.5 - 1.0, -3.0, 1.0])
    assert Counter(kept_tokens([0.0, 1.0, 1.0], 1.0, 0.0, 2, 1.0)) == Counter([1, 2])


def test_logits_made_in_inference_mode_can_be_sampled_outside_it():
    with torch.inference_mode():
        logits = random_logits(300).float().expand(2, -1) * 1.0
    params = SamplingParams(top_p=0.5, top_k=9, min_p=0.01, logit_bias={1: 3.0}, repetition_penalty=2.0, logprobs=3)
    tokens = Sampler(300).sample(logits, [row_of(params, [1, 2], [3]), row_of(GREEDY, [1])])
    assert [token.error for token in tokens] == [None, None]
