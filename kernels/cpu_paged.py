"""Paged attention over a ragged batch in torch calls: gather the blocks of a group, then attend to them.

A `PagedPlan` holds everything about a batch that is the same in every layer (which blocks to gather, masks, how rows
are grouped), so that a layer costs one gather of K and V and one attention call per group. Owns no cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.cpu_attention import Piece, additive_mask, attend_piece, chunk_pieces, piece_views

# One more group costs a gather and an attention call, 45 us, about what 500 padded tokens of 3 heads of 64 cost.
_GROUP_COST_TOKENS = 500
# Blocks of at least this many tokens are read in place, sequence by sequence, instead of gathered.
_LARGE_BLOCK = 256


@dataclass(slots=True)
class Group:
    """Sequences whose keys are gathered together: many of one query token each, or one of any length."""

    batch: int
    num_blocks: int
    index: Tensor | None
    """int64 [2 * batch * Hkv * num_blocks]: rows of K and V, seen as one [2 * cache blocks * Hkv, block_size * D]."""
    first_block: int
    """Where no index: the group's keys are the cache blocks [first_block, first_block + batch), used in place."""
    pieces: list[Piece] = field(default_factory=list)


class Workspace:
    """A buffer that grows and is never given back while its owner lives: no allocation per step."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def take(self, size: int, like: Tensor) -> Tensor:
        """`size` elements of the dtype and device of `like`; contents are arbitrary, the next call reuses them."""
        held = self._buffer
        if held is None or held.numel() < size or held.dtype != like.dtype or held.device != like.device:
            held = self._buffer = torch.empty(size, dtype=like.dtype, device=like.device)
        return held[:size]


def arrange(query_lens: Sequence[int], kv_lens: Sequence[int], block_size: int, window: int | None) -> list[list[int]]:
    """Sequence numbers in groups: single query tokens together where padding costs less than a call, others alone."""
    decode = [s for s, (q, kv) in enumerate(zip(query_lens, kv_lens, strict=True)) if q == 1 and kv > 0]
    spans = {s: kv_lens[s] if window is None else min(kv_lens[s], window + block_size) for s in decode}
    decode.sort(key=lambda s: -spans[s])
    groups: list[list[int]] = []
    longest = 0
    for done, sequence in enumerate(decode):
        remaining = len(decode) - done
        if not groups or (longest - spans[sequence]) * remaining > _GROUP_COST_TOKENS:
            groups.append([])
            longest = spans[sequence]
        groups[-1].append(sequence)
    for group in groups:
        group.sort()
    together = set(decode)
    return groups + [[s] for s in range(len(query_lens)) if s not in together and query_lens[s] > 0]


def token_order(groups: list[list[int]], query_lens: Sequence[int]) -> list[int] | None:
    """Token numbers in the order of the groups, or None where that is the batch's own order."""
    sequences = [s for group in groups for s in group]
    if sequences == sorted(sequences):
        return None
    starts = [0]
    for length in query_lens:
        starts.append(starts[-1] + length)
    return [token for s in sequences for token in range(starts[s], starts[s + 1])]


class PagedPlan:
    """How one ragged batch attends to a paged cache; the same for all layers with the same window.

    Query rows are expected in the order of `groups` (see `token_order`).
    """

    def __init__(
        self,
        groups: list[list[int]],
        query_lens: Sequence[int],
        kv_lens: Sequence[int],
        block_table: Tensor,
        cache_shape: Sequence[int],
        window: int | None,
        dtype: torch.dtype,
    ) -> None:
        self.cache_shape = cache_shape
        self.num_kv_heads, self.block_size = cache_shape[1], cache_shape[2]
        self.window, self.dtype, self.table = window, dtype, block_table
        self.groups: list[Group] = []
        self.num_rows = sum(query_lens)
        covered = row = 0
        for sequences in groups:
            rows = sum(query_lens[s] for s in sequences)
            if len(sequences) > 1 or rows == 1:
                added = self._decode_groups(sequences, kv_lens, row)
            else:
                added = self._chunk_group(sequences[0], rows, kv_lens[sequences[0]], row)
            self.groups += added
            covered += sum(piece.stop - piece.start for group in added for piece in group.pieces)
            row += rows
        self.complete = covered == self.num_rows
        """Whether every query row sees at least one key."""
        rows_gathered = max((g.index.shape[0] for g in self.groups if g.index is not None), default=0)
        self._scratch_size = rows_gathered * self.block_size * cache_shape[3]
        self._scratch_at = 0

    def _first(self, kv_len: int, q_len: int) -> int:
        """First block that the earliest of the last `q_len` tokens sees."""
        return 0 if self.window is None else max(0, kv_len - q_len + 1 - self.window) // self.block_size

    def _decode_groups(self, sequences: list[int], kv_lens: Sequence[int], row: int) -> list[Group]:
        size, window = self.block_size, self.window
        lens = [kv_lens[s] for s in sequences]
        if lens == [0]:
            return []
        firsts = [self._first(n, 1) for n in lens]
        blocks = [-(-n // size) - first for n, first in zip(lens, firsts, strict=True)]
        lows = [
            (0 if window is None else max(0, n - window)) - first * size for n, first in zip(lens, firsts, strict=True)
        ]
        highs = [n - first * size for n, first in zip(lens, firsts, strict=True)]
        if len(sequences) > 1 and max(blocks) == 1 and size >= _LARGE_BLOCK:
            # One large block a sequence (contiguous cache): reading in place beats one copy of everything.
            return [g for i, s in enumerate(sequences) for g in self._decode_groups([s], kv_lens, row + i)]
        group = self._gather(sequences, firsts, blocks)
        low, high = min(lows), max(highs)
        mask = None
        if len(set(lows)) > 1 or len(set(highs)) > 1:
            keys = torch.arange(low, high, device=self.table.device)
            bounds = torch.tensor([lows, highs], device=self.table.device)[:, :, None]
            mask = self._additive((keys >= bounds[0]) & (keys < bounds[1]))[:, None, None, :]
        group.pieces.append(Piece(row, row + len(sequences), low, high, mask, causal=False, packed=True))
        return [group]

    def _chunk_group(self, sequence: int, q_len: int, kv_len: int, row: int) -> list[Group]:
        row += max(0, q_len - kv_len)  # rows before the first key see nothing
        q_len = min(q_len, kv_len)
        if q_len == 0:
            return []
        first = self._first(kv_len, q_len)
        group = self._gather([sequence], [first], [-(-kv_len // self.block_size) - first])
        group.pieces = chunk_pieces(row, q_len, kv_len, first * self.block_size, self.window, self.dtype, self.table)
        return [group]

    def _gather(self, sequences: list[int], firsts: list[int], blocks: list[int]) -> Group:
        device, most = self.table.device, max(blocks)
        if len(sequences) == 1 and most == 1 and device.type == "cpu":
            return Group(1, 1, None, int(self.table[sequences[0], firsts[0]]))
        if len(sequences) == 1:
            ids = self.table[sequences[0], firsts[0] : firsts[0] + most].long()[None]
        else:
            rows = torch.tensor(sequences, device=device)[:, None]
            columns = torch.arange(most, device=device)
            counts = torch.tensor([firsts, blocks], device=device)[:, :, None]
            used = columns < counts[1]
            # Beyond a sequence's last block stands the null block, whatever the table holds there.
            ids = torch.where(used, self.table[rows, torch.where(used, columns + counts[0], 0)], 0).long()
        heads = torch.arange(self.num_kv_heads, device=device)[:, None]
        index = (ids[:, None, :] * self.num_kv_heads + heads).reshape(-1)
        index = torch.cat((index, index + self.cache_shape[0] * self.num_kv_heads))
        return Group(len(sequences), most, index, 0)

    def _additive(self, seen: Tensor) -> Tensor:
        return additive_mask(seen, self.dtype)

    def attend(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        scale: float,
        workspace: Workspace,
        pages: Tensor | None = None,
        naive: bool = False,
        softcap: float | None = None,
        scales: tuple[Tensor, Tensor] | None = None,
        lse: Tensor | None = None,
    ) -> Tensor:
        """q [T, Hq, D] in group order -> [T, Hq, D]; fills `lse` [T, Hq] (base 2) where given.

        `pages` is both caches as one [2 * num_blocks * Hkv, block_size * D], where they lie in one piece of memory:
        then one call gathers both.
        """
        out: Tensor | None = None
        if not (self.complete and len(self.groups) == 1 and len(self.groups[0].pieces) == 1):
            make = torch.empty if self.complete else torch.zeros
            out = make(q.shape, dtype=q.dtype, device=q.device)
        scratch = workspace.take(self._scratch_size, k_cache)
        if scratch.data_ptr() != self._scratch_at:  # another plan made the workspace grow since the last layer
            self._scratch_at = scratch.data_ptr()
            for group in self.groups:
                for piece in group.pieces:
                    piece.views = None
        for group in self.groups:
            k, v = self._keys_and_values(group, k_cache, v_cache, pages, scratch)
            steady = group.index is not None and scales is None and k.dtype == q.dtype
            if not steady:
                k = _dequantize(k, self._scales(group, scales, 0), q.dtype)
                v = _dequantize(v, self._scales(group, scales, 1), q.dtype)
            for piece in group.pieces:
                views = piece.views or piece_views(k, v, piece, q.shape[1])
                if steady:
                    piece.views = views
                part, part_lse = attend_piece(q, *views, piece, scale, naive, softcap, lse is not None)
                if lse is not None and part_lse is not None:
                    lse[piece.start : piece.stop] = part_lse
                if out is None:
                    return part
                out[piece.start : piece.stop] = part
        assert out is not None
        return out

    def _keys_and_values(
        self, group: Group, k_cache: Tensor, v_cache: Tensor, pages: Tensor | None, scratch: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The group's keys and values, each [batch, Hkv, num_blocks * block_size, D], as stored."""
        if group.index is None:
            blocks = slice(group.first_block, group.first_block + group.batch)
            return k_cache[blocks], v_cache[blocks]
        _, heads, size, dim = self.cache_shape
        count = group.index.shape[0]
        gathered = scratch[: count * size * dim].view(count, size * dim)
        if pages is not None:
            torch.index_select(pages, 0, group.index, out=gathered)
        else:
            index = group.index[: count // 2]
            for half, cache in zip(gathered.chunk(2), (k_cache, v_cache), strict=True):
                torch.index_select(cache.reshape(-1, size * dim), 0, index, out=half)
        k, v = gathered.view(2, group.batch, heads, group.num_blocks * size, dim).unbind(0)
        return k, v

    def _scales(self, group: Group, scales: tuple[Tensor, Tensor] | None, side: int) -> Tensor | None:
        """Scales of the group's keys (0) or values (1), [batch, Hkv, num_blocks * block_size]."""
        if scales is None:
            return None
        if group.index is None:
            return scales[side][group.first_block : group.first_block + group.batch]
        _, heads, size, _ = self.cache_shape
        index = group.index[: group.index.shape[0] // 2]
        return scales[side].reshape(-1, size).index_select(0, index).view(group.batch, heads, -1)


def _dequantize(pages: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    if scales is not None:
        return (pages.float() * scales[..., None].float()).to(dtype)
    return pages if pages.dtype == dtype else pages.to(dtype)
