"""Attention over a paged cache: one op for every ragged batch, the merge of partial results, and shared prefixes.

Each op checks its arguments and runs the implementation that `kernels.dispatch` names. Nothing here waits for a GPU
where Triton runs: lengths stay on the device, hints about them come as plain integers.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from kernels import cpu_paged, reference
from kernels.cpu_attention import TREE_TOKENS
from kernels.dispatch import choose

MAX_HEAD_DIM, MAX_GROUP = 256, 64
"""What the Triton kernels are written for."""
DECODE_ROWS = 64
"""Query tokens times heads of a group that one program of the split decode kernel takes."""


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
    return_lse: bool = False,
    backend: str = "auto",
    sinks: Tensor | None = None,
    tree_mask: Tensor | None = None,
    causal: bool = True,
    max_query_len: int | None = None,
    num_short: int | None = None,
    num_splits: int | None = None,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of S ragged sequences over a paged cache: q [T, Hq, D] -> [T, Hq, D], and base-2 lse [T, Hq].

    Caches are [num_blocks, Hkv, block_size, D] in a floating type, int8 or float8_e4m3fn; `block_table` int32
    [S, max_blocks]; `cu_seqlens_q` int32 [S + 1]; `kv_lens` int32 [S] counts the query tokens, which are the last of
    their sequence. k_scale and v_scale are uint8 [num_blocks, Hkv, block_size], one a token and head: see
    `kernels.kv_codes`.

    - `window=w` lets a token see itself and the w - 1 before it; `sinks` [Hq] are logits that join the denominator.
    - `tree_mask` int64 [T]: bit j lets a token see query token j of its sequence (what lies before the query tokens
      is always seen); each sees itself. A sequence of more than 64 query tokens stays causal. A window counts depth:
      a token stands as many places behind the context as it sees query tokens, and no window may be narrower than
      64, so that it never cuts a branch. `causal=False`: every key is seen.
    - `max_query_len` promises that no sequence has more query tokens, or none of the first `num_short` where given:
      short ones take the split decode kernel. A batch of decodes and prompts puts its decodes first.
    - `num_splits` fixes the splits along the keys; then a sequence's result does not depend on its batch.
    - Rows of no sequence hold nothing of meaning.
    """
    _check(q, k_cache, v_cache, block_table, cu_seqlens_q, kv_lens)
    _check_options(q, window, tree_mask, causal)
    _check_scales(k_cache, k_scale, v_scale)
    chosen = choose(backend, q.device)
    if backend == "auto" and chosen == "triton" and not _triton_takes(q, k_cache):
        chosen = "torch"
    scales = None if k_scale is None or v_scale is None else (k_scale, v_scale)
    arguments = (q, k_cache, v_cache, block_table, cu_seqlens_q, kv_lens)
    options: dict[str, Any] = {"window": window, "softcap": softcap, "scales": scales, "sinks": sinks}
    options["scale"] = q.shape[-1] ** -0.5 if scale is None else scale
    lse: Tensor | None
    if chosen == "triton":
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device) if return_lse else None
        result = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
        _triton(
            *arguments, causal, max_query_len if causal else None, num_short,
            tree_mask=tree_mask, num_splits=num_splits, out=result, lse=lse, **options,
        )  # fmt: skip
    else:
        if chosen == "reference" or not causal:
            result, lse = reference.paged_attention(
                *arguments, scale=scale, window=window, softcap=softcap, k_scale=k_scale, v_scale=v_scale,
                sinks=sinks, tree_mask=tree_mask, causal=causal,
            )  # fmt: skip
        else:
            result, lse = _torch(*arguments, tree_mask=tree_mask, want_lse=return_lse, **options)
        if out is not None:
            result = out.copy_(result)
    return (result, lse) if lse is not None and return_lse else result


def merge_state(
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from the results over each: (out, base-2 lse).

    Parts are [T, Hq, D] with lse [T, Hq]; associative. A part with an lse of -inf is not looked at. `dtype` is that of
    the merged out (out_a's where None): keep parts in float32 until the last merge.
    """
    if out_a.shape != out_b.shape or lse_a.shape != out_a.shape[:-1] or lse_b.shape != lse_a.shape:
        shapes = ", ".join(str(list(t.shape)) for t in (out_a, lse_a, out_b, lse_b))
        raise ValueError(f"shapes {shapes} do not fit together: give out [T, Hq, D] and lse [T, Hq] of both parts.")
    if choose(backend, out_a.device) == "triton" and torch.float64 not in (out_a.dtype, out_b.dtype, lse_a.dtype):
        from kernels.triton.merge import merge_state as merge

        return merge(out_a, lse_a, out_b, lse_b, dtype)
    out, lse = reference.merge_state(out_a, lse_a, out_b, lse_b)
    return out.to(dtype or out_a.dtype), lse


def cascade_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    kv_lens: Tensor,
    num_shared_blocks: int,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
    sinks: Tensor | None = None,
    tree_mask: Tensor | None = None,
    max_query_len: int | None = None,
    num_splits: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`paged_attention` of sequences whose first `num_shared_blocks` blocks are the same: these are read once.

    One pass takes all queries over the shared prefix, one each sequence's own rest; the results merge. Every sequence
    with query tokens must have all of them behind the prefix.
    """
    shared, sequences = num_shared_blocks * k_cache.shape[2], block_table.shape[0]
    if not 0 <= num_shared_blocks <= block_table.shape[1]:
        raise ValueError(f"num_shared_blocks={num_shared_blocks} must lie in 0..{block_table.shape[1]}.")
    common: dict[str, Any] = {"scale": scale, "softcap": softcap, "k_scale": k_scale, "v_scale": v_scale}
    common |= {"backend": backend, "num_splits": num_splits}
    alone = {"sinks": sinks, "tree_mask": tree_mask, "max_query_len": max_query_len} | common
    if shared == 0 or sequences == 0:
        return paged_attention(q, k_cache, v_cache, block_table, cu_seqlens_q, kv_lens, return_lse=return_lse, **alone)
    ends = cu_seqlens_q[::sequences].contiguous()  # the first and the last: one sequence of all queries
    length = torch.full((1,), shared, dtype=kv_lens.dtype, device=kv_lens.device)
    parts: list[Tensor] = []
    for table, starts, lens, options in (
        (block_table[:1, :num_shared_blocks], ends, length, {"causal": False} | common),
        (block_table[:, num_shared_blocks:], cu_seqlens_q, (kv_lens - shared).clamp_min(0), alone),
    ):
        buffer = torch.zeros(q.shape, dtype=reference.wide_dtype(q.dtype), device=q.device)
        parts += paged_attention(q, k_cache, v_cache, table, starts, lens, return_lse=True, out=buffer, **options)
    out, lse = merge_state(*parts, dtype=q.dtype, backend=backend)
    return (out, lse) if return_lse else out


def _triton(*arguments: Any, **options: Any) -> None:
    """The decode kernel for sequences whose query rows fit one program of it, the prefill kernel for the others."""
    from kernels.triton.paged_decode import paged_decode
    from kernels.triton.paged_prefill import paged_prefill

    q, k_cache, v_cache, table, starts, lens, causal, max_query_len, num_short = arguments
    short = 0
    if max_query_len is not None and max_query_len * (q.shape[1] // k_cache.shape[1]) <= DECODE_ROWS:
        short = table.shape[0] if num_short is None else min(num_short, table.shape[0])
        rows = q[: short * max_query_len]  # bounds the memory that splits take
        first = (table[:short], starts[: short + 1], lens[:short])
        paged_decode(rows, k_cache, v_cache, *first, max_query_len=max_query_len, **options)
    if short < table.shape[0]:
        rest = (table[short:], starts[short:], lens[short:])
        paged_prefill(q, k_cache, v_cache, *rest, causal=causal, **options)


def why_not_paged(head_dim: int, group: int) -> str | None:
    """The reason why the Triton kernels do not take heads of this size, or groups of this many; None where they do."""
    if head_dim > MAX_HEAD_DIM:
        return f"the kernels take heads of up to {MAX_HEAD_DIM}, these have {head_dim}"
    if group > MAX_GROUP:
        return f"the kernels take up to {MAX_GROUP} query heads a KV head, here are {group}"
    return None


def _triton_takes(q: Tensor, k_cache: Tensor) -> bool:
    """Whether "auto" may choose Triton: what the kernels are not written for runs in torch."""
    from kernels.triton.paged_common import KV_DTYPES

    possible = why_not_paged(q.shape[-1], q.shape[1] // k_cache.shape[1]) is None
    return possible and q.dtype != torch.float64 and k_cache.dtype in KV_DTYPES


def _torch(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    kv_lens: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    scales: tuple[Tensor, Tensor] | None,
    sinks: Tensor | None,
    tree_mask: Tensor | None,
    want_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gathered pages and torch's own attention, group by group; a sink rescales what came out without it."""
    starts, lens = cu_seqlens_q.tolist(), kv_lens.tolist()
    query_lens = [end - begin for begin, end in itertools.pairwise(starts)]
    groups = cpu_paged.arrange(query_lens, lens, k_cache.shape[2], window, k_cache.shape[1] * k_cache.shape[3])
    order = cpu_paged.token_order(groups, query_lens)
    permutation = None if order is None else torch.tensor(order, device=q.device)
    if permutation is not None and tree_mask is not None:
        tree_mask = tree_mask[permutation]
    plan = cpu_paged.PagedPlan(
        groups, query_lens, lens, block_table, k_cache, window, q.dtype, q.shape[1], tree_mask=tree_mask
    )
    lse: Tensor | None = None
    if want_lse or sinks is not None:
        lse = torch.full(q.shape[:2], -math.inf, dtype=reference.wide_dtype(q.dtype), device=q.device)
    out = plan.attend(
        q if permutation is None else q[permutation],
        k_cache,
        v_cache,
        scale=scale,
        workspace=cpu_paged.Workspace(),
        softcap=softcap,
        scales=scales,
        lse=lse,
    )
    if permutation is not None:
        inverse = torch.argsort(permutation)
        out, lse = out[inverse], None if lse is None else lse[inverse]
    if sinks is not None and lse is not None:
        with_sink = torch.logaddexp2(lse, sinks.to(lse.dtype) * reference.LOG2E)
        out = (out * torch.exp2(lse - with_sink)[..., None]).to(out.dtype)
        lse = with_sink
    return out, lse


def _check(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, cu_seqlens_q: Tensor, kv_lens: Tensor
) -> None:
    right = q.ndim == 3 and k_cache.ndim == 4 and k_cache.shape == v_cache.shape and q.shape[-1] == k_cache.shape[-1]
    if not right:
        shapes = ", ".join(str(list(t.shape)) for t in (q, k_cache, v_cache))
        raise ValueError(f"shapes {shapes} do not fit together: give q [T, Hq, D] and caches [N, Hkv, block, D].")
    if k_cache.shape[1] == 0 or q.shape[1] % k_cache.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k_cache.shape[1]} KV heads: use a multiple.")
    sequences = kv_lens.shape[0]
    if block_table.ndim != 2 or block_table.shape[0] != sequences or cu_seqlens_q.shape[0] != sequences + 1:
        shapes = ", ".join(str(list(t.shape)) for t in (block_table, cu_seqlens_q, kv_lens))
        raise ValueError(
            f"shapes {shapes} do not fit together: give a table [S, max_blocks], starts [S + 1], lens [S]."
        )


def _check_options(
    q: Tensor,
    window: int | None,
    tree_mask: Tensor | None,
    causal: bool,
) -> None:
    if not causal and (window is not None or tree_mask is not None):
        raise ValueError("causal=False shows every key: it takes neither a window nor a tree_mask.")
    if tree_mask is None:
        return
    if tree_mask.dtype != torch.int64 or tree_mask.shape != q.shape[:1]:
        raise ValueError(f"tree_mask must be int64 [T] = [{q.shape[0]}], one bit a query token of the same sequence.")
    if window is not None and window < TREE_TOKENS:
        raise ValueError(f"window={window} with a tree_mask must be at least {TREE_TOKENS}, what a tree may be deep.")


def _check_scales(k_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None) -> None:
    if (k_scale is None) != (v_scale is None):
        raise ValueError("k_scale and v_scale go together: give both or neither.")
    if k_scale is None and k_cache.dtype == torch.int8:
        raise ValueError("an int8 cache needs k_scale and v_scale.")
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is not None and (scale.dtype != torch.uint8 or scale.shape != k_cache.shape[:3]):
            raise ValueError(f"{name} must be uint8 [num_blocks, Hkv, block_size] = {list(k_cache.shape[:3])}.")
