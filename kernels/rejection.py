"""Speculative rejection: which draft tokens stay, and the token after them, so that the text has the target's
distribution exactly.

The rule is that of Leviathan, Kalman and Matias (arXiv 2211.17192): a draft t stays with probability
min(1, p(t) / q(t)); at the first that does not, the next token is drawn from max(p - q, 0), renormalised. In a tree
(SpecInfer, arXiv 2305.09781) the children of a row are tried in their order, each against what the ones before have
left of p. Greedy verification is the same rule with one-hot rows of p. Noise is stateless: a function of seed, position
and the draft's index.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import cpu_sampling, noise
from kernels.dispatch import choose

_MOST_DRAFTS = 256


@dataclass(frozen=True)
class Drafts:
    """What is to be verified, for S sequences with up to N drafts each.

    Row 0 of a sequence is what follows its last token, row i + 1 what follows draft i. A chain has parents
    -1, 0, 1, ...; in a tree each draft comes after its parent, and siblings in the order in which they were drawn.
    """

    ids: Tensor
    """int64 [S, N]."""
    target: Tensor
    """float32 [S, N + 1, V]: probabilities of the model that decides, by row."""
    proposal: Tensor | None
    """float32 [S, N, V]: what the children of a row were drawn from, by row; None where drafts were not drawn (n-grams,
    the k most probable): each is then taken as certain, which is exact too and accepts p(t)."""
    seeds: Tensor
    """int64 [S]."""
    positions: Tensor
    """int64 [S]: where in its sequence the first draft stands."""
    parents: Tensor | None = None
    """int64 [S, N], -1 for children of row 0; None for chains."""
    counts: Tensor | None = None
    """int64 [S]: how many drafts each sequence has; None: N."""
    without_replacement: bool = False
    """Whether siblings were drawn from `proposal` without those before them."""


@dataclass(frozen=True)
class Verified:
    """What stays of the drafts."""

    tokens: Tensor
    """int64 [S, N + 1]: the accepted drafts and the token after them; -1 from there on."""
    num_accepted: Tensor
    """int64 [S]."""
    path: Tensor
    """int64 [S, N]: indices of the accepted drafts; -1 from there on."""


def verify(drafts: Drafts, *, backend: str = "auto") -> Verified:
    """Accepts drafts and draws the token after them. Raises ValueError where shapes do not fit."""
    _check(drafts)
    num_seqs, num_drafts = drafts.ids.shape
    device = drafts.ids.device
    parents = torch.arange(-1, num_drafts - 1, device=device).expand(num_seqs, -1)
    parents = parents if drafts.parents is None else drafts.parents
    counts = torch.full((num_seqs,), num_drafts, device=device) if drafts.counts is None else drafts.counts
    if choose(backend, device) == "triton" and drafts.target.dtype != torch.float64:
        from kernels.triton.rejection import verify as launch

        return Verified(*launch(drafts, parents, counts))
    tokens = torch.full((num_seqs, num_drafts + 1), -1, dtype=torch.int64, device=device)
    path = torch.full((num_seqs, num_drafts), -1, dtype=torch.int64, device=device)
    uniforms = noise.uniform(
        noise.row_keys(drafts.seeds, drafts.positions, noise.ACCEPT), torch.arange(num_drafts, device=device)
    )
    num_accepted, rest = [], []
    for s, (count, ids) in enumerate(zip(counts.tolist(), drafts.ids.tolist(), strict=True)):
        accepted, left = walk(
            drafts.target[s],
            ids[:count],
            parents[s, :count].tolist(),
            None if drafts.proposal is None else drafts.proposal[s],
            uniforms[s].tolist(),
            drafts.without_replacement,
        )
        path[s, : len(accepted)] = torch.tensor(accepted, dtype=torch.int64)
        tokens[s, : len(accepted)] = torch.tensor([ids[i] for i in accepted], dtype=torch.int64)
        num_accepted.append(len(accepted))
        rest.append(left)
    accepted_counts = torch.tensor(num_accepted, dtype=torch.int64, device=device)
    if num_seqs:
        after = _draw(torch.stack(rest), drafts.seeds, drafts.positions + accepted_counts)
        tokens.scatter_(1, accepted_counts[:, None], after[:, None])
    return Verified(tokens, accepted_counts, path)


def walk(
    target: Tensor,
    ids: list[int],
    parents: list[int],
    proposal: Tensor | None,
    uniforms: list[float],
    without_replacement: bool,
) -> tuple[list[int], Tensor]:
    """(indices of accepted drafts, weights float64 [V] of the token after them) of one sequence: the definition."""
    accepted: list[int] = []
    row = 0
    p = target[0].double()
    q = None if proposal is None or not ids else proposal[0].double()
    for i, (token, parent) in enumerate(zip(ids, parents, strict=True)):
        if parent != row - 1:
            continue
        proposed = 1.0 if q is None else float(q[token])
        if uniforms[i] * proposed < float(p[token]):
            accepted.append(i)
            row = i + 1
            p = target[row].double()
            q = None if proposal is None or row >= len(proposal) else proposal[row].double()
            continue
        left = _without(p, token) if q is None else (p - q).clamp_(min=0)
        if not float(left.sum()) > 0:  # p is q to the last bit: the draft is as good a draw as any
            left = torch.zeros_like(p)
            left[token] = 1.0
        p = left / left.sum()
        if q is not None and without_replacement:
            q = _without(q, token)
            q /= q.sum().clamp(min=torch.finfo(q.dtype).tiny)
    return accepted, p


def _without(p: Tensor, token: int) -> Tensor:
    left = p.clone()
    left[token] = 0.0
    return left


def _draw(weights: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """One token id for each row of weights [S, V], with the noise of tokens after drafts."""
    missing = -weights.shape[1] % cpu_sampling.GROUP_SIZE
    scaled = torch.nn.functional.pad(weights.log(), (0, missing), value=float("-inf"))
    return cpu_sampling.draw(scaled, seeds, positions, noise.REST_GROUP, noise.REST_TOKEN)


def _check(drafts: Drafts) -> None:
    seqs, count = drafts.ids.shape if drafts.ids.ndim == 2 else (-1, -1)
    target, proposal = drafts.target, drafts.proposal
    if target.ndim != 3 or target.shape[:2] != (seqs, count + 1) or target.shape[2] == 0:
        raise ValueError(f"ids {list(drafts.ids.shape)} need target [S, N + 1, V], not {list(target.shape)}.")
    if proposal is not None and proposal.shape != (seqs, count, target.shape[2]):
        raise ValueError(f"proposal of shape {list(proposal.shape)} must be {[seqs, count, target.shape[2]]}.")
    for name, value, shape in (
        ("ids", drafts.ids, (seqs, count)),
        ("parents", drafts.parents, (seqs, count)),
        ("counts", drafts.counts, (seqs,)),
        ("seeds", drafts.seeds, (seqs,)),
        ("positions", drafts.positions, (seqs,)),
    ):
        if value is not None and (value.dtype != torch.int64 or value.shape != shape):
            raise ValueError(f"{name} must be int64 {list(shape)}, it is {value.dtype} {list(value.shape)}.")
    if count > _MOST_DRAFTS:
        raise ValueError(f"{count} drafts are more than the {_MOST_DRAFTS} that are verified at once.")
