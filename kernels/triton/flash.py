"""Flash attention as two torch ops, kernels::flash_attention_forward and _backward, and what calls them.

The ops are what torch.compile and autograd see: the forward one is differentiable, its backward is the other one. They
take checked arguments in one form; packed sequences are a batch of one with cu_seqlens. The public functions,
which choose between this and torch, are in `kernels.flash`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.triton.flash_backward import flash_backward
from kernels.triton.flash_forward import DTYPES, MAX_HEAD_DIM, flash_forward

_OPTIONS = (
    "Tensor? sinks, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, "
    "float scale, bool causal, SymInt? window, float? softcap"
)
_library = torch.library.Library("kernels", "FRAGMENT")
_library.define(f"flash_attention_forward(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor, Tensor)")
_library.define(
    "flash_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
    max_seqlen_q: int, max_seqlen_k: int, scale: float, causal: bool, window: int | None, softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k, v = _rows(q), _rows(k), _rows(v)
    return flash_forward(q, k, v, sinks, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, scale, causal, window, softcap)


def _forward_fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, length), dtype=torch.float32)


def _backward(grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Any:
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    return flash_backward(_rows(grad_out), grad_lse, _rows(q), _rows(k), _rows(v), *others)


def _backward_fake(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    sinks: Tensor | None, *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (t.new_empty(t.shape) for t in (q, k, v))
    return dq, dk, dv, q.new_empty(0) if sinks is None else sinks.new_empty(sinks.shape)


def _rows(x: Tensor) -> Tensor:
    """x with its last dimension contiguous, which is all that the kernels ask of strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.options = inputs[6:]


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, sinks, cu_seqlens_q, cu_seqlens_k, out, lse = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    dq, dk, dv, dsinks = torch.ops.kernels.flash_attention_backward(
        grad_out, grad_lse, q, k, v, out, lse, sinks, cu_seqlens_q, cu_seqlens_k, *ctx.options
    )
    return dq, dk, dv, None if sinks is None else dsinks, *[None] * 8


for _key in ("CUDA", "CPU"):  # CPU tensors in the interpreter; elsewhere `arch.current` refuses them with the reason
    _library.impl("flash_attention_forward", _forward, _key)
    _library.impl("flash_attention_backward", _backward, _key)
torch.library.register_fake("kernels::flash_attention_forward", _forward_fake, lib=_library)
torch.library.register_fake("kernels::flash_attention_backward", _backward_fake, lib=_library)
torch.library.register_autograd(
    "kernels::flash_attention_forward", _differentiate, setup_context=_save, lib=_library
)  # fmt: skip


def why_not(q: Tensor, k: Tensor, v: Tensor, scale: float) -> str | None:
    """The reason why these arguments are not for these kernels, None where they are."""
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        return f"dtypes {q.dtype}, {k.dtype}, {v.dtype} must be one of float32, float16 and bfloat16, the same for all"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"the head size {q.shape[-1]} is above {MAX_HEAD_DIM}"
    if scale < 0:
        return f"scale={scale} is negative"  # the maximum of a tile is taken before it is scaled
    return None


def dense(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, softcap: float | None, scale: float,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q [B, Sq, Hq, D], k and v [B, Sk, Hkv, D] -> out [B, Sq, Hq, D] and the base-2 lse [B, Sq, Hq] (float32)."""
    if window is not None and window >= k.shape[1]:
        window = None  # hides nothing
    out, lse = torch.ops.kernels.flash_attention_forward(
        q, k, v, sinks, None, None, q.shape[1], k.shape[1], scale, causal, window, softcap
    )
    return out, lse.transpose(1, 2)


def varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    causal: bool, window: int | None, softcap: float | None, scale: float, sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q [T, Hq, D], k and v [Tk, Hkv, D] -> out [T, Hq, D] and the base-2 lse [T, Hq] (float32)."""
    out, lse = torch.ops.kernels.flash_attention_forward(
        q[None], k[None], v[None], sinks, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        scale, causal, window, softcap,
    )  # fmt: skip
    return out[0], lse[0].transpose(0, 1)


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Forward and backward of the head sizes that models have most, with nothing and with everything; the edges."""
    yield "D64 bf16", partial(_aot_case, 64, torch.bfloat16, extras=False)
    yield "D128 bf16", partial(_aot_case, 128, torch.bfloat16, extras=False)
    yield "D128 bf16 packed window softcap sinks", partial(_aot_case, 128, torch.bfloat16, extras=True)
    yield "D80 bf16", partial(_aot_case, 80, torch.bfloat16, extras=False)
    yield "D256 bf16", partial(_aot_case, 256, torch.bfloat16, extras=False)
    for dim in (64, 128, 256):
        yield f"D{dim} fp32", partial(_aot_case, dim, torch.float32, extras=False)


def _aot_case(dim: int, dtype: torch.dtype, extras: bool) -> None:
    make = partial(torch.empty, device="meta")
    length, heads, kv_heads = 4096, 32, 8
    q, k = make(1, length, heads, dim, dtype=dtype), make(1, length, kv_heads, dim, dtype=dtype)
    cu_seqlens = make(3, dtype=torch.int32) if extras else None
    sinks = make(heads) if extras else None
    window, softcap = (1024, 50.0) if extras else (None, None)
    options = (dim**-0.5, True, window, softcap)
    out, lse = flash_forward(q, k, k, sinks, cu_seqlens, cu_seqlens, length, *options)
    flash_backward(q, None, q, k, k, out, lse, sinks, cu_seqlens, cu_seqlens, length, length, *options)
