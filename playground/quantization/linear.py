"""A linear layer over a quantized matrix, with the interface of `playground.models.linear.Linear`.

Nothing but the packed form is held; what is written out to multiply with is a few rows at a time, and gone afterwards.
"""

from dataclasses import replace

import torch
from torch import Tensor

from playground.quantization.layouts import lay_out
from playground.quantization.weight import QuantizedWeight


class QuantizedLinear:
    """y = x W^T + b with W [out, in] quantized; rows of W can be read too, where it is also an embedding."""

    __slots__ = ("_order", "bias", "dtype", "in_features", "layout", "out_features")

    weight = None
    """Never a plain matrix (see `Linear.weight`)."""

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: Tensor | None,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        int8_activations: bool = False,
    ) -> None:
        """`int8_activations` rounds x to int8 too, where the weight is int8 with one scale a row (W8A8)."""
        self.out_features, self.in_features = weight.shape
        self.dtype, self.bias = dtype, bias
        weight, order = _in_order(weight.to(device))
        self._order = order
        self.layout = lay_out(weight, dtype, int8_activations=int8_activations)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        y = self.layout(x if self._order is None else x.index_select(1, self._order))
        return y if self.bias is None else y.add_(self.bias)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + linear(x); `residual` may be overwritten."""
        return residual.add_(self(x))

    def take(self, rows: Tensor) -> Tensor:
        """Rows of W, [T, in]: what an embedding looks up."""
        values = self.layout.take(rows)
        return values if self._order is None else torch.empty_like(values).index_copy_(1, self._order, values)

    @property
    def num_elements(self) -> int:
        return self.out_features * self.in_features

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form, the order of columns and the bias."""
        return self.layout.nbytes + sum(part.nbytes for part in (self._order, self.bias) if part is not None)


def _in_order(weight: QuantizedWeight) -> tuple[QuantizedWeight, Tensor | None]:
    """The weight with the columns of a group side by side, and the columns' numbers in that order (activation order).

    As it is, with None, where they are already, or where groups are not equally large.
    """
    if weight.group_index is None:
        return weight, None
    inputs, groups = weight.shape[1], torch.arange(weight.shape[1], device=weight.codes.device)
    order = torch.argsort(weight.group_index, stable=True)
    sorted_groups = groups // (inputs if weight.group_size == -1 else weight.group_size)
    if not torch.equal(weight.group_index[order].long(), sorted_groups):
        return weight, None
    in_order = bool((order == groups).all())
    return replace(weight, codes=weight.codes[:, order], group_index=None), None if in_order else order
