"""Attention and the other ops of a decoder, importable alone: definitions, fast torch versions, and what runs where."""

from kernels.cache_ops import copy_blocks, rope_and_write, write_kv
from kernels.dispatch import Choice, explain, flash_attention
from kernels.paged import cascade_attention, merge_state, paged_attention

__all__ = [
    "Choice",
    "cascade_attention",
    "copy_blocks",
    "explain",
    "flash_attention",
    "merge_state",
    "paged_attention",
    "rope_and_write",
    "write_kv",
]
