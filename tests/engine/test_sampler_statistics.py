"""How often each token is drawn, against exact probabilities: chi-square over seeds, over positions, and over pairs.

All seeds are fixed, so a result never changes from run to run. A right sampler fails one check in `1 / TOO_UNLIKELY`
when its noise is first chosen; the faults planted below give p-values under 1e-30.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from playground import SamplingParams
from playground.engine import noise
from playground.engine import sampler as sampler_module
from playground.engine.sampler import SamplingRow
from tests.engine.test_sampler import draws, expected, make_row, random_logits

TOO_UNLIKELY = 1e-4
"""With about 30 checks a right sampler fails any of them with a chance of 0.3 %, once, when the noise is chosen."""

NUM_DRAWS = 4000
FEWEST_EXPECTED = 8.0
"""Cells expected less often than this are counted together, so that chi-square's limit law holds well."""


def p_value(statistic: float, degrees: int) -> float:
    """Chance of a chi-square at least this large."""
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def check_frequencies(seen: Counter[Any], probabilities: dict[Any, float]) -> None:
    """The counts are those of independent draws with these probabilities."""
    total, statistic, cells = seen.total(), 0.0, 0
    assert set(seen) <= set(probabilities)
    rare_seen, rare_wanted = 0, 0.0
    for value, probability in probabilities.items():
        wanted = probability * total
        if wanted < FEWEST_EXPECTED:
            rare_seen, rare_wanted = rare_seen + seen[value], rare_wanted + wanted
        else:
            statistic, cells = statistic + (seen[value] - wanted) ** 2 / wanted, cells + 1
    if rare_wanted >= FEWEST_EXPECTED:
        statistic, cells = statistic + (rare_seen - rare_wanted) ** 2 / rare_wanted, cells + 1
    assert cells > 1
    assert p_value(statistic, cells - 1) > TOO_UNLIKELY


Places = Callable[[int], tuple[int, int]]
PLACES: dict[str, Places] = {
    "seeds": lambda i: (i, 5),
    "positions": lambda i: (5, i),
    "spread seeds": lambda i: (i * 0x9E3779B97F4A7C15 % 2**64 - 2**63, 1),
    "diagonal": lambda i: (i, i),
    "high bits": lambda i: (i << 48, 0),
}


def rows_at(row: SamplingRow, place: Places, count: int = NUM_DRAWS) -> list[SamplingRow]:
    return [replace(row, seed=place(i)[0], position=place(i)[1]) for i in range(count)]


def check_row(logits: torch.Tensor, row: SamplingRow, place: Places, count: int = NUM_DRAWS) -> None:
    probabilities = expected(logits.tolist(), row).probabilities
    check_frequencies(Counter(draws(logits, rows_at(row, place, count))), probabilities)


LOGITS = random_logits(20, seed=11, spread=1.0)

PROBLEMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cool": {"temperature": 0.5},
    "hot": {"temperature": 3.0},
    "top_p": {"top_p": 0.7},
    "top_k": {"top_k": 6},
    "min_p": {"min_p": 0.2},
    "all filters": {"min_p": 0.05, "top_k": 12, "top_p": 0.9, "temperature": 1.5},
    "repetition": {"repetition_penalty": 1.8},
    "presence": {"presence_penalty": 1.0},
    "frequency": {"frequency_penalty": 0.7},
    "penalties and top_p": {
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.3,
        "top_p": 0.8,
    },
    "bias": {"logit_bias": {0: 2.0, 19: -3.0}},
    "allowed": {"allowed_token_ids": [2, 3, 5, 7, 11]},
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_tokens_are_drawn_as_often_as_they_are_probable(name: str) -> None:
    row = make_row(SamplingParams(**PROBLEMS[name]), prompt_token_ids=[1, 2, 3, 3], output_token_ids=[4, 5, 5, 3])
    check_row(LOGITS, row, PLACES["seeds"])


@pytest.mark.parametrize("place", PLACES)
def test_it_does_not_matter_over_what_the_draws_are_taken(place: str) -> None:
    check_row(LOGITS, make_row(SamplingParams()), PLACES[place])


@pytest.mark.parametrize("size", [2, 255, 256, 257, 1000])
def test_vocabularies_of_any_width_are_drawn_evenly(size: int) -> None:
    """A few likely tokens far apart, and all others together, whatever groups they fall into."""
    logits = torch.zeros(size, dtype=torch.float64)
    logits[:: max(1, size // 7)] = math.log(size / 10 + 1)
    check_row(logits, make_row(SamplingParams()), PLACES["diagonal"], count=3000)


def test_a_uniform_vocabulary_is_drawn_evenly() -> None:
    check_row(torch.zeros(300), make_row(SamplingParams()), PLACES["seeds"])


@pytest.mark.parametrize(
    ("name", "step"), [("seed", (1, 0)), ("position", (0, 1)), ("both", (1, 1)), ("against each other", (1, -1))]
)
def test_draws_at_neighbouring_places_are_independent(name: str, step: tuple[int, int]) -> None:
    check_pairs(step)


def check_pairs(step: tuple[int, int]) -> None:
    """Pairs (draw here, draw one step on) have the product of the probabilities."""
    logits, row = torch.tensor([1.0, 0.5, 0.0, 0.0, -0.5]), make_row(SamplingParams())
    single = expected(logits.tolist(), row).probabilities
    here = [(7 * i, 3 * (i % 50)) for i in range(NUM_DRAWS)]
    first = draws(logits, [replace(row, seed=s, position=p) for s, p in here])
    second = draws(logits, [replace(row, seed=s + step[0], position=p + step[1]) for s, p in here])
    pairs = {(a, b): single[a] * single[b] for a in single for b in single}
    check_frequencies(Counter(zip(first, second, strict=True)), pairs)


def test_the_token_inside_a_group_does_not_depend_on_the_group() -> None:
    """Wide vocabularies are drawn in two steps, which must not share their noise."""
    logits = torch.full((1024,), -math.inf)
    tokens = [group * 256 + member for group in range(4) for member in range(4)]
    logits[tokens] = 0.0
    check_row(logits, make_row(SamplingParams()), PLACES["seeds"])


# Faults that these checks must find


def test_noise_that_ignores_the_position_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = noise.keys

    def keys(seeds: Sequence[int], positions: Sequence[int], *rest: Any) -> torch.Tensor:
        return real(seeds, [0] * len(positions), *rest)

    monkeypatch.setattr(noise, "keys", keys)
    check_row(LOGITS, make_row(SamplingParams()), PLACES["seeds"])  # looks right over the seeds alone
    with pytest.raises(AssertionError):
        check_row(LOGITS, make_row(SamplingParams()), PLACES["positions"])
    with pytest.raises(AssertionError):
        check_pairs((0, 1))


def test_noise_that_confuses_seed_and_position_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = noise.keys

    def keys(seeds: Sequence[int], positions: Sequence[int], *rest: Any) -> torch.Tensor:
        return real([s + p for s, p in zip(seeds, positions, strict=True)], [0] * len(positions), *rest)

    monkeypatch.setattr(noise, "keys", keys)
    check_pairs((0, 1))  # independent one by one, and yet
    with pytest.raises(AssertionError):
        check_pairs((1, -1))


def test_one_noise_for_the_group_and_the_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = noise.gumbel
    monkeypatch.setattr(noise, "GROUP", noise.TOKEN)
    monkeypatch.setattr(noise, "gumbel", lambda keys, ids: real(keys, ids % 256))
    with pytest.raises(AssertionError):
        test_the_token_inside_a_group_does_not_depend_on_the_group()


@pytest.mark.parametrize("fault", ["temperature squared", "penalty of the prompt"])
def test_a_wrong_distribution_with_the_right_support_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "scale" if fault == "temperature squared" else "apply_token_rules"
    real = getattr(sampler_module, name)

    def square(logits: torch.Tensor, largest: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
        return real(logits, largest, [t * t for t in temperatures])

    def count_prompt(logits: torch.Tensor, row: SamplingRow) -> None:
        real(logits, replace(row, output_token_ids=[*row.prompt_token_ids, *row.output_token_ids]))

    params = SamplingParams(temperature=1.5, frequency_penalty=0.7)
    row = make_row(params, prompt_token_ids=[1, 2, 3, 3], output_token_ids=[4, 5])
    check_row(LOGITS, row, PLACES["seeds"])
    monkeypatch.setattr(sampler_module, name, square if name == "scale" else count_prompt)
    with pytest.raises(AssertionError):
        check_row(LOGITS, row, PLACES["seeds"])
