"""Acceptance, tokens per step, costs and speed-up from what passes counted, and what the formula makes of them.

Pure arithmetic: knows nothing of engines. Times are seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import median

from playground.bench.stats import compare
from playground.engine.speculation.formula import expected_tokens, expected_tokens_by_position


@dataclass(frozen=True)
class Pass:
    """What one side counted while it answered the prompts of one pass. A row is one request's share of a step."""

    decode_tokens: int
    decode_seconds: float
    """Together the speed: from the moment when every request of a batch has its first token until its last token."""
    num_steps: int
    step_seconds: float
    """Steps without prompt tokens, from the start of one to the start of the next."""
    draft_seconds: float
    """Of these, spent on making drafts."""
    rows_by_drafts: tuple[int, ...]
    """How many rows of these steps verified 0, 1, 2 … drafts."""
    rows_by_room: tuple[int, ...]
    """The same, less the drafts for which the rest of the text had no room: with n tokens left, n - 1 can count."""
    num_emitted: int
    """Tokens that came out of these rows."""
    drafts_reached: tuple[int, ...]
    """By position in the draft: how often it was looked at, because everything before it was accepted."""
    drafts_accepted: tuple[int, ...]

    @property
    def tokens_per_second(self) -> float:
        return self.decode_tokens / self.decode_seconds

    @property
    def num_rows(self) -> int:
        return sum(self.rows_by_drafts)

    @property
    def num_drafts(self) -> int:
        return sum(drafts * rows for drafts, rows in enumerate(self.rows_by_drafts))

    @property
    def step_time(self) -> float:
        return self.step_seconds / self.num_steps

    @property
    def draft_time(self) -> float:
        """Of one step."""
        return self.draft_seconds / self.num_steps


def position_sums(counts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Sums by position; where one is shorter than the others, it has nothing there."""
    return tuple(map(sum, zip_longest(*counts, fillvalue=0)))


def total(parts: Sequence[Pass]) -> Pass:
    """Several passes as one. Raises ValueError without any."""
    if not parts:
        raise ValueError("there is nothing to add up")
    return Pass(
        sum(one.decode_tokens for one in parts),
        math.fsum(one.decode_seconds for one in parts),
        sum(one.num_steps for one in parts),
        math.fsum(one.step_seconds for one in parts),
        math.fsum(one.draft_seconds for one in parts),
        position_sums([one.rows_by_drafts for one in parts]),
        position_sums([one.rows_by_room for one in parts]),
        sum(one.num_emitted for one in parts),
        position_sums([one.drafts_reached for one in parts]),
        position_sums([one.drafts_accepted for one in parts]),
    )


@dataclass(frozen=True)
class Figures:
    """What the pairs of one case say. None where there is nothing to say it from: no drafts, no positions reached."""

    drafts_reached: tuple[int, ...]
    drafts_accepted: tuple[int, ...]
    acceptance_by_position: tuple[float | None, ...]
    """Accepted of those reached: conditional on everything before."""
    acceptance: float | None
    """The same over all positions together: the α that makes equal and independent positions most likely."""
    acceptance_rate: float | None
    """Accepted of all drafted. It falls with K, and is not the α of the formula."""
    drafts_per_row: float
    drafting_share: float
    """Rows that verified any drafts, of all."""
    tokens_per_step: float
    """Of one request, counted."""
    tokens_per_step_by_position: float
    """1 + sum of products of the acceptance by position, over the drafts that the rows had room for."""
    tokens_per_step_one_alpha: float
    """(1 - α^(K+1)) / (1 - α), likewise."""
    plain_step_seconds: float
    """One step without speculation."""
    draft_seconds: float
    """Drafting in one step."""
    verify_seconds: float
    """Everything else in a step with speculation."""
    draft_cost: float | None
    """c: the time of one draft token for each request, in plain steps."""
    verify_cost: float
    """v: verify_seconds in plain steps, of the same pair."""
    expected_speedup: float
    """E / (K c + v), E with one α."""
    speedup: float
    """Measured: tokens per second with speculation over without."""
    speedup_min: float
    speedup_max: float
    tokens_per_second: tuple[float, ...]
    plain_tokens_per_second: tuple[float, ...]


def figures(speculative: Sequence[Pass], plain: Sequence[Pass]) -> Figures:
    """From the two sides of each pair. Counts are pooled; times and speeds are medians over the pairs."""
    speedup = compare(
        [one.tokens_per_second for one in speculative],
        [one.tokens_per_second for one in plain],
        smaller_is_better=False,
    )
    pooled = total(speculative)
    by_position = [
        accepted / reached if reached else None
        for reached, accepted in zip(pooled.drafts_reached, pooled.drafts_accepted, strict=True)
    ]
    num_reached, num_accepted = sum(pooled.drafts_reached), sum(pooled.drafts_accepted)
    acceptance = num_accepted / num_reached if num_reached else None
    drafts_per_row = pooled.num_drafts / pooled.num_rows
    # What stands before a position that was never reached was never accepted: it counts nothing.
    known = [value or 0.0 for value in by_position]
    longest = len(pooled.rows_by_room)
    by_positions = [expected_tokens_by_position(known[:k]) for k in range(longest)]
    one_alpha = [expected_tokens(acceptance or 0.0, k) for k in range(longest)]
    expected = mean_over_rows(pooled.rows_by_room, one_alpha)
    drafting = median(one.draft_time / off.step_time for one, off in zip(speculative, plain, strict=True))
    verifying = median(
        (one.step_time - one.draft_time) / off.step_time for one, off in zip(speculative, plain, strict=True)
    )
    return Figures(
        drafts_reached=pooled.drafts_reached,
        drafts_accepted=pooled.drafts_accepted,
        acceptance_by_position=tuple(by_position),
        acceptance=acceptance,
        acceptance_rate=num_accepted / pooled.num_drafts if pooled.num_drafts else None,
        drafts_per_row=drafts_per_row,
        drafting_share=sum(pooled.rows_by_drafts[1:]) / pooled.num_rows,
        tokens_per_step=pooled.num_emitted / pooled.num_rows,
        tokens_per_step_by_position=mean_over_rows(pooled.rows_by_room, by_positions),
        tokens_per_step_one_alpha=expected,
        plain_step_seconds=median(one.step_time for one in plain),
        draft_seconds=median(one.draft_time for one in speculative),
        verify_seconds=median(one.step_time - one.draft_time for one in speculative),
        draft_cost=drafting / drafts_per_row if drafts_per_row else None,
        verify_cost=verifying,
        expected_speedup=expected / (drafting + verifying),
        speedup=speedup.ratio,
        speedup_min=speedup.ratio_min,
        speedup_max=speedup.ratio_max,
        tokens_per_second=tuple(one.tokens_per_second for one in speculative),
        plain_tokens_per_second=tuple(one.tokens_per_second for one in plain),
    )


def mean_over_rows(rows: Sequence[int], values: Sequence[float]) -> float:
    """Mean of `values[k]` over rows of which `rows[k]` had k drafts."""
    return math.fsum(count * value for count, value in zip(rows, values, strict=True)) / sum(rows)


def agreement(ours: Sequence[Sequence[int]], plain: Sequence[Sequence[int]]) -> dict[str, int]:
    """How many requests got the same tokens on both sides, and how far the others agree."""
    same = [
        next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        for one, other in zip(ours, plain, strict=True)
    ]
    return {
        "requests": len(ours),
        "identical": sum(list(one) == list(other) for one, other in zip(ours, plain, strict=True)),
        "same_tokens_before_first_difference": sum(same),
        "tokens": sum(map(len, plain)),
    }
