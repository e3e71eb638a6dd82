"""Draws have exactly the stated distribution, and depend on seed, position and their own row only."""

import math
import random
from collections import Counter
from functools import partial

import pytest
import torch

from kernels import cpu_sampling, noise
from kernels import sampling as kernel_sampling
from playground.engine import logit_rules, sampler
from playground.engine.sampler import Sampler, SamplingRow
from playground.sampling_params import SamplingParams
from tests.engine.sampling_reference import chi_square_p_value, draws, probabilities
from tests.engine.sampling_reference import random_logits as wide_logits

DRAWS = 8_000
SURE = 1e-5
"""Seeds are fixed, so a p-value below this is a fault and not bad luck."""


def draw_many(
    logits: torch.Tensor, params: SamplingParams, prompt=(), output=(), seed: int = 11, draws: int = DRAWS
) -> Counter[int]:
    """Tokens drawn from one distribution at as many positions."""
    drawer = Sampler(len(logits))
    counts: Counter[int] = Counter()
    size = 400
    batch = logits.expand(size, -1).contiguous()
    for start in range(0, draws, size):
        rows = [SamplingRow(params, seed, start + i, prompt, output) for i in range(size)]
        counts.update(token.token_id for token in drawer.sample(batch, rows))
    return counts


def random_logits(size: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return wide_logits(size, seed, spread).float()


CASES = {
    "plain": SamplingParams(),
    "hot": SamplingParams(temperature=2.5),
    "cold": SamplingParams(temperature=0.4),
    "top_k": SamplingParams(top_k=7),
    "top_p": SamplingParams(top_p=0.8),
    "min_p": SamplingParams(min_p=0.1),
    "all filters": SamplingParams(temperature=1.3, min_p=0.02, top_k=12, top_p=0.9),
    "repetition": SamplingParams(repetition_penalty=1.6),
    "presence and frequency": SamplingParams(presence_penalty=0.7, frequency_penalty=0.4),
    "negative penalties": SamplingParams(repetition_penalty=0.7, presence_penalty=-0.5, frequency_penalty=-0.2),
    "bias": SamplingParams(logit_bias={3: 2.0, 299: 4.0, 5: -100.0}),
    "allowed": SamplingParams(allowed_token_ids=[2, 40, 256, 280]),
}


def check_distribution(params: SamplingParams, size: int = 300) -> None:
    """300 tokens are two groups of ids, the second one padded."""
    logits = random_logits(size)
    best = logits.topk(8).indices.tolist()
    prompt, output = (*best[:3], 7, 7), (*best[2:6], best[4], best[4], 260)
    row = SamplingRow(params, 0, 0, prompt, output)
    counts = draw_many(logits, params, prompt, output)
    assert chi_square_p_value(counts, probabilities(logits.double().tolist(), row)) > SURE


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_exact_distribution(name):
    check_distribution(CASES[name])


def test_draws_follow_the_distribution_over_many_groups():
    logits = random_logits(5_000, spread=3.0)
    expected = logits.double().softmax(-1).tolist()
    assert chi_square_p_value(draw_many(logits, SamplingParams()), expected) > SURE
    flat = draw_many(torch.zeros(1_000), SamplingParams())
    assert chi_square_p_value(flat, [1e-3] * 1_000) > SURE


def test_other_seeds_at_one_position_follow_the_distribution_too():
    logits = random_logits(300)
    drawer = Sampler(300)
    tokens = drawer.sample(
        logits.expand(4_000, -1), [SamplingRow(SamplingParams(), s, 5, [], []) for s in range(4_000)]
    )
    counts = Counter(token.token_id for token in tokens)
    assert chi_square_p_value(counts, logits.double().softmax(-1).tolist()) > SURE


PLACES = {
    "diagonal": lambda i: (i, i),
    "spread seeds": lambda i: (i * 0x9E3779B97F4A7C15 % 2**64 - 2**63, 1),
    "high bits": lambda i: (i << 48, 0),
}


@pytest.mark.parametrize("place", PLACES)
def test_it_does_not_matter_over_what_the_draws_are_taken(place):
    logits = random_logits(20, spread=1.0)
    rows = [SamplingRow(SamplingParams(), *PLACES[place](i), [], []) for i in range(4_000)]
    assert chi_square_p_value(Counter(draws(logits, rows)), logits.double().softmax(-1).tolist()) > SURE


@pytest.mark.parametrize("size", [2, 255, 256, 257, 1_000])
def test_vocabularies_of_any_width_are_drawn_evenly(size):
    """A few likely tokens far apart, and all others together, whatever groups they fall into."""
    logits = torch.zeros(size)
    logits[:: max(1, size // 7)] = math.log(size / 10 + 1)
    counts = draw_many(logits, SamplingParams(), draws=3_200)
    assert chi_square_p_value(counts, logits.double().softmax(-1).tolist()) > SURE


def check_members_of_groups() -> None:
    logits = torch.full((1_024,), -math.inf)
    tokens = [group * 256 + member for group in range(4) for member in range(4)]
    logits[tokens] = 0.0
    assert chi_square_p_value(draw_many(logits, SamplingParams()), logits.double().softmax(-1).tolist()) > SURE


def test_the_token_inside_a_group_does_not_depend_on_the_group():
    """Tokens are drawn in two steps, which must not share their noise."""
    check_members_of_groups()


def check_neighbours_are_independent() -> None:
    """Draws at (seed, position) and at its neighbours, as tables of pairs over four tokens."""
    drawer, side = Sampler(4), 96
    table = [
        [token.token_id for token in drawer.sample(torch.zeros(side, 4), [_plain(seed, p) for p in range(side)])]
        for seed in range(side)
    ]
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (16, 0)):
        pairs = Counter(
            4 * table[s][p] + table[s + down][p + right]
            for s in range(side - down)
            for p in range(max(0, -right), side - max(0, right))
        )
        assert chi_square_p_value(pairs, [1 / 16] * 16) > SURE


def _plain(seed: int, position: int) -> SamplingRow:
    return SamplingRow(SamplingParams(), seed, position, [], [])


def test_neighbouring_seeds_and_positions_are_independent():
    check_neighbours_are_independent()


def test_the_same_seed_and_position_give_the_same_token():
    logits = random_logits(300, spread=0.1).expand(50, -1)
    rows = [_plain(3, p) for p in range(50)]
    tokens = Sampler(300).sample(logits, rows)
    assert tokens == Sampler(300).sample(logits, rows)
    assert len({token.token_id for token in tokens}) > 25


def random_row(rng: random.Random, size: int) -> SamplingRow:
    ids = range(size)
    params = SamplingParams(
        temperature=rng.choice([0.0, 1.0, 0.3, 1.7]),
        top_k=rng.choice([0, 0, 1, 5, size, 10 * size]),
        top_p=rng.choice([1.0, 0.9, 0.999, 0.05]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.0, 0.8]),
        frequency_penalty=rng.choice([0.0, 0.0, -0.3]),
        logit_bias=rng.choice([{}, {}, {rng.choice(ids): 5.0}]),
        allowed_token_ids=rng.choice([None, None, rng.sample(ids, size // 2)]),
        min_tokens=rng.choice([0, 0, 9]),
        logprobs=rng.choice([None, None, 0, 3]),
    )
    prompt, output = rng.choices(ids, k=rng.randint(0, 30)), rng.choices(ids, k=rng.randint(0, 12))
    return SamplingRow(params, rng.getrandbits(62), rng.randint(0, 5_000), prompt, output, frozenset({1}))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [300, 9_000])
def test_a_row_is_bitwise_the_same_alone_and_in_any_batch(size, threads):
    rng = random.Random(size)
    rows = [random_row(rng, size) for _ in range(24)]
    logits = torch.stack([random_logits(size, seed) for seed in range(24)])
    logits[::3] = logits[::3].round()  # many equal logits, as bfloat16 models make them
    logits[5, 17] = float("nan")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        drawer = Sampler(size)
        together = drawer.sample(logits, rows)
        order = list(range(24))
        rng.shuffle(order)
        shuffled = drawer.sample(logits[order], [rows[i] for i in order])
        for place, i in enumerate(order):
            assert drawer.sample(logits[i : i + 1], [rows[i]]) == [together[i]] == [shuffled[place]]
    finally:
        torch.set_num_threads(before)


def test_pieces_of_a_large_batch_change_nothing(monkeypatch):
    rng = random.Random(1)
    rows = [random_row(rng, 300) for _ in range(30)]
    logits = torch.stack([random_logits(300, seed) for seed in range(30)])
    whole = Sampler(300).sample(logits, rows)
    monkeypatch.setattr(kernel_sampling, "_ELEMENTS_AT_A_TIME", 700)
    assert Sampler(300).sample(logits, rows) == whole


def test_filters_that_filter_nothing_change_no_draw():
    logits = random_logits(6_000).expand(60, -1)
    plain = Sampler(6_000).sample(logits, [_plain(1, p) for p in range(60)])
    for inert in ({"top_k": 6_000}, {"min_p": 1e-300}, {"top_k": 10**7, "top_p": 1 - 1e-15}):
        rows = [SamplingRow(SamplingParams(**inert), 1, p, [], []) for p in range(60)]
        assert Sampler(6_000).sample(logits, rows) == plain


def test_the_tiniest_temperature_is_greedy():
    logits = torch.stack([random_logits(300, seed) for seed in range(20)])
    for temperature in (5e-324, 1e-300, 1e-6):
        rows = [SamplingRow(SamplingParams(temperature=temperature), 1, p, [], []) for p in range(20)]
        assert [t.token_id for t in Sampler(300).sample(logits, rows)] == logits.argmax(-1).tolist()


def test_filtered_tokens_are_never_drawn_even_when_most_groups_are_empty():
    logits = torch.zeros(4_000)
    counts = draw_many(logits, SamplingParams(allowed_token_ids=[3, 2_000, 3_999]), draws=4_000)
    assert set(counts) == {3, 2_000, 3_999}


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled for the GPU here, not interpreted")
def test_triton_draws_the_same_tokens(monkeypatch):
    rng = random.Random(4)
    rows = [random_row(rng, 300) for _ in range(8)]
    logits = torch.stack([random_logits(300, seed) for seed in range(8)])
    with_torch = Sampler(300).sample(logits, rows)
    monkeypatch.setattr(sampler, "sample", partial(kernel_sampling.sample, backend="triton"))
    assert Sampler(300).sample(logits, rows) == with_torch


@pytest.mark.gpu
def test_cuda_draws_the_same_tokens():
    rng = random.Random(2)
    rows = [random_row(rng, 9_000) for _ in range(40)]
    logits = torch.stack([random_logits(9_000, seed) for seed in range(40)])
    here = [token.token_id for token in Sampler(9_000).sample(logits, rows)]
    assert [token.token_id for token in Sampler(9_000, "cuda").sample(logits.cuda(), rows)] == here


# Faults planted on purpose


def noise_without_the_position(monkeypatch):
    whole = noise.row_keys
    monkeypatch.setattr(noise, "row_keys", lambda seeds, positions, *rest: whole(seeds, positions * 0, *rest))


def noise_without_the_seed(monkeypatch):
    whole = noise.row_keys
    monkeypatch.setattr(noise, "row_keys", lambda seeds, positions, *rest: whole(seeds * 0, positions, *rest))


def seed_and_position_merely_added(monkeypatch):
    whole = noise.row_keys
    monkeypatch.setattr(
        noise, "row_keys", lambda seeds, positions, *rest: whole(seeds + positions, positions * 0, *rest)
    )


def one_noise_for_group_and_token(monkeypatch):
    whole_keys, whole_noise = noise.row_keys, noise.gumbel
    monkeypatch.setattr(noise, "row_keys", lambda seeds, positions, purpose: whole_keys(seeds, positions, 0))
    monkeypatch.setattr(noise, "gumbel", lambda keys, ids: whole_noise(keys, ids % 256))


def uniform_in_place_of_gumbel(monkeypatch):
    monkeypatch.setattr(noise, "gumbel", noise.uniform)


def groups_drawn_without_their_weights(monkeypatch):
    whole = cpu_sampling.group_sums
    monkeypatch.setattr(cpu_sampling, "group_sums", lambda scaled: whole(scaled) * 0 + 1)


def temperature_left_out(monkeypatch):
    whole = cpu_sampling.scale
    monkeypatch.setattr(cpu_sampling, "scale", lambda logits, largest, t: whole(logits, largest, torch.ones_like(t)))


def one_token_too_many_in_top_p(monkeypatch):
    whole = cpu_sampling._count_kept

    def count_kept(*args):
        count, settled = whole(*args)
        return count + 1, settled

    monkeypatch.setattr(cpu_sampling, "_count_kept", count_kept)


def filters_left_out(monkeypatch):
    monkeypatch.setattr(cpu_sampling, "apply_filters", lambda *args: None)


def frequency_counts_the_prompt(monkeypatch):
    whole = logit_rules.apply_token_rules

    def rules(logits, rows):
        return whole(
            logits, [SamplingRow(r.params, 0, 0, [], (*r.prompt_token_ids, *r.output_token_ids)) for r in rows]
        )

    monkeypatch.setattr(sampler, "apply_token_rules", rules)


def repetition_counts_the_output_only(monkeypatch):
    whole = logit_rules.apply_token_rules

    def rules(logits, rows):
        return whole(logits, [SamplingRow(r.params, 0, 0, [], r.output_token_ids) for r in rows])

    monkeypatch.setattr(sampler, "apply_token_rules", rules)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (noise_without_the_position, check_neighbours_are_independent),
        (noise_without_the_seed, check_neighbours_are_independent),
        (seed_and_position_merely_added, check_neighbours_are_independent),
        (one_noise_for_group_and_token, lambda: check_members_of_groups()),
        (uniform_in_place_of_gumbel, lambda: check_distribution(CASES["plain"])),
        (groups_drawn_without_their_weights, lambda: check_distribution(CASES["plain"])),
        (temperature_left_out, lambda: check_distribution(CASES["cold"])),
        (one_token_too_many_in_top_p, lambda: check_distribution(CASES["top_p"])),
        (filters_left_out, lambda: check_distribution(CASES["top_p"])),
        (frequency_counts_the_prompt, lambda: check_distribution(CASES["presence and frequency"])),
        (repetition_counts_the_output_only, lambda: check_distribution(CASES["repetition"])),
    ],
)
def test_a_planted_fault_in_drawing_is_caught(monkeypatch, plant, check):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()
