"""Writing to a paged cache: keys and values to their slots, the same with everything that precedes it, block copies.

Each op checks its arguments and runs the implementation that `kernels.dispatch` names.
"""

import torch
from torch import Tensor

from kernels import cpu, kv_codes, reference
from kernels.dispatch import choose


def write_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Write k, v [T, Hkv, D] to slots (block * block_size + offset) of the caches [N, Hkv, block_size, D], in place.

    Slots below zero write nothing. An int8 or float8_e4m3fn cache gets codes, and k_scale, v_scale uint8
    [N, Hkv, block_size] the bytes of `kernels.kv_codes` for what one code is worth, chosen per token and head (float8
    may go without: then it saturates).
    """
    scales = _check(k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale)
    chosen = choose(backend, k.device)
    if chosen == "triton" and torch.float64 not in (k.dtype, k_cache.dtype):
        from kernels.triton.cache_write import write_kv as write

        write(None, k, v, k_cache, v_cache, slot_mapping, scales=scales)
    elif scales is not None:
        quantize = reference.quantize_kv if chosen == "reference" else kv_codes.quantize_kv
        for x, cache, scale in ((k, k_cache, scales[0]), (v, v_cache, scales[1])):
            codes, worth = quantize(x, cache.dtype)
            reference.scatter_slots(codes, cache, slot_mapping)
            reference.scatter_slots(worth, scale, slot_mapping)
    else:
        plain = chosen == "reference" or k_cache.dtype in kv_codes.LARGEST_CODE
        write_plain = reference.write_kv if plain else cpu.write_kv
        write_plain(k, v, k_cache, v_cache, slot_mapping)


def rope_and_write(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    positions: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    interleaved: bool = False,
    qk_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Norm and rotate the query and key heads of qkv [T, Hq + 2 Hkv, D], write keys and values; returns q [T, Hq, D].

    q is a view: its heads are overwritten in place, those of k and v are left as they are. cos and sin are float32
    [max_position, R / 2], read at `positions` [T]; the first R dimensions rotate, in pairs (i, i + R / 2), or
    (2 i, 2 i + 1) when interleaved. `qk_norm` [Hq + Hkv, D] weighs an RMS norm over each head before it. Everything is
    computed in float32 and rounded once. See `write_kv` for slots and scales.
    """
    kv_heads = k_cache.shape[1]
    q_heads = qkv.shape[1] - 2 * kv_heads
    if qkv.ndim != 3 or q_heads <= 0:
        raise ValueError(f"qkv of shape {list(qkv.shape)} must be [T, Hq + 2 * {kv_heads}, D].")
    q, k, v = qkv[:, :q_heads], qkv[:, q_heads : q_heads + kv_heads], qkv[:, q_heads + kv_heads :]
    scales = _check(k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale)
    rope = _rope_tables(qkv, positions, cos, sin)
    if qk_norm is not None and qk_norm.shape != (q_heads + kv_heads, qkv.shape[2]):
        raise ValueError(f"qk_norm of shape {list(qk_norm.shape)} must be [{q_heads + kv_heads}, {qkv.shape[2]}].")
    if choose(backend, qkv.device) == "triton" and torch.float64 not in (qkv.dtype, k_cache.dtype):
        from kernels.triton.cache_write import write_kv as write

        write(
            q, k, v, k_cache, v_cache, slot_mapping,
            scales=scales, rope=rope, interleaved=interleaved, qk_norm=qk_norm, norm_eps=norm_eps,
        )  # fmt: skip
        return q
    new_q, new_k = reference.norm_rope(q, k, rope, interleaved, qk_norm, norm_eps)
    q.copy_(new_q)
    write_kv(new_k, v, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale, backend=backend)
    return q


def copy_blocks(k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor, *, backend: str = "auto") -> None:
    """Copy blocks source[i] to target[i] (int [N]) of caches [num_blocks, ...], in place; pairs below zero do nothing.

    For copy-on-write: no target may be another pair's source.
    """
    if k_cache.shape != v_cache.shape or source.shape != target.shape or source.ndim != 1:
        shapes = ", ".join(str(list(t.shape)) for t in (k_cache, v_cache, source, target))
        raise ValueError(f"shapes {shapes} do not fit together: give caches [num_blocks, ...] and block ids [N].")
    if choose(backend, k_cache.device) == "triton":
        from kernels.triton.cache_write import copy_blocks as copy

        copy(k_cache, v_cache, source, target)
        return
    keep = (source >= 0) & (target >= 0)
    source, target = source[keep].long(), target[keep].long()
    for cache in (k_cache, v_cache):
        cache[target] = cache[source]


def _check(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    if k.shape != v.shape or k.ndim != 3 or k_cache.ndim != 4 or k_cache.shape != v_cache.shape:
        right = False
    else:
        right = k.shape[1:] == (k_cache.shape[1], k_cache.shape[3]) and slot_mapping.shape == k.shape[:1]
    if not right:
        shapes = ", ".join(str(list(t.shape)) for t in (k, v, k_cache, v_cache, slot_mapping))
        raise ValueError(
            f"shapes {shapes} do not fit together: give k, v [T, Hkv, D], caches [N, Hkv, block, D], slots [T]."
        )
    if (k_scale is None) != (v_scale is None):
        raise ValueError("k_scale and v_scale go together: give both or neither.")
    if k_scale is None or v_scale is None:
        if k_cache.dtype == torch.int8:
            raise ValueError("an int8 cache needs k_scale and v_scale.")
        return None
    if k_cache.dtype not in kv_codes.LARGEST_CODE:
        raise ValueError(f"a cache of {k_cache.dtype} takes no scales: leave k_scale and v_scale out.")
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        right = scale.shape == k_cache.shape[:3] and scale.dtype == torch.uint8 and scale.stride() == k_scale.stride()
        if not right or (scale.shape[2] > 1 and scale.stride(2) != 1):
            raise ValueError(
                f"{name} must be uint8 {list(k_cache.shape[:3])} with the other's strides, the last without gaps."
            )
    return k_scale, v_scale


def _rope_tables(
    qkv: Tensor, positions: Tensor | None, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    if positions is None and cos is None and sin is None:
        return None
    if positions is None or cos is None or sin is None:
        raise ValueError("positions, cos and sin go together: give all or none.")
    right = (
        cos.ndim == 2 and cos.shape == sin.shape and cos.stride() == sin.stride() and 2 * cos.shape[1] <= qkv.shape[2]
    )
    if not right or positions.shape != qkv.shape[:1]:
        shapes = ", ".join(str(list(t.shape)) for t in (positions, cos, sin))
        raise ValueError(f"shapes {shapes} do not fit: give positions [T], cos and sin [max_position, R / 2], R <= D.")
    return positions, cos, sin
