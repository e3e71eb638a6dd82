"""Masks, bias, penalties and filters, against plain loops and transformers' own processors."""

import math
from collections import Counter
from dataclasses import replace

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

from kernels import cpu_sampling
from playground.engine import sampler
from playground.engine.sampler import Sampler, SamplingRow
from playground.sampling_params import SamplingParams
from tests.engine.sampling_reference import (
    draws,
    kept_tokens,
    probabilities,
    random_logits,
    row_of,
    ruled,
    ruled_logits,
    survivors,
)

GREEDY = SamplingParams(temperature=0)


def sample_one(logits: torch.Tensor, params: SamplingParams, **history) -> int:
    return draws(logits, [row_of(params, **history)])[0]


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
    result = ruled(torch.tensor(logits, dtype=torch.float64), row)
    torch.testing.assert_close(result, torch.tensor(ruled_logits(logits, row), dtype=torch.float64), rtol=1e-12, atol=0)


@given(st.lists(small, min_size=12, max_size=12), param_sets, histories, histories)
@settings(max_examples=80)
def test_a_token_is_one_of_those_that_survive_and_the_best_one_when_greedy(logits, params, prompt, output):
    row = row_of(params, prompt, output, frozenset({0}))
    (token,) = Sampler(12).sample(torch.tensor([logits], dtype=torch.float64), [row])
    values = ruled_logits(logits, row)
    if max(values) == -math.inf:
        assert token.token_id == -1
        assert "leave no token" in token.error
    elif params.greedy:
        assert values[token.token_id] == pytest.approx(max(values))
    else:
        assert values[token.token_id] > -math.inf


@given(st.lists(coarse, min_size=12, max_size=12), param_sets, histories, histories)
@settings(max_examples=30)
def test_draws_come_from_exactly_the_tokens_that_the_rules_leave(logits, params, prompt, output):
    """What has 8 % or more is drawn in 300 draws (missed once in 10**10 runs)."""
    row = row_of(params, prompt, output, frozenset({0}))
    if max(ruled_logits(logits, row)) == -math.inf:
        return
    check_support(torch.tensor(logits, dtype=torch.float64), row)


def check_support(logits: torch.Tensor, row: SamplingRow) -> None:
    wanted = probabilities(logits.tolist(), row)
    drawn = set(draws(logits, [replace(row, seed=i, position=1 + i % 7) for i in range(300)]))
    assert drawn <= {token for token, p in enumerate(wanted) if p > 0}
    assert drawn >= {token for token, p in enumerate(wanted) if p >= 0.08}


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
    assert survivors(torch.tensor(logits, dtype=torch.float64), params) == [set(expected)]
    assert expected


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.9, 4), (1e-9, 1)])
def test_top_p_keeps_the_shortest_beginning_that_reaches_p_and_ties_go_by_id(top_p, kept):
    """Four equal tokens: cumulated 1/4, 2/4, 3/4 and 1, all exact."""
    logits = torch.full((300,), -math.inf)
    ids = [290, 7, 256, 31]
    logits[ids] = 1.5
    assert survivors(logits, SamplingParams(top_p=top_p)) == [set(sorted(ids)[:kept])]


def test_top_k_keeps_exactly_k_where_tokens_tie():
    logits = torch.zeros(5_000)
    logits[4_000] = 1.0
    assert survivors(logits, SamplingParams(top_k=4)) == [{4_000, 0, 1, 2}]


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.3, 3.0])
@pytest.mark.parametrize(
    "params", [{"top_p": 0.97}, {"top_k": 6_000}, {"top_k": 9_000, "top_p": 0.5}, {"top_k": 2_048}]
)
def test_filters_that_keep_thousands_of_tokens_keep_the_right_ones(spread, params):
    """More than the first look at the largest logits shows, with many ties."""
    logits = (random_logits(20_000, spread=spread) * 64).round() / 64
    everything = {"top_k": 0, "top_p": 1.0} | params
    expected = _kept_by_sorting(logits, everything["top_k"], everything["top_p"])
    assert survivors(logits, SamplingParams(**params)) == [expected]


FILTERS = [
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 2048},
    {"top_k": 2500},
    {"top_p": 0.001},
    {"top_p": 0.95},
    {"top_p": 0.9999},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 300, "top_p": 0.9},
    {"top_k": 3000, "top_p": 0.97, "min_p": 0.001},
    {"temperature": 10.0, "top_p": 0.8},
    {"temperature": 0.1, "top_p": 0.99},
]


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 2047, 2049, 6000])
@pytest.mark.parametrize("coarseness", [0, 10])
def test_rows_with_different_filters_each_get_their_own_at_every_width(size, coarseness):
    """Widths around those of groups and of the first look, with ties and without."""
    logits = random_logits(size, seed=size)
    logits = (logits * coarseness).round() / coarseness if coarseness else logits
    params = [SamplingParams(**fields) for fields in FILTERS]
    for one, kept in zip(params, survivors(logits, *params), strict=True):
        scaled = (logits - logits.max()) / one.temperature
        above = scaled.masked_fill(scaled < (math.log(one.min_p) if one.min_p else -math.inf), -math.inf)
        assert kept == _kept_by_sorting(above, one.top_k, one.top_p), one


def test_top_p_that_is_reached_exactly_takes_no_token_more():
    assert survivors(torch.zeros(512), SamplingParams(top_p=0.5)) == [set(range(256))]


def _kept_by_sorting(logits: torch.Tensor, top_k: int, top_p: float) -> set[int]:
    """kept_tokens without its quadratic sums, for large vocabularies."""
    values = logits.tolist()
    order = sorted((t for t in range(len(values)) if values[t] > -math.inf), key=lambda t: (-values[t], t))
    order = order[: top_k or None]
    weights = [math.exp(values[t] - values[order[0]]) for t in order]
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
                assert survivors(logits, SamplingParams(temperature=temperature, **given_params)) == [kept]


@pytest.mark.parametrize("penalty", [1.3, 0.6, 5.0])
def test_the_repetition_penalty_agrees_with_transformers(penalty):
    for seed in range(10):
        logits = random_logits(200, seed).float()
        history = torch.randint(200, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
        expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([history]), logits[None].clone())[0]
        mine = ruled(logits, row_of(SamplingParams(repetition_penalty=penalty), history[:25], history[25:]))
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


def test_the_plain_loops_themselves_count_as_they_should():
    """The oracle's penalties by hand: 2 / 1.5 - (0.5 + 2 * 0.25) for a token said twice."""
    params = SamplingParams(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25)
    result = ruled_logits([2.0, -2.0, 1.0], row_of(params, [1], [0, 0]))
    assert result == pytest.approx([2 / 1.5 - 1.0, -3.0, 1.0])
    assert Counter(kept_tokens([0.0, 1.0, 1.0], 1.0, 0.0, 2, 1.0)) == Counter([1, 2])


# Faults planted on purpose


def test_a_penalty_before_the_bias_is_found(monkeypatch):
    params = SamplingParams(temperature=0, repetition_penalty=2.0, logit_bias={0: 3.0})
    logits, row = torch.tensor([2.0, 3.0]), row_of(params, prompt=[0])
    check_support(logits, row)
    real = sampler.apply_token_rules

    def penalty_first(values, rows):
        rows = [replace(row, params=row.params.model_copy(update={"logit_bias": {}})) for row in rows]
        values = real(values, rows)
        return real(values, [row_of(SamplingParams(logit_bias=params.logit_bias)) for _ in rows])

    monkeypatch.setattr(sampler, "apply_token_rules", penalty_first)
    with pytest.raises(AssertionError):
        check_support(logits, row)


def test_a_top_p_that_drops_the_token_that_crosses_p_is_found(monkeypatch):
    logits, row = torch.tensor([0.5, 0.0, -0.5, -1.0]), row_of(SamplingParams(top_p=0.6))
    check_support(logits, row)
    real = cpu_sampling._count_kept

    def one_too_few(*args):
        count, settled = real(*args)
        return count - 1, settled

    monkeypatch.setattr(cpu_sampling, "_count_kept", one_too_few)
    with pytest.raises(AssertionError):
        check_support(logits, row)
