"""Turns logits into tokens: one independent draw a row, reproducible from its seed and position.

Owns the order of operations: token rules (masks, bias, penalties), then argmax for greedy rows; temperature, min_p,
top_k, top_p and a Gumbel-max draw for the others. Keeps no state between calls and never changes the logits it is
given; a row that cannot be sampled gets an error and leaves the others alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from playground.engine import noise
from playground.engine.logit_rules import (
    GROUP_SIZE,
    SamplingRow,
    apply_filters,
    apply_token_rules,
    filters,
    group_sums,
    largest_and_where,
    scale,
)
from playground.engine.logprobs import token_logprobs
from playground.engine.outputs import TokenLogprob

__all__ = ["SampledToken", "Sampler", "SamplingRow", "draw"]

_ELEMENTS_AT_A_TIME = 1 << 20
"""Float64 work of a draw is done in pieces of this many logits (8 MB), whatever the batch."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token drawn for one row, or why there is none; `token_id` is -1 then."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: str | None = None


class Sampler:
    """Draws one token for each row of a batch of logits."""

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
        """One token for each row of logits [R, V]; row i depends on `logits[i]` and `rows[i]` only."""
        if logits.shape != (len(rows), self.vocab_size):
            raise ValueError(f"logits of shape {tuple(logits.shape)} for {len(rows)} rows of {self.vocab_size} tokens")
        if not rows:
            return []
        logits = logits.detach()
        ruled, largest, best, errors = self._apply_rules(logits, rows)
        token_ids = best.tolist()
        drawn = [i for i, row in enumerate(rows) if not row.params.greedy and errors[i] is None]
        for filtered in (False, True):  # apart, so that rows without filters pay for none
            group = [i for i in drawn if filters(rows[i].params) == filtered]
            size = max(1, _ELEMENTS_AT_A_TIME // self.vocab_size)
            for part in (group[start : start + size] for start in range(0, len(group), size)):
                everything = len(part) == len(rows)
                some_logits, some_largest = (ruled, largest) if everything else (ruled[part], largest[part])
                for i, token in zip(part, _draw_rows(some_logits, some_largest, [rows[i] for i in part]), strict=True):
                    token_ids[i] = token
        wanted = [i for i, row in enumerate(rows) if row.params.logprobs is not None and errors[i] is None]
        logprobs = _logprobs_of(wanted, logits, token_ids, rows)
        return [
            SampledToken(token, logprobs.get(i)) if error is None else SampledToken(-1, error=error)
            for i, (token, error) in enumerate(zip(token_ids, errors, strict=True))
        ]

    def prompt_logprobs(self, logits: Tensor, next_ids: Sequence[int], k: int) -> list[TokenLogprob]:
        """What the model thought of each next prompt token: row i of logits [R, V] predicted `next_ids[i]`."""
        return token_logprobs(logits.detach(), next_ids, [k] * len(next_ids))

    def _apply_rules(
        self, logits: Tensor, rows: Sequence[SamplingRow]
    ) -> tuple[Tensor, Tensor, Tensor, list[str | None]]:
        """Logits after masks, bias and penalties, each row's largest, where that is, and what is wrong with the row."""
        largest, best = largest_and_where(logits)
        errors = [_unusable(value) for value in largest.tolist()]
        changed = [i for i, row in enumerate(rows) if errors[i] is None and row.changes_logits]
        if not changed:
            return logits, largest, best, errors
        ruled = logits.clone()
        for i in changed:
            apply_token_rules(ruled[i], rows[i])
        largest[changed], best[changed] = largest_and_where(ruled[changed])
        for i, value in zip(changed, largest[changed].tolist(), strict=True):
            errors[i] = _unusable(value, after_rules=True)
        return ruled, largest, best, errors


def draw(scaled: Tensor, seeds: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Token ids [R] drawn with probability proportional to exp of the scaled logits [R, padded V] (float64).

    Gumbel-max: the argmax of logit + Gumbel noise has the softmax distribution. It is done in two steps, first the
    group of 256 neighbouring ids by the sum of its weights, then the token in that group. That is exact, because the
    maximum of shifted Gumbels is a Gumbel shifted by their logsumexp and does not depend on which of them it was; and
    it needs V / 256 + 256 hashes and logarithms a row in place of V.
    """
    rows = torch.arange(len(scaled), device=scaled.device)
    sums = group_sums(scaled)
    group_ids = torch.arange(sums.shape[1], device=scaled.device)
    group_noise = noise.gumbel(noise.keys(seeds, positions, noise.GROUP, scaled.device), group_ids)
    group = (sums.log_() + group_noise).argmax(dim=-1)
    members = scaled.view(len(scaled), -1, GROUP_SIZE)[rows, group]
    member_ids = group[:, None] * GROUP_SIZE + torch.arange(GROUP_SIZE, device=scaled.device)
    member_noise = noise.gumbel(noise.keys(seeds, positions, noise.TOKEN, scaled.device), member_ids)
    return group * GROUP_SIZE + (members + member_noise).argmax(dim=-1)


def _draw_rows(logits: Tensor, largest: Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    scaled = scale(logits, largest, [row.params.temperature for row in rows])
    apply_filters(scaled, [row.params for row in rows])
    tokens: list[int] = draw(scaled, [row.seed for row in rows], [row.position for row in rows]).tolist()
    return tokens


def _logprobs_of(
    wanted: list[int], logits: Tensor, token_ids: list[int], rows: Sequence[SamplingRow]
) -> dict[int, TokenLogprob]:
    if not wanted:
        return {}
    tops = [rows[i].params.logprobs or 0 for i in wanted]
    return dict(zip(wanted, token_logprobs(logits[wanted], [token_ids[i] for i in wanted], tops), strict=True))


def _unusable(largest: float, after_rules: bool = False) -> str | None:
    """Why no token can be drawn from a row with this largest logit, or None."""
    if largest != largest:
        return "The model's logits for this request contain NaN, so no token can be drawn: check its weights and dtype."
    if largest == float("inf"):
        return (
            "The logits of this request contain +infinity, so no token can be drawn: check the weights and penalties."
        )
    if largest == float("-inf"):
        if after_rules:
            return "allowed_token_ids and min_tokens together leave no token to draw: allow more, or lower min_tokens."
        return "The model's logits for this request are all -infinity, so no token can be drawn: check its weights."
    return None
