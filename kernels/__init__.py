"""Attention and the other ops of a decoder, importable alone: definitions, fast torch versions, and what runs where."""

from kernels.cache_ops import copy_blocks, rope_and_write, write_kv
from kernels.dispatch import Choice, explain
from kernels.flash import flash_attention, flash_attention_varlen
from kernels.paged import cascade_attention, merge_state, paged_attention
from kernels.quant_pack import PackedWeight
from kernels.rejection import Drafts, verify
from kernels.row_parameters import RowParameters
from kernels.sampling import probabilities, sample
from kernels.small_ops import gated_activation, layer_norm, quant_linear, rms_norm, rope, swiglu

__all__ = [
    "Choice",
    "Drafts",
    "PackedWeight",
    "RowParameters",
    "cascade_attention",
    "copy_blocks",
    "explain",
    "flash_attention",
    "flash_attention_varlen",
    "gated_activation",
    "layer_norm",
    "merge_state",
    "paged_attention",
    "probabilities",
    "quant_linear",
    "rms_norm",
    "rope",
    "rope_and_write",
    "sample",
    "swiglu",
    "verify",
    "write_kv",
]
