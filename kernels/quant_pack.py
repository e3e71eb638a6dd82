"""The layout that the weight-only kernels read, packed and unpacked in plain torch.

A weight [N, K] is a matrix of codes. K is cut into blocks of 128. Codes of 2 and 4 bits are packed into 16-bit words: a
block of b-bit codes is 16/b planes of 8 b codes, and word j of the block holds code j of every plane, the first in the
lowest bits. So a kernel that loads consecutive words gets a run of consecutive k from every plane, already in lanes as
wide as the numbers they become: it never interleaves and never widens bytes (4.3 instructions a weight where bytes
took 5.6: int4 in bfloat16 on sm90). Codes of 8 bits are bytes in order. Scales are stored as kernels read them,
[groups, N].
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_K = 128
KINDS = ("int", "nf4", "fp8")
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 levels of NormalFloat4 (arXiv 2305.14314, appendix E)."""
_WORD = {2: torch.int16, 4: torch.int16, 8: torch.uint8}
_SCALE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight [N, K] in the layout of this module. Made by `pack`.

    `kind` says what a code means: "int" is (code - zero) * scale, with zero 2^(bits-1) where `zeros` is None; "nf4" is
    a level times the scale (the group's largest magnitude); "fp8" is a float8 e4m3 number times the scale.
    """

    data: Tensor
    """uint8 [N, ceil(K / 128) * 16 * bits]."""
    scales: Tensor
    """float32, float16 or bfloat16 [groups, N], with groups of zeros up to the end of the last block."""
    zeros: Tensor | None
    """[groups, N] uint8 or floating, "int" only; may be fractions."""
    bits: int
    group_size: int
    """32, 64, a multiple of 128, or -1 for one group a row."""
    shape: tuple[int, int]
    """(N, K)."""
    kind: str = "int"

    @property
    def words(self) -> Tensor:
        """`data` as its words: int16 [N, ...] for codes of 2 and 4 bits, uint8 for 8."""
        return self.data.view(_WORD[self.bits])

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zeros."""
        return self.data.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)

    @property
    def num_groups(self) -> int:
        """Groups of a row, without the padding."""
        return 1 if self.group_size == -1 else -(-self.shape[1] // self.group_size)

    def to(self, device: torch.device | str) -> "PackedWeight":
        """The same weight on another device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return replace(self, data=self.data.to(device), scales=self.scales.to(device), zeros=zeros)


def num_planes(bits: int) -> int:
    """Codes in a word."""
    return 1 if bits == 8 else 16 // bits


def pack(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    *,
    bits: int,
    group_size: int,
    kind: str = "int",
) -> PackedWeight:
    """Packs codes uint8 [N, K] with scales (and zeros) [N, ceil(K / group_size)], [N, 1] for a group size of -1.

    Codes are 0 .. 2^bits - 1; of "fp8" they are the bits of float8_e4m3fn. The last group may be short. Raises
    ValueError for shapes, types and codes that do not fit.
    """
    _check(codes, scales, zeros, bits, group_size, kind)
    n, k = codes.shape
    blocks, planes = -(-k // BLOCK_K), num_planes(bits)
    split = F.pad(codes, (0, blocks * BLOCK_K - k)).view(n, blocks, planes, BLOCK_K // planes).int()
    words = torch.zeros(n, blocks, BLOCK_K // planes, dtype=torch.int32, device=codes.device)
    for plane in range(planes):
        words |= split[:, :, plane] << (bits * plane)
    data = words.to(_WORD[bits]).flatten(1).view(torch.uint8)
    groups = 1 if group_size == -1 else -(-blocks * BLOCK_K // group_size)

    def stored(values: Tensor) -> Tensor:
        return F.pad(values, (0, groups - values.shape[1])).t().contiguous()

    packed_zeros = None if zeros is None else stored(zeros)
    return PackedWeight(data, stored(scales), packed_zeros, bits, group_size, (n, k), kind)


def unpack(packed: PackedWeight) -> tuple[Tensor, Tensor, Tensor | None]:
    """The codes, scales and zeros that were given to `pack`, exactly."""
    n, k = packed.shape
    planes = num_planes(packed.bits)
    words = packed.words.view(n, -1, BLOCK_K // planes).int()
    split = [(words >> (packed.bits * plane)) & (2**packed.bits - 1) for plane in range(planes)]
    codes = torch.stack(split, dim=2).flatten(1)[:, :k].to(torch.uint8)
    scales, zeros = (None if t is None else t[: packed.num_groups].t() for t in (packed.scales, packed.zeros))
    assert scales is not None
    return codes, scales.contiguous(), None if zeros is None else zeros.contiguous()


def dequantize(packed: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [N, K] itself, computed in float32 (in float64 for float64) and rounded once to `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    codes, scales, zeros = unpack(packed)
    if packed.kind == "nf4":
        values = torch.tensor(NF4_LEVELS, dtype=wide, device=codes.device)[codes.long()]
    elif packed.kind == "fp8":
        values = codes.view(torch.float8_e4m3fn).to(wide)
    elif zeros is None:
        values = codes.to(wide) - 2 ** (packed.bits - 1)
    else:
        values = codes.to(wide) - _per_column(zeros.to(wide), packed)
    return (values * _per_column(scales.to(wide), packed)).to(dtype)


def _per_column(values: Tensor, packed: PackedWeight) -> Tensor:
    """[N, groups] -> [N, K], or [N, 1] for one group a row."""
    if packed.group_size == -1:
        return values
    return values.repeat_interleave(packed.group_size, dim=1)[:, : packed.shape[1]]


def _check(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group_size: int, kind: str) -> None:
    if kind not in KINDS or bits not in {"int": (2, 4, 8), "nf4": (4,), "fp8": (8,)}[kind]:
        raise ValueError(
            f"kind={kind!r} with bits={bits} is not known: use int with 2, 4 or 8, nf4 with 4, fp8 with 8."
        )
    if group_size not in (-1, 32, 64) and (group_size <= 0 or group_size % BLOCK_K):
        raise ValueError(f"group_size={group_size} is not known: use 32, 64, a multiple of 128, or -1 for whole rows.")
    if codes.ndim != 2 or codes.dtype != torch.uint8 or 0 in codes.shape:
        raise ValueError(f"codes are {list(codes.shape)} of {codes.dtype}: give uint8 [N, K] that is not empty.")
    if bits < 8 and int(codes.max()) >= 2**bits:
        raise ValueError(f"a code is {int(codes.max())}: {bits} bits hold 0 to {2**bits - 1}.")
    wanted = [codes.shape[0], 1 if group_size == -1 else -(-codes.shape[1] // group_size)]
    if list(scales.shape) != wanted or scales.dtype not in _SCALE_DTYPES:
        raise ValueError(f"scales are {list(scales.shape)} of {scales.dtype}: give floating {wanted}.")
    if zeros is None:
        return
    if kind != "int":
        raise ValueError(f"kind={kind!r} has no zeros: leave them out.")
    if list(zeros.shape) != wanted or zeros.dtype not in (*_SCALE_DTYPES, torch.uint8):
        raise ValueError(f"zeros are {list(zeros.shape)} of {zeros.dtype}: give uint8 or floating {wanted}.")
