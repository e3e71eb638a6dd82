"""The Triton sampler draws what the torch sampler draws, whose rules and statistics `tests/engine` judges."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import noise
from kernels.sampling import LogitEdits, RowParameters, edit_logits, probabilities, sample
from kernels.triton import sampling
from kernels.triton.arch import INTERPRETED
from kernels.triton.launch import launch
from kernels.triton.noise import row_key, uniform
from tests.kernels.triton.oracle import DEVICE, randn

BIGGEST = 2**64 - 1


def rows_of(cases: Sequence[dict[str, float]], seed: int = 3) -> RowParameters:
    """One row a case: temperature (1), min_p (0), top_k (0), top_p (1)."""
    return RowParameters.of(
        [case.get("temperature", 1.0) for case in cases],
        [seed + 17 * i for i in range(len(cases))],
        [5 * i for i in range(len(cases))],
        min_p=[case.get("min_p", 0.0) for case in cases],
        top_k=[int(case.get("top_k", 0)) for case in cases],
        top_p=[case.get("top_p", 1.0) for case in cases],
        device=DEVICE,
    )


def assert_same_rules(logits: Tensor, parameters: RowParameters) -> None:
    """Exactly the same tokens are kept, with the same probabilities to float32, and the same one is drawn."""
    wanted = probabilities(logits, parameters, backend="torch")
    got = probabilities(logits, parameters, backend="triton")
    assert ((got > 0) != (wanted > 0)).sum(-1).tolist() == [0] * len(logits)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    tokens, largest = sample(logits, parameters, backend="triton")
    assert tokens.tolist() == sample(logits, parameters, backend="torch")[0].tolist()
    assert torch.equal(largest, logits.max(-1).values.float())


MIXED = [
    {},
    {"temperature": 0.0},
    {"top_p": 0.9, "temperature": 0.7},
    {"top_k": 5},
    {"min_p": 0.1, "temperature": 2.0},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.01},
]


@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [(1, torch.float32), (255, torch.float32), (257, torch.bfloat16), (700, torch.float16), (1100, torch.float32)],
)
def test_any_filters_keep_and_draw_what_torch_keeps_and_draws(vocab: int, dtype: torch.dtype) -> None:
    assert_same_rules(randn(len(MIXED), vocab, dtype=dtype, seed=vocab, scale=3), rows_of(MIXED))


def test_of_tied_tokens_those_with_the_smallest_ids_are_kept() -> None:
    cases = [{"top_k": 3}, {"top_p": 0.25}, {"top_k": 30, "top_p": 0.5}, {"top_p": 0.9}, {"top_k": 300}, {"top_p": 0.6}]
    logits = randn(len(cases), 300, seed=1).round()
    logits[:3] = 0.0
    logits[0, 290] = 1.0
    assert_same_rules(logits, rows_of(cases))
    kept = probabilities(logits, rows_of(cases), backend="triton") > 0
    assert kept[0].nonzero().flatten().tolist() == [0, 1, 290]
    assert kept[1].nonzero().flatten().tolist() == list(range(75))
    assert kept[2].nonzero().flatten().tolist() == list(range(15))


def test_zero_of_either_sign_is_one_value() -> None:
    logits = torch.zeros(2, 8, device=DEVICE)
    logits[:, 1::2] = -0.0
    assert_same_rules(logits, rows_of([{"top_k": 3}, {"top_p": 0.5}]))


def test_cuts_are_found_in_the_list_of_candidates_and_in_the_whole_row() -> None:
    """Peaked rows have few candidates above a pivot; flat ones more than the list takes, or no pivot that is enough."""
    cases = [{"top_p": 0.99}, {"top_k": 90}, {"top_k": 200}, {"top_p": 0.9}, {"top_p": 0.999999}, {"top_k": 2}]
    logits = torch.cat([randn(2, 600, seed=4, scale=5), randn(2, 600, seed=5, scale=0.1), randn(2, 600, seed=6)])
    assert_same_rules(logits, rows_of(cases))


def test_cuts_next_to_a_pivot() -> None:
    """20 tokens above the first pivot (3 below the best), 20 more above the second (6), 60 beyond."""
    row = torch.cat([torch.linspace(0, -2.9, 20), torch.linspace(-3.1, -5.9, 20), torch.linspace(-6.1, -9.9, 60)])
    weights = row.double().exp()
    edge = (weights[:20].sum() / weights.sum()).item()
    cases = [{"top_k": 20}, {"top_k": 21}, {"top_k": 40}, {"top_k": 41}, {"top_p": edge - 1e-5}, {"top_p": edge + 1e-5}]
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    logits = row[order].expand(len(cases), -1).contiguous().to(DEVICE)
    assert_same_rules(logits, rows_of(cases))
    kept = (probabilities(logits, rows_of(cases), backend="triton") > 0).sum(-1)
    assert kept.tolist() == [20, 21, 40, 41, 20, 21]


def test_extreme_logits_and_temperatures() -> None:
    cases = [{"temperature": 1e-300, "top_p": 0.5}, {"temperature": 1e6, "top_k": 4}, {"top_p": 0.7}, {"min_p": 1.0}]
    logits = randn(4, 40, seed=2)
    logits[0, 3:6] = torch.tensor([30000.0, 29000.0, -30000.0])
    logits[2, 5:] = -math.inf
    logits[3, [7, 30]] = 9.0
    assert_same_rules(logits, rows_of(cases))


def test_filters_that_filter_nothing_change_no_draw() -> None:
    logits = randn(4, 300, seed=8)
    inert = [{"top_k": 300}, {"top_k": 10**7}, {"min_p": 1e-300, "top_k": 301}, {"top_p": 1 - 1e-15}]
    assert torch.equal(
        sample(logits, rows_of(inert), backend="triton")[0], sample(logits, rows_of([{}] * 4), backend="triton")[0]
    )


def test_many_draws_are_those_of_torch() -> None:
    """10,000 on a GPU; the interpreter takes too long for more than 100."""
    count = 100 if INTERPRETED else 10_000
    source = random.Random(0)
    words = [source.randrange(-(2**63), 2**64) for _ in range(count)]
    parameters = RowParameters.of([1.0] * count, words, list(range(count)), device=DEVICE)
    logits = randn(1, 300, seed=9).expand(count, -1)
    tokens = sample(logits, parameters, backend="triton")[0]
    assert torch.equal(tokens, sample(logits, parameters, backend="torch")[0])
    assert len(tokens.unique()) > 50


@triton.jit
def _uniforms_kernel(seed_ptr, position_ptr, out_ptr, PURPOSE: tl.constexpr, BLOCK: tl.constexpr):
    ids = tl.arange(0, BLOCK)
    key = row_key(tl.load(seed_ptr), tl.load(position_ptr), PURPOSE)
    tl.store(out_ptr + ids, uniform(key, ids))


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (-1, 7), (BIGGEST, 10**6), (-(2**63), 2**62)])
def test_uniform_noise_is_bit_for_bit_that_of_torch(seed: int, position: int) -> None:
    words = [noise.as_words([value], DEVICE) for value in (seed, position)]
    out = torch.empty(64, dtype=torch.float64, device=DEVICE)
    launch(_uniforms_kernel, (1,), *words, out, PURPOSE=noise.GROUP, BLOCK=64)
    wanted = noise.uniform(noise.row_keys(*words, noise.GROUP), torch.arange(64, device=DEVICE))[0]
    assert torch.equal(out, wanted)


def test_a_row_gives_the_same_alone_and_however_it_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, parameters = randn(len(MIXED), 1100, seed=12), rows_of(MIXED)
    together = probabilities(logits, parameters, backend="triton")
    one = rows_of(MIXED)
    last = RowParameters(*(getattr(one, name)[5:] for name in list(vars(one))[:-1]), some_cut=True)
    assert torch.equal(probabilities(logits[5:], last, backend="triton"), together[5:])
    plan = sampling.pick_config

    def unsplit(*args: object) -> object:
        return replace(plan(*args), splits=1, tiles=3)  # type: ignore[arg-type]

    monkeypatch.setattr(sampling, "pick_config", unsplit)
    assert torch.equal(probabilities(logits, parameters, backend="triton"), together)


def test_a_row_that_cannot_be_sampled_has_no_token_and_leaves_the_others_alone() -> None:
    cases = [{"top_p": 0.9}] * 5
    logits = randn(5, 60, seed=13)
    good = sample(logits, rows_of(cases), backend="triton")[0]
    logits[0, 59], logits[1, 3], logits[3] = math.nan, math.inf, -math.inf
    for backend in ("triton", "torch"):
        tokens, largest = sample(logits, rows_of(cases), backend=backend)
        assert tokens.tolist() == [-1, -1, good[2].item(), -1, good[4].item()]
        assert str(largest[[0, 1, 3]].tolist()) == "[nan, inf, -inf]"
        chances = probabilities(logits, rows_of(cases), backend=backend)
        assert chances.isnan().all(-1).tolist() == [True, True, False, True, False]


def test_greedy_takes_the_smallest_id_of_the_best_tokens() -> None:
    logits = torch.zeros(3, 600, device=DEVICE)
    logits[0, [300, 200]] = 1.0
    logits[1, [599, 598]] = 1.0
    tokens, _ = sample(logits, rows_of([{"temperature": 0.0}] * 3), backend="triton")
    assert tokens.tolist() == [200, 598, 0]


def test_rows_of_a_wider_tensor_are_read_through_their_stride_and_no_rows_give_none() -> None:
    wide, parameters = randn(2, 400, seed=14), rows_of([{}, {"top_k": 9}])
    view = wide[:, 50:350]
    tokens, _ = sample(view, parameters, backend="triton")
    assert torch.equal(tokens, sample(view.contiguous(), parameters, backend="triton")[0])
    assert sample(wide[:0], rows_of([]), backend="triton")[0].shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edits_are_rounded_step_by_step_and_listed_rows_lose_the_rest(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, -2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]], dtype=dtype, device=DEVICE)
    numbers = torch.tensor(
        [[0.3, 0.0, -math.inf, 0.0], [1.7, 1.7, 1.0, 1.0], [0.25, 0.0, 0.0, 0.1]], dtype=torch.float64
    ).to(DEVICE)
    places = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]], device=DEVICE)
    edits = LogitEdits(places[0], places[1], *numbers, only_listed=torch.tensor([1], device=DEVICE))
    a, b = (logits[0, 0] + torch.tensor(0.3, dtype=dtype)) / 1.7 - 0.25, logits[0, 1] * 1.7
    c = logits[1, 3] - torch.tensor(0.1, dtype=dtype)
    before = logits.clone()
    wanted = [[a.item(), b.item(), -math.inf, 4.0], [-math.inf] * 3 + [c.item()]]
    assert edit_logits(logits, edits).tolist() == wanted
    assert torch.equal(logits, before)


def test_what_does_not_fit_is_refused() -> None:
    logits, parameters = randn(2, 8), rows_of([{}, {}])
    with pytest.raises(ValueError, match=r"temperature must be torch.float64 \[3\]"):
        sample(randn(3, 8), parameters)
    with pytest.raises(ValueError, match="must be floats"):
        sample(logits.long(), parameters)
    with pytest.raises(ValueError, match="top_p must be above 0"):
        rows_of([{"top_p": 0.0}])
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        sampling.sample(logits.double(), parameters)
