"""Linear layers for inference, in the layout that the device reads fastest.

On a CPU, bfloat16 weights are reordered once at load: plain `F.linear` reads them at half the memory bandwidth at one
row. (float32 gains at 16 rows but loses 40 % at one.) Holds one copy of a weight, never two, and no gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu import swiglu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
# W x^T instead of x W^T on an unpacked matrix, where the library is much faster that way round (one thread):
# bfloat16 at 1 to 16 rows 2.5 against 4 to 5.3 ms (head of 49152 x 576); float32 at 16 rows 0.24 against 0.38 ms
# (576 x 1536) and 19 against 25 ms (the head). With more rows, turning the result back eats the gain.
_MOST_ROWS_TURNED, _MOST_ROWS_TURNED_SMALL, _SMALL_OUTPUT = 16, 32, 1024
_FEWEST_ROWS_TURNED_FLOAT32 = 12


class Linear:
    """y = x W^T + b, optionally with a residual added in the same call."""

    __slots__ = ("_fewest", "_most", "_packed", "bias", "dtype", "in_features", "out_features", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, *, pack: bool = True) -> None:
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.bias = bias
        packed = pack and can_pack(weight.dtype, weight.device)
        self._packed: Tensor | None = torch.ops.mkldnn._reorder_linear_weight(weight, None) if packed else None
        self.weight: Tensor | None = None if packed else weight
        self._fewest, self._most = 1, 0
        if weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32):
            self._fewest = 1 if weight.dtype == torch.bfloat16 else _FEWEST_ROWS_TURNED_FLOAT32
            self._most = _MOST_ROWS_TURNED_SMALL if self.out_features <= _SMALL_OUTPUT else _MOST_ROWS_TURNED

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        if self._packed is not None:
            return _pointwise(x, self._packed, self.bias, "none", [], "")
        assert self.weight is not None
        if self._fewest <= x.shape[0] <= self._most:
            return self._turned(x).contiguous()
        return F.linear(x, self.weight, self.bias)

    def _turned(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        if x.shape[0] == 1:
            y = torch.mv(self.weight, x[0])[None]
        else:
            y = torch.mm(self.weight, x.t()).t()
        return y if self.bias is None else y + self.bias

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + linear(x); `residual` may be overwritten."""
        if self._packed is not None:
            return _pointwise_with(x, residual, self._packed, self.bias, "add")
        if self._fewest <= x.shape[0] <= self._most:
            return residual.add_(self._turned(x))
        return residual.add_(F.linear(x, self.weight, self.bias))  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        bias = 0 if self.bias is None else self.bias.numel()
        return (self.out_features * self.in_features + bias) * self.dtype.itemsize


class GatedLinear:
    """activation(gate(x)) * up(x), the first half of a gated MLP; gate and up are one matrix.

    As two packed calls with activation and product inside them, 1024 rows of a 576 x 1536 layer take 3.1 ms instead
    of 3.6, but decoding at batch 1 takes 5 % longer: one call more per layer, some 10 us each however small it is.
    """

    __slots__ = ("_activation", "_both", "_silu")

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        self._both = Linear(weight, bias)
        self._activation, self._silu = ACTIVATIONS[activation], activation == "silu"

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, intermediate]."""
        both = self._both(x)
        if self._silu:
            return swiglu(both)
        gate, up = both.chunk(2, dim=-1)
        return self._activation(gate).mul_(up)

    @property
    def nbytes(self) -> int:
        return self._both.nbytes


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch build and this processor have prepacked linear layers for the dtype."""
    if device.type != "cpu" or _pointwise is None:
        return False
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed_ops() -> tuple[Any, Any]:
    try:
        op = torch.ops.mkldnn._linear_pointwise
        return (op.default, op.binary) if torch.backends.mkldnn.is_available() else (None, None)
    except AttributeError:  # a torch built without oneDNN
        return None, None


_pointwise, _pointwise_with = _packed_ops()
