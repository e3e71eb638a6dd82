"""Attention over keys and values that lie in one piece, dense or packed: what training and a first prefill need.

Each op checks its arguments and runs the implementation that `kernels.dispatch` names. All of them are differentiable
in q, k, v, sinks and through the lse; in Triton the backward pass recomputes the scores.
"""

import itertools
import math

import torch
from torch import Tensor

from kernels import cpu_attention, reference
from kernels.dispatch import choose


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
    sinks: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Dense attention: q [B, Sq, Hq, D], k and v [B, Sk, Hkv, D] -> [B, Sq, Hq, D], and the base-2 lse [B, Sq, Hq].

    Causal is bottom-right aligned; `window=w` lets a token see itself and the w - 1 before it; scores become
    softcap * tanh(score / softcap); `sinks` [Hq] are logits that join the denominator. A query that sees nothing
    gives zeros and an lse of -inf. Raises ValueError for what does not fit together or cannot run.
    """
    _check(q, k, v, q.ndim == 4 and k.ndim == 4, "q [B, Sq, Hq, D] and k, v [B, Sk, Hkv, D]")
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q has a batch of {q.shape[0]}, k and v of {k.shape[0]}: give the same.")
    _check_options(q, window, softcap, sinks)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = _choose(backend, q, k, v, factor)
    if chosen == "triton":
        from kernels.triton import flash  # not before someone asks: importing Triton takes half a second

        out, lse = flash.dense(q, k, v, causal, window, softcap, factor, sinks)
    elif chosen == "reference":
        out, lse = reference.flash_attention(
            q, k, v, causal=causal, window=window, softcap=softcap, scale=factor, sinks=sinks
        )
    elif sinks is None and not return_lse:
        return cpu_attention.dense_attention(q, k, v, causal, window, softcap, factor, False)[0]
    else:
        out, lse = _torch_with_lse(q, k, v, causal, window, softcap, factor, sinks)
    return (out, lse) if return_lse else out


def flash_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
    sinks: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention inside each of S packed sequences: q [T, Hq, D], k and v [Tk, Hkv, D] -> [T, Hq, D], and lse [T, Hq].

    Sequence s is rows cu_seqlens[s] to cu_seqlens[s + 1] (int32 [S + 1], from 0); rows of no sequence give zeros and
    an lse of -inf. Options are those of `flash_attention`. `max_seqlen_q` and `max_seqlen_k` promise that no sequence
    is longer: Triton reads no length back from the GPU, and leaves rows past the promise alone.
    """
    _check(q, k, v, q.ndim == 3 and k.ndim == 3, "q [T, Hq, D] and k, v [Tk, Hkv, D]")
    _check_options(q, window, softcap, sinks)
    if cu_seqlens_q.ndim != 1 or cu_seqlens_q.shape != cu_seqlens_k.shape or cu_seqlens_q.shape[0] == 0:
        shapes = f"{list(cu_seqlens_q.shape)} and {list(cu_seqlens_k.shape)}"
        raise ValueError(f"cu_seqlens of shapes {shapes} do not fit together: give [S + 1], both times.")
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = _choose(backend, q, k, v, factor)
    if chosen == "triton":
        from kernels.triton import flash

        longest = k.shape[0] if max_seqlen_k is None else max_seqlen_k
        out, lse = flash.varlen(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, longest, causal, window, softcap, factor, sinks
        )
    elif chosen == "reference":
        out, lse = reference.flash_attention_varlen(
            q, k, v, cu_seqlens_q, cu_seqlens_k,
            causal=causal, window=window, softcap=softcap, scale=factor, sinks=sinks,
        )  # fmt: skip
    else:
        starts = (cu_seqlens_q.tolist(), cu_seqlens_k.tolist())
        parts = []
        for (q_begin, q_end), (k_begin, k_end) in zip(*map(itertools.pairwise, starts), strict=True):
            own = (q[None, q_begin:q_end], k[None, k_begin:k_end], v[None, k_begin:k_end])
            parts.append(_torch_with_lse(*own, causal, window, softcap, factor, sinks))
        rest = q[starts[0][-1] :]
        out = torch.cat([*(part[0][0] for part in parts), torch.zeros_like(rest)])
        lse = torch.cat([*(part[1][0] for part in parts), reference.wide(rest.new_full(rest.shape[:2], -math.inf))])
    return (out, lse) if return_lse else out


def _torch_with_lse(
    q: Tensor, k: Tensor, v: Tensor,
    causal: bool, window: int | None, softcap: float | None, scale: float, sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Dense attention in torch calls; a sink takes its share of the probability afterwards."""
    # torch's fused attention has no gradient through the lse, the materialised form has.
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, k, v, sinks))
    out, lse = cpu_attention.dense_attention(q, k, v, causal, window, softcap, scale, True, naive=learns)
    assert lse is not None
    if sinks is None:
        return out, lse
    total = torch.logaddexp2(lse, sinks.to(lse.dtype) * reference.LOG2E)
    return (out * torch.exp2(lse - total)[..., None]).to(q.dtype), total


def _choose(backend: str, q: Tensor, k: Tensor, v: Tensor, scale: float) -> str:
    """The implementation for these arguments: on a GPU, "auto" leaves to torch what the Triton kernels do not take."""
    chosen = choose(backend, q.device)
    if chosen == "triton":
        from kernels.triton.flash import why_not

        reason = why_not(q, k, v, scale)
        if reason is not None and backend == "triton":
            raise ValueError(f"backend='triton' cannot run this: {reason}; use 'auto', 'torch' or 'reference'.")
        return chosen if reason is None else "torch"
    return chosen


def _check(q: Tensor, k: Tensor, v: Tensor, right_ranks: bool, wanted: str) -> None:
    heads_dim = 1 if q.ndim == 3 else 2
    if not right_ranks or k.shape != v.shape or q.shape[-1] != k.shape[-1]:
        shapes = f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        raise ValueError(f"shapes {shapes} do not fit together: give {wanted}.")
    if k.shape[heads_dim] == 0 or q.shape[-2] % k.shape[heads_dim]:
        raise ValueError(f"{q.shape[-2]} query heads cannot share {k.shape[heads_dim]} KV heads: use a multiple.")


def _check_options(q: Tensor, window: int | None, softcap: float | None, sinks: Tensor | None) -> None:
    if window is not None and window < 1:
        raise ValueError(f"window={window} hides every key: give at least 1, or None for no window.")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap} must be above 0: give None for no soft cap.")
    if sinks is not None and sinks.shape != (q.shape[-2],):
        raise ValueError(f"sinks of shape {list(sinks.shape)} must be one a query head: give [{q.shape[-2]}].")
