"""The stateless noise: published numbers, extreme words, unrelated purposes."""

import pytest
import torch

from kernels import noise


def splitmix64(state: int) -> int:
    """The published generator's output for a state, in Python's whole numbers."""
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_hash_gives_the_published_numbers():
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + 0x9E3779B97F4A7C15 * (i + 1)) % 2**64 for i in range(4)]
    assert [splitmix64(state) for state in states] == expected
    words = noise.mix(torch.tensor([state - 2**64 if state >= 2**63 else state for state in states]))
    assert [word % 2**64 for word in words.tolist()] == expected


def test_uniform_noise_is_the_hash_at_seed_position_and_id():
    golden = 0x9E3779B97F4A7C15
    for seed, position, purpose, token in [
        (0, 0, 0, 0),
        (-1, 7, 1, 49_151),
        (2**63 - 1, 10**6, 5, 3),
        (-(2**63), 0, 0, 1),
    ]:
        key = splitmix64(splitmix64(splitmix64(seed + golden) + position * golden) + purpose * golden)
        word = splitmix64(key + (token + 1) * golden)
        keys = noise.keys([seed], [position], purpose, torch.device("cpu"))
        assert noise.uniform(keys, torch.tensor([token])).item() == ((word >> 12) + 0.5) / 2**52


@pytest.mark.parametrize("word", [0, 2**64 - 1, 1, 2**63])
def test_noise_is_finite_for_the_most_extreme_hashes(monkeypatch, word):
    monkeypatch.setattr(noise, "mix", lambda words: torch.full_like(words, word - 2**64 if word >= 2**63 else word))
    value = noise.gumbel(torch.tensor([1]), torch.tensor([1])).item()
    assert -3.7 < value < 36.8


def test_the_kinds_of_noise_at_one_place_are_unrelated():
    device, seeds = torch.device("cpu"), range(3_000)
    ids = torch.arange(1)
    purposes = (noise.TOKEN, noise.GROUP, noise.ACCEPT, noise.REST_TOKEN, noise.REST_GROUP)
    columns = [noise.uniform(noise.keys(seeds, [4] * 3_000, one, device), ids).flatten() for one in purposes]
    related = torch.corrcoef(torch.stack(columns)).fill_diagonal_(0).abs().max().item()
    assert related < 0.07  # four standard errors
