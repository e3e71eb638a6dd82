"""The small ops of a decoder in few torch calls: norms, RoPE, SwiGLU, cache write.

Written for a CPU, where at one token the number of calls decides; they run on any device. Attention is in
`cpu_attention`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW_ROWS = 8


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight.

    `F.rms_norm` is not one kernel on a CPU (12 us at one row of 576); `layer_norm` is. The layer norm of [x, -x] has
    mean 0 and variance mean(x^2), so its first half is the RMS norm: 5 us, computed in float32, rounded once.
    """

    __slots__ = ("_twice", "eps", "size", "weight")

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps, self.size = weight, eps, weight.shape[0]
        self._twice = torch.cat((weight, weight)) if weight.device.type == "cpu" else None

    def __call__(self, x: Tensor) -> Tensor:
        if self._twice is not None and x.shape[0] <= _FEW_ROWS:
            both = F.layer_norm(torch.cat((x, -x), -1), (2 * self.size,), self._twice, None, self.eps)
            return both[:, : self.size]
        return F.rms_norm(x, (self.size,), self.weight, self.eps)


class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias."""

    __slots__ = ("bias", "eps", "size", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        self.weight, self.bias, self.eps, self.size = weight, bias, eps, weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)


def rope_(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotate x [T, H, D] in place: x cos + roll(x, D/2) sin, with the sign of the first half inside `signed_sin`.

    cos and signed_sin are [T, 1, D], both halves alike up to that sign; q and k heads go through together.
    """
    rolled = torch.roll(x, x.shape[-1] // 2, -1)
    return x.mul_(cos).addcmul_(rolled, signed_sin)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for [T, 2 N]."""
    size = gate_up.shape[-1] // 2
    return F.silu(gate_up[..., :size]).mul_(gate_up[..., size:])


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Write k, v [T, Hkv, D] to slots of the caches [num_blocks, Hkv, block_size, D]; -1 writes nothing."""
    keep = slot_mapping >= 0
    slots = slot_mapping[keep]
    blocks, offsets = slots // k_cache.shape[2], slots % k_cache.shape[2]
    k_cache[blocks, :, offsets] = k[keep].to(k_cache.dtype)
    v_cache[blocks, :, offsets] = v[keep].to(v_cache.dtype)
