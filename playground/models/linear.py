"""Linear layers for inference, in the layout that the device reads fastest.

On a CPU, weights are reordered once at load: bfloat16 into oneDNN's own layout (plain `F.linear` reads it at half the
memory bandwidth at one row), float32 into transposed panels (15 to 45 % less time from 4 to 32 rows). Holds one
copy of a weight, never two (but see `worth_a_copy`), and no gradients.
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
# A plain matrix (one that is also the embedding) of 49152 x 576, one thread: W x^T takes 2.5 ms in bfloat16 up to 16
# rows, where x W^T takes 4 to 5.3 ms; oneDNN takes 12 and 16 ms in float32 at 4 and 16 rows, where it takes 18 and 25.
# That is so with AMX. With AVX-512 alone W x^T takes 22 to 25 ms in bfloat16 and x W^T 13 to 19.
_MOST_ROWS_TURNED = 16 if torch.cpu._is_amx_tile_supported() else 0
_ONEDNN_ROWS = range(3, 65)
_SMALL_COPY = 8 << 20
# Float32 panels: at 16 rows, x W with W [576, 3072] takes 1.1 ms, but 0.5 ms as 8 panels of 384 columns.
_WIDEST_PANEL, _PANEL = 1024, 512
_MOST_ROWS_IN_ONE_CALL = 32


class Linear:
    """y = x W^T + b, optionally with a residual added in the same call."""

    __slots__ = ("_packed", "_panels", "bias", "dtype", "in_features", "out_features", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, *, keep: bool = False) -> None:
        """`weight` is [out, in]; with `keep` it stays as it is, for others to use too."""
        self.out_features, self.in_features = weight.shape
        self.dtype, self.bias = weight.dtype, bias
        self._packed: Tensor | None = None
        self._panels: Tensor | None = None
        self.weight: Tensor | None = None
        if keep or not reorders(weight.dtype, weight.device):
            self.weight = weight
        elif weight.dtype == torch.bfloat16:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        else:
            count = _panel_count(self.out_features)
            panels = weight.view(count, self.out_features // count, self.in_features).transpose(1, 2)
            self._panels = panels.clone(memory_format=torch.contiguous_format)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        if self._packed is not None:
            return _pointwise(x, self._packed, self.bias, "none", [], "")
        if self._panels is None:
            return self._plain(x)
        y = self._by_panels(x, self._panels)
        return y if self.bias is None else y.add_(self.bias)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + linear(x); `residual` may be overwritten."""
        if self._packed is not None:
            return _pointwise_with(x, residual, self._packed, self.bias, "add")
        if self._panels is not None and self._panels.shape[0] == 1:
            residual.addmm_(x, self._panels[0])
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
            if x.dtype == torch.float32 and rows in _ONEDNN_ROWS:
                return _pointwise(x, self.weight, None, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def _by_panels(self, x: Tensor, panels: Tensor) -> Tensor:
        count, inputs, width = panels.shape
        rows = x.shape[0]
        if count == 1:
            return torch.mm(x, panels[0])
        if rows <= _MOST_ROWS_IN_ONE_CALL:
            y = torch.bmm(x.expand(count, rows, inputs), panels)
            return y.transpose(0, 1).reshape(rows, self.out_features)
        y = x.new_empty(rows, self.out_features)
        for part, panel in zip(y.split(width, dim=1), panels.unbind(0), strict=True):
            torch.mm(x, panel, out=part)
        return y

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
    vector; that is a quarter of a step of the bundled draft model. Float32 gains nothing.
    """
    return weight.dtype == torch.bfloat16 and weight.nbytes <= _SMALL_COPY and reorders(weight.dtype, weight.device)


def _panel_count(outputs: int) -> int:
    """Into how many equal panels a matrix is cut: 1 where it is narrow or has no divisor of a good size."""
    if outputs <= _WIDEST_PANEL:
        return 1
    widths = (width for width in range(_PANEL, _PANEL // 4, -1) if outputs % width == 0)
    return outputs // next(widths, outputs)


def _packed_ops() -> tuple[Any, Any]:
    try:
        op, _ = torch.ops.mkldnn._linear_pointwise, torch.ops.mkldnn._reorder_linear_weight
        return (op.default, op.binary) if torch.backends.mkldnn.is_available() else (None, None)
    except AttributeError:  # a torch built without oneDNN
        return None, None


_pointwise, _pointwise_with = _packed_ops()
