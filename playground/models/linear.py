"""Linear layers for inference, in the layout that the device reads fastest.

On a CPU, weights are reordered once at load into oneDNN's own layout. Plain `F.linear` reads bfloat16 at half the
memory bandwidth at one row, and on an AMD EPYC (Zen 4, two cores) float32 too: [3072, 576] takes 700 us at one row and
917 at 16, laid out 356 and 428. Holds one copy of a weight, never two (but see `worth_a_copy`), and no gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu import swiglu
from playground.quantization.linear import QuantizedLinear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
# A plain matrix (one that is also the embedding) of 49152 x 576 in bfloat16, one thread: W x^T takes 2.5 ms up to 16
# rows, where x W^T takes 4 to 5.3 ms. So with AMX; with AVX-512 alone W x^T takes 22 to 25 ms and x W^T 13 to 19.
_MOST_ROWS_TURNED = 16 if torch.cpu._is_amx_tile_supported() else 0
_SMALL_COPY = (8 if _MOST_ROWS_TURNED else 64) << 20
_USUAL_ROWS = 16
"""Rows that oneDNN lays a matrix out for; other numbers read that layout as fast."""
_SMALL_MATRIX = 1 << 17
"""Elements below which a call of oneDNN costs more than it gives in float32: [384, 192] takes 16 us with it at one row,
and 8 as a plain product with the transposed matrix; at 16 rows 37 and 32."""


class Linear:
    """y = x W^T + b, optionally with a residual added in the same call."""

    __slots__ = ("_packed", "_turned", "bias", "dtype", "in_features", "out_features", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, *, keep: bool = False) -> None:
        """`weight` is [out, in]; with `keep` it stays as it is, for others to use too."""
        self.out_features, self.in_features = weight.shape
        self.dtype, self.bias = weight.dtype, bias
        self._packed: Tensor | None = None
        self._turned: Tensor | None = None
        self.weight: Tensor | None = None
        if keep or not reorders(weight.dtype, weight.device):
            self.weight = weight
        elif weight.dtype == torch.float32 and weight.numel() < _SMALL_MATRIX:
            self._turned = weight.t().clone(memory_format=torch.contiguous_format)
        else:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _USUAL_ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        if self._packed is not None:
            return _pointwise(x, self._packed, self.bias, "none", [], "")
        if self._turned is not None:
            return torch.mm(x, self._turned) if self.bias is None else torch.addmm(self.bias, x, self._turned)
        return self._plain(x)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + linear(x); `residual` may be overwritten."""
        if self._packed is not None:
            return _pointwise_with(x, residual, self._packed, self.bias, "add")
        if self._turned is not None:
            residual.addmm_(x, self._turned)
            return residual if self.bias is None else residual.add_(self.bias)
        if self.weight is not None and x.device.type != "cpu":  # one launch: the product adds to what is there
            residual.addmm_(x, self.weight.t())
            return residual if self.bias is None else residual.add_(self.bias)
        return residual.add_(self(x))

    def _plain(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        rows = x.shape[0]
        if x.device.type == "cpu" and self.bias is None and _pointwise is not None:
            if x.dtype == torch.bfloat16 and rows <= _MOST_ROWS_TURNED:
                if rows == 1:
                    return torch.mv(self.weight, x[0])[None]
                return torch.mm(self.weight, x.t()).t().contiguous()
            if x.dtype == torch.float32:
                return _pointwise(x, self.weight, None, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    @property
    def num_elements(self) -> int:
        return self.out_features * self.in_features

    @property
    def nbytes(self) -> int:
        bias = 0 if self.bias is None else self.bias.numel()
        return (self.num_elements + bias) * self.dtype.itemsize


class StackedLinear:
    """Linear layers of the same inputs, one below the other: parts that are quantized in ways that do not join."""

    __slots__ = ("in_features", "out_features", "parts")

    def __init__(self, parts: "Sequence[Linear | QuantizedLinear]") -> None:
        self.parts = list(parts)
        self.in_features, self.out_features = parts[0].in_features, sum(part.out_features for part in parts)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        return torch.cat([part(x) for part in self.parts], dim=-1)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + linear(x); `residual` may be overwritten."""
        return residual.add_(self(x))

    @property
    def num_elements(self) -> int:
        return self.out_features * self.in_features

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class GatedLinear:
    """activation(gate(x)) * up(x), the first half of a gated MLP; gate and up are one matrix.

    As two packed calls with activation and product inside them, 1024 rows of a 576 x 1536 layer take 3.1 ms instead
    of 3.6, but decoding at batch 1 takes 5 % longer: one call more per layer, some 10 us each however small it is.
    """

    __slots__ = ("_activation", "_both", "_silu")

    def __init__(self, both: "AnyLinear", activation: str) -> None:
        """`both` has the outputs of gate, then those of up."""
        self._both = both
        self._activation, self._silu = ACTIVATIONS[activation], activation == "silu"

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, intermediate]."""
        both = self._both(x)
        if self._silu:
            return swiglu(both)
        gate, up = both.chunk(2, dim=-1)
        return self._activation(gate).mul_(up)

    @property
    def num_elements(self) -> int:
        return self._both.num_elements

    @property
    def nbytes(self) -> int:
        return self._both.nbytes


AnyLinear = Linear | QuantizedLinear | StackedLinear


def reorders(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `Linear` copies a weight of this dtype into another layout."""
    if device.type != "cpu" or _pointwise is None:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def worth_a_copy(weight: Tensor) -> bool:
    """Whether a head that is also the embedding is better laid out a second time: small, and much faster so.

    4096 x 192 in bfloat16, one row and thread: 43 us in oneDNN's layout, 73 with `F.linear`, 142 as a matrix times a
    vector; that is a quarter of a step of the bundled draft model. 49152 x 576 at 16 rows, two threads: 3.7 ms and 5.8,
    a twentieth of a step of a 135 M model, for 56 MB. Float32 gains less: oneDNN reads it well as it is.
    """
    return weight.dtype == torch.bfloat16 and weight.nbytes <= _SMALL_COPY and reorders(weight.dtype, weight.device)


def _packed_ops() -> tuple[Any, Any]:
    try:
        op, _ = torch.ops.mkldnn._linear_pointwise, torch.ops.mkldnn._reorder_linear_weight
        return (op.default, op.binary) if torch.backends.mkldnn.is_available() else (None, None)
    except AttributeError:  # a torch built without oneDNN
        return None, None


_pointwise, _pointwise_with = _packed_ops()
