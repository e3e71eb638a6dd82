"""Decode steps from fixed, padded buffers: what a CUDA graph would replay, run here by calling the forward again."""

import itertools

import pytest
import torch
from torch import Tensor

from playground.models.decode_graphs import DecodeGraphs, Replay, batch_sizes
from playground.models.loader import LoadedModel
from tests.checkpoints import checkpoint
from tests.kernels.triton.oracle import DEVICE
from tests.models.driver import Driver, Sequence, Tree, load, prompt


class Rerun:
    """Stands in for the recorder of CUDA graphs: the same forward on the same buffers."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, forward: Replay) -> Replay:
        self.recordings += 1

        def replay() -> tuple[Tensor, Tensor]:
            self.replays += 1
            return forward()

        return replay


def decoder() -> LoadedModel:
    return load(checkpoint("llama-3"), attention="triton", device=DEVICE)


def sequences(vocabulary: int) -> list[Sequence]:
    return [Sequence(prompt(n, vocabulary, seed=n)) for n in (9, 10, 8)]


def graphed(driver: Driver, record: Rerun, **options: int) -> None:
    """Put recordings in front of the driver's model."""
    limits = {"max_num_seqs": 8, "max_blocks": 4} | options
    driver.model = DecodeGraphs(driver.model, driver.cache, record=record, **limits)  # type: ignore[assignment]


@pytest.mark.parametrize("counts", [[1], [1, 1, 1]])
def test_a_padded_decode_step_gives_the_logits_of_the_plain_one(counts: list[int]) -> None:
    results = []
    for record in (None, Rerun()):
        driver = Driver(decoder())
        batch = sequences(driver.model.config.vocab_size)[: len(counts)]
        driver.step([(s, 4) for s in batch])
        if record is not None:
            graphed(driver, record)
        results.append([driver.step(list(zip(batch, counts, strict=True))) for _ in range(2)])
        if record is not None:
            assert (record.recordings, record.replays) == (1, 2)
    for plain, padded in zip(*results, strict=True):
        for a, b in zip(plain, padded, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_a_smaller_batch_after_a_larger_one_leaves_the_caches_of_others_alone() -> None:
    driver = Driver(decoder())
    batch = sequences(driver.model.config.vocab_size)[:3]
    driver.step([(s, 4) for s in batch])
    graphed(driver, Rerun())
    driver.step([(s, 1) for s in batch])
    before = torch.stack(driver.cache.kv)
    driver.step([(batch[0], 1)])
    changed = (torch.stack(driver.cache.kv) != before).any(-1)
    heads = driver.model.config.num_kv_heads
    assert (
        changed.flatten(1).sum(1).tolist() == [2 * heads] * driver.model.config.num_layers
    )  # one K and one V row a head


def test_mixed_and_oversized_steps_run_without_a_recording() -> None:
    driver, record = Driver(decoder()), Rerun()
    batch = sequences(driver.model.config.vocab_size)
    graphed(driver, record, max_num_seqs=2)
    driver.step([(batch[0], 4)])
    driver.step([(batch[0], 1), (batch[1], 6)])
    driver.step([(s, 1) for s in batch[:3]])
    driver.step([(batch[0], 1), (batch[1], 1)], rows="last")
    assert record.replays == 1


def test_drafts_are_verified_from_a_recording_of_their_length() -> None:
    plain, driver, record = Driver(decoder()), Driver(decoder()), Rerun()
    graphed(driver, record, max_query_len=3)
    got = []
    for one in (plain, driver):
        batch = sequences(64)[:3]
        for s in batch:
            one.step([(s, 4)])
        got.append(torch.cat(one.step([(s, 3) for s in batch])))
    assert record.replays == 1
    assert torch.allclose(*got, atol=1e-5)


def verified(driver: Driver, count: int, *, as_trees: bool) -> Tensor:
    """Logits of two drafts each behind `count` sequences: siblings, or a chain."""
    batch = sequences(60)[:count]
    driver.step([(s, 4) for s in batch])
    trees = {i: Tree(s.token_ids[5:7], [-1, -1]) for i, s in enumerate(batch)}
    return driver.model.forward(driver.batch([(s, 3) for s in batch], trees=trees if as_trees else None), driver.cache)


@pytest.mark.parametrize("count", [1, 3])
def test_trees_are_verified_from_a_recording(count: int) -> None:
    driver, record = Driver(decoder()), Rerun()
    graphed(driver, record, max_query_len=3)
    replayed = verified(driver, count, as_trees=True)
    assert record.replays == 1
    assert torch.allclose(verified(Driver(decoder()), count, as_trees=True), replayed, atol=1e-5)


def test_trees_and_chains_have_recordings_of_their_own() -> None:
    driver, record = Driver(decoder()), Rerun()
    graphed(driver, record, max_query_len=3)
    tree, chain = (verified(driver, 1, as_trees=as_trees).clone() for as_trees in (True, False))
    assert record.recordings == 2
    assert torch.allclose(tree[1], chain[1], atol=1e-5) and not torch.allclose(tree[2], chain[2], atol=1e-2)


def test_hidden_states_come_from_a_recording_too() -> None:
    plain, driver = Driver(decoder()), Driver(decoder())
    graphed(driver, Rerun())
    got = []
    for one in (plain, driver):
        batch = sequences(64)[:1]
        one.step([(s, 2) for s in batch])
        got.append(one.model.forward_with_hidden(one.batch([(s, 1) for s in batch]), one.cache))
    for exact, replayed in zip(*got, strict=True):
        assert exact.shape == replayed.shape and torch.allclose(exact, replayed, atol=1e-5)


def test_sizes_reach_the_limit_with_little_padding() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(16) == [1, 2, 4, 8, 16]
    for limit in (3, 20, 100, 256):
        sizes = batch_sizes(limit)
        assert sizes == sorted(set(sizes)) and sizes[-1] == limit
        assert all(b - a <= max(a, 8) and b - a <= 32 for a, b in itertools.pairwise(sizes))
