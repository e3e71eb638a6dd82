"""Turns logits into tokens: one independent draw a row, reproducible from its seed and position.

Owns the order of operations: token rules (masks, bias, penalties), then argmax for greedy rows; temperature, min_p,
top_k, top_p and a Gumbel-max draw for the others. Keeps no state between calls and never changes the logits it is
given; a row that cannot be sampled gets an error and leaves the others alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu_sampling import largest_and_where
from kernels.host import from_device, to_device
from kernels.sampling import sample
from playground.engine.beam_search import Candidate
from playground.engine.logit_rules import SamplingRow, apply_token_rules, row_parameters
from playground.engine.logprobs import token_logprobs
from playground.engine.outputs import TokenLogprob

__all__ = ["DrawnTokens", "SampledToken", "Sampler", "SamplingRow"]


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token drawn for one row, or why there is none; `token_id` is -1 then, and in a beam's row."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: str | None = None
    candidates: tuple[Candidate, ...] = ()
    """In a beam's row: what it may go on with, best first."""


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """One token a row of logits, drawn but not necessarily read."""

    token_ids: Tensor
    """int64 [R] on the device of the logits, in memory that no later draw reuses; -1 in a row without a token."""
    resolve: Callable[[], list[SampledToken]]
    """Waits for the draw, and for nothing that was launched after it, and returns the tokens; the same every time.
    Never looks at the logits again: by then the next forward may have overwritten them."""


class Sampler:
    """Draws one token for each row of a batch of logits."""

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
        """One token for each row of logits [R, V]; row i depends on `logits[i]` and `rows[i]` only."""
        return self.draw(logits, rows).resolve()

    def draw(self, logits: Tensor, rows: Sequence[SamplingRow]) -> DrawnTokens:
        """As `sample`, without waiting for the device: the tokens are read when somebody asks."""
        if logits.shape != (len(rows), self.vocab_size):
            raise ValueError(f"logits of shape {tuple(logits.shape)} for {len(rows)} rows of {self.vocab_size} tokens")
        if not rows:
            return DrawnTokens(torch.empty(0, dtype=torch.int64, device=logits.device), list)
        logits = logits.detach()
        ruled = apply_token_rules(logits, rows)
        drawn, largest = sample(ruled, row_parameters(rows, logits.device))
        before = largest if ruled is logits else largest_logits(logits)
        wanted = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        kept = logits.index_select(0, to_device(torch.tensor(wanted, dtype=torch.int64), logits.device))
        read = from_device(torch.stack((drawn.double(), largest.double(), before.double())))

        def resolve() -> list[SampledToken]:
            ids, after_rules, without = read()
            token_ids = [int(token) for token in ids]
            errors = [why_unusable(*values) for values in zip(without, after_rules, strict=True)]
            found = _logprobs_of(wanted, kept, token_ids, rows, errors)
            return [
                SampledToken(token, found.get(i)) if error is None else SampledToken(-1, error=error)
                for i, (token, error) in enumerate(zip(token_ids, errors, strict=True))
            ]

        return DrawnTokens(drawn, resolve)

    def prompt_logprobs(self, logits: Tensor, next_ids: Sequence[int], k: int) -> list[TokenLogprob]:
        """What the model thought of each next prompt token: row i of logits [R, V] predicted `next_ids[i]`."""
        return token_logprobs(logits.detach(), next_ids, [k] * len(next_ids))


def _logprobs_of(
    wanted: list[int], kept: Tensor, token_ids: list[int], rows: Sequence[SamplingRow], errors: list[str | None]
) -> dict[int, TokenLogprob]:
    """Log-probabilities of the rows that want them and have a token; `kept` holds the logits of the `wanted` rows."""
    usable = [at for at, i in enumerate(wanted) if errors[i] is None]
    if not usable:
        return {}
    numbers = [wanted[at] for at in usable]
    tops = [rows[i].params.logprobs or 0 for i in numbers]
    return dict(zip(numbers, token_logprobs(kept[usable], [token_ids[i] for i in numbers], tops), strict=True))


def largest_logits(logits: Tensor) -> Tensor:
    """Each row's largest, [R]; NaN if any in the row is."""
    return largest_and_where(logits)[0]


def logprobs_of(logits: Tensor, rows: Sequence[int], token_ids: Sequence[int], top_k: int) -> list[TokenLogprob]:
    """Log-probabilities of one token in each of these rows of the logits [R, V]."""
    index = to_device(torch.tensor(list(rows)), logits.device)
    return token_logprobs(logits.index_select(0, index), token_ids, [top_k] * len(token_ids))


def why_unusable(before_rules: float, after_rules: float) -> str | None:
    """Why no token can be drawn from a row with this largest logit before and after masks and penalties, or None."""
    if before_rules == float("-inf"):
        return "The model's logits for this request are all -infinity, so no token can be drawn: check its weights."
    if before_rules != before_rules or after_rules != after_rules:
        return "The model's logits for this request contain NaN, so no token can be drawn: check its weights and dtype."
    if float("inf") in (before_rules, after_rules):
        return (
            "The logits of this request contain +infinity, so no token can be drawn: check the weights and penalties."
        )
    if after_rules == float("-inf"):
        return "allowed_token_ids and min_tokens together leave no token to draw: allow more, or lower min_tokens."
    return None
