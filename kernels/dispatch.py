"""Which implementation of an op runs, and why. Decides by name and device; never probes a GPU at import time."""

import importlib.util
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import cpu_attention, cpu_paged, reference

BACKENDS = ("auto", "torch", "reference", "triton")
OPS = ("flash_attention", "paged_attention", "rms_norm", "layer_norm", "rope", "swiglu", "write_kv")
_NO_TRITON = "backend='triton' is not available yet in this version: use 'auto', 'torch' or 'reference'."


@dataclass(frozen=True)
class Choice:
    """One op's implementation and the reason it was chosen."""

    op: str
    backend: str
    reason: str


def choose(backend: str, device: torch.device | None = None) -> str:
    """The implementation for a `backend=` argument and the device of an op's tensors. Raises ValueError, one sentence.

    "auto" is Triton on an NVIDIA GPU that can run it and torch elsewhere. An op without `device` has no Triton version.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known: use one of {', '.join(BACKENDS)}.")
    if device is None:
        if backend == "triton":
            raise ValueError(_NO_TRITON)
        return "torch" if backend == "auto" else backend
    if backend == "auto":
        return "triton" if device.type == "cuda" and why_not_triton("cuda", device.index) is None else "torch"
    if backend == "triton" and (reason := why_not_triton(device.type, device.index)) is not None:
        raise ValueError(f"backend='triton' cannot run here: {reason}; use 'auto', 'torch' or 'reference'.")
    return backend


@torch.compiler.assume_constant_result
def why_not_triton(kind: str, index: int | None) -> str | None:
    """The reason why Triton kernels cannot run on tensors of this device, None where they can. Asked once a device."""
    if (kind, index) not in _asked:
        _asked[kind, index] = _ask(kind, index)
    return _asked[kind, index]


def _ask(kind: str, index: int | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if kind != "cuda":
        from kernels.triton.arch import INTERPRETED  # not before someone asks: importing Triton takes half a second

        return None if INTERPRETED else f"Triton kernels need tensors on an NVIDIA GPU, these are on {kind!r}"
    if torch.version.hip is not None:
        return "the kernels are written and compiled for NVIDIA GPUs, this one is AMD's"
    major, minor = torch.cuda.get_device_capability(index)
    return None if major >= 8 else f"the kernels need compute capability 8.0 or later, this GPU has {major}.{minor}"


_asked: dict[tuple[str, int | None], str | None] = {}


def explain(device: torch.device | str = "cpu") -> list[Choice]:
    """What each op runs on this device, and why."""
    kind = torch.device(device).type
    if kind == "cpu":
        reason = "a CPU runs torch's own kernels in as few calls as possible"
        if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            reason += "; this one has native bfloat16, so linear layers are prepacked"
    else:
        reason = "Triton kernels are not available yet in this version; torch's own kernels run on any device"
    return [Choice(op, "torch", reason) for op in OPS]


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
) -> Tensor | tuple[Tensor, Tensor]:
    """Dense attention: q [B, Sq, Hq, D], k and v [B, Sk, Hkv, D] -> [B, Sq, Hq, D], and the base-2 lse [B, Sq, Hq].

    Causal is bottom-right aligned; `window=w` lets a token see itself and the w - 1 before it.
    """
    lse: Tensor | None
    _check(q, k, v, q.ndim == 4 and k.ndim == 4, "q [B, Sq, Hq, D] and k, v [B, Sk, Hkv, D]")
    if choose(backend) == "reference":
        out, lse = reference.flash_attention(q, k, v, causal=causal, window=window, softcap=softcap, scale=scale)
    else:
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        out, lse = cpu_attention.dense_attention(q, k, v, causal, window, softcap, factor, return_lse)
    return (out, lse) if lse is not None and return_lse else out


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
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention of S ragged sequences over a paged cache: q [T, Hq, D] -> [T, Hq, D], and base-2 lse [T, Hq].

    Caches are [num_blocks, Hkv, block_size, D], `block_table` int32 [S, max_blocks], `kv_lens` int32 [S] counts the
    query tokens, which are the last of their sequence; scales are [num_blocks, Hkv, block_size].
    """
    lse: Tensor | None
    _check(q, k_cache, v_cache, q.ndim == 3 and k_cache.ndim == 4, "q [T, Hq, D] and caches [N, Hkv, block, D]")
    if (k_scale is None) != (v_scale is None):
        raise ValueError("k_scale and v_scale go together: give both or neither.")
    if choose(backend) == "reference":
        out, lse = reference.paged_attention(
            q, k_cache, v_cache, block_table, cu_seqlens_q, kv_lens,
            scale=scale, window=window, softcap=softcap, k_scale=k_scale, v_scale=v_scale,
        )  # fmt: skip
        return (out, lse) if lse is not None and return_lse else out
    starts, lens = cu_seqlens_q.tolist(), kv_lens.tolist()
    query_lens = [end - begin for begin, end in itertools.pairwise(starts)]
    groups = cpu_paged.arrange(query_lens, lens, k_cache.shape[2], window)
    order = cpu_paged.token_order(groups, query_lens)
    plan = cpu_paged.PagedPlan(groups, query_lens, lens, block_table, k_cache.shape, window, q.dtype)
    lse = torch.full(q.shape[:2], -math.inf, dtype=reference.wide(q).dtype, device=q.device) if return_lse else None
    permutation = None if order is None else torch.tensor(order, device=q.device)
    out = plan.attend(
        q if permutation is None else q[permutation],
        k_cache,
        v_cache,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        workspace=cpu_paged.Workspace(),
        softcap=softcap,
        scales=None if k_scale is None or v_scale is None else (k_scale, v_scale),
        lse=lse,
    )
    if permutation is not None:
        inverse = torch.argsort(permutation)
        out, lse = out[inverse], None if lse is None else lse[inverse]
    return (out, lse) if lse is not None else out


def _check(q: Tensor, k: Tensor, v: Tensor, right_ranks: bool, wanted: str) -> None:
    heads_dim = 1 if q.ndim == 3 else 2
    if not right_ranks or k.shape != v.shape or q.shape[-1] != k.shape[-1]:
        shapes = f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        raise ValueError(f"shapes {shapes} do not fit together: give {wanted}.")
    if k.shape[heads_dim] == 0 or q.shape[-2] % k.shape[heads_dim]:
        raise ValueError(f"{q.shape[-2]} query heads cannot share {k.shape[heads_dim]} KV heads: use a multiple.")
