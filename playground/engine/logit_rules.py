"""What request parameters do to logits: masks, bias, penalties, and the filters min_p, top_k and top_p.

Owns the definitions. Never draws a token and never lets one row's result depend on another row.

Penalties: repetition as in CTRL (Keskar et al. 2019, section 4.1), over prompt and output: a positive logit is divided
by it, a negative one multiplied. Presence and frequency as in OpenAI's API reference, over the output only: the logit
loses `presence_penalty` once if the token occurred, and `frequency_penalty` for each time it did.

Order among tokens, wherever one is needed: higher logit first, of equal logits the smaller token id first. top_k keeps
the first k in that order, top_p the shortest beginning whose probability, after temperature, min_p and top_k and
renormalised, reaches p.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from playground.sampling_params import SamplingParams

GROUP_SIZE = 256
"""Widths of scaled logits are multiples of this, padded with -inf, so that a row can be viewed as groups."""

_HEAD = 2048
"""How many of the largest logits are looked at first: enough for nearly every top_p, and cheaper than sorting all."""

MINUS_INF = float("-inf")


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One row of logits to draw from: the request's parameters and the tokens so far."""

    params: SamplingParams
    seed: int
    position: int
    """Where in the sequence the drawn token will stand; with the seed it decides the noise."""
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    eos_token_ids: frozenset[int] = frozenset()

    @property
    def ending_token_ids(self) -> frozenset[int]:
        """Tokens that would end the request, which min_tokens forbids at first."""
        ending = frozenset(self.params.stop_token_ids)
        return ending if self.params.ignore_eos else ending | self.eos_token_ids

    @property
    def too_short_to_end(self) -> bool:
        return len(self.output_token_ids) < self.params.min_tokens

    @property
    def changes_logits(self) -> bool:
        p = self.params
        penalised = p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0
        return penalised or bool(p.logit_bias) or p.allowed_token_ids is not None or self.too_short_to_end


def apply_token_rules(logits: Tensor, row: SamplingRow) -> None:
    """Masks, bias and penalties of one row, in place on its logits [V]. Ids outside the vocabulary have no effect."""
    params = row.params
    if params.allowed_token_ids is not None:
        allowed = _ids(params.allowed_token_ids, logits)
        kept = logits[allowed]
        logits.fill_(MINUS_INF)
        logits[allowed] = kept
    if row.too_short_to_end:
        logits[_ids(row.ending_token_ids, logits)] = MINUS_INF
    if params.logit_bias:
        known = {token: bias for token, bias in params.logit_bias.items() if token < len(logits)}
        logits[_ids(known, logits)] += torch.tensor(list(known.values()), dtype=logits.dtype, device=logits.device)
    if params.repetition_penalty != 1:
        seen = _ids((*row.prompt_token_ids, *row.output_token_ids), logits)
        values = logits[seen]  # a token seen twice is written twice, with the same value
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty != 0 or params.frequency_penalty != 0:
        said, counts = _ids(row.output_token_ids, logits).unique(return_counts=True)
        logits[said] -= (params.presence_penalty + params.frequency_penalty * counts.double()).to(logits.dtype)


def _ids(tokens: Iterable[int], logits: Tensor) -> Tensor:
    ids = np.fromiter(tokens, dtype=np.int64)
    return torch.from_numpy(ids[ids < len(logits)]).to(logits.device)


def scale(logits: Tensor, largest: Tensor, temperatures: Sequence[float]) -> Tensor:
    """(logits - largest) / temperature in float64, [R, V] -> [R, padded V]: the best token of each row gets 0.

    Subtracting first keeps the tiniest temperature from overflowing: it sends the others to -inf, as it should.
    """
    num_rows, width = logits.shape
    padded = -(-width // GROUP_SIZE) * GROUP_SIZE
    scaled = torch.full((num_rows, padded), MINUS_INF, dtype=torch.float64, device=logits.device)
    body = scaled[:, :width]
    body.copy_(logits).sub_(largest.double()[:, None])
    if any(t != 1 for t in temperatures):
        body.div_(torch.tensor(temperatures, dtype=torch.float64, device=logits.device)[:, None])
    return scaled


def filters(params: SamplingParams) -> bool:
    """Whether any of min_p, top_k and top_p is on."""
    return params.min_p > 0 or params.top_k > 0 or params.top_p < 1


def apply_filters(scaled: Tensor, params: Sequence[SamplingParams]) -> None:
    """min_p, then top_k, then top_p, in place on scaled logits [R, padded V]; filtered tokens become -inf."""
    floors = [math.log(p.min_p) if p.min_p > 0 else MINUS_INF for p in params]
    floor = torch.tensor(floors, dtype=torch.float64, device=scaled.device)
    cut_rows = [i for i, p in enumerate(params) if p.top_k > 0 or p.top_p < 1]
    if len(cut_rows) < len(params):
        scaled.masked_fill_(scaled < floor[:, None], MINUS_INF)
    if cut_rows:
        part = scaled if len(cut_rows) == len(params) else scaled[cut_rows]
        _keep_top(part, [params[i] for i in cut_rows], floor[cut_rows])
        if part is not scaled:
            scaled[cut_rows] = part


def group_sums(scaled: Tensor) -> Tensor:
    """Sum of exp over each group of ids, [R, padded V] -> [R, groups].

    Also the way to a row's total: a plain sum of one long row is split over threads, which rounds differently from the
    same row in a batch. Where exp would underflow it takes up to a hundred times as long, hence the floor: at e**-700 a
    filtered token weighs nothing next to the best one's 1.
    """
    return scaled.clamp(min=-700).exp_().view(len(scaled), -1, GROUP_SIZE).sum(-1)


def _keep_top(scaled: Tensor, params: Sequence[SamplingParams], floor: Tensor) -> None:
    """min_p (as a floor), top_k and top_p in place. Looks at the largest values, and at more where they did not do."""
    width = scaled.shape[1]
    ks = torch.tensor([min(p.top_k, width) or width for p in params], device=scaled.device)
    ps = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=scaled.device)
    totals = group_sums(scaled).sum(-1)
    open_rows = torch.arange(len(scaled), device=scaled.device)
    for size in (_HEAD, 8 * _HEAD, width):
        part = scaled[open_rows] if len(open_rows) < len(scaled) else scaled
        values = _largest(part, min(size, width))
        count, settled = _count_kept(values, ks[open_rows], ps[open_rows], floor[open_rows], totals[open_rows], width)
        cut = torch.where(settled, values.gather(1, count[:, None] - 1).squeeze(1), MINUS_INF)
        part.masked_fill_(part < cut[:, None], MINUS_INF)
        # Of the tokens that tie with the last one kept, those with the largest ids are too many.
        ties = (values >= cut[:, None]).sum(-1) - count
        for i in ((ties > 0) & settled & (cut > MINUS_INF)).nonzero().flatten().tolist():
            tied = (part[i] == cut[i]).nonzero().flatten()
            part[i, tied[len(tied) - int(ties[i]) :]] = MINUS_INF
        if part is not scaled:
            scaled[open_rows] = part
        open_rows = open_rows[~settled]
        if not len(open_rows):
            return


def _count_kept(
    values: Tensor, ks: Tensor, ps: Tensor, floor: Tensor, totals: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """How many of the sorted largest values [R, M] each row keeps, and whether M was enough to know."""
    size = values.shape[1]
    last = values[:, -1]
    candidates = (torch.arange(size, device=values.device) < ks[:, None]) & (values >= floor[:, None])
    weights = values.exp() * candidates
    cumulated = weights.cumsum(-1)
    all_candidates = (ks == width) & (floor == MINUS_INF)
    total = torch.where(all_candidates, totals, cumulated[:, -1])
    known_total = all_candidates | (ks <= size) | (last < floor)
    in_p = (cumulated - weights < (ps * total)[:, None]) | (ps >= 1)[:, None]
    count = (candidates & in_p).sum(-1).clamp_(min=1)
    inside = values.gather(1, count[:, None] - 1).squeeze(1) > last  # so all its ties are among the values too
    return count, (inside & known_total) | (last == MINUS_INF) | (size == width)


def _largest(rows: Tensor, size: int) -> Tensor:
    """The `size` largest values of each row, in descending order."""
    if rows.device.type != "cpu":
        return rows.topk(size, dim=-1).values
    # numpy selects and sorts with vector instructions: 16 rows of 49,152 take 0.8 ms here, torch.topk 3.7 ms.
    array = rows.numpy()
    if size < array.shape[1]:
        array = np.partition(array, array.shape[1] - size, axis=1)[:, -size:]
    return torch.from_numpy(np.sort(array, axis=1)[:, ::-1].copy())


def largest_and_where(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's largest value and the smallest id that has it; the value is NaN if any in the row is."""
    if logits.device.type != "cpu":
        values, ids = logits.max(dim=-1)
        return values, ids
    ids = torch.from_numpy(logits.detach().numpy().argmax(axis=1))  # 10 times as fast as torch's, for the same answer
    return logits.gather(1, ids[:, None]).squeeze(1), ids
