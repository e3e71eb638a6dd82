"""Turns rows of logits into tokens: sparse edits of the logits, the draw, and its probabilities.

Each op checks its arguments and runs the implementation that `kernels.dispatch` names. Draws are a function of the
row's logits and parameters alone, and the same on a CPU and in Triton.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import cpu_sampling
from kernels.dispatch import choose
from kernels.row_parameters import RowParameters

_ELEMENTS_AT_A_TIME = 1 << 20
"""Float64 work of a draw is done in pieces of this many logits (8 MB), whatever the batch."""

__all__ = ["LogitEdits", "RowParameters", "edit_logits", "probabilities", "sample"]


@dataclass(frozen=True)
class LogitEdits:
    """Changes of single logits, sparse: entry i changes token `ids[i]` of row `rows[i]`; no pair occurs twice.

    The new logit is f(logit + bias) - minus, where f divides a positive value by `penalty` and multiplies another by
    it. Masks and penalties of all kinds come to this: forbidding a token is a bias of -inf. Rows in `only_listed` lose
    every token without an entry. Entries are made on the host, where the tokens so far are.
    """

    rows: Tensor
    """int64 [E]."""
    ids: Tensor
    """int64 [E]."""
    bias: Tensor
    """float64 [E]."""
    penalty: Tensor
    """float64 [E]; 1 for none."""
    minus: Tensor
    """float64 [E]."""
    only_listed: Tensor
    """int64 [N]: rows."""


def edit_logits(logits: Tensor, edits: LogitEdits) -> Tensor:
    """A copy of logits [R, V] with the edits; each step is rounded to the dtype of the logits.

    Plain torch on every device: a copy that any version has to make, and a few small ops on E entries.
    """
    edited = logits.clone()
    biased = logits[edits.rows, edits.ids] + edits.bias.to(logits.dtype)
    penalty = edits.penalty.to(torch.promote_types(logits.dtype, torch.float32))
    factored = torch.where(biased > 0, biased / penalty, biased * penalty).to(logits.dtype)
    after = torch.where(edits.penalty == 1, biased, factored) - edits.minus.to(logits.dtype)
    return edited.index_fill_(0, edits.only_listed, -math.inf).index_put_((edits.rows, edits.ids), after)


def sample(logits: Tensor, parameters: RowParameters, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """One token for each row of logits [R, V]: (token ids int64 [R], largest logits [R]).

    A row whose largest logit is NaN or infinite has no token: its id is -1. Float64 logits run in torch.
    """
    _check(logits, parameters)
    if choose(backend, logits.device) == "triton" and logits.dtype != torch.float64:
        from kernels.triton.sampling import sample as launch

        return launch(logits, parameters)
    largest, best = cpu_sampling.largest_and_where(logits)
    tokens = torch.where(largest.isfinite(), best, -1)
    for rows, scaled in _drawn_rows(logits, largest, parameters):
        seeds, positions = parameters.seeds[rows], parameters.positions[rows]
        tokens[rows] = cpu_sampling.draw(scaled, seeds, positions, filtered=parameters.some_cut)
    return tokens, largest


def probabilities(logits: Tensor, parameters: RowParameters, *, backend: str = "auto") -> Tensor:
    """What `sample` draws with: float32 [R, V], one-hot in rows of temperature 0, NaN where there is no token."""
    _check(logits, parameters)
    if choose(backend, logits.device) == "triton" and logits.dtype != torch.float64:
        from kernels.triton.sampling import probabilities as launch

        return launch(logits, parameters)
    largest, best = cpu_sampling.largest_and_where(logits)
    result = torch.zeros(logits.shape, dtype=torch.float32, device=logits.device)
    result.scatter_(1, best[:, None], 1.0)
    for rows, scaled in _drawn_rows(logits, largest, parameters):
        result[rows] = (scaled - scaled.logsumexp(-1, keepdim=True)).exp()[:, : logits.shape[1]].float()
    return result.masked_fill_(~largest.isfinite()[:, None], math.nan)


def _drawn_rows(logits: Tensor, largest: Tensor, parameters: RowParameters) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, their scaled and filtered logits), in pieces, of the rows that are drawn from."""
    drawn = ((parameters.temperature > 0) & largest.isfinite()).nonzero().flatten()
    if not len(drawn):
        return
    for rows in drawn.split(max(1, _ELEMENTS_AT_A_TIME // logits.shape[1])):
        everything = len(rows) == len(logits)
        some_logits, some_largest = (logits, largest) if everything else (logits[rows], largest[rows])
        scaled = cpu_sampling.scale(some_logits, some_largest, parameters.temperature[rows])
        cpu_sampling.apply_filters(scaled, parameters.floor[rows], parameters.top_k[rows], parameters.top_p[rows])
        yield rows, scaled


def _check(logits: Tensor, parameters: RowParameters) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0 or not logits.is_floating_point():
        raise ValueError(f"logits of shape {list(logits.shape)} and {logits.dtype} must be floats [R, V], V > 0.")
    parameters.check(len(logits), logits.device)
