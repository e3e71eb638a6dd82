"""The sampler against a second definition of it: plain Python floats, sorting and loops, in the order of the rules.

What is drawn must be what that definition allows, whatever else is in the batch. How often each token is drawn is
judged in `test_sampler_statistics.py`.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from playground import SamplingParams
from playground.engine import sampler as sampler_module
from playground.engine.logit_rules import apply_filters, apply_token_rules, scale
from playground.engine.sampler import SampledToken, Sampler, SamplingRow

INF = math.inf


# The second definition


@dataclass(frozen=True)
class Expected:
    """What a row may give: nothing, one token for sure (greedy), or tokens with probabilities."""

    probabilities: dict[int, float]
    margin: float = INF
    """How far the nearest decision (min_p, top_k, top_p) was from going the other way."""


def expected_logits(logits: Sequence[float], row: SamplingRow) -> list[float]:
    """Logits after masks, bias and penalties, one token at a time."""
    params = row.params
    ruled = []
    for token, value in enumerate(logits):
        if params.allowed_token_ids is not None and token not in params.allowed_token_ids:
            value = -INF
        ends = token in params.stop_token_ids or (token in row.eos_token_ids and not params.ignore_eos)
        if ends and len(row.output_token_ids) < params.min_tokens:
            value = -INF
        value += params.logit_bias.get(token, 0.0)
        if token in row.prompt_token_ids or token in row.output_token_ids:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        count = list(row.output_token_ids).count(token)
        if count:
            value -= params.presence_penalty + params.frequency_penalty * count
        ruled.append(value)
    return ruled


def expected(logits: Sequence[float], row: SamplingRow) -> Expected:
    """Which tokens a row may give, and how probable each of them is."""
    ruled, params = expected_logits(logits, row), row.params
    ranked = sorted((token for token in range(len(ruled)) if ruled[token] > -INF), key=lambda t: (-ruled[t], t))
    if not ranked:
        return Expected({})
    if params.temperature == 0:
        return Expected({ranked[0]: 1.0})
    best, margin = ruled[ranked[0]], INF
    weights = {token: math.exp((ruled[token] - best) / params.temperature) for token in ranked}
    if params.min_p > 0:
        margin = min([margin, *(abs(weights[t] - params.min_p) for t in ranked if weights[t] != params.min_p)])
        ranked = [token for token in ranked if weights[token] >= params.min_p]
    if params.top_k > 0:
        kept, dropped = ranked[: params.top_k], ranked[params.top_k :]
        if dropped and ruled[kept[-1]] != ruled[dropped[0]]:
            margin = min(margin, ruled[kept[-1]] - ruled[dropped[0]])
        ranked = kept
    if params.top_p < 1:
        total, reached, kept = math.fsum(weights[t] for t in ranked), 0.0, []
        for token in ranked:
            kept.append(token)
            reached += weights[token] / total
            if len(kept) < len(ranked):
                margin = min(margin, abs(reached - params.top_p))
            if reached >= params.top_p:
                break
        ranked = kept
    total = math.fsum(weights[t] for t in ranked)
    return Expected({token: weights[token] / total for token in ranked}, margin)


# Helpers


def make_row(params: SamplingParams, seed: int = 0, position: int = 1, **fields: Any) -> SamplingRow:
    return SamplingRow(params, seed, position, **{"prompt_token_ids": [], "output_token_ids": [], **fields})


def draws(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """One token for each row, all from the same logits [V]."""
    drawn = Sampler(len(logits)).sample(logits.expand(len(rows), -1), rows)
    assert all(token.error is None for token in drawn), drawn
    return [token.token_id for token in drawn]


def survivors(logits: torch.Tensor, params: SamplingParams) -> set[int]:
    """Tokens that the filters leave with a chance."""
    scaled = scale(logits[None], logits.max()[None], [params.temperature])
    apply_filters(scaled, [params])
    assert scaled[0, len(logits) :].eq(-INF).all(), "the padding became a token"
    return set((scaled[0] > -INF).nonzero().flatten().tolist())


def random_logits(size: int, seed: int, spread: float = 2.0, digits: int | None = None) -> torch.Tensor:
    """Normal logits; rounded to few `digits` many of them are equal."""
    source = random.Random(seed)
    values = [source.gauss(0, spread) for _ in range(size)]
    return torch.tensor([v if digits is None else round(v, digits) for v in values], dtype=torch.float64)


def check_support(logits: torch.Tensor, row: SamplingRow, num_draws: int = 300) -> None:
    """Nothing is drawn outside the expected support; what has 8 % or more is drawn (missed once in 10**10 runs)."""
    wanted = expected(logits.tolist(), row)
    rows = [replace(row, seed=i, position=1 + i % 7) for i in range(num_draws)]
    if not wanted.probabilities:
        failed = Sampler(len(logits)).sample(logits.expand(2, -1), rows[:2])
        assert [token.token_id for token in failed] == [-1, -1]
        assert all(token.error for token in failed)
        return
    drawn = set(draws(logits, rows))
    assert drawn <= set(wanted.probabilities)
    assert drawn >= {token for token, probability in wanted.probabilities.items() if probability >= 0.08}


@st.composite
def problems(draw: st.DrawFn, greedy: bool) -> tuple[torch.Tensor, SamplingRow]:
    """Logits of a few tokens on a grid, so that ties are common and exact, and a row with any parameters."""
    size = draw(st.integers(1, 12))
    quarters = st.integers(-12, 12).map(lambda n: n / 4)
    logits = draw(st.lists(st.one_of(quarters, quarters, quarters, st.just(-INF)), min_size=size, max_size=size))
    assume(max(logits) > -INF)
    ids = st.integers(0, size + 1)  # two of them outside the vocabulary: they have no effect
    known = st.lists(st.integers(0, size - 1), max_size=6)
    off = {"min_p": st.just(0.0), "top_k": st.just(0), "top_p": st.just(1.0)}
    params = SamplingParams(
        temperature=0.0 if greedy else draw(st.sampled_from([0.5, 0.7, 1.0, 2.0, 100.0])),
        min_p=draw(off["min_p"] | st.sampled_from([0.05, 0.3, 1.0])),
        top_k=draw(off["top_k"] | st.integers(1, size + 2)),
        top_p=draw(off["top_p"] | st.sampled_from([0.01, 0.3, 0.6, 0.9, 0.99])),
        repetition_penalty=draw(st.just(1.0) | st.sampled_from([0.5, 2.0, 1.3])),
        presence_penalty=draw(st.just(0.0) | quarters),
        frequency_penalty=draw(st.just(0.0) | quarters),
        logit_bias=draw(st.just({}) | st.dictionaries(ids, quarters | st.sampled_from([-1000.0, 1000.0]), max_size=4)),
        allowed_token_ids=draw(st.none() | st.lists(ids, min_size=1, max_size=8)),
        min_tokens=draw(st.integers(0, 4)),
        stop_token_ids=draw(st.just([]) | st.lists(ids, max_size=2)),
        ignore_eos=draw(st.booleans()),
    )
    eos = frozenset(draw(st.lists(ids, max_size=2)))
    fields = {"prompt_token_ids": draw(known), "output_token_ids": draw(known), "eos_token_ids": eos}
    return torch.tensor(logits, dtype=torch.float64), make_row(params, **fields)


# The order of operations


@given(problems(greedy=True))
@settings(max_examples=80)
def test_greedy_is_the_argmax_after_masks_bias_and_penalties(problem: tuple[torch.Tensor, SamplingRow]) -> None:
    check_support(*problem, num_draws=3)


@given(problems(greedy=False))
@settings(max_examples=40)
def test_draws_come_from_exactly_the_tokens_that_the_rules_leave(problem: tuple[torch.Tensor, SamplingRow]) -> None:
    logits, row = problem
    assume(expected(logits.tolist(), row).margin > 1e-9)
    check_support(logits, row)


@given(problems(greedy=False))
@settings(max_examples=150)
def test_rules_and_filters_leave_exactly_the_expected_tokens(problem: tuple[torch.Tensor, SamplingRow]) -> None:
    logits, row = problem
    wanted = expected(logits.tolist(), row)
    assume(wanted.margin > 1e-9)
    ruled = logits.clone()
    apply_token_rules(ruled, row)
    assert ruled.tolist() == pytest.approx(expected_logits(logits.tolist(), row), rel=1e-12)
    if wanted.probabilities:
        assert survivors(ruled, row.params) == set(wanted.probabilities)


FILTERS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 2048},
    {"top_k": 2500},
    {"top_p": 0.001},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 0.9999},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 300, "top_p": 0.9},
    {"top_k": 3000, "top_p": 0.97, "min_p": 0.001},
    {"temperature": 10.0, "top_p": 0.8},
    {"temperature": 0.1, "top_p": 0.99},
]


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 2047, 2049, 20_000])
@pytest.mark.parametrize("digits", [None, 1])
def test_filters_of_large_vocabularies_keep_the_expected_tokens(size: int, digits: int | None) -> None:
    logits = random_logits(size, seed=size, digits=digits)
    for fields in FILTERS:
        params = SamplingParams(**fields)
        wanted = expected(logits.tolist(), make_row(params))
        assert wanted.margin > 1e-10, "a border case: give the logits another seed"
        assert survivors(logits, params) == set(wanted.probabilities), fields


def test_rows_with_different_filters_in_one_call_each_get_their_own() -> None:
    logits = random_logits(5000, seed=3, digits=1)
    params = [SamplingParams(**fields) for fields in FILTERS]
    scaled = scale(logits.expand(len(params), -1), logits.max().expand(len(params)), [p.temperature for p in params])
    apply_filters(scaled, params)
    for one, kept in zip(params, scaled, strict=True):
        wanted = expected(logits.tolist(), make_row(one)).probabilities
        assert set((kept > -INF).nonzero().flatten().tolist()) == set(wanted), one


def test_top_p_that_is_reached_exactly_takes_no_token_more() -> None:
    assert survivors(torch.zeros(8, dtype=torch.float64), SamplingParams(top_p=0.25)) == {0, 1}
    assert survivors(torch.zeros(512, dtype=torch.float64), SamplingParams(top_p=0.5)) == set(range(256))


def test_of_equal_logits_the_smaller_ids_are_kept() -> None:
    logits = torch.tensor([1.0, 2, 2, 2, 0, 2], dtype=torch.float64)
    assert survivors(logits, SamplingParams(top_k=2)) == {1, 2}
    assert Sampler(6).sample(logits[None], [make_row(SamplingParams(temperature=0))])[0].token_id == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_smallest_temperature_and_the_widest_logits_give_the_best_token(dtype: torch.dtype) -> None:
    logits = torch.tensor([-30000.0, 100.0, 30000.0, 29000.0], dtype=dtype)
    rows = [make_row(SamplingParams(temperature=1e-300, top_p=p), seed=i) for i, p in enumerate([1.0, 0.5])]
    assert draws(logits, rows) == [2, 2]


def test_logits_are_left_as_they_were() -> None:
    logits = random_logits(50, seed=1)[None].expand(3, -1).clone()
    before = logits.clone()
    everything = {"top_k": 5, "top_p": 0.5, "min_p": 0.1, "logit_bias": {1: 5}, "frequency_penalty": 1, "logprobs": 3}
    rows = [make_row(SamplingParams(temperature=t, **everything), output_token_ids=[1, 2]) for t in (0, 1, 2)]
    Sampler(50).sample(logits, rows)
    assert torch.equal(logits, before)


# A second oracle: transformers


def _transformers_keeps(processor: Any, logits: torch.Tensor) -> set[int]:
    scores = processor(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())
    return set((scores[0] > -INF).nonzero().flatten().tolist())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [40, 3000])
def test_filters_agree_with_transformers(seed: int, size: int) -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = random_logits(size, seed)  # no ties, where transformers' top_k keeps more than k
    for temperature in (0.7, 1.0, 3.0):
        scaled = logits / temperature
        for value in (1, 7, 39):
            params = SamplingParams(temperature=temperature, top_k=value)
            assert survivors(logits, params) == _transformers_keeps(TopKLogitsWarper(value), scaled)
        for p in (0.05, 0.5, 0.9, 0.99):
            params = SamplingParams(temperature=temperature, top_p=p)
            assert survivors(logits, params) == _transformers_keeps(TopPLogitsWarper(p), scaled)
            params = SamplingParams(temperature=temperature, min_p=p)
            assert survivors(logits, params) == _transformers_keeps(MinPLogitsWarper(p), scaled)
        both = TopPLogitsWarper(0.8)(torch.zeros(1, 1, dtype=torch.long), TopKLogitsWarper(20)(None, scaled[None]))
        params = SamplingParams(temperature=temperature, top_k=20, top_p=0.8)
        assert survivors(logits, params) == set((both[0] > -INF).nonzero().flatten().tolist())


@pytest.mark.parametrize("penalty", [0.5, 1.2, 3.0])
def test_repetition_penalty_agrees_with_transformers(penalty: float) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    for seed in range(10):
        logits = random_logits(30, seed)
        source = random.Random(seed)
        prompt, output = source.choices(range(30), k=8), source.choices(range(30), k=5)
        wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits[None].clone())[0]
        row = make_row(
            SamplingParams(temperature=0, repetition_penalty=penalty), prompt_token_ids=prompt, output_token_ids=output
        )
        ruled = logits.clone()
        apply_token_rules(ruled, row)
        torch.testing.assert_close(ruled, wanted, rtol=1e-12, atol=0)
        assert draws(logits, [row]) == [int(wanted.argmax())]


# Rows do not see each other


def _mixed_rows(count: int, size: int) -> list[SamplingRow]:
    source = random.Random(count)
    rows = []
    for i in range(count):
        params = SamplingParams(
            temperature=source.choice([0.0, 0.5, 1.0, 1.0, 2.0]),
            top_k=source.choice([0, 0, 5, 200]),
            top_p=source.choice([1.0, 1.0, 0.9, 0.3]),
            min_p=source.choice([0.0, 0.0, 0.1]),
            repetition_penalty=source.choice([1.0, 1.2]),
            frequency_penalty=source.choice([0.0, 0.5]),
            logit_bias=source.choice([{}, {3: 2.0}]),
            logprobs=source.choice([None, 0, 1, 7]),
        )
        prompt, output = source.choices(range(size), k=6), source.choices(range(size), k=i % 5)
        rows.append(make_row(params, seed=source.randrange(-(2**63), 2**63), position=i, prompt_token_ids=prompt))
        rows[-1] = replace(rows[-1], output_token_ids=output)
    return rows


@pytest.mark.parametrize("digits", [None, 0])
@pytest.mark.parametrize("size", [37, 300, 5000])
def test_a_row_gives_the_same_alone_and_anywhere_in_a_batch(size: int, digits: int | None) -> None:
    count = 24
    rows = _mixed_rows(count, size)
    logits = torch.stack([random_logits(size, seed, digits=digits) for seed in range(count)]).float()
    sampler = Sampler(size)
    alone = [sampler.sample(logits[i : i + 1], [rows[i]])[0] for i in range(count)]
    assert len({token.token_id for token in alone}) > 5
    for seed in range(3):
        order = random.Random(seed).sample(range(count), k=count - 5 * seed)
        batch = sampler.sample(logits[order], [rows[i] for i in order])
        assert batch == [alone[i] for i in order]  # logprobs too, to the last bit


def test_a_row_gives_the_same_whatever_the_number_of_threads() -> None:
    size, count = 50_000, 3
    rows = [make_row(SamplingParams(top_p=p, logprobs=2), seed=7) for p in (1.0, 0.9, 0.999)]
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


def test_a_seed_and_a_position_decide_the_draw_for_ever() -> None:
    logits = torch.zeros(5000)
    rows = [make_row(SamplingParams(), seed=s, position=p) for s in (0, 1, -1, 2**63 - 1, -(2**63)) for p in (0, 1, 9)]
    first = draws(logits, rows)
    assert first == draws(logits, rows)
    assert len(set(first)) == len(first)


# Rows that cannot be sampled

BAD_ROWS: list[tuple[str, Callable[[torch.Tensor], Any], str]] = [
    ("one NaN", lambda row: row[3:4].fill_(math.nan), "NaN"),
    ("all NaN", lambda row: row.fill_(math.nan), "NaN"),
    ("all -inf", lambda row: row.fill_(-INF), "-inf"),
    ("a +inf", lambda row: row[5:6].fill_(INF), "inf"),
    ("NaN beside +inf", lambda row: row[:2].copy_(torch.tensor([INF, math.nan])), "NaN"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD_ROWS, ids=[name for name, _, _ in BAD_ROWS])
@pytest.mark.parametrize("place", [0, 4, 9])
def test_a_row_that_cannot_be_sampled_fails_alone(
    name: str, spoil: Callable[[torch.Tensor], Any], message: str, place: int
) -> None:
    rows = _mixed_rows(10, 40)
    logits = torch.stack([random_logits(40, seed) for seed in range(10)]).float()
    good = Sampler(40).sample(logits, rows)
    spoil(logits[place])
    for temperature in (0.0, 1.0):
        bad_params = SamplingParams(temperature=temperature, top_p=0.9, logprobs=5)
        mixed = [*rows[:place], replace(rows[place], params=bad_params), *rows[place + 1 :]]
        tokens = Sampler(40).sample(logits, mixed)
        bad = tokens.pop(place)
        assert (bad.token_id, bad.logprob) == (-1, None)
        assert bad.error is not None and message in bad.error and "\n" not in bad.error
        assert tokens == good[:place] + good[place + 1 :]


def test_rules_that_leave_no_token_are_an_error_of_that_row_alone() -> None:
    stuck = make_row(SamplingParams(allowed_token_ids=[2], min_tokens=1), eos_token_ids=frozenset([2]))
    fine = make_row(SamplingParams(allowed_token_ids=[2]), eos_token_ids=frozenset([2]))
    first, second = Sampler(4).sample(torch.zeros(2, 4), [stuck, fine])
    assert first.token_id == -1 and "min_tokens" in (first.error or "")
    assert second == SampledToken(2)


# Logprobs


def _check_logprob(token: Any, row: Sequence[float], k: int) -> None:
    total = max(row) + math.log(math.fsum(math.exp(value - max(row)) for value in row))
    assert token.logprob == pytest.approx(row[token.token_id] - total, abs=1e-5)
    assert token.rank == 1 + sum(value > row[token.token_id] for value in row)
    ranked = sorted((t for t in range(len(row)) if row[t] > -INF), key=lambda t: (-row[t], t))[:k]
    assert [t for t, _ in token.top] == ranked
    assert [p for _, p in token.top] == pytest.approx([row[t] - total for t in ranked], abs=1e-5)


@pytest.mark.parametrize("digits", [None, 0])
@pytest.mark.parametrize("k", [0, 1, 5, 100])
def test_logprob_and_rank_are_those_of_the_unmodified_distribution(k: int, digits: int | None) -> None:
    logits = torch.stack([random_logits(60, seed, digits=digits) for seed in range(20)]).float()
    logits[:, 10:15] = -INF
    changes = {"logit_bias": {20: 30.0}, "temperature": 0.5, "top_k": 3, "repetition_penalty": 5.0, "logprobs": k}
    rows = [make_row(SamplingParams(**changes), seed=i, prompt_token_ids=[1, 2, 3]) for i in range(20)]
    for token, row in zip(Sampler(60).sample(logits, rows), logits.tolist(), strict=True):
        assert token.logprob is not None and token.logprob.token_id == token.token_id == 20
        _check_logprob(token.logprob, row, k)


def test_without_logprobs_none_are_computed() -> None:
    assert Sampler(5).sample(torch.zeros(1, 5), [make_row(SamplingParams())])[0].logprob is None


def test_tied_logprobs_do_not_depend_on_what_the_other_rows_asked_for() -> None:
    logits = torch.zeros(2, 200)
    one, hundred = make_row(SamplingParams(logprobs=1)), make_row(SamplingParams(logprobs=100))
    alone = Sampler(200).sample(logits[:1], [one])[0]
    assert alone == Sampler(200).sample(logits, [one, hundred])[0]
    assert alone.logprob is not None and [t for t, _ in alone.logprob.top] == [0]


@pytest.mark.parametrize("k", [0, 4])
def test_prompt_logprobs_are_those_of_each_next_token(k: int) -> None:
    logits = torch.stack([random_logits(30, seed) for seed in range(150)]).float()
    next_ids = random.Random(0).choices(range(30), k=150)
    found = Sampler(30).prompt_logprobs(logits, next_ids, k)
    assert [token.token_id for token in found] == next_ids
    for token, row in zip(found, logits.tolist(), strict=True):
        _check_logprob(token, row, k)


# Faults that these checks must find


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Callable[..., Any]], None]]:
    """`plant(name, fault)` replaces a function of the sampler by `fault(the real one, *arguments)`."""

    def replace_function(name: str, fault: Callable[..., Any]) -> None:
        real = getattr(sampler_module, name)
        monkeypatch.setattr(sampler_module, name, lambda *args: fault(real, *args))

    yield replace_function


def _penalty_problem() -> tuple[torch.Tensor, SamplingRow]:
    params = SamplingParams(frequency_penalty=50.0)
    row = make_row(params, prompt_token_ids=[0, 1, 1], output_token_ids=[2, 3])
    return torch.tensor([1.0, 0.5, 1.0, 0.5, 0.0], dtype=torch.float64), row


def test_a_frequency_penalty_that_counts_the_prompt_is_found(plant: Callable[..., None]) -> None:
    check_support(*_penalty_problem())

    def fault(real: Callable[..., None], logits: torch.Tensor, row: SamplingRow) -> None:
        real(logits, replace(row, output_token_ids=[*row.prompt_token_ids, *row.output_token_ids]))

    plant("apply_token_rules", fault)
    with pytest.raises(AssertionError):
        check_support(*_penalty_problem())


def test_a_top_p_that_drops_the_token_that_crosses_p_is_found(plant: Callable[..., None]) -> None:
    logits, row = torch.tensor([0.5, 0.0, -0.5, -1.0], dtype=torch.float64), make_row(SamplingParams(top_p=0.6))
    check_support(logits, row)

    def fault(real: Callable[..., None], scaled: torch.Tensor, params: Sequence[SamplingParams]) -> None:
        real(scaled, params)
        kept = (scaled > -INF).sum(-1)
        last = scaled.sort(dim=-1, descending=True).indices.gather(1, kept[:, None] - 1)
        scaled.scatter_(1, last, -INF)

    plant("apply_filters", fault)
    with pytest.raises(AssertionError):
        check_support(logits, row)


def test_a_penalty_before_the_bias_is_found(plant: Callable[..., None]) -> None:
    params = SamplingParams(temperature=0, repetition_penalty=2.0, logit_bias={0: 3.0})
    logits, row = torch.tensor([2.0, 3.0], dtype=torch.float64), make_row(params, prompt_token_ids=[0])
    check_support(logits, row, num_draws=1)

    def fault(real: Callable[..., None], values: torch.Tensor, row: SamplingRow) -> None:
        real(values, replace(row, params=row.params.model_copy(update={"logit_bias": {}})))
        real(values, replace(row, params=row.params.model_copy(update={"repetition_penalty": 1.0})))

    plant("apply_token_rules", fault)
    with pytest.raises(AssertionError):
        check_support(logits, row, num_draws=1)


def test_how_many_tokens_are_drawn_is_how_many_rows_there_are() -> None:
    assert Sampler(4).sample(torch.zeros(0, 4), []) == []
    with pytest.raises(ValueError, match="2 rows"):
        Sampler(4).sample(torch.zeros(3, 4), [make_row(SamplingParams())] * 2)
    assert Counter(draws(torch.zeros(4), [make_row(SamplingParams(), seed=i) for i in range(9)])).total() == 9
