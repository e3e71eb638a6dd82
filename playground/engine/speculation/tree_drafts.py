"""Trees of drafts: at each level the most probable branches, all of them verified by the target in one pass.

A level keeps the `width` nodes whose paths the draft model finds most probable (as EAGLE-2 does, arXiv 2406.16858), so
that a tree is wide where the draft is unsure and close to a chain where it is sure. Drafts are chosen, not drawn:
verification takes each as certain, which is exact (SpecInfer, arXiv 2305.09781).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from playground.engine.batches import UNKNOWN, BatchSlice
from playground.engine.logit_rules import SamplingRow, apply_token_rules
from playground.engine.scheduler import ScheduledRequest
from playground.engine.speculation.proposal import Proposal

Forward = Callable[[Sequence[BatchSlice], Tensor], Tensor]
"""Logits of slices, given the token ids that stand as `UNKNOWN` in them."""


def grow_trees(
    logits: Tensor,
    active: Sequence[ScheduledRequest],
    rows: Sequence[SamplingRow],
    width: int,
    forward: Forward,
    *,
    whole: bool,
) -> Proposal | None:
    """Trees of `num_drafts // width` levels for each request; None where that is no level for anybody.

    `logits` [S, V] follow the requests' last tokens; `active` and `rows` in the order of their number of drafts, most
    first. `whole`: there is no KV, so that every forward runs whole sequences.
    """
    levels = [one.num_drafts // width for one in active]
    growing = sum(count > 0 for count in levels)
    if growing == 0:
        return None
    ids = torch.zeros((growing, levels[0] * width), dtype=torch.int64, device=logits.device)
    parents: list[list[int]] = [[] for _ in range(growing)]
    scores = logits.new_zeros((growing, 1))  # log-probability of each open path
    logits = logits[:growing, None]
    for level in range(levels[0]):
        growing = sum(count > level for count in levels)
        made = level * width
        if level > 0:
            slices = [
                _tree_slice(one, tree, width, whole) for one, tree in zip(active, parents[:growing], strict=False)
            ]
            logits = forward(slices, ids[:growing, :made].reshape(-1)).unflatten(0, (growing, width))
            scores = scores[:growing]
        opened = range(made - width, made) if level else (-1,)
        logits = _ruled(logits, rows, ids, parents, opened)
        paths = scores[:, :, None] + logits.log_softmax(-1).to(scores.dtype)
        best = paths.flatten(1).topk(width, dim=1)
        scores = best.values
        ids[:growing, made : made + width] = best.indices % logits.shape[-1]
        branches = (best.indices // logits.shape[-1]).tolist()
        for tree, chosen in zip(parents, branches, strict=False):
            tree += [opened[branch] for branch in chosen]
    counts = [count * width for count in levels if count]
    return Proposal([one.request.request_id for one in active[: len(counts)]], counts, ids, None, parents)


def _tree_slice(one: ScheduledRequest, parents: Sequence[int], width: int, whole: bool) -> BatchSlice:
    """The last token and the tree so far; the newest level wants logits."""
    known = one.request.token_ids if whole else one.request.token_ids[-1:]
    start = one.num_drawn - len(known)
    return BatchSlice([*known, *[UNKNOWN] * len(parents)], start, one.request.block_table, width, parents)


def _ruled(
    logits: Tensor, rows: Sequence[SamplingRow], ids: Tensor, parents: Sequence[list[int]], opened: Sequence[int]
) -> Tensor:
    """Logits [S, nodes, V] after masks, bias and penalties, each node with the drafts on its path as output."""
    if not any(row.changes_logits for row in rows):
        return logits
    host_ids = ids.tolist()
    of_nodes = []
    for row, own, tree in zip(rows[: len(logits)], host_ids, parents, strict=False):
        for node in opened:
            path: list[int] = []
            while node >= 0:
                path.insert(0, own[node])
                node = tree[node]
            position, output = row.position + len(path), [*row.output_token_ids, *path]
            of_nodes.append(replace(row, position=position, output_token_ids=output))
    return apply_token_rules(logits.flatten(0, 1), of_nodes).unflatten(0, logits.shape[:2])
