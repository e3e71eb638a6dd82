"""Attention and the other ops of a decoder, importable alone: definitions, fast torch versions, and what runs where."""

from kernels.dispatch import Choice, explain, flash_attention, paged_attention

__all__ = ["Choice", "explain", "flash_attention", "paged_attention"]
