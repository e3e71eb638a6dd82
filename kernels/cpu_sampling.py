"""Sampling in torch: scaled logits, the filters min_p, top_k and top_p, and the draw, for a CPU and any other device.

Everything that decides is float64, so that a draw is the same here and in the Triton kernels, whose exp and log differ
in the last bit. Never changes the logits that it is given.

Order among tokens, wherever one is needed: higher logit first, of equal logits the smaller token id first. top_k keeps
the first k in that order, top_p the shortest beginning whose probability, after temperature, min_p and top_k and
renormalised, reaches p.
"""

import numpy as np
import torch
from torch import Tensor

from kernels import noise

GROUP_SIZE = 256
"""Widths of scaled logits are multiples of this, padded with -inf, so that a row can be viewed as groups."""

_HEAD = 2048
"""How many of the largest logits are looked at first: enough for nearly every top_p, and cheaper than sorting all."""

MINUS_INF = float("-inf")


def scale(logits: Tensor, largest: Tensor, temperatures: Tensor) -> Tensor:
    """(logits - largest) / temperature in float64, [R, V] -> [R, padded V]: the best token of each row gets 0.

    `largest` and float64 `temperatures` [R].

    Subtracting first keeps the tiniest temperature from overflowing: it sends the others to -inf, as it should.
    """
    num_rows, width = logits.shape
    padded = -(-width // GROUP_SIZE) * GROUP_SIZE
    scaled = torch.full((num_rows, padded), MINUS_INF, dtype=torch.float64, device=logits.device)
    body = scaled[:, :width]
    body.copy_(logits).sub_(largest.double()[:, None])
    if logits.device.type != "cpu" or bool((temperatures != 1).any()):
        body.div_(temperatures[:, None])
    return scaled


def apply_filters(scaled: Tensor, floors: Tensor, top_k: Tensor, top_p: Tensor) -> None:
    """min_p, then top_k, then top_p, in place on scaled logits [R, padded V]; filtered tokens become -inf.

    `floors` [R] is log(min_p), float64, -inf for none; `top_k` int64 [R] with 0 for none, `top_p` float64 [R], 1 for
    none.
    """
    cut = (top_k > 0) | (top_p < 1)
    if bool((~cut & (floors > MINUS_INF)).any()):
        scaled.masked_fill_(scaled < floors[:, None], MINUS_INF)
    rows = cut.nonzero().flatten()
    if not len(rows):
        return
    part = scaled if len(rows) == len(scaled) else scaled[rows]
    _keep_top(part, top_k[rows], top_p[rows], floors[rows])
    if part is not scaled:
        scaled[rows] = part


def group_sums(scaled: Tensor) -> Tensor:
    """Sum of exp over each group of ids, [R, padded V] -> [R, groups].

    Also the way to a row's total: a plain sum of one long row is split over threads, which rounds differently from the
    same row in a batch. Where exp would underflow it takes up to a hundred times as long, hence the floor: at e**-700 a
    filtered token weighs nothing next to the best one's 1.
    """
    return scaled.clamp(min=-700).exp_().view(len(scaled), -1, GROUP_SIZE).sum(-1)


def _keep_top(scaled: Tensor, top_k: Tensor, ps: Tensor, floor: Tensor) -> None:
    """min_p (as a floor), top_k and top_p in place. Looks at the largest values, and at more where they did not do."""
    width = scaled.shape[1]
    ks = torch.where(top_k > 0, top_k, width).clamp_(max=width)
    totals = torch.zeros_like(floor)
    whole = ((ps < 1) & (ks == width) & (floor == MINUS_INF)).nonzero().flatten()  # where top_p is of everything
    if len(whole):
        totals[whole] = group_sums(scaled if len(whole) == len(scaled) else scaled[whole]).sum(-1)
    open_rows = torch.arange(len(scaled), device=scaled.device)
    cuts = torch.full_like(floor, MINUS_INF)
    surplus = torch.zeros_like(top_k)  # of the tokens that tie with the last one kept, how many are too many
    for size in (_HEAD, 4 * _HEAD, width):
        part = scaled[open_rows] if len(open_rows) < len(scaled) else scaled
        values = _largest(part, min(size, width))
        count, settled = _count_kept(values, ks[open_rows], ps[open_rows], floor[open_rows], totals[open_rows], width)
        cut = torch.where(settled, values.gather(1, count[:, None] - 1).squeeze(1), MINUS_INF)
        cuts[open_rows] = cut
        surplus[open_rows] = torch.where(settled & (cut > MINUS_INF), (values >= cut[:, None]).sum(-1) - count, 0)
        open_rows = open_rows[~settled]
        if not len(open_rows):
            break
    _drop_below(scaled, cuts)
    for i in surplus.nonzero().flatten().tolist():  # those with the largest ids go
        tied = (scaled[i] == cuts[i]).nonzero().flatten()
        scaled[i, tied[len(tied) - int(surplus[i]) :]] = MINUS_INF


def _drop_below(scaled: Tensor, cuts: Tensor) -> None:
    """-inf for everything below its row's cut, in place."""
    if scaled.device.type != "cpu":
        scaled.masked_fill_(scaled < cuts[:, None], MINUS_INF)
        return
    just_below = torch.nextafter(cuts, torch.full_like(cuts, MINUS_INF))
    for row, limit in zip(scaled, just_below.tolist(), strict=True):  # one vectorised pass in place of two
        torch.threshold_(row, limit, MINUS_INF)


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
    wide = logits.detach().float() if logits.dtype == torch.bfloat16 else logits.detach()  # numpy has no bfloat16
    ids = torch.from_numpy(wide.numpy().argmax(axis=1))  # 10 times as fast as torch's, for the same answer
    return logits.gather(1, ids[:, None]).squeeze(1), ids


def _sums_of_few(scaled: Tensor) -> Tensor:
    """`group_sums` that skips what a filter has dropped, for rows that kept less than an eighth of their tokens."""
    if scaled.device.type != "cpu":
        return group_sums(scaled)
    width = scaled.shape[1]
    sums = np.empty((len(scaled), width // GROUP_SIZE))
    many = []
    for i, row in enumerate(scaled.numpy()):
        kept = np.flatnonzero(row > MINUS_INF)
        if len(kept) > width // 8:
            many.append(i)
        else:
            sums[i] = np.bincount(kept // GROUP_SIZE, weights=np.exp(row[kept]), minlength=sums.shape[1])
    result = torch.from_numpy(sums)
    if many:
        result[many] = group_sums(scaled[many])
    return result


def draw(
    scaled: Tensor,
    seeds: Tensor,
    positions: Tensor,
    group_noise: int = noise.GROUP,
    token_noise: int = noise.TOKEN,
    filtered: bool = False,
) -> Tensor:
    """Token ids [R] drawn with probability proportional to exp of the scaled logits [R, padded V] (float64).

    Gumbel-max: the argmax of logit + Gumbel noise has the softmax distribution. It is done in two steps, first the
    group of 256 neighbouring ids by the sum of its weights, then the token in that group. That is exact, because the
    maximum of shifted Gumbels is a Gumbel shifted by their logsumexp and does not depend on which of them it was; and
    it needs V / 256 + 256 hashes and logarithms a row in place of V. `filtered` rows may have few tokens left.
    """
    rows = torch.arange(len(scaled), device=scaled.device)
    sums = _sums_of_few(scaled) if filtered else group_sums(scaled)
    group_ids = torch.arange(sums.shape[1], device=scaled.device)
    sums.log_().add_(noise.gumbel(noise.row_keys(seeds, positions, group_noise), group_ids))
    group = sums.argmax(dim=-1)
    members = scaled.view(len(scaled), -1, GROUP_SIZE)[rows, group]
    member_ids = group[:, None] * GROUP_SIZE + torch.arange(GROUP_SIZE, device=scaled.device)
    members = members + noise.gumbel(noise.row_keys(seeds, positions, token_noise), member_ids)
    return group * GROUP_SIZE + members.argmax(dim=-1)
