"""The small ops of a decoder in few torch calls: norms, RoPE, SwiGLU, cache write.

Written for a CPU, where at one token the number of calls decides; they run on any device. Attention is in
`cpu_attention` and `cpu_paged`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.small_ops import gated_activation, layer_norm, rms_norm

_FEW_ROWS = 16


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32 (or float64).

    `F.rms_norm` is many kernels on a CPU: 12 us at one row of 576, 830 us at 1024 rows (bfloat16, one thread). For few
    rows, one `layer_norm` of [x, -x] does it (mean 0, variance mean(x^2)): 5 us. For many, three passes: 520 us.
    """

    __slots__ = ("_floor", "_root", "_twice", "eps", "size", "weight")

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps, self.size = weight, eps, weight.shape[0]
        self._twice = torch.cat((weight, weight)) if weight.device.type == "cpu" else None
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._floor = torch.tensor((eps * self.size) ** 0.5, dtype=wide)
        self._root = self.size**0.5

    def __call__(self, x: Tensor) -> Tensor:
        if self._twice is None:
            return rms_norm(x, self.weight, self.eps)
        if x.shape[0] <= _FEW_ROWS:
            return torch.layer_norm(torch.cat((x, -x), -1), (2 * self.size,), self._twice, None, self.eps)[
                :, : self.size
            ]
        wide = x.float() if x.dtype == torch.bfloat16 else x
        norm = torch.hypot(torch.linalg.vector_norm(wide, 2, -1, True), self._floor)
        return torch.mul(wide, norm.reciprocal_().mul_(self._root)).to(x.dtype).mul_(self.weight)


class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias."""

    __slots__ = ("bias", "eps", "size", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        self.weight, self.bias, self.eps, self.size = weight, bias, eps, weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return layer_norm(x, self.weight, self.bias, self.eps)
        return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)


def rope_(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotate x [T, H, D] in place: x cos + roll(x, D/2) sin, with the sign of the first half inside `signed_sin`.

    cos and signed_sin are [T, 1, D], both halves alike up to that sign; q and k heads go through together.
    """
    rolled = torch.roll(x, x.shape[-1] // 2, -1)
    return x.mul_(cos).addcmul_(rolled, signed_sin)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for [T, 2 N]."""
    if gate_up.device.type != "cpu":
        return gated_activation(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Write k, v [T, Hkv, D] to slots of the caches [num_blocks, Hkv, block_size, D]; -1 writes nothing."""
    keep = slot_mapping >= 0
    slots = slot_mapping[keep]
    blocks, offsets = slots // k_cache.shape[2], slots % k_cache.shape[2]
    k_cache[blocks, :, offsets] = k[keep].to(k_cache.dtype)
    v_cache[blocks, :, offsets] = v[keep].to(v_cache.dtype)
