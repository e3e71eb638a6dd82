"""What speculation is worth on paper: expected tokens a step, expected speed-up, the best number of drafts.

After Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding" (arXiv 2211.17192), with
two generalisations: acceptance may differ by position, and verifying drafts may cost more than one plain step. Also
the paper's own tables, as data to compare with. Times are in plain steps: one target step of one token.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import NamedTuple


def expected_tokens(acceptance: float, num_tokens: int) -> float:
    """Tokens a step with `num_tokens` drafts, each accepted with the same probability: (1 - α^(K+1)) / (1 - α).

    Summed rather than divided, so that α = 1 gives K + 1 and values near 1 lose no digits.
    """
    return math.fsum(acceptance**i for i in range(num_tokens + 1))


def expected_tokens_by_position(acceptance: Sequence[float]) -> float:
    """Tokens a step where draft i is accepted with probability `acceptance[i]` once all before it were:
    1 + Σ_i Π_{j<=i} a_j."""
    return 1.0 + math.fsum(accumulate(acceptance, mul))


def speedup(tokens_per_step: float, num_tokens: int, draft_cost: float, verify_cost: float = 1.0) -> float:
    """Tokens per time against plain decoding: E / (K c + v).

    `draft_cost` c is the time of one draft token, `verify_cost` v that of the target's step over all drafts (1 where
    the target is bound by memory).
    """
    return tokens_per_step / (num_tokens * draft_cost + verify_cost)


class BestSpeculation(NamedTuple):
    num_tokens: int
    """0 where no number of drafts is faster than none."""
    speedup: float


def best_num_tokens(acceptance: Sequence[float], step_costs: Sequence[float]) -> BestSpeculation:
    """The number of drafts with the highest speed-up.

    `acceptance[i]` is the conditional acceptance of draft i; `step_costs[k]` the time of a whole step with k drafts,
    drafting included, so `step_costs[0]` is 1. As many drafts are considered as both have entries for.
    """
    best, tokens, reached = BestSpeculation(0, 1.0 / step_costs[0]), 1.0, 1.0
    for num_tokens, (accepted, cost) in enumerate(zip(acceptance, step_costs[1:], strict=False), start=1):
        reached *= accepted
        tokens += reached
        if tokens / cost > best.speedup:
            best = BestSpeculation(num_tokens, tokens / cost)
    return best


def operations_factor(acceptance: float, num_tokens: int, draft_operations: float) -> float:
    """Arithmetic operations against plain decoding: (1 - α)(K ĉ + K + 1) / (1 - α^(K+1)), ĉ a draft token's share."""
    return (num_tokens * draft_operations + num_tokens + 1) / expected_tokens(acceptance, num_tokens)


class TheoreticalRow(NamedTuple):
    acceptance: float
    num_tokens: int
    operations: float
    speedup: float


class MeasuredRow(NamedTuple):
    task: str
    draft: str
    temperature: float
    num_tokens: int
    acceptance: float
    draft_cost: float
    expected_speedup: float
    measured_speedup: float


LEVIATHAN_TABLE_1 = (
    TheoreticalRow(0.6, 2, 1.53, 1.96),
    TheoreticalRow(0.7, 3, 1.58, 2.53),
    TheoreticalRow(0.8, 2, 1.23, 2.44),
    TheoreticalRow(0.8, 5, 1.63, 3.69),
    TheoreticalRow(0.9, 2, 1.11, 2.71),
    TheoreticalRow(0.9, 10, 1.60, 6.86),
)
"""Table 1 of arXiv 2211.17192: growth of operations and speed for drafts that cost nothing (c = ĉ = 0)."""

LEVIATHAN_TABLE_2 = (
    MeasuredRow("WMT EnDe", "T5-small 77M", 0.0, 7, 0.75, 0.02, 3.2, 3.4),
    MeasuredRow("WMT EnDe", "T5-base 250M", 0.0, 7, 0.80, 0.04, 3.3, 2.8),
    MeasuredRow("WMT EnDe", "T5-large 800M", 0.0, 7, 0.82, 0.11, 2.5, 1.7),
    MeasuredRow("WMT EnDe", "T5-small 77M", 1.0, 7, 0.62, 0.02, 2.3, 2.6),
    MeasuredRow("WMT EnDe", "T5-base 250M", 1.0, 5, 0.68, 0.04, 2.4, 2.4),
    MeasuredRow("WMT EnDe", "T5-large 800M", 1.0, 3, 0.71, 0.11, 2.0, 1.4),
    MeasuredRow("CNN/DM", "T5-small 77M", 0.0, 5, 0.65, 0.02, 2.4, 3.1),
    MeasuredRow("CNN/DM", "T5-base 250M", 0.0, 5, 0.73, 0.04, 2.6, 3.0),
    MeasuredRow("CNN/DM", "T5-large 800M", 0.0, 3, 0.74, 0.11, 2.0, 2.2),
    MeasuredRow("CNN/DM", "T5-small 77M", 1.0, 5, 0.53, 0.02, 1.9, 2.3),
    MeasuredRow("CNN/DM", "T5-base 250M", 1.0, 3, 0.55, 0.04, 1.8, 2.2),
    MeasuredRow("CNN/DM", "T5-large 800M", 1.0, 3, 0.56, 0.11, 1.6, 1.7),
)
"""Tables 2 and 4 of arXiv 2211.17192: T5-XXL 11B on a TPU-v4 at batch size 1, expected (γ, α, c) and measured."""
