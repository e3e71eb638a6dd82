"""The forms of a quantized matrix that a device multiplies with directly, and which of them a weight gets.

On a CPU torch has packed products for int8 rows and int4 groups in bfloat16, fast for few rows of x: with more of them
a matrix is written out tile by tile and multiplied as any other (see `crossover`). On an NVIDIA GPU it is our kernels
that decode as they go. Whatever has no such form is a `PackedMatrix`.
"""

import functools
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels import quant_pack
from kernels.dispatch import why_not_triton
from playground.quantization.blocks import BlockPanels, BlockWeight
from playground.quantization.crossover import Crossover, Trial, measured_crossover, trial
from playground.quantization.packed import PackedMatrix
from playground.quantization.weight import QuantizedWeight

INT4_GROUPS = (256, 128, 64, 32)
_BLOCK_N = 64
_TILE_ELEMENTS = 1 << 18
_ROWS_OF_DIGITS = 256
_HALF_RANGE = 127.5
_WORTH_STREAMING, _STREAM, _STREAMED_ROWS = 1 << 18, 1 << 20, 4


class Layout(Protocol):
    """A matrix [N, K] ready for products in one dtype on one device."""

    name: str

    def __call__(self, x: Tensor) -> Tensor:
        """[T, K] -> [T, N]."""
        ...

    def take(self, numbers: Tensor) -> Tensor:
        """The rows with these numbers (int64 [T]), [T, K]."""
        ...

    @property
    def nbytes(self) -> int: ...


class FewRowsLayout:
    """A layout whose product is good for few rows and that can be written out for many."""

    name: str
    shape: tuple[int, int]
    _crossover: Crossover | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.few(x.contiguous()) if x.shape[0] <= self.most_packed_rows else self.written(x)

    def few(self, x: Tensor) -> Tensor:
        """The packed product as a decoding step does it."""
        return self.packed(x)

    @property
    def most_packed_rows(self) -> int:
        """Up to how many rows of x the packed product is the faster one here: measured, once a process."""
        if self._crossover is None:
            self._crossover = measured_crossover(type(self), *self.shape)
        return self._crossover.rows

    def packed(self, x: Tensor) -> Tensor:
        """The product without writing the matrix out."""
        raise NotImplementedError

    def written(self, x: Tensor) -> Tensor:
        """The product as it is fast for many rows."""
        raise NotImplementedError

    @classmethod
    def random(cls, outputs: int, inputs: int) -> "FewRowsLayout":
        """Any matrix of this shape, to measure with."""
        raise NotImplementedError


class Int8Rows(FewRowsLayout):
    """int8 codes with one scale a row, on a CPU in bfloat16."""

    name = "int8 rows"
    _trial: Trial | None = None

    def __init__(self, weight: QuantizedWeight) -> None:
        self.shape = weight.shape
        self._codes, self._scales = _signed(weight.codes), weight.scales[:, 0].bfloat16().contiguous()

    @staticmethod
    def fits(weight: QuantizedWeight) -> bool:  # torch reads 16 columns at a time, also past the end
        return _has_int8_rows(weight) and weight.shape[1] % 16 == 0

    @classmethod
    def random(cls, outputs: int, inputs: int) -> "Int8Rows":
        codes = torch.randint(0, 256, (outputs, inputs), dtype=torch.uint8)
        return cls(QuantizedWeight(codes, torch.ones(outputs, 1), 8, -1))

    def few(self, x: Tensor) -> Tensor:
        """Some CPUs read these rows from memory at a third of their bandwidth, because their prefetchers do not follow
        four short streams: there it pays to run over the bytes first. The 30 layers of a 135 M model, one thread of an
        EPYC: 19.6 ms, 14.5 with a sum before each product. Whether it does is tried out."""
        if self._codes.nbytes < _WORTH_STREAMING or x.shape[0] > _STREAMED_ROWS:
            return self.packed(x)
        if self._trial is None:
            self._trial = trial("int8 rows, then streamed", *self.shape, torch.get_num_threads())
        return self._trial.run(self.packed, self._streamed, x)

    def packed(self, x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x, self._codes, self._scales)

    def _streamed(self, x: Tensor) -> Tensor:
        if self._codes.nbytes <= 2 * _STREAM:
            self._codes.view(torch.int64).sum()
            return self.packed(x)
        outputs, inputs = self.shape
        y, step = x.new_empty(x.shape[0], outputs), max(1, _STREAM // inputs)
        for start in range(0, outputs, step):
            rows = slice(start, start + step)
            self._codes[rows].view(torch.int64).sum()
            y[:, rows] = torch._weight_int8pack_mm(x, self._codes[rows], self._scales[rows])
        return y

    def written(self, x: Tensor) -> Tensor:
        """Two int8 products: x as 16-bit whole numbers, each token with a scale of its own, and these as two digits.

        What is lost of x is 2^-16 of the token's largest value, less than bfloat16 loses of that. 3072 x 576, 16 rows,
        two threads of AVX-512: 385 us packed, 150 like this, 157 in bfloat16.
        """
        return torch.cat([self._by_digits(some) for some in x.split(_ROWS_OF_DIGITS)])

    def _by_digits(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        scales = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
        scales = scales.clamp_(min=1e-30).div_(127 * 256)
        numbers = (x / scales).round_()
        high = torch.floor((numbers + 128) / 256)
        digits = torch.cat((high, numbers.sub_(high, alpha=256))).to(torch.int8)
        sums = torch._int_mm(digits, self._codes.t()).float()
        return (sums[rows:].add_(sums[:rows], alpha=256) * scales).mul_(self._scales).to(x.dtype)

    def take(self, numbers: Tensor) -> Tensor:
        return self._codes[numbers].to(torch.bfloat16).mul_(self._scales[numbers, None])

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes


class Int8Activations:
    """int8 rows times activations that are rounded to int8 too, each token with a scale of its own (W8A8).

    As compressed-tensors defines dynamic activations: the 256 codes -128 .. 127 are spread over max|x| in 255 steps, so
    that the largest value lies half a step outside them, halfway to the next code. Values are divided by the largest
    first, which makes that one exactly 1: its code does not depend on the last bit of a product.
    """

    name = "int8 x int8"

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        self.shape, self.dtype = weight.shape, dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self._codes, self._scales = _signed(weight.codes), weight.scales[:, 0].to(wide)
        # A GPU wants at least 17 rows, and sizes in eights.
        self._on_gpu = weight.codes.device.type == "cuda"

    @staticmethod
    def fits(weight: QuantizedWeight) -> bool:
        on_gpu = weight.codes.device.type == "cuda"
        return _has_int8_rows(weight) and not (on_gpu and any(size % 8 for size in weight.shape))

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True, dtype=self._scales.dtype)
        largest.clamp_(min=1e-12)
        codes = (x / largest).mul_(_HALF_RANGE).round_().clamp_(-128, 127).to(torch.int8)
        scales = largest.div_(_HALF_RANGE)
        if self._on_gpu and rows < 32:
            codes = F.pad(codes, (0, 0, 0, 32 - rows))
        sums = torch._int_mm(codes, self._codes.t())[:rows]
        return (sums * scales).mul_(self._scales).to(self.dtype)

    def take(self, numbers: Tensor) -> Tensor:
        return (self._codes[numbers] * self._scales[numbers, None]).to(self.dtype)

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes


class Int4Groups(FewRowsLayout):
    """Codes of 4 bits in groups, on a CPU in bfloat16; of 3 bits, which then take 4; of 8, as two such matrices.

    A value is (q - 8) scale + shift, both in bfloat16: 4 bytes a group.
    """

    name = "int4 groups"

    def __init__(self, weight: QuantizedWeight) -> None:
        group = _int4_group(weight)
        assert group is not None
        self.shape, self.group_size = weight.shape, group
        middle = 128 if weight.bits == 8 else 8
        scales = weight.scales.bfloat16().float()
        shifts = _shifts(weight, scales, middle)
        repeat = (weight.shape[1] if weight.group_size == -1 else weight.group_size) // group
        scales, shifts = (part.repeat_interleave(repeat, dim=1) for part in (scales, shifts))
        self._high: tuple[Tensor, Tensor] | None = None
        if weight.bits == 8:  # 16 a + b - 128 = 16 (a - 8) + (b - 8) + 8
            self._high = _pack_int4(weight.codes >> 4, 16 * scales, torch.zeros_like(shifts))
            self._low = _pack_int4(weight.codes & 15, scales, shifts + 8 * scales)
        else:
            self._low = _pack_int4(weight.codes, scales, shifts)

    @staticmethod
    def fits(weight: QuantizedWeight) -> bool:
        simple = weight.kind == "int" and weight.bits in (3, 4, 8) and weight.group_index is None
        return simple and _int4_group(weight) is not None

    @classmethod
    def random(cls, outputs: int, inputs: int) -> "Int4Groups":
        codes = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
        group = 32 if inputs % 64 else 64
        return cls(QuantizedWeight(codes, torch.ones(outputs, inputs // group), 4, group))

    def packed(self, x: Tensor) -> Tensor:
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self._low[0], self.group_size, self._low[1])
        if self._high is not None:
            y.add_(torch.ops.aten._weight_int4pack_mm_for_cpu(x, self._high[0], self.group_size, self._high[1]))
        outputs = self.shape[0]
        return y if y.shape[1] == outputs else y[:, :outputs].contiguous()

    def written(self, x: Tensor) -> Tensor:
        outputs, inputs = self.shape
        y = x.new_empty(x.shape[0], outputs)
        step = max(1, _TILE_ELEMENTS // (inputs * _BLOCK_N)) * _BLOCK_N
        for start in range(0, outputs, step):
            stop = min(outputs, start + step)
            y[:, start:stop] = torch.mm(x, self._columns(start // _BLOCK_N, -(-stop // _BLOCK_N))[:, : stop - start])
        return y

    def take(self, numbers: Tensor) -> Tensor:
        codes = self._codes_of(self._low[0], numbers)
        if self._high is not None:
            codes += self._codes_of(self._high[0], numbers) * 16
        pairs = self._low[1][:, numbers].transpose(0, 1)  # [T, G, 2]
        values = self._values(codes).view(len(numbers), -1, self.group_size)
        return self._scaled(values, pairs[..., :1], pairs[..., 1:]).reshape(len(numbers), -1)

    def _columns(self, first: int, last: int) -> Tensor:
        """W^T of these blocks of 64 outputs, [K, 64 * blocks]."""
        inputs = self.shape[1]
        codes = self._blocks(self._low[0], first, last)
        if self._high is not None:
            codes += self._blocks(self._high[0], first, last) * 16
        pairs = self._low[1][:, None, first * _BLOCK_N : last * _BLOCK_N]  # [G, 1, N, 2], side by side in memory,
        scales, shifts = (
            part.contiguous() for part in pairs.unbind(-1)
        )  # which would make the next line 7 times slower
        values = self._values(codes).view(-1, self.group_size, codes.shape[-1])
        return self._scaled(values, scales, shifts).view(inputs, -1)

    def _values(self, codes: Tensor) -> Tensor:
        """Codes less the middle one, exactly."""
        return codes.sub_(8 if self._high is None else 128).view(torch.int8).to(torch.bfloat16)

    def _scaled(self, values: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
        return torch.addcmul(shifts if self._high is None else shifts - 8 * scales, values, scales)

    def _blocks(self, codes: Tensor, first: int, last: int) -> Tensor:
        """Codes of whole blocks of 64 outputs, uint8 [K, 64 * blocks], new memory."""
        inputs, (block, places) = self.shape[1], _nibble_order()
        some = codes.view(-1, inputs * _BLOCK_N // 2)[first:last].view(-1, inputs, block // 2).transpose(0, 1)
        both = torch.cat((some & 15, some >> 4), dim=-1)
        return (both if places is None else both[..., places]).view(inputs, -1)

    def _codes_of(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Codes of single rows, uint8 [T, K], new memory."""
        inputs, (block, places) = self.shape[1], _nibble_order()
        place = numbers % block if places is None else places[numbers % block]
        found = codes.view(-1, inputs, block // 2)[numbers // block, :, place % (block // 2)]
        return torch.where((place < block // 2)[:, None], found & 15, found >> 4)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for plane in (self._low, self._high) if plane is not None for part in plane)


class KernelGroups:
    """The layout of our GPU kernels, which decode it as they multiply."""

    name = "kernel"

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        self.shape, self.dtype = weight.shape, dtype
        scales, zeros = weight.scales, weight.zeros
        if weight.offsets is not None:
            zeros = weight.offsets.float() / scales.float()
        stored = dtype if dtype.itemsize < scales.itemsize else scales.dtype
        self._packed = quant_pack.pack(
            weight.codes, scales.to(stored), zeros, bits=weight.bits, group_size=weight.group_size, kind=weight.kind
        )

    @staticmethod
    def fits(weight: QuantizedWeight, dtype: torch.dtype) -> bool:
        device = weight.codes.device
        if dtype == torch.float64 or why_not_triton(device.type, device.index) is not None:
            return False
        if weight.kind == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
            return False
        known = weight.bits in (2, 4, 8) and (weight.group_size in (-1, 32, 64) or weight.group_size % 128 == 0)
        divisible = weight.offsets is None or bool((weight.scales != 0).all())
        return known and divisible and weight.group_index is None

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.quant_linear(x, self._packed)

    def take(self, numbers: Tensor) -> Tensor:
        packed = self._packed
        zeros = None if packed.zeros is None else packed.zeros[:, numbers]
        some = replace(
            packed, data=packed.data[numbers], scales=packed.scales[:, numbers], zeros=zeros,
            shape=(len(numbers), packed.shape[1]),
        )  # fmt: skip
        return quant_pack.dequantize(some, self.dtype)

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes


def lay_out(weight: QuantizedWeight | BlockWeight, dtype: torch.dtype, *, int8_activations: bool = False) -> Layout:
    """The best form of a weight for products in `dtype` on the device that it is on."""
    if isinstance(weight, BlockWeight):
        return BlockPanels(weight, dtype)
    device = weight.codes.device
    if int8_activations and Int8Activations.fits(weight):
        return Int8Activations(weight, dtype)
    if device.type == "cuda" and KernelGroups.fits(weight, dtype):
        return KernelGroups(weight, dtype)
    if device.type == "cpu" and dtype == torch.bfloat16:
        for layout in (Int8Rows, Int4Groups):
            if layout.fits(weight):
                return layout(weight)
    return PackedMatrix(weight, dtype)


def _has_int8_rows(weight: QuantizedWeight) -> bool:
    simple = weight.kind == "int" and weight.bits == 8 and weight.symmetric and weight.group_index is None
    return simple and weight.num_groups == 1


def _signed(codes: Tensor) -> Tensor:
    """uint8 codes around 128 as int8 around 0, new memory."""
    return (codes ^ 128).view(torch.int8)


def _int4_group(weight: QuantizedWeight) -> int | None:
    """The size of groups that torch's int4 product can take this weight in."""
    inputs = weight.shape[1]
    group = inputs if weight.group_size == -1 else weight.group_size
    return next((size for size in INT4_GROUPS if group % size == 0 and inputs % group == 0), None)


def _shifts(weight: QuantizedWeight, scales: Tensor, middle: int) -> Tensor:
    """[N, G] such that W = (code - middle) * scale + shift."""
    if weight.offsets is not None:
        return middle * scales - weight.offsets.float()
    zeros = 2 ** (weight.bits - 1) if weight.zeros is None else weight.zeros.float()
    return (middle - zeros) * scales


def _pack_int4(codes: Tensor, scales: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in torch's order, and [G, N, 2] of scales and shifts; rows are padded to whole blocks."""
    padding = (0, 0, 0, -codes.shape[0] % _BLOCK_N)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(F.pad(codes, padding).int(), 1)
    pairs = torch.stack((F.pad(scales, padding), F.pad(shifts, padding)), dim=-1)
    return packed, pairs.transpose(0, 1).contiguous().bfloat16()


@functools.cache
def _nibble_order() -> tuple[int, Tensor | None]:
    """How torch orders packed int4 codes here, which depends on the instruction set: found out by packing numbers.

    Returns (B, places): rows lie in blocks of B, of which a byte of column k holds two; all low nibbles of a block and
    column, then all high ones, are its rows in order (places None) or row n is at places[n].
    """
    outputs, inputs = _BLOCK_N, 4
    numbers, found = torch.arange(outputs * inputs).view(outputs, inputs), torch.zeros(2, outputs * inputs // 2).long()
    for shift in (0, 4):
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(((numbers >> shift) & 15).int(), 1).flatten().long()
        found |= torch.stack((packed & 15, packed >> 4)) << shift
    rows, columns = found // inputs, found % inputs
    half = int((columns[0] == 0).int().cumprod(0).sum())
    block = 2 * half
    order = torch.cat((rows[0, :half], rows[1, :half]))
    assert sorted(order.tolist()) == list(range(block))
    return block, None if torch.equal(order, torch.arange(block)) else torch.argsort(order)
