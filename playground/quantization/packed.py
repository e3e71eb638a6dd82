"""A quantized matrix in memory: codes in exactly as many bits as they have, written out a few rows at a time.

Holds what any file format can say, on any device, in any dtype. `layouts` has the forms that a device multiplies with
directly; this one is for all the rest, and its products cost the writing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.quant_pack import NF4_LEVELS
from playground.quantization.weight import QuantizedWeight

FIELD_WIDTHS = (8, 4, 2, 1)
_TILE_ELEMENTS = 1 << 18
_LANES = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class PackedMatrix:
    """W [N, K] as packed codes with scales and zeros, on the device of the weight that it was made of."""

    name = "written out"

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        """`dtype` is that of the products. Scales are rounded to it where it is narrower than they are."""
        self.shape, self.dtype = weight.shape, dtype
        self._bits, self._kind, self._group_index = weight.bits, weight.kind, weight.group_index
        self._fields = pack_codes(weight.codes, weight.bits)
        self._scales = _narrowed(weight.scales, dtype)
        self._zeros = weight.zeros if weight.zeros is None else _narrowed(weight.zeros, dtype)
        self._offsets = weight.offsets if weight.offsets is None else _narrowed(weight.offsets, dtype)
        whole_row = weight.group_size == -1 or weight.num_groups == 1
        self._group_size = self.shape[1] if whole_row else weight.group_size
        self._table = self._byte_table(weight.codes.device)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, K] -> [T, N]."""
        outputs, inputs = self.shape
        y = x.new_empty(x.shape[0], outputs)
        step = max(1, _TILE_ELEMENTS // inputs)
        for start in range(0, outputs, step):
            rows = slice(start, min(outputs, start + step))
            y[:, rows] = F.linear(x, self._written(rows))
        return y

    def take(self, numbers: Tensor) -> Tensor:
        """The rows with these numbers (int64 [T]), [T, K]."""
        return self._written(numbers)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, zeros and the order of columns; the table of a few kilobytes too."""
        parts = [*self._fields, self._scales, self._zeros, self._offsets, self._group_index, self._table]
        return sum(part.nbytes for part in parts if part is not None)

    def _written(self, which: slice | Tensor) -> Tensor:
        """Rows of W. Whole codes less whole zeros are exact in every dtype, so that there is one rounding; with
        fractions among them, float32 in between."""
        zeros, offsets = (None if part is None else part[which] for part in (self._zeros, self._offsets))
        fractions = offsets is not None or (zeros is not None and zeros.is_floating_point())
        wide = torch.float32 if fractions and self.dtype.itemsize < 4 else self.dtype
        values = self._values([field[which] for field in self._fields]).to(wide)
        if self._group_index is not None or self.shape[1] % self._group_size:
            scales, zeros, offsets = (self._per_column(part) for part in (self._scales[which], zeros, offsets))
        else:
            values = values.view(values.shape[0], -1, self._group_size)
            scales, zeros, offsets = (
                None if part is None else part[..., None] for part in (self._scales[which], zeros, offsets)
            )
        assert scales is not None
        if zeros is not None:
            values = values.sub_(zeros.to(wide))
        values = values.mul_(scales.to(wide))
        if offsets is not None:
            values = values.sub_(offsets.to(wide))
        return values.view(-1, self.shape[1]).to(self.dtype)

    def _per_column(self, part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        if self._group_index is not None:
            return part[:, self._group_index.long()]
        return part.repeat_interleave(self._group_size, dim=1)[:, : self.shape[1]]

    def _values(self, fields: list[Tensor]) -> Tensor:
        """What codes mean without scale and zero: new memory, of the products' dtype."""
        if self._table is None:
            return self._meaning(unpack_codes(fields, self._bits, self.shape[1])).to(self.dtype)
        field = fields[0]
        words = self._table.index_select(0, field.flatten().int())
        return words.view(self.dtype).view(field.shape[0], -1)[:, : self.shape[1]]

    def _meaning(self, codes: Tensor) -> Tensor:
        if self._kind == "nf4":
            return torch.tensor(NF4_LEVELS, dtype=self.dtype, device=codes.device)[codes.long()]
        if self._kind == "fp8":
            return codes.view(torch.float8_e4m3fn).to(self.dtype)
        middle = 2 ** (self._bits - 1) if self._zeros is None and self._offsets is None else 0
        return codes.to(self.dtype) - middle if middle else codes.to(self.dtype)

    def _byte_table(self, device: torch.device) -> Tensor | None:
        """Byte -> the values of its codes, side by side in one integer, where that is the quickest way.

        A tile of 448 x 576 in bfloat16 on one thread: nf4 84 us instead of 580, fp8 170 instead of 990.
        """
        width = self._bits if self._bits in (2, 4) or self._kind == "fp8" else 0
        size = 8 // width * self.dtype.itemsize if width else 0
        if size not in _LANES:
            return None
        codes = unpack_codes([torch.arange(256, dtype=torch.uint8, device=device)[:, None]], width, 8 // width)
        return self._meaning(codes).contiguous().view(_LANES[size]).flatten()


def _narrowed(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating values in `dtype` where that is narrower; whole numbers as they are."""
    return part.to(dtype) if part.is_floating_point() and part.itemsize > dtype.itemsize else part.clone()


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
        lanes = [(field >> (width * lane)) & (2**width - 1) for lane in range(per_byte)]
        part = torch.stack(lanes, dim=-1).flatten(1)[:, :columns]
        codes = part if codes is None else codes | (part << shift)
        shift += width
    assert codes is not None
    return codes
