"""Lays slices of requests out as the ragged batch that a model runs: the only builder of `ModelBatch` in the engine.

Keeps nothing between calls. What only the device knows yet (tokens of a step in flight, drafts) is put in afterwards.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.host import to_device
from kernels.paged import TREE_TOKENS
from playground.models.batch import ModelBatch, tree_masks

UNKNOWN = -1
"""Stands on the host for a token that only the device knows; no embedding has it, so a missed one cannot pass."""
NOWHERE = -1
"""The slot of a token whose KV is not kept."""


class BatchSlice(NamedTuple):
    """Tokens [start, end) of a sequence, and how many of the last ones need logits."""

    token_ids: Sequence[int]
    """Length end - start."""
    start: int
    block_table: Sequence[int]
    num_logits: int
    parents: Sequence[int] | None = None
    """Where the last tokens are a tree: the token before it, and these drafts, each after its parent."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)

    @property
    def positions(self) -> list[int]:
        """Position of each token in its sequence: in a tree, as deep as it stands."""
        if self.parents is None:
            return list(range(self.start, self.end))
        root = self.end - len(self.parents) - 1
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent + 1] + 1)
        return [*range(self.start, root), *(root + depth for depth in depths)]


def build_batch(slices: Sequence[BatchSlice], block_size: int, device: torch.device) -> ModelBatch:
    """The batch of these slices, in order. `block_size` 0 means no cache: nothing is written anywhere."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    query_starts = [0]
    logits_rows: list[int] = []
    for one in slices:
        token_ids += one.token_ids
        positions += one.positions
        if block_size:
            slots += slot_mapping(one.block_table, one.start, one.end, block_size)
        query_starts.append(len(token_ids))
        logits_rows += range(len(token_ids) - one.num_logits, len(token_ids))
    kv_lens = [one.end for one in slices]
    width = max(len(one.block_table) for one in slices)
    table = [[*one.block_table, *[0] * (width - len(one.block_table))] for one in slices]

    def tensor(values: Sequence[int] | list[list[int]], dtype: torch.dtype) -> Tensor:
        return to_device(torch.tensor(values, dtype=dtype), device)

    return ModelBatch(
        token_ids=tensor(token_ids, torch.int64),
        positions=tensor(positions, torch.int64),
        cu_seqlens_q=tensor(query_starts, torch.int32),
        kv_lens=tensor(kv_lens, torch.int32),
        block_table=tensor(table, torch.int32),
        slot_mapping=tensor(slots, torch.int64),
        logits_rows=tensor(logits_rows, torch.int64),
        query_lens=[len(one.token_ids) for one in slices],
        kv_lens_list=kv_lens,
        **_trees(slices, device),
    )


def _trees(slices: Sequence[BatchSlice], device: torch.device) -> dict[str, Any]:
    """The fields of a batch that say what its trees see; none of them without a tree."""
    if all(one.parents is None for one in slices):
        return {}
    masks: list[int] = []
    for one in slices:
        # Others are chains, which are trees too; of what is longer than a mask, or stands before a tree, none is read.
        chain = len(one.token_ids) if len(one.token_ids) <= TREE_TOKENS else 0
        own = tree_masks(range(-1, chain - 2) if one.parents is None else one.parents) if chain or one.parents else []
        masks += [0] * (len(one.token_ids) - len(own)) + own
    lens = [0 if one.parents is None else len(one.parents) + 1 for one in slices]
    return {"tree_mask": to_device(torch.tensor(masks, dtype=torch.int64), device), "tree_lens": lens}


def slot_mapping(block_table: Sequence[int], start: int, end: int, block_size: int) -> list[int]:
    """Where the KV of tokens [start, end) lies: block * block_size + offset of each."""
    if end - start == 1:
        return [block_table[start // block_size] * block_size + start % block_size]
    slots: list[int] = []
    for index in range(start // block_size, (end - 1) // block_size + 1):
        base = (block_table[index] - index) * block_size
        slots += range(base + max(start, index * block_size), base + min(end, (index + 1) * block_size))
    return slots


def put_tokens(batch: ModelBatch, places: Sequence[int], token_ids: Tensor) -> None:
    """Fill in tokens that only the device knew: `token_ids` int64 [len(places)] at these places of the batch."""
    if len(places) == len(batch.token_ids):
        batch.token_ids.copy_(token_ids)
    else:
        batch.token_ids.index_copy_(0, to_device(torch.tensor(places), token_ids.device), token_ids)
