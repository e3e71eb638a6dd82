"""Sampled text has the target's distribution: joint counts of whole continuations against exact enumeration.

Six tokens and four positions are few enough to compute the probability of every continuation, with float64 logits of
the target and the sampling rules written down again in plain Python. The known ways to get speculation almost right
(`FAULTS`) are planted one by one, and each must fail.
"""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from kernels import rejection
from playground import Engine, EngineConfig, SamplingParams
from playground.config import SpeculationConfig
from playground.engine.batches import BatchSlice, build_batch
from playground.engine.logit_rules import SamplingRow
from playground.engine.speculation import chain_drafts, model_drafts, verification
from playground.engine.speculation.controller import SpeculationController
from playground.engine.speculation.proposal import Proposal
from playground.models.loader import load_model
from tests.engine.sampling_reference import chi_square_p_value, probabilities
from tests.engine.speculation.conftest import SMALL_VOCABULARY

PROMPT = [1, 4, 4, 2, 1, 4]
LENGTH = 4
"""The first token is drawn from the prompt, then a step verifies two drafts and draws the token after them."""
NUM_SAMPLES = 4096
ALMOST_IMPOSSIBLE = 1e-5
FREE = SamplingParams(max_tokens=LENGTH, n=128, temperature=0.7)
SETTINGS = {
    "plain": FREE,
    "hot": FREE.replace(temperature=1.6),
    "top_p": FREE.replace(temperature=1.2, top_p=0.8),
    "top_k and min_p": FREE.replace(temperature=1.5, top_k=4, min_p=0.1),
    "penalties": FREE.replace(temperature=1.0, repetition_penalty=1.4, presence_penalty=0.6, frequency_penalty=0.8),
    "bias and mask": FREE.replace(logit_bias={2: 1.0, 3: -1.0}, allowed_token_ids=(0, 1, 2, 3)),
}
METHODS = {
    "draft": {"method": "draft", "num_tokens": 3},
    "draft, coupled": {"method": "draft", "num_tokens": 3, "verification": "coupled"},
    "ngram": {"method": "ngram", "num_tokens": 3},
    "suffix": {"method": "suffix", "num_tokens": 3},
    "layer_skip": {"method": "layer_skip", "num_tokens": 3, "skip_layers": (1,)},
    "eagle": {"method": "eagle", "num_tokens": 3},
    "tree": {"method": "draft", "num_tokens": 3, "tree_width": 3},
}


def enumerate_exactly(folder, params: SamplingParams) -> dict[tuple[int, ...], float]:
    """The probability of every continuation of the prompt."""
    model = load_model(folder, dtype=torch.float64, load_format="dummy").model
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for length in range(LENGTH):
        prefixes = list(found)
        slices = [BatchSlice([*PROMPT, *prefix], 0, [], 1) for prefix in prefixes]
        logits = model.forward(build_batch(slices, 0, torch.device("cpu")), None).tolist()
        longer = {}
        for prefix, row in zip(prefixes, logits, strict=True):
            weights = probabilities(row, SamplingRow(params, 0, len(PROMPT) + length, PROMPT, prefix))
            longer |= {(*prefix, token): found[prefix] * weight for token, weight in enumerate(weights)}
        found = longer
    return found


@pytest.fixture(scope="module")
def folders(small_pair, small_eagle_head):
    """Model folders by role."""
    return {"target": small_pair[0], "draft": small_pair[1], "eagle": small_eagle_head}


@pytest.fixture(scope="module")
def exact(small_pair):
    """By name of the settings: probabilities of the last three tokens together."""
    found = {}
    for name, params in SETTINGS.items():
        cells: Counter[tuple[int, ...]] = Counter()
        for tokens, probability in enumerate_exactly(small_pair[0], params).items():
            cells[tokens[1:]] += probability
        assert sum(cells.values()) == pytest.approx(1)
        found[name] = cells
    return found


def sample_many(folders, method, params: SamplingParams, num_samples: int = NUM_SAMPLES) -> list[tuple[int, ...]]:
    speculation = SpeculationConfig(**METHODS[method])
    draft = folders.get(speculation.method)
    config = EngineConfig(
        model=str(folders["target"]), draft_model=str(draft) if draft else None, load_format="dummy",
        device="cpu", dtype="float64", block_size=4, max_num_seqs=512, max_num_batched_tokens=4096,
        speculation=speculation,
    )  # fmt: skip
    assert params.n == 128
    with Engine(config) as engine:
        seeded = [params.replace(seed=1_000_003 * number) for number in range(num_samples // params.n)]
        results = engine.generate([PROMPT] * len(seeded), seeded)
        drafted = sum(result.metrics.num_draft_tokens for result in results)
        accepted = sum(result.metrics.num_accepted_tokens for result in results)
    assert 0 < accepted < drafted, "some drafts are accepted and some are not, or this would show nothing"
    return [tuple(sample.token_ids) for result in results for sample in result.outputs]


def fits(samples: list[tuple[int, ...]], cells: Counter[tuple[int, ...]]) -> float:
    """Probability of counts as far from the exact ones as these."""
    keys = list(itertools.product(range(SMALL_VOCABULARY), repeat=LENGTH - 1))
    number = {key: i for i, key in enumerate(keys)}
    counts: Counter[int] = Counter(number[tokens[1:]] for tokens in samples)
    return chi_square_p_value(counts, [cells[key] for key in keys])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", ["draft", "ngram"])
def test_text_has_the_targets_distribution(folders, exact, method, setting):
    assert fits(sample_many(folders, method, SETTINGS[setting]), exact[setting]) > ALMOST_IMPOSSIBLE


@pytest.mark.parametrize("setting", ["top_p", "penalties"])
@pytest.mark.parametrize("method", ["draft, coupled", "suffix", "layer_skip", "eagle", "tree"])
def test_so_it_has_with_every_other_proposer(folders, exact, method, setting):
    assert fits(sample_many(folders, method, SETTINGS[setting]), exact[setting]) > ALMOST_IMPOSSIBLE


def test_so_it_has_when_the_number_of_drafts_changes_from_step_to_step(folders, exact, monkeypatch):
    turns = itertools.count()
    monkeypatch.setattr(
        SpeculationController, "plan", lambda self, request_id, *, batch_size, limit: min(limit, next(turns) % 3)
    )
    assert fits(sample_many(folders, "draft", SETTINGS["penalties"]), exact["penalties"]) > ALMOST_IMPOSSIBLE


# Known ways to get it almost right


def greedy_drafts_said_to_be_drawn(monkeypatch):
    whole = chain_drafts._Draws.__call__

    def draw(self, logits, before):
        weights = whole(self, logits, before)[1]
        return weights.argmax(-1), weights

    monkeypatch.setattr(chain_drafts._Draws, "__call__", draw)


def drafts_drawn_at_another_temperature(monkeypatch):
    whole = chain_drafts._Draws.__call__

    def draw(self, logits, before):
        tokens, _ = whole(self, logits, before)
        return tokens, whole(self, logits / 2, before)[1]

    monkeypatch.setattr(chain_drafts._Draws, "__call__", draw)


def unlikely_drafts_left_out(monkeypatch):
    whole = model_drafts.draw_chains

    def chains(*arguments):
        made = whole(*arguments)
        kept = []
        for row, count in enumerate(made.counts):
            likely = [float(made.probabilities[row, i, made.token_ids[row, i]]) >= 0.25 for i in range(count)]
            kept.append(likely.index(False) if False in likely else count)
        rows = [row for row, count in enumerate(kept) if count]
        if not rows:
            return None
        return Proposal(
            [made.request_ids[r] for r in rows], [kept[r] for r in rows], made.token_ids[rows], made.probabilities[rows]
        )

    monkeypatch.setattr(model_drafts, "draw_chains", chains)


def rejected_drafts_replaced_from_the_whole_distribution(monkeypatch):
    whole = rejection.walk

    def walk(target, *rest):
        accepted, _ = whole(target, *rest)
        return accepted, target[accepted[-1] + 1 if accepted else 0].double()

    monkeypatch.setattr(rejection, "walk", walk)


def filters_of_the_draft_only(monkeypatch):
    whole = verification.row_parameters

    def unfiltered(rows, device):
        return whole([replace(row, params=row.params.replace(top_p=1.0)) for row in rows], device)

    monkeypatch.setattr(verification, "row_parameters", unfiltered)


def penalties_that_do_not_see_the_drafts(monkeypatch):
    whole = verification.sampling_rows

    def rows(candidates, proposal):
        made = whole(candidates, proposal)
        firsts = [one.row.output_token_ids for one in candidates for _ in one.paths]
        return [replace(row, output_token_ids=first) for row, first in zip(made, firsts, strict=True)]

    monkeypatch.setattr(verification, "sampling_rows", rows)


def bonus_from_the_row_before(monkeypatch):
    whole = rejection.walk

    def walk(target, ids, *rest):
        accepted, left = whole(target, ids, *rest)
        return accepted, target[len(ids) - 1].double() if len(accepted) == len(ids) else left

    monkeypatch.setattr(rejection, "walk", walk)


FAULTS = {
    greedy_drafts_said_to_be_drawn: "plain",
    drafts_drawn_at_another_temperature: "plain",
    unlikely_drafts_left_out: "plain",
    rejected_drafts_replaced_from_the_whole_distribution: "plain",
    filters_of_the_draft_only: "top_p",
    penalties_that_do_not_see_the_drafts: "penalties",
    bonus_from_the_row_before: "plain",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_bias_is_caught(folders, exact, monkeypatch, fault):
    fault(monkeypatch)
    setting = FAULTS[fault]
    num_samples = 3 * NUM_SAMPLES if fault is unlikely_drafts_left_out else NUM_SAMPLES  # the smallest bias of all
    assert fits(sample_many(folders, "draft", SETTINGS[setting], num_samples), exact[setting]) <= ALMOST_IMPOSSIBLE
