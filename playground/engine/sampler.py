"""Turns logits into tokens: one independent draw a row, reproducible from its seed and position.

Owns the order of operations: token rules (masks, bias, penalties), then argmax for greedy rows; temperature, min_p,
top_k, top_p and a Gumbel-max draw for the others. Keeps no state between calls and never changes the logits it is
given; a row that cannot be sampled gets an error and leaves the others alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu_sampling import largest_and_where
from kernels.sampling import sample
from playground.engine.logit_rules import SamplingRow, apply_token_rules, row_parameters
from playground.engine.logprobs import token_logprobs
from playground.engine.outputs import TokenLogprob

__all__ = ["SampledToken", "Sampler", "SamplingRow"]


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
        ruled = apply_token_rules(logits, rows)
        drawn, largest = sample(ruled, row_parameters(rows, logits.device))
        errors = [_unusable(value, after_rules=ruled is not logits) for value in largest.tolist()]
        if ruled is not logits:
            before = largest_and_where(logits)[0].tolist()
            errors = [_unusable(value) or error for value, error in zip(before, errors, strict=True)]
        token_ids: list[int] = drawn.tolist()
        wanted = [i for i, row in enumerate(rows) if row.params.logprobs is not None and errors[i] is None]
        logprobs = _logprobs_of(wanted, logits, token_ids, rows)
        return [
            SampledToken(token, logprobs.get(i)) if error is None else SampledToken(-1, error=error)
            for i, (token, error) in enumerate(zip(token_ids, errors, strict=True))
        ]

    def prompt_logprobs(self, logits: Tensor, next_ids: Sequence[int], k: int) -> list[TokenLogprob]:
        """What the model thought of each next prompt token: row i of logits [R, V] predicted `next_ids[i]`."""
        return token_logprobs(logits.detach(), next_ids, [k] * len(next_ids))


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
