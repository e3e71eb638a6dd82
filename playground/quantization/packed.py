"""A quantized matrix in memory: codes in exactly as many bits as they have, written out row by row when it is used.

Holds what any file format can say and every device can read; faster layouts for what a device multiplies with directly
are in `layouts`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from playground.quantization.weight import QuantizedWeight

FIELD_WIDTHS = (8, 4, 2, 1)


class PackedMatrix:
    """W [N, K] as packed codes with scales and zeros, on the device of the weight that it was made of."""

    def __init__(self, weight: QuantizedWeight) -> None:
        self._fields = pack_codes(weight.codes, weight.bits)
        nothing = weight.codes[:0]
        # Everything but the codes, which would be a byte each: they are put back a few rows at a time.
        self._form = QuantizedWeight(
            nothing, weight.scales, weight.bits, weight.group_size, weight.zeros, weight.offsets, weight.group_index,
            weight.kind,
        )  # fmt: skip
        self.shape, self.device = weight.shape, weight.codes.device

    def rows(self, start: int, stop: int) -> QuantizedWeight:
        """Rows start .. stop - 1, unpacked."""
        return self._unpacked([field[start:stop] for field in self._fields], slice(start, stop))

    def take(self, numbers: Tensor) -> QuantizedWeight:
        """The rows with these numbers (int64 [T]), unpacked."""
        return self._unpacked([field[numbers] for field in self._fields], numbers)

    def _unpacked(self, fields: list[Tensor], which: slice | Tensor) -> QuantizedWeight:
        form, codes = self._form, unpack_codes(fields, self._form.bits, self.shape[1])
        zeros, offsets = (None if part is None else part[which] for part in (form.zeros, form.offsets))
        return QuantizedWeight(
            codes, form.scales[which], form.bits, form.group_size, zeros, offsets, form.group_index, form.kind
        )

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, zeros and the order of columns."""
        form = self._form
        parts = [*self._fields, form.scales, form.zeros, form.offsets, form.group_index]
        return sum(part.nbytes for part in parts if part is not None)


def field_widths(bits: int) -> list[int]:
    """The powers of two that a code of this many bits is cut into: 3 is 2 and 1, 6 is 4 and 2, lowest bits first."""
    return [width for width in FIELD_WIDTHS if bits & width]


def pack_codes(codes: Tensor, bits: int) -> list[Tensor]:
    """uint8 [N, K], 0 .. 2^bits - 1, as one uint8 [N, ceil(K * width / 8)] for each of `field_widths`.

    A byte holds consecutive columns, the first in its lowest bits.
    """
    fields, shift = [], 0
    for width in field_widths(bits):
        if width == 8:
            fields.append(codes.clone())
            continue
        per_byte = 8 // width
        part = F.pad((codes >> shift) & (2**width - 1), (0, -codes.shape[1] % per_byte))
        lanes = part.unflatten(1, (-1, per_byte))
        packed = lanes[..., 0].clone()
        for lane in range(1, per_byte):
            packed |= lanes[..., lane] << (width * lane)
        fields.append(packed)
        shift += width
    return fields


def unpack_codes(fields: list[Tensor], bits: int, columns: int) -> Tensor:
    """The codes that were given to `pack_codes`, uint8 [N, columns]."""
    codes, shift = None, 0
    for width, field in zip(field_widths(bits), fields, strict=True):
        if width == 8:
            return field
        per_byte = 8 // width
        part = field.new_empty(*field.shape, per_byte)
        for lane in range(per_byte):
            torch.bitwise_and(field >> (width * lane), 2**width - 1, out=part[..., lane])
        part = part.flatten(1)[:, :columns]
        codes = part if codes is None else codes | (part << shift)
        shift += width
    assert codes is not None
    return codes
