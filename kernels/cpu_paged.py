"""Paged attention over a ragged batch in torch calls: gather the blocks of a group, then attend to them.

A `PagedPlan` holds everything about a batch that is the same in every layer (which blocks to gather, masks, how rows
are grouped), so that a layer costs one gather of K and V and one attention call per group. Owns no cache.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.cpu_attention import (
    TREE_TOKENS,
    Piece,
    additive_mask,
    attend_piece,
    chunk_pieces,
    piece_views,
    seen_by_last,
    tree_piece,
)
from kernels.kv_codes import PageLayout, dequantize_kv

# One more group costs a gather and an attention call, 45 us, about what 500 padded tokens of 3 heads of 64 cost. A step
# of 16 mixed sequences of 2 heads of 32 takes 9.3 ms where 500 tokens are taken for that, 8.4 from 1,000 on.
_GROUP_COST_NUMBERS = 500 * 3 * 64
# Sequences of up to as many query tokens are batched, all heads of a group as query rows: 5 tokens of 32 heads over 8
# of 128, context 1000, take 1.6 ms so and 3.1 ms head by head. From 32 on that gains little, and the mask grows.
_BATCHED_QUERIES = 16
# Blocks of at least this many tokens are read in place, sequence by sequence, instead of gathered.
_LARGE_BLOCK = 256


@dataclass(slots=True)
class Group:
    """Sequences whose keys are gathered together: several of equally few query tokens, or one of any number."""

    batch: int
    num_blocks: int
    index: Tensor | None
    """int64 [2 * batch * Hkv * num_blocks]: rows of K and V, seen as one [2 * cache blocks * Hkv, block_size * D]."""
    first_block: int
    """Where no index: the group's keys are the cache blocks [first_block, first_block + batch), used in place."""
    pieces: list[Piece] = field(default_factory=list)
    rows: Tensor | None = None
    """Scratch memory for the rows of `index`."""
    kv: tuple[Tensor, Tensor] | None = None
    """K and V in scratch memory, [batch, Hkv, num_blocks * block_size, D]: as gathered, or in the queries' dtype."""
    conversion: tuple[Tensor, Tensor | None, Tensor] | None = None
    """What `dequantize_kv` takes to make `kv` of `rows`, where that is not the same memory."""


class Workspace:
    """A buffer a dtype that grows and is never given back while its owner lives: no allocation per step."""

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, Tensor] = {}

    def take(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`size` elements of this dtype; contents are arbitrary, the next call for it reuses them."""
        held = self._buffers.get(dtype)
        if held is None or held.numel() < size or held.device != device:
            held = self._buffers[dtype] = torch.empty(size, dtype=dtype, device=device)
        return held[:size]


def arrange(
    query_lens: Sequence[int], kv_lens: Sequence[int], block_size: int, window: int | None, kv_width: int
) -> list[list[int]]:
    """Sequence numbers in groups: equally few query tokens together where padding costs less than a call, others alone.

    Groups of single tokens come first. A key is `kv_width` numbers, of all KV heads together.
    """
    if len(query_lens) == 1:
        return [[0]] if query_lens[0] > 0 else []
    batched = [
        s for s, (q, kv) in enumerate(zip(query_lens, kv_lens, strict=True)) if 0 < q <= _BATCHED_QUERIES and kv >= q
    ]
    spans = {s: kv_lens[s] if window is None else min(kv_lens[s], window + block_size) for s in batched}
    batched.sort(key=lambda s: (query_lens[s], -spans[s]))
    groups: list[list[int]] = []
    queries = longest = 0
    for done, sequence in enumerate(batched):
        remaining = len(batched) - done
        padding = (longest - spans[sequence]) * remaining * queries * kv_width
        if query_lens[sequence] != queries or padding > _GROUP_COST_NUMBERS:
            groups.append([])
            queries, longest = query_lens[sequence], spans[sequence]
        groups[-1].append(sequence)
    for group in groups:
        group.sort()
    together = set(batched)
    groups += [[s] for s in range(len(query_lens)) if s not in together and query_lens[s] > 0]
    singles = [group for group in groups if query_lens[group[0]] == 1]
    return singles + sorted(group for group in groups if query_lens[group[0]] != 1)


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

    Query rows are expected in the order of `groups` (see `token_order`) and in `dtype`, and so is `tree_mask`, int64
    [T] as in `kernels.paged_attention`. Caches are of the shape and type of `k_cache`. A batch of single tokens may be
    planned for several `steps`, in each of which every sequence is one token longer: the keys to gather are then found
    once.
    """

    def __init__(
        self,
        groups: list[list[int]],
        query_lens: Sequence[int],
        kv_lens: Sequence[int],
        block_table: Tensor,
        k_cache: Tensor,
        window: int | None,
        dtype: torch.dtype,
        num_heads: int,
        *,
        tree_mask: Tensor | None = None,
        steps: int = 1,
    ) -> None:
        self.num_blocks, self.num_kv_heads, self.block_size, head_dim = k_cache.shape
        self.layout = PageLayout(self.block_size, head_dim, k_cache.dtype)
        self.converts = k_cache.dtype != dtype
        self.heads_per_group = num_heads // self.num_kv_heads
        self.window, self.dtype, self.table, self.tree_mask = window, dtype, block_table, tree_mask
        self.num_rows = sum(query_lens)
        self.steps: list[list[Group]] = [[] for _ in range(steps)]
        """The groups of each step; only their pieces differ."""
        row = 0
        for sequences in groups:
            queries, lens = query_lens[sequences[0]], [kv_lens[s] for s in sequences]
            if queries <= _BATCHED_QUERIES and min(lens) >= queries:
                self._add_batched(sequences, queries, lens, row)
            else:
                self.steps[0] += self._chunk_group(sequences[0], queries, lens[0], row)
            row += queries * len(sequences)
        covered = sum(piece.stop - piece.start for group in self.steps[0] for piece in group.pieces)
        self.complete = covered == self.num_rows
        """Whether every query row sees at least one key."""
        self._rows_gathered = max((g.index.shape[0] for g in self.steps[0] if g.index is not None), default=0)
        self._numbers = 2 * k_cache[0].numel() * max((g.batch * g.num_blocks for g in self.steps[0]), default=0)
        self._laid_out: tuple[int, ...] = ()

    def _first(self, kv_len: int, q_len: int) -> int:
        """First block that the earliest of the last `q_len` tokens sees."""
        return 0 if self.window is None else max(0, kv_len - q_len + 1 - self.window) // self.block_size

    def _add_batched(self, sequences: list[int], queries: int, lens: list[int], row: int) -> None:
        """Sequences of equally few query tokens, as one group in each step."""
        size, further = self.block_size, len(self.steps) - 1
        firsts = [self._first(n, queries) for n in lens]
        blocks = [-(-(n + further) // size) - first for n, first in zip(lens, firsts, strict=True)]
        if len(sequences) > 1 and max(blocks) == 1 and size >= _LARGE_BLOCK:
            # One large block a sequence (contiguous cache): reading in place beats one copy of everything.
            for i, (sequence, length) in enumerate(zip(sequences, lens, strict=True)):
                self._add_batched([sequence], queries, [length], row + i * queries)
            return
        group = self._gather(sequences, firsts, blocks)
        # Query tokens of each sequence start here, counted from its first gathered key.
        contexts = [n - queries - first * size for n, first in zip(lens, firsts, strict=True)]
        for groups, piece in zip(self.steps, self._batched_pieces(contexts, queries, row), strict=True):
            groups.append(Group(group.batch, group.num_blocks, group.index, group.first_block, [piece]))

    def _batched_pieces(self, contexts: list[int], queries: int, row: int) -> list[Piece]:
        """The piece of each step, in each of which contexts are one token longer."""
        steps, rows, window = len(self.steps), queries * len(contexts), self.window
        lows = [0 if window is None else max(0, min(contexts) + step + 1 - window) for step in range(steps)]
        highs = [max(contexts) + step + queries for step in range(steps)]
        masks: list[Tensor | None] = [None] * steps
        if queries > 1 or len(set(contexts)) > 1:
            device, low = self.table.device, lows[0]
            starts = torch.tensor([[n + step for n in contexts] for step in range(steps)], device=device)
            among = torch.arange(low, highs[-1], device=device) - starts[:, :, None, None]
            tree = None if self.tree_mask is None else self.tree_mask[row : row + rows].view(-1, queries)
            mask = additive_mask(seen_by_last(among, queries, window, tree), self.dtype)[:, :, None]
            if queries > 1:
                mask = mask.repeat_interleave(self.heads_per_group, 3)
            masks = [mask[step, ..., lows[step] - low : highs[step] - low] for step in range(steps)]
        return [
            Piece(row, row + rows, low, high, mask, causal=False, packed=queries)
            for low, high, mask in zip(lows, highs, masks, strict=True)
        ]

    def _chunk_group(self, sequence: int, q_len: int, kv_len: int, row: int) -> list[Group]:
        tree = self.tree_mask if q_len <= min(kv_len, TREE_TOKENS) else None
        row += max(0, q_len - kv_len)  # rows before the first key see nothing
        q_len = min(q_len, kv_len)
        if q_len == 0:
            return []
        first = self._first(kv_len, q_len)
        group = self._gather([sequence], [first], [-(-kv_len // self.block_size) - first])
        shape = (row, q_len, kv_len, first * self.block_size, self.window, self.dtype)
        if tree is not None:
            group.pieces = [tree_piece(*shape, tree[row : row + q_len])]
        else:
            group.pieces = chunk_pieces(*shape, self.table)
        return [group]

    def _gather(self, sequences: list[int], firsts: list[int], blocks: list[int]) -> Group:
        device, most = self.table.device, max(blocks)
        if len(sequences) == 1 and most == 1 and device.type == "cpu":
            return Group(1, 1, None, int(self.table[sequences[0], firsts[0]]))
        begin, end = sequences[0], sequences[-1] + 1
        # Beyond a sequence's last block stands the null block, whatever the table holds there.
        if end - begin == len(sequences) and not any(firsts):
            ids = self.table[begin:end, :most]
            if min(blocks) < most:
                counts = torch.tensor(blocks, device=device)[:, None]
                ids = ids * (torch.arange(most, device=device) < counts)
        elif len(sequences) == 1:
            ids = self.table[begin:end, firsts[0] : firsts[0] + most]
        else:
            rows = torch.tensor(sequences, device=device)[:, None]
            columns = torch.arange(most, device=device)
            limits = torch.tensor([firsts, blocks], device=device)[:, :, None]
            used = columns < limits[1]
            ids = torch.where(used, self.table[rows, torch.where(used, columns + limits[0], 0)], 0)
        first_rows = _first_rows(self.num_blocks, self.num_kv_heads, device)
        index = torch.add(first_rows, ids[:, None, :], alpha=self.num_kv_heads).view(-1)
        return Group(len(sequences), most, index, 0)

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
        step: int = 0,
    ) -> Tensor:
        """q [T, Hq, D] in group order -> [T, Hq, D]; fills `lse` [T, Hq] (base 2) where given.

        `scales` are those of quantized keys and values, see `kernels.kv_codes`. `pages` is both caches as one
        [2 * num_blocks * Hkv, width], scales included as `PageLayout` has them, where they lie in one piece of memory:
        then one call gathers everything.
        """
        out: Tensor | None = None
        groups = self.steps[step]
        if not (self.complete and len(groups) == 1 and len(groups[0].pieces) == 1):
            make = torch.empty if self.complete else torch.zeros
            out = make(q.shape, dtype=q.dtype, device=q.device)
        self._lay_out(workspace, q, with_scales=scales is not None)
        for group in groups:
            if group.rows is not None:
                self._gather_rows(group, (k_cache, v_cache), pages, scales)
            steady = group.kv is not None
            blocks = slice(group.first_block, group.first_block + group.batch)
            if group.conversion is not None:
                dequantize_kv(*group.conversion)
            elif self.converts:
                _convert_in_place(group, blocks, (k_cache, v_cache), scales)
            k, v = group.kv or (k_cache[blocks], v_cache[blocks])
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

    def _lay_out(self, workspace: Workspace, q: Tensor, *, with_scales: bool) -> None:
        """Where each group's keys and values go in scratch memory, of which one group uses all at a time."""
        layout, converts = self.layout, self.converts
        rows = workspace.take(self._rows_gathered * layout.width, layout.stored, q.device)
        wide = workspace.take(self._numbers, q.dtype, q.device) if converts else rows
        place = (rows.data_ptr(), wide.data_ptr())
        if place == self._laid_out:
            return
        self._laid_out = place  # another plan made the workspace grow since the last layer
        heads, size, dim = self.num_kv_heads, layout.block_size, layout.head_dim
        for group in (group for groups in self.steps for group in groups):
            for piece in group.pieces:
                piece.views = None
            shape = (2, group.batch, heads, group.num_blocks)
            if group.index is not None or converts:
                kv = wide[: math.prod(shape) * size * dim].view(*shape, size, dim)
                k, v = kv.flatten(3, 4).unbind(0)
                group.kv = k, v
            if group.index is not None:
                count = group.index.shape[0]
                group.rows = rows[: count * layout.width].view(count, layout.width)
                if converts:
                    pages = group.rows.view(*shape, layout.width)
                    group.conversion = layout.numbers(pages), layout.scales(pages) if with_scales else None, kv

    def _gather_rows(
        self,
        group: Group,
        caches: tuple[Tensor, Tensor],
        pages: Tensor | None,
        scales: tuple[Tensor, Tensor] | None,
    ) -> None:
        """Copy the group's pages to its scratch memory, with the scales that belong to them."""
        assert group.index is not None and group.rows is not None
        if pages is not None:
            torch.index_select(pages, 0, group.index, out=group.rows)
            return
        index = group.index[: group.index.shape[0] // 2]
        for side, half in enumerate(group.rows.chunk(2)):
            torch.index_select(caches[side].flatten(0, 1), 0, index, out=self.layout.numbers(half))
            if scales is not None and (place := self.layout.scales(half)) is not None:
                torch.index_select(scales[side].flatten(0, 1), 0, index, out=place)


def _convert_in_place(
    group: Group, blocks: slice, caches: tuple[Tensor, Tensor], scales: tuple[Tensor, Tensor] | None
) -> None:
    """Fill the group's keys and values, those that its pieces look at, from blocks that are not gathered."""
    assert group.kv is not None
    low, high = min(piece.low for piece in group.pieces), max(piece.high for piece in group.pieces)
    for side, out in enumerate(group.kv):
        scale = None if scales is None else scales[side][blocks, :, low:high]
        dequantize_kv(caches[side][blocks, :, low:high], scale, out[:, :, low:high])


@functools.lru_cache(maxsize=64)
def _first_rows(num_blocks: int, num_kv_heads: int, device: torch.device) -> Tensor:
    """int64 [2, 1, Hkv, 1]: where the heads of block 0 lie among the rows of K and of V."""
    heads = torch.arange(num_kv_heads, device=device)
    return torch.stack((heads, heads + num_blocks * num_kv_heads))[:, None, :, None]
