"""Attention in torch calls, piece by piece: query rows against a range of keys. Fast on a CPU, correct on any device.

The query heads that share a KV head are packed into the query length or read the same keys through a stride of zero;
keys are never repeated. The paged form is in `cpu_paged`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LOG2E = math.log2(math.e)
TREE_TOKENS = 64
"""Query tokens of a sequence that a tree mask can tell apart: the bits of an int64."""
# Rows of queries that share one explicit mask: bounds its size and skips the keys that no row of the piece sees.
_MASKED_ROWS = 256
# Sequences in a packed piece from which two batched products beat torch's flash attention in float32: 16 sequences of 3
# KV heads of 64 and 144 tokens take 83 us and 186, 4 of them 19 and 99, one 29 and 32. Bfloat16 would round the scores.
_BATCH_BY_PRODUCTS = 4


@dataclass(slots=True)
class Piece:
    """Query rows [start, stop) against keys [low, high) of their group."""

    start: int
    stop: int
    low: int
    high: int
    mask: Tensor | None
    """Added to the scores; broadcasts to [batch, 1, query rows, high - low]."""
    causal: bool
    packed: int = 0
    """So many queries of each of a batch of sequences: the heads of a group are further query rows. 0: one sequence."""
    views: tuple[Tensor, Tensor] | None = None
    """K and V as attention takes them, where they lie in the same scratch memory in every layer."""


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen, -inf elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)


def seen_by_last(among: Tensor, queries: int, window: int | None, tree: Tensor | None) -> Tensor:
    """bool [..., queries, keys]: what each of a sequence's last tokens sees of the keys `among` [..., 1, keys].

    Keys are counted from the first of these tokens, negative before it. Causal without `tree`; int64 `tree`
    [..., queries] has one mask a token: bit j shows it the token j, and it stands as deep as it sees tokens, which is
    what `window` counts. No window may be narrower than a tree is deep.
    """
    if tree is None:
        depth = torch.arange(queries, device=among.device)[:, None]
        seen = among <= depth
    else:
        bits = (tree[..., None] >> among.clamp(0, TREE_TOKENS - 1)) & 1 == 1
        seen = ((among < 0) | bits) & (among < queries)
    if window is not None:
        if tree is not None:
            every_bit = torch.arange(TREE_TOKENS, device=tree.device)
            depth = ((tree[..., None] >> every_bit) & 1).sum(-1, keepdim=True) - 1
        seen &= among > depth - window
    return seen


def tree_piece(
    row: int,
    q_len: int,
    kv_len: int,
    offset: int,
    window: int | None,
    dtype: torch.dtype,
    tree: Tensor,
) -> Piece:
    """The piece for the last `q_len` of `kv_len` tokens as a tree, int64 [q_len] as in `seen_by_last`."""
    context = kv_len - q_len
    low = 0 if window is None else max(0, context + 1 - window)
    among = torch.arange(low - context, q_len, device=tree.device)[None]
    mask = additive_mask(seen_by_last(among, q_len, window, tree), dtype)[None, None]
    return Piece(row, row + q_len, low - offset, kv_len - offset, mask, False)


def chunk_pieces(
    row: int,
    q_len: int,
    kv_len: int,
    offset: int,
    window: int | None,
    dtype: torch.dtype,
    like: Tensor,
    causal: bool = True,
) -> list[Piece]:
    """Pieces for the last `q_len` of `kv_len` tokens, with keys counted from position `offset`."""
    if window is not None and window >= kv_len:
        window = None
    if window is None and (q_len == kv_len or not causal):
        return [Piece(row, row + q_len, 0, kv_len - offset, None, causal)]
    pieces = []
    for start in range(0, q_len, _MASKED_ROWS):
        stop = min(start + _MASKED_ROWS, q_len)
        first, last = kv_len - q_len + start, kv_len - q_len + stop - 1  # positions of the piece's queries
        low = 0 if window is None else max(0, first + 1 - window)
        high = last + 1 if causal else kv_len
        positions = torch.arange(first, last + 1, device=like.device)[:, None]
        keys = torch.arange(low, high, device=like.device)
        seen = (
            keys <= positions if causal else torch.ones(stop - start, high - low, dtype=torch.bool, device=like.device)
        )
        if window is not None:
            seen &= keys > positions - window
        mask = additive_mask(seen, dtype)[None, None]
        pieces.append(Piece(row + start, row + stop, low - offset, high - offset, mask, False))
    return pieces


def piece_views(k: Tensor, v: Tensor, piece: Piece, num_heads: int) -> tuple[Tensor, Tensor]:
    """The piece's keys and values, from [batch, Hkv, S, D].

    Packed pieces take them as they are. One sequence with many queries: KV heads take the batch's place and the heads
    of a group all read the same keys.
    """
    if piece.low != 0 or piece.high != k.shape[2]:
        k, v = k[:, :, piece.low : piece.high], v[:, :, piece.low : piece.high]
    if piece.packed:
        return k, v
    shape = (k.shape[1], num_heads // k.shape[1], k.shape[2], k.shape[3])
    return k[0, :, None].expand(shape), v[0, :, None].expand(shape)


def attend_piece(
    q: Tensor, k: Tensor, v: Tensor, piece: Piece, scale: float, naive: bool, softcap: float | None, want_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """One attention call: q [T, Hq, D], k and v from `piece_views` -> [rows, Hq, D] and the base-2 lse [rows, Hq]."""
    rows, heads, dim = piece.stop - piece.start, q.shape[1], q.shape[2]
    if rows != q.shape[0]:
        q = q[piece.start : piece.stop]
    if piece.packed:
        batch, kv_heads, group = k.shape[0], k.shape[1], heads // k.shape[1]
        if piece.packed == 1:
            q = q.view(batch, kv_heads, group, dim)
        else:
            q = q.view(batch, piece.packed, kv_heads, group, dim).transpose(1, 2).flatten(2, 3)
    else:
        q = q.view(rows, k.shape[0], k.shape[1], dim).permute(1, 2, 0, 3)
    lse: Tensor | None = None
    if naive or softcap is not None or (want_lse and q.device.type != "cpu"):
        out, lse = materialised(q, k, v, piece, scale, softcap)
    elif want_lse:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, piece.causal, attn_mask=piece.mask, scale=scale
        )
        lse = lse * LOG2E
    elif piece.packed and batch >= _BATCH_BY_PRODUCTS and q.dtype == torch.float32 and q.device.type == "cpu":
        scores = torch.matmul(q * scale, k.transpose(-1, -2))
        if piece.mask is not None:
            scores += piece.mask
        out = torch.matmul(torch.softmax(scores, dim=-1), v)
    else:
        out = F.scaled_dot_product_attention(q, k, v, piece.mask, 0.0, piece.causal, scale=scale)
    if piece.packed > 1:
        out = out.view(batch, kv_heads, piece.packed, group, dim).transpose(1, 2)
        lse = None if lse is None else lse.view(batch, kv_heads, piece.packed, group).transpose(1, 2)
    if piece.packed:
        return out.reshape(rows, heads, dim), None if lse is None else lse.reshape(rows, heads)
    out = out.permute(2, 0, 1, 3).reshape(rows, heads, dim)
    return out, None if lse is None else lse.permute(2, 0, 1).reshape(rows, heads)


def materialised(
    q: Tensor, k: Tensor, v: Tensor, piece: Piece, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Standard attention: the whole score matrix in memory, softmax over it, then the values."""
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if piece.mask is not None:
        scores = scores + piece.mask
    if piece.causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(ahead, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    return torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v), lse * LOG2E


def varlen_pieces(
    query_lens: Sequence[int],
    window: int | None,
    dtype: torch.dtype,
    like: Tensor,
    tree_mask: Tensor | None = None,
    tree_lens: Sequence[int] | None = None,
) -> list[list[Piece]]:
    """Pieces per sequence where a batch holds whole sequences and attends to its own keys.

    `tree_lens` says how many of each sequence's last tokens are a tree; their rows of `tree_mask` int64 [T] count them
    from the first of it.
    """
    result, row = [], 0
    for number, length in enumerate(query_lens):
        in_tree = 0 if tree_lens is None else tree_lens[number]
        before = length - in_tree
        pieces = chunk_pieces(row, before, before, 0, window, dtype, like) if before else []
        row += length
        if tree_mask is not None and in_tree:
            tree = tree_mask[row - in_tree : row]
            pieces.append(tree_piece(row - in_tree, in_tree, length, 0, window, dtype, tree))
        result.append(pieces)
    return result


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, pieces: list[list[Piece]], query_lens: Sequence[int], scale: float, naive: bool
) -> Tensor:
    """Causal attention inside each sequence: q [T, Hq, D], k and v [T, Hkv, D] -> [T, Hq, D]."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    row = 0
    for length, parts in zip(query_lens, pieces, strict=True):
        own_k, own_v = (t[row : row + length].transpose(0, 1)[None] for t in (k, v))
        for piece in parts:
            views = piece_views(own_k, own_v, piece, q.shape[1])
            out[piece.start : piece.stop] = attend_piece(q, *views, piece, scale, naive, None, False)[0]
        row += length
    return out


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
    want_lse: bool,
    naive: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of [B, Sq, Hq, D] over [B, Sk, Hkv, D]; see `kernels.flash_attention`."""
    batch, q_len, heads, _ = q.shape
    kv_len = k.shape[1]
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.full((batch, q_len, heads), -math.inf, dtype=wide, device=q.device) if want_lse else None
    unseen = max(0, q_len - kv_len) if causal else 0  # rows before the first key
    rows = q_len - unseen
    if rows == 0 or kv_len == 0:
        return out, lse
    pieces = chunk_pieces(unseen, rows, kv_len, 0, window, q.dtype, q, causal)
    for b in range(batch):
        keys, values = (t[b].transpose(0, 1)[None] for t in (k, v))
        for piece in pieces:
            views = piece_views(keys, values, piece, heads)
            part, part_lse = attend_piece(q[b], *views, piece, scale, naive, softcap, want_lse)
            out[b, piece.start : piece.stop] = part
            if lse is not None and part_lse is not None:
                lse[b, piece.start : piece.stop] = part_lse
    return out, lse
