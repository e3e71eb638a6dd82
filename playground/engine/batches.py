"""Lays slices of requests out as the ragged batch that a model runs: the only builder of `ModelBatch` in the engine.

Keeps nothing between calls. What only the device knows yet (tokens of a step in flight, drafts) is put in afterwards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.host import to_device
from playground.models.batch import ModelBatch

UNKNOWN = -1
"""Stands on the host for a token that only the device knows; no embedding has it, so a missed one cannot pass."""


class BatchSlice(NamedTuple):
    """Tokens [start, end) of a sequence, and how many of the last ones need logits."""

    token_ids: Sequence[int]
    """Length end - start."""
    start: int
    block_table: Sequence[int]
    num_logits: int

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


def build_batch(slices: Sequence[BatchSlice], block_size: int, device: torch.device) -> ModelBatch:
    """The batch of these slices, in order. `block_size` 0 means no cache: nothing is written anywhere."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    query_starts = [0]
    logits_rows: list[int] = []
    for one in slices:
        token_ids += one.token_ids
        positions += range(one.start, one.end)
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
    )


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
