"""What the sampler's tests share: rows, logits, and sampling written down again as slowly and plainly as possible.

The latter, Python floats, loops and sorted lists, is the oracle of those tests; it shares no code with the sampler.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch

from kernels.cpu_sampling import apply_filters, scale
from playground.engine.logit_rules import apply_token_rules, row_parameters
from playground.engine.sampler import Sampler, SamplingRow
from playground.sampling_params import SamplingParams


def row_of(params: SamplingParams, prompt=(), output=(), eos=frozenset(), seed=5, position=9) -> SamplingRow:
    return SamplingRow(params, seed, position, prompt, output, eos)


def random_logits(size: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def ruled(logits: torch.Tensor, row: SamplingRow) -> torch.Tensor:
    """Logits [V] after the rules of one row, out of the code under test."""
    return apply_token_rules(logits[None], [row])[0]


def survivors(logits: torch.Tensor, *params: SamplingParams) -> list[set[int]]:
    """Token ids with any chance for each of the params, from the same logits [V], out of the code under test."""
    given = row_parameters([row_of(one) for one in params], logits.device)
    scaled = scale(logits.expand(len(params), -1), logits.max().expand(len(params)), given.temperature)
    apply_filters(scaled, given.floor, given.top_k, given.top_p)
    return [set((row > -math.inf).nonzero().flatten().tolist()) for row in scaled]


def draws(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """One token for each row, all from the same logits [V]."""
    drawn = Sampler(len(logits)).sample(logits.expand(len(rows), -1), rows)
    assert all(token.error is None for token in drawn), drawn
    return [token.token_id for token in drawn]


def ruled_logits(logits: Sequence[float], row: SamplingRow) -> list[float]:
    """Logits after allowed ids, min_tokens, bias and penalties."""
    p = row.params
    ending = set(p.stop_token_ids)
    if not p.ignore_eos:
        ending |= row.eos_token_ids
    seen = set(row.prompt_token_ids) | set(row.output_token_ids)
    times = Counter(row.output_token_ids)
    result = []
    for token, logit in enumerate(logits):
        if p.allowed_token_ids is not None and token not in p.allowed_token_ids:
            logit = -math.inf
        if len(row.output_token_ids) < p.min_tokens and token in ending:
            logit = -math.inf
        logit += p.logit_bias.get(token, 0.0)
        if token in seen:
            logit = logit / p.repetition_penalty if logit > 0 else logit * p.repetition_penalty
        if times[token]:
            logit -= p.presence_penalty + p.frequency_penalty * times[token]
        result.append(logit)
    return result


def kept_tokens(logits: Sequence[float], temperature: float, min_p: float, top_k: int, top_p: float) -> list[int]:
    """Tokens that survive the filters, best first, equal ones by id."""
    largest = max(logits)
    weights = [math.exp((x - largest) / temperature) for x in logits]
    order = sorted((t for t in range(len(logits)) if weights[t] > 0), key=lambda t: (-logits[t], t))
    order = [t for t in order if weights[t] >= min_p]
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        total = math.fsum(weights[t] for t in order)
        kept: list[int] = []
        while not kept or math.fsum(weights[t] for t in kept) < top_p * total:
            kept.append(order[len(kept)])
        order = kept
    return order


def probabilities(logits: Sequence[float], row: SamplingRow) -> list[float]:
    """The exact distribution a row is drawn from."""
    p = row.params
    ruled = ruled_logits(logits, row)
    if p.temperature == 0:
        return [float(t == ruled.index(max(ruled))) for t in range(len(ruled))]
    kept = kept_tokens(ruled, p.temperature, p.min_p, p.top_k, p.top_p)
    weights = {t: math.exp((ruled[t] - max(ruled)) / p.temperature) for t in kept}
    total = math.fsum(weights.values())
    return [weights.get(t, 0.0) / total for t in range(len(ruled))]


def chi_square_p_value(counts: Counter[int], expected: Sequence[float]) -> float:
    """Probability of a deviation at least this large, cells of fewer than 8 expected draws put together."""
    draws = sum(counts.values())
    statistic, cells, rest_seen, rest_expected = 0.0, 0, 0.0, 0.0
    for token, probability in enumerate(expected):
        wanted = probability * draws
        if wanted == 0 and counts[token]:
            return 0.0
        if wanted < 8:
            rest_seen += counts[token]
            rest_expected += wanted
        else:
            statistic += (counts[token] - wanted) ** 2 / wanted
            cells += 1
    if rest_expected > 0.5:
        statistic += (rest_seen - rest_expected) ** 2 / rest_expected
        cells += 1
    if cells < 2:
        return 1.0
    half = torch.tensor([(cells - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
