"""The one thing a model forward sees: a ragged batch of query tokens with their KV positions.

Prefill chunks, decode steps and (later) verification differ only in query length; nothing here knows of requests.
"""

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class ModelBatch:
    """T query tokens of S sequences, tokens-major; index tensors live on the model's device.

    Host-side copies of the lengths stand beside the tensors so that the forward never waits for the device.
    """

    token_ids: torch.Tensor
    """int64 [T]."""
    positions: torch.Tensor
    """int64 [T]: position of each token in its sequence."""
    cu_seqlens_q: torch.Tensor
    """int32 [S + 1]: where each sequence's query tokens start."""
    kv_lens: torch.Tensor
    """int32 [S]: tokens of KV that the last query token of each sequence sees, itself counted."""
    block_table: torch.Tensor
    """int32 [S, max_blocks]: physical block of each logical block; 0 (the null block) where unused."""
    slot_mapping: torch.Tensor
    """int64 [T]: block * block_size + offset where each token's KV is written; -1 writes nothing."""
    logits_rows: torch.Tensor
    """int64 [R]: which of the T tokens need logits."""
    query_lens: list[int]
    """Length S, on the host."""
    kv_lens_list: list[int]
    """Length S, on the host."""
