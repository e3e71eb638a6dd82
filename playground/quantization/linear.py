"""A linear layer over a quantized matrix, with the interface of `playground.models.linear.Linear`.

Nothing but the packed form is held; what is written out to multiply with is a few rows at a time, and gone afterwards.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from playground.quantization.packed import PackedMatrix
from playground.quantization.weight import QuantizedWeight

_TILE_ELEMENTS = 1 << 18


class QuantizedLinear:
    """y = x W^T + b with W [out, in] quantized; rows of W can be read too, where it is also an embedding."""

    weight = None
    """Never a plain matrix (see `Linear.weight`)."""

    def __init__(
        self, weight: QuantizedWeight, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.out_features, self.in_features = weight.shape
        self.dtype, self.bias = dtype, bias
        self._matrix = PackedMatrix(weight.to(device))

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        y = x.new_empty(x.shape[0], self.out_features)
        step = max(1, _TILE_ELEMENTS // self.in_features)
        for start in range(0, self.out_features, step):
            tile = self._matrix.rows(start, min(self.out_features, start + step)).dequantize(self.dtype)
            y[:, start : start + step] = F.linear(x, tile)
        return y if self.bias is None else y.add_(self.bias)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + linear(x); `residual` may be overwritten."""
        return residual.add_(self(x))

    def take(self, rows: Tensor) -> Tensor:
        """Rows of W, [T, in]: what an embedding looks up."""
        return self._matrix.take(rows).dequantize(self.dtype)

    @property
    def num_elements(self) -> int:
        return self.out_features * self.in_features

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form and the bias."""
        return self._matrix.nbytes + (0 if self.bias is None else self.bias.nbytes)
