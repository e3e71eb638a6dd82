"""What every op means: short definitions in plain torch, computed in float64 or float32, slow and clear.

These are the oracle that the fast versions are tested against. Nothing here is tuned and nothing is in place except
the cache write, whose result is its effect.
"""

import math

import torch
from torch import Tensor

LOG2E = math.log2(math.e)


def wide(x: Tensor) -> Tensor:
    """The dtype that definitions compute in: float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of `wide`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, weight: Tensor, eps: float, gemma: bool = False) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Gemma: 1 + weight) over the last dimension."""
    y = wide(x)
    y = y / torch.sqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * (wide(weight) + gemma)).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension."""
    y = wide(x)
    y = y - y.mean(-1, keepdim=True)
    y = y / torch.sqrt(y.square().mean(-1, keepdim=True) + eps) * wide(weight)
    return (y if bias is None else y + wide(bias)).to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate pairs of the first R dimensions of x [T, H, D] by the angles of cos, sin [T, R/2]; the rest stays.

    The pairs are (i, i + R/2), or (2 i, 2 i + 1) when interleaved.
    """
    rotary = 2 * cos.shape[-1]
    turned, rest = wide(x)[..., :rotary], wide(x)[..., rotary:]
    c, s = wide(cos)[:, None, :], wide(sin)[:, None, :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * c - b * s, b * c + a * s), dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat((a * c - b * s, b * c + a * s), dim=-1)
    return torch.cat((turned, rest), dim=-1).to(x.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, for gate_up [..., 2 N] with the gates first."""
    gate, up = wide(gate_up).chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def gated_activation(gate_up: Tensor, activation: str) -> Tensor:
    """act(gate) * up, for gate_up [..., 2 N] with the gates first; act is "silu" or "gelu" in its tanh form."""
    if activation == "silu":
        return swiglu(gate_up)
    gate, up = wide(gate_up).chunk(2, dim=-1)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return (0.5 * gate * (1 + torch.tanh(inner)) * up).to(gate_up.dtype)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Write k, v [T, Hkv, D] to slots (block * block_size + offset) of the caches, in place; -1 writes nothing."""
    scatter_slots(saturated(k, k_cache.dtype), k_cache, slot_mapping)
    scatter_slots(saturated(v, v_cache.dtype), v_cache, slot_mapping)


def scatter_slots(x: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    """Write x [T, Hkv, ...] to slots of the cache [num_blocks, Hkv, block_size, ...], in place; -1 writes nothing."""
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            cache[slot // cache.shape[2], :, slot % cache.shape[2]] = x[token]


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another dtype; float8 e4m3 saturates at 448."""
    return wide(x).clamp(-448.0, 448.0).to(dtype) if dtype == torch.float8_e4m3fn else x.to(dtype)


def kv_scale(byte: Tensor) -> Tensor:
    """What a code is worth, float64 of any shape, by the byte of its scale, uint8: five bits exponent, three mantissa.

    2^(e - 23) (1 + m / 8), and 2^-22 m / 8 where e is 0, and infinity or NaN where it is 31: as float16 has it, by 256.
    """
    exponent, mantissa = (byte >> 3).double(), (byte & 7).double() / 8
    value = torch.where(exponent == 0, 2.0**-22 * mantissa, torch.exp2(exponent - 23) * (1 + mantissa))
    return torch.where(exponent == 31, torch.where(mantissa == 0, math.inf, math.nan), value)


def quantize_kv(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """int8 or float8 codes of x [T, Hkv, D], and the bytes of their scales [T, Hkv].

    The scale is the smallest above zero of which 127 int8 codes, or 448 in float8, reach max|x|; or else infinity.
    """
    y = wide(x)
    largest = y.abs().amax(-1, keepdim=True).float()
    reaches = kv_scale(torch.arange(1, 248, device=x.device)) * (127.0 if dtype == torch.int8 else 448.0)
    byte = (1 + (~(largest <= reaches)).sum(-1)).to(torch.uint8)
    codes = y / kv_scale(byte)[..., None].to(y.dtype)
    return codes.round().to(dtype) if dtype == torch.int8 else saturated(codes, dtype), byte


def norm_rope(
    q: Tensor,
    k: Tensor,
    rope_tables: tuple[Tensor, Tensor, Tensor] | None,
    interleaved: bool,
    qk_norm: Tensor | None,
    norm_eps: float,
) -> tuple[Tensor, Tensor]:
    """RMS norm over each head, then rotation at (positions, cos, sin); q and k [T, H, D] come back wide."""
    results = []
    for x, weight in ((q, slice(0, q.shape[1])), (k, slice(q.shape[1], None))):
        y = wide(x)
        if qk_norm is not None:
            y = y / torch.sqrt(y.square().mean(-1, keepdim=True) + norm_eps) * wide(qk_norm[weight])
        if rope_tables is not None:
            positions, cos, sin = rope_tables
            y = rope(y, cos[positions], sin[positions], interleaved)
        results.append(y)
    return results[0], results[1]


def visible(q_len: int, kv_len: int, causal: bool, window: int | None, device: torch.device | None = None) -> Tensor:
    """bool [q_len, kv_len]: which keys each query sees; the last query stands at the last key (bottom-right)."""
    q_pos = torch.arange(q_len, device=device)[:, None] + (kv_len - q_len)
    k_pos = torch.arange(kv_len, device=device)[None, :]
    seen = torch.ones(q_len, kv_len, dtype=torch.bool, device=device)
    if causal:
        seen &= k_pos <= q_pos
    if window is not None:
        seen &= k_pos > q_pos - window
    return seen


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T scale) v, where `seen`; q [Sq, Hq, D], k and v [Sk, Hkv, D] -> out, base-2 lse [Sq, Hq].

    `sinks` [Hq] is one more logit per head with a value of zero: it joins the denominator (and the lse) only. A query
    that sees nothing gives zeros and an lse of -inf (its sink, where there is one).
    """
    group = q.shape[1] // k.shape[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide_k, wide_v = (wide(t).repeat_interleave(group, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", wide(q), wide_k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    probs = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0)[..., None])
    out = torch.einsum("hqk,khd->qhd", probs, wide_v)
    return out.to(q.dtype), lse.transpose(0, 1) * LOG2E


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Dense attention, q [B, Sq, Hq, D], k and v [B, Sk, Hkv, D]; returns out and the base-2 lse [B, Sq, Hq]."""
    seen = visible(q.shape[1], k.shape[1], causal, window, q.device)
    pairs = [attention(q[b], k[b], v[b], seen, scale, softcap, sinks) for b in range(q.shape[0])]
    if not pairs:
        return torch.empty_like(q), wide(q.new_empty(q.shape[:3]))
    return torch.stack([out for out, _ in pairs]), torch.stack([lse for _, lse in pairs])


def flash_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention inside each of S packed sequences: q [T, Hq, D], k and v [Tk, Hkv, D]; out and the base-2 lse [T, Hq].

    Sequence s is rows cu_seqlens[s] to cu_seqlens[s + 1]. Rows of no sequence give zeros and an lse of -inf.
    """
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    outs, lses = [], []
    for s in range(len(starts_q) - 1):
        own_q = q[starts_q[s] : starts_q[s + 1]]
        own_k, own_v = (t[starts_k[s] : starts_k[s + 1]] for t in (k, v))
        seen = visible(len(own_q), len(own_k), causal, window, q.device)
        out, lse = attention(own_q, own_k, own_v, seen, scale, softcap, sinks)
        outs.append(out)
        lses.append(lse)
    rest = q[starts_q[-1] :]
    outs.append(torch.zeros_like(rest))
    lses.append(wide(rest.new_full(rest.shape[:2], -math.inf)))
    return torch.cat(outs), torch.cat(lses)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    kv_lens: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    sinks: Tensor | None = None,
    tree_mask: Tensor | None = None,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """Attention of a ragged batch over paged keys and values, one sequence after the other."""
    out = torch.zeros_like(q)
    lse = torch.full(q.shape[:2], -math.inf, dtype=wide_dtype(q.dtype), device=q.device)
    starts = cu_seqlens_q.tolist()
    for sequence, kv_len in enumerate(kv_lens.tolist()):
        rows = slice(starts[sequence], starts[sequence + 1])
        blocks = block_table[sequence, : -(-kv_len // k_cache.shape[2])].long()
        k = _tokens(k_cache, k_scale, blocks, kv_len)
        v = _tokens(v_cache, v_scale, blocks, kv_len)
        count = rows.stop - rows.start
        seen = visible(count, kv_len, causal, window, q.device)
        if tree_mask is not None and count <= 64:
            seen = tree_visible(tree_mask[rows], kv_len, window)
        out[rows], lse[rows] = attention(q[rows], k, v, seen, scale, softcap, sinks)
    return out, lse


def tree_visible(tree_mask: Tensor, kv_len: int, window: int | None) -> Tensor:
    """bool [q_len, kv_len]: bit j of tree_mask [q_len] lets a query see query token j of its sequence.

    Keys before the query tokens are seen, within the window of a token that stands as many places behind them as it
    sees query tokens (itself included).
    """
    q_len = tree_mask.shape[0]
    bits = (tree_mask[:, None] >> torch.arange(q_len, device=tree_mask.device)) & 1 == 1
    all_bits = (tree_mask[:, None] >> torch.arange(64, device=tree_mask.device)) & 1
    context = kv_len - q_len
    before = torch.ones(q_len, max(context, 0), dtype=torch.bool, device=bits.device)
    if window is not None:
        position = context + all_bits.sum(-1) - 1
        before &= torch.arange(max(context, 0), device=bits.device)[None, :] > position[:, None] - window
    return torch.cat((before, bits[:, max(-context, 0) :]), dim=1)


def merge_state(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys: sum_i 2^(lse_i - lse) out_i, lse = log2 sum_i 2^lse_i."""
    lse = torch.logaddexp2(wide(lse_a), wide(lse_b))
    safe = lse.masked_fill(lse == -math.inf, 0.0)
    merged = torch.zeros_like(wide(out_a))
    for out, part in ((out_a, lse_a), (out_b, lse_b)):
        weighted = wide(out) * torch.exp2(wide(part) - safe)[..., None]
        merged = merged + weighted.masked_fill((part == -math.inf)[..., None], 0.0)
    return merged.to(out_a.dtype), lse


def _tokens(cache: Tensor, scales: Tensor | None, blocks: Tensor, count: int) -> Tensor:
    """The first `count` tokens of a sequence as [count, Hkv, D], scales applied."""
    pages = wide(cache[blocks])
    if scales is not None:
        pages = pages * kv_scale(scales[blocks]).to(pages.dtype)[..., None]
    return pages.transpose(1, 2).flatten(0, 1)[:count]
