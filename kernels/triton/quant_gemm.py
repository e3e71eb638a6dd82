"""Weight-only quantized matrix product: y[m, n] = sum_k x[m, k] W[n, k] + b[n], W packed by `kernels.quant_pack`.

A step takes `CHUNK` consecutive words of every row: one load, then one dot for each plane of codes. Weights enter the
tensor cores as small integers (or levels), exact in float16 and bfloat16; the scale is applied to the float32 partial
sum of its group, BLOCK_M x BLOCK_N multiplications where the weights would need CHUNK x BLOCK_N. Zero points are a
rank-1 correction, -(z - c) s rowsum(x), with c = 2^(bits-1) already taken off the codes; float32 activations, which
would see its rounding, take them off the weights instead.
Up to 16 rows the product is bound by reading W: K is split over programs, partial sums go to a float32 workspace and a
second kernel adds them in order, so results are the same in every run. For many rows W is written out once in the
dtype of x and the matrix product is left to the vendor's library.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.quant_pack import BLOCK_K, PackedWeight, num_planes
from kernels.triton.arch import Arch, current
from kernels.triton.common import compute_dtype, e4m3_decode, to_dtype
from kernels.triton.launch import launch

MAX_GEMM_ROWS = 64
"""More rows than this dequantize first: writing and reading W once costs 4 bytes a weight, shared by all rows."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def nf4_levels():
    """The levels as a float32 tensor [16], made in registers once a program: no pointer to carry around."""
    i = tl.arange(0, 16)
    low = tl.where(i == 0, -1.0, tl.where(i == 1, -0.6961928009986877, tl.where(i == 2, -0.5250730514526367,
          tl.where(i == 3, -0.39491748809814453, tl.where(i == 4, -0.28444138169288635,
          tl.where(i == 5, -0.18477343022823334, tl.where(i == 6, -0.09105003625154495, 0.0)))))))  # fmt: skip
    high = tl.where(i == 8, 0.07958029955625534, tl.where(i == 9, 0.16093020141124725,
           tl.where(i == 10, 0.24611230194568634, tl.where(i == 11, 0.33791524171829224,
           tl.where(i == 12, 0.44070982933044434, tl.where(i == 13, 0.5626170039176941,
           tl.where(i == 14, 0.7229568362236023, 1.0)))))))  # fmt: skip
    return tl.where(i < 8, low, high)


@triton.jit
def plane_values(words, table, PLANE: tl.constexpr, KIND: tl.constexpr, BITS: tl.constexpr, dot_dtype: tl.constexpr,
                 SOFT_FP8: tl.constexpr):  # fmt: skip
    """Plane PLANE of a tile of words in `dot_dtype`: codes less 2^(BITS-1), nf4 levels, or e4m3 numbers, all exact.

    Narrow codes become floats by bits: 0x4300 | c is 128 + c in bfloat16, 0x6400 | c is 1024 + c in float16, whose ten
    fraction bits also take a code s bits further up: 0x6400 | (c << s) is 2^s (2^(10-s) + c), which saves the shift.
    """
    CENTRE: tl.constexpr = 1 << (BITS - 1)
    MASK: tl.constexpr = (1 << BITS) - 1
    if KIND == "fp8":
        if SOFT_FP8:
            values = e4m3_decode(words).to(dot_dtype)
        else:
            values = words.to(tl.float8e4nv, bitcast=True).to(dot_dtype)
    elif BITS == 8:
        values = (words ^ 0x80).to(tl.int8, bitcast=True).to(dot_dtype)
    else:
        lanes = words.to(tl.uint16, bitcast=True)
        if KIND == "nf4":
            codes = (lanes >> (BITS * PLANE)) & MASK
            flat = tl.reshape(codes.to(tl.int32), [codes.shape[0] * codes.shape[1]])
            values = tl.reshape(tl.gather(table, flat, 0), [codes.shape[0], codes.shape[1]])
        elif dot_dtype == tl.float16:
            UP: tl.constexpr = BITS * PLANE % 8
            half = lanes if PLANE < 8 // BITS else lanes >> 8
            values = ((half & (MASK << UP)) | 0x6400).to(tl.float16, bitcast=True)
            values = values * (1.0 / (1 << UP)) - (1024.0 / (1 << UP) + CENTRE)
        elif dot_dtype == tl.bfloat16:
            codes = (lanes >> (BITS * PLANE)) & MASK
            values = (codes | 0x4300).to(tl.bfloat16, bitcast=True) - (128.0 + CENTRE)
        else:
            values = ((lanes >> (BITS * PLANE)) & MASK).to(dot_dtype) - CENTRE
    return values


@triton.jit
def _quant_gemm_kernel(
    x_ptr,  # [M, K]
    data_ptr,  # int16 (8 bits: uint8) [N, words]
    scales_ptr,  # [G, N]
    zeros_ptr,  # [G, N] or None
    bias_ptr,  # [N] or None; never with several splits
    out_ptr,  # [M, N], or float32 [splits, M, N]
    rows,  # M
    cols,  # N
    size,  # K
    steps,  # words of a row / CHUNK
    steps_per_split,
    stride_xm,
    stride_dn,
    stride_os,
    stride_om,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,  # 0: one group a row
    EVEN_K: tl.constexpr,
    DOT: tl.constexpr,
    ZEROS_FIRST: tl.constexpr,  # zero points leave the weights before the dot
    SOFT_FP8: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    PLANES: tl.constexpr = 1 if BITS == 8 else 16 // BITS
    PLANE_K: tl.constexpr = BLOCK_K // PLANES
    CHUNKS: tl.constexpr = PLANE_K // CHUNK  # steps of a block
    CENTRE: tl.constexpr = 1 << (BITS - 1)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(2)
    offs_c = tl.arange(0, CHUNK)
    mask_n, mask_m = offs_n < cols, offs_m < rows
    # Columns beyond N read row 0 instead: no mask in the loop.
    safe_n = tl.where(mask_n, offs_n, 0)
    data_ptrs = data_ptr + safe_n.to(tl.int64)[None, :] * stride_dn + offs_c[:, None]
    x_ptrs = x_ptr + offs_m.to(tl.int64)[:, None] * stride_xm + offs_c[None, :]
    table = nf4_levels().to(DOT) if KIND == "nf4" else None
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    first = split * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, steps)):
        words = tl.load(data_ptrs + step * CHUNK)
        step_k = (step // CHUNKS) * BLOCK_K + (step % CHUNKS) * CHUNK
        part = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for plane in tl.static_range(PLANES):
            k = step_k + plane * PLANE_K
            mask = mask_m[:, None] if EVEN_K else mask_m[:, None] & (k + offs_c < size)[None, :]
            x = tl.load(x_ptrs + k, mask=mask, other=0.0).to(DOT)
            w = plane_values(words, table, plane, KIND, BITS, DOT, SOFT_FP8)
            group = k // GROUP if GROUP != 0 else 0
            if ZEROS_FIRST:
                w -= (tl.load(zeros_ptr + group * cols + safe_n).to(DOT) - CENTRE)[None, :]
            elif zeros_ptr is not None:
                # Planes are added up lane by lane, so that each group pays for one sum across lanes.
                if plane == 0 or (GROUP != 0 and plane * PLANE_K % GROUP == 0):
                    x_sum = x.to(tl.float32)
                else:
                    x_sum += x.to(tl.float32)
                if plane == PLANES - 1 or (GROUP != 0 and (plane + 1) * PLANE_K % GROUP == 0):
                    row_sum += tl.sum(x_sum, 1)
            if GROUP == 0:
                acc = tl.dot(x, w, acc, input_precision="ieee")
            else:
                part = tl.dot(x, w, part, input_precision="ieee")
            # The last plane of a group that is in this step: planes of one group share a partial sum.
            if GROUP != 0 and (plane == PLANES - 1 or (plane + 1) * PLANE_K % GROUP == 0):
                scale = tl.load(scales_ptr + group * cols + safe_n).to(tl.float32)
                if zeros_ptr is not None and not ZEROS_FIRST:
                    zero = tl.load(zeros_ptr + group * cols + safe_n).to(tl.float32) - CENTRE
                    part -= row_sum[:, None] * zero[None, :]
                    row_sum = tl.zeros([BLOCK_M], tl.float32)
                acc += part * scale[None, :]
                part = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if GROUP == 0:
        if zeros_ptr is not None and not ZEROS_FIRST:
            acc -= row_sum[:, None] * (tl.load(zeros_ptr + safe_n).to(tl.float32) - CENTRE)[None, :]
        acc *= tl.load(scales_ptr + safe_n).to(tl.float32)[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + safe_n).to(tl.float32)[None, :]
    out_ptrs = out_ptr + split.to(tl.int64) * stride_os + offs_m.to(tl.int64)[:, None] * stride_om + offs_n[None, :]
    tl.store(out_ptrs, to_dtype(acc, out_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])


@triton.jit
def _sum_splits_kernel(
    partial_ptr,  # float32 [S, M, N]
    bias_ptr,  # [N] or None
    out_ptr,  # [M, N]
    cols,  # N
    splits,  # S
    stride_ps,
    stride_om,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = offs_n < cols
    total = tl.zeros([BLOCK_N], tl.float32)
    for split in range(splits):
        total += tl.load(partial_ptr + split * stride_ps + row * cols + offs_n, mask=mask, other=0.0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + offs_n, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * stride_om + offs_n, to_dtype(total, out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dequantize_kernel(
    data_ptr,  # int16 (8 bits: uint8) [N, words]
    scales_ptr,  # [G, N]
    zeros_ptr,  # [G, N] or None
    out_ptr,  # [N, K]
    cols,  # N
    size,  # K
    stride_dn,
    stride_on,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,  # 0: one group a row
    SOFT_FP8: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    PLANES: tl.constexpr = 1 if BITS == 8 else 16 // BITS
    PLANE_K: tl.constexpr = BLOCK_K // PLANES
    CHUNKS: tl.constexpr = PLANE_K // CHUNK
    step = tl.program_id(0)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_c = tl.arange(0, CHUNK)
    mask_n = offs_n < cols
    wide_n = offs_n.to(tl.int64)
    words = tl.load(
        data_ptr + wide_n[:, None] * stride_dn + step * CHUNK + offs_c[None, :], mask=mask_n[:, None], other=0
    )
    table = nf4_levels() if KIND == "nf4" else None
    for plane in tl.static_range(PLANES):
        k = (step // CHUNKS) * BLOCK_K + (step % CHUNKS) * CHUNK + plane * PLANE_K
        group = k // GROUP if GROUP != 0 else 0
        values = plane_values(words, table, plane, KIND, BITS, tl.float32, SOFT_FP8)
        if zeros_ptr is not None:
            zero = tl.load(zeros_ptr + group * cols + offs_n, mask=mask_n, other=0).to(tl.float32)
            values -= (zero - (1 << (BITS - 1)))[:, None]
        values *= tl.load(scales_ptr + group * cols + offs_n, mask=mask_n, other=0.0).to(tl.float32)[:, None]
        out_ptrs = out_ptr + wide_n[:, None] * stride_on + k + offs_c[None, :]
        mask = mask_n[:, None] & (k + offs_c < size)[None, :]
        tl.store(out_ptrs, to_dtype(values, out_ptr.dtype.element_ty), mask=mask)


def pick_config(arch: Arch, rows: int, cols: int, steps: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles, warps, stages and `splits` of K. For up to 16 rows nothing depends on their number.

    Few rows want 4 programs a multiprocessor in flight, each with at least 4 steps; more rows re-read their
    activations for every tile of columns, so those split less. Products in float32 have no tensor cores: their tiles
    are unrolled into registers, and more than 16 x 32 spills.
    """
    narrow = dtype == torch.float32
    block_m = 16 if narrow or rows <= 16 else 32 if rows <= 32 else 64
    if arch.interpreted:
        return {"BLOCK_M": block_m, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2, "splits": 2 if block_m == 16 else 1}
    block_n = 32 if narrow else 64 if cols <= 8192 or block_m == 64 else 128
    wanted = arch.num_sms * (4 if block_m == 16 else 2) // triton.cdiv(cols, block_n)
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "num_warps": 4,
        "num_stages": 4 if arch.large_shared else 3,
        "splits": max(1, min(wanted, steps // 4, 16)),
    }


def chunk(packed: PackedWeight, dtype: torch.dtype) -> int:
    """Words of a row that a step reads: of every plane a run that is inside one group. At most 64 in float32."""
    plane = min(BLOCK_K // num_planes(packed.bits), 64 if dtype == torch.float32 else BLOCK_K)
    return plane if packed.group_size == -1 else min(plane, packed.group_size)


def quant_gemm(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, *, splits: int | None = None) -> Tensor:
    """x [M, K] times the packed weight, transposed, -> [M, N] in the dtype of x; weights are decoded as they are used.

    Meant for M <= 64. `splits` fixes how many programs share K. Raises ValueError for what does not fit, or where the
    GPU cannot decode fp8.
    """
    arch = current(x.device)
    _check(x, packed, bias, arch)
    (rows, size), cols = x.shape, packed.shape[0]
    if rows == 0:
        return torch.empty(0, cols, dtype=x.dtype, device=x.device)
    step_words = chunk(packed, x.dtype)
    words = packed.words
    steps = words.shape[1] // step_words
    config = pick_config(arch, rows, cols, steps, x.dtype)
    picked = config.pop("splits")
    per_split = triton.cdiv(steps, max(1, picked if splits is None else splits))
    splits = triton.cdiv(steps, per_split)  # none of them empty
    out = torch.empty(rows, cols, dtype=x.dtype, device=x.device)
    target = out if splits == 1 else torch.empty(splits, rows, cols, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(cols, config["BLOCK_N"]), triton.cdiv(rows, config["BLOCK_M"]), splits)
    launch(
        _quant_gemm_kernel, grid, x, words, packed.scales, packed.zeros, bias if splits == 1 else None, target,
        rows, cols, size, steps, per_split, x.stride(0), words.stride(0), rows * cols, cols,
        KIND=packed.kind, BITS=packed.bits, GROUP=max(packed.group_size, 0), EVEN_K=size % BLOCK_K == 0,
        DOT=compute_dtype(x.dtype), ZEROS_FIRST=packed.zeros is not None and x.dtype == torch.float32,
        SOFT_FP8=arch.interpreted, CHUNK=step_words, BLOCK_K=BLOCK_K, **config,
    )  # fmt: skip
    if splits > 1:
        block = min(1024, triton.next_power_of_2(cols))
        launch(
            _sum_splits_kernel, (rows, triton.cdiv(cols, block)), target, bias, out, cols, splits, rows * cols, cols,
            BLOCK_N=block,
        )  # fmt: skip
    return out


def dequantize(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] in `dtype`, rounded once from float32."""
    arch = current(packed.data.device)
    _check_fp8(packed, arch)
    cols, size = packed.shape
    step_words = chunk(packed, dtype)
    out = torch.empty(cols, size, dtype=dtype, device=packed.data.device)
    block_n = 32 if arch.interpreted else 64
    words = packed.words
    grid = (words.shape[1] // step_words, triton.cdiv(cols, block_n))
    launch(
        _dequantize_kernel, grid, words, packed.scales, packed.zeros, out,
        cols, size, words.stride(0), size,
        KIND=packed.kind, BITS=packed.bits, GROUP=max(packed.group_size, 0),
        SOFT_FP8=arch.interpreted, CHUNK=step_words, BLOCK_K=BLOCK_K, BLOCK_N=block_n,
    )  # fmt: skip
    return out


def quant_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x [M, K] times the packed weight, transposed, plus bias: the kernel that suits M."""
    if x.shape[0] <= (16 if x.dtype == torch.float32 else MAX_GEMM_ROWS):
        return quant_gemm(x, packed, bias)
    _check(x, packed, bias, current(x.device))
    return F.linear(x, dequantize(packed, x.dtype), bias)


def _check(x: Tensor, packed: PackedWeight, bias: Tensor | None, arch: Arch) -> None:
    cols, size = packed.shape
    if x.ndim != 2 or x.shape[1] != size or x.dtype not in _DTYPES:
        raise ValueError(f"x is {list(x.shape)} of {x.dtype}: give float32, float16 or bfloat16 [M, {size}].")
    if x.stride(1) != 1 and size > 1:
        raise ValueError(f"x has stride {x.stride(1)} in its last dimension: it must be contiguous there.")
    if bias is not None and (bias.shape != (cols,) or not bias.is_contiguous()):
        raise ValueError(f"bias has shape {list(bias.shape)}: give a contiguous [{cols}].")
    if packed.data.device != x.device:
        raise ValueError(f"the weight is on {packed.data.device} and x on {x.device}: move one of them.")
    _check_fp8(packed, arch)


def _check_fp8(packed: PackedWeight, arch: Arch) -> None:
    if packed.kind == "fp8" and not (arch.has_fp8 or arch.interpreted):
        raise ValueError(f"fp8 weights need a GPU of compute capability 8.9 or later, this one has {arch.cc / 10}.")


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    size = 4096

    def case(bits: int, group: int, *, rows: int = 16, cols: int = size, kind: str = "int", zeros: bool = False,
             dtype: torch.dtype = torch.bfloat16) -> Callable[[], object]:  # fmt: skip
        def call() -> None:
            if kind == "fp8" and not current(torch.device("meta")).has_fp8:
                return
            meta = partial(torch.empty, device="meta")
            scales = meta(1 if group == -1 else size // group, cols, dtype=torch.float16)
            data = meta(cols, size * bits // 8, dtype=torch.uint8)
            packed = PackedWeight(data, scales, scales if zeros else None, bits, group, (cols, size), kind)
            quant_linear(meta(rows, size, dtype=dtype), packed)

        return call

    yield "int4 g128 bf16", case(4, 128)
    yield "int4 g128 zeros fp16", case(4, 128, zeros=True, dtype=torch.float16)
    yield "int8 g128 zeros fp32", case(8, 128, zeros=True, dtype=torch.float32)
    yield "int8 row bf16 N=14336", case(8, -1, cols=14336)
    yield "int2 g32 zeros bf16", case(2, 32, zeros=True)
    yield "nf4 g64 bf16 M=32", case(4, 64, kind="nf4", rows=32)
    yield "fp8 row bf16", case(8, -1, kind="fp8")
    yield "int4 g128 bf16 M=64", case(4, 128, rows=64)
    yield "int8 g128 zeros bf16 M=64", case(8, 128, zeros=True, rows=64)
    yield "int4 g128 zeros bf16 M=512", case(4, 128, zeros=True, rows=512)
    yield "nf4 g64 bf16 M=512", case(4, 64, kind="nf4", rows=512)
