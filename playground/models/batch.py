"""The one thing a model forward sees: a ragged batch of query tokens with their KV positions.

Prefill chunks, decode steps and verification differ only in query length; nothing here knows of requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from playground.models.attention import BatchAttention


@dataclass(slots=True)
class ModelBatch:
    """T query tokens of S sequences, tokens-major; index tensors live on the model's device.

    Host-side copies of the lengths stand beside the tensors so that the forward never waits for the device.
    """

    token_ids: torch.Tensor
    """int64 [T]."""
    positions: torch.Tensor
    """int64 [T]: position of each token in its sequence; in a tree it follows depth, not place."""
    cu_seqlens_q: torch.Tensor
    """int32 [S + 1]: where each sequence's query tokens start."""
    kv_lens: torch.Tensor
    """int32 [S]: tokens of KV that the last query token of each sequence sees, itself counted."""
    block_table: torch.Tensor
    """int32 [S, max_blocks]: physical block of each logical block; 0 (the null block) where unused."""
    slot_mapping: torch.Tensor
    """int64 [T]: block * block_size + offset where each token's KV is written; -1 writes nothing."""
    logits_rows: torch.Tensor
    """int64 [R]: which of the T tokens need logits, ascending."""
    query_lens: list[int]
    """Length S, on the host."""
    kv_lens_list: list[int]
    """Length S, on the host."""
    tree_mask: torch.Tensor | None = None
    """int64 [T], None for a batch without trees: bit j lets a token see token j of its tree, and each sees itself.

    What stands before the tree is always seen. Rows of other sequences are causal: (1 << (i + 1)) - 1 for token i, as
    int64 has it; with more than 64 query tokens they are not looked at. See `tree_masks`."""
    tree_lens: list[int] | None = None
    """Length S, on the host, with a tree mask: how many of a sequence's last query tokens are a tree, 0 for none.

    With a KV cache a tree is all query tokens of its sequence; without one they are the whole sequence, tree last."""
    prepared: "BatchAttention | None" = None
    """Its attention, where that has been worked out beforehand: see `Decoder.steps_ahead`."""


def one_token_steps(batch: ModelBatch, slots: torch.Tensor) -> list[ModelBatch]:
    """Successive steps of the same sequences, one token each: `batch`, and so on one token further.

    `slots` int64 [K, S] says where each step writes (-1: nowhere); the block table must be wide enough for the last
    step. Only the first has its token ids: put those of the others in as they become known.
    """
    steps = range(slots.shape[0])
    further = torch.arange(len(steps), device=slots.device)[:, None]
    positions, kv_lens = (batch.positions + further).unbind(0), (batch.kv_lens + further.int()).unbind(0)
    return [
        replace(
            batch,
            positions=positions[k],
            kv_lens=kv_lens[k],
            slot_mapping=slots[k],
            kv_lens_list=[length + k for length in batch.kv_lens_list],
        )
        for k in steps
    ]


def tree_masks(parents: Sequence[int]) -> list[int]:
    """Tree masks of a sequence's last token and its drafts, as int64 has them: each sees its ancestors and itself.

    Draft i is a child of draft parents[i] < i, or of the last token where that is -1. A token stands as deep as its
    mask has ones, less one. Raises ValueError for more than 63 drafts: a mask has 64 bits.
    """
    if len(parents) > 63:
        raise ValueError(f"a tree of {len(parents)} drafts is too large: a mask tells 63 and the last token apart.")
    masks = [1]
    for number, parent in enumerate(parents, 1):
        masks.append(masks[parent + 1] | 1 << number)
    return [mask - (1 << 64) if mask >> 63 else mask for mask in masks]
