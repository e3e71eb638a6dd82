"""One linear layer for inference, in the layout that the device reads fastest.

On a CPU, bfloat16 weights are reordered once at load (plain `F.linear` reads them at half the memory bandwidth at one
row); everything else runs on the plain matrix. Holds one copy of the weight, never two, and no gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """y = x W^T + b, optionally with a residual added in the same call."""

    __slots__ = ("_fused_add", "_packed", "_packed_call", "bias", "in_features", "out_features", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, *, pack: bool = True) -> None:
        self.out_features, self.in_features = weight.shape
        self.weight: Tensor | None = weight
        self.bias = bias
        self._packed: Tensor | None = None
        if pack and weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and can_pack():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
            self._packed_call = torch.ops.mkldnn._linear_pointwise.default
            self._fused_add = torch.ops.mkldnn._linear_pointwise.binary
            self.weight = None

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        if self._packed is not None:
            return self._packed_call(x, self._packed, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)  # type: ignore[arg-type]

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + linear(x); `residual` may be overwritten."""
        if self._packed is not None:
            return self._fused_add(x, residual, self._packed, self.bias, "add")
        return residual.add_(F.linear(x, self.weight, self.bias))  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        kept = self.weight if self.weight is not None else self._packed
        assert kept is not None
        bias = 0 if self.bias is None else self.bias.numel() * self.bias.itemsize
        return self.out_features * self.in_features * kept.dtype.itemsize + bias


def can_pack() -> bool:
    """Whether this torch build and this processor have prepacked bfloat16 linear layers."""
    return bool(
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
