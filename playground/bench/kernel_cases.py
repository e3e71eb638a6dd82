"""What `playground bench kernels` runs: ops, shapes, peers on the same tensors, bounds, and what was aimed at.

A case is one shape of one op with the bytes or operations that no implementation can do without. `quick` gives the
same cases at sizes that Triton's interpreter can run in a second.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from kernels.cpu_attention import dense_attention
from kernels.kv_codes import PageLayout, quantize_kv
from kernels.quant_pack import pack
from kernels.row_parameters import RowParameters
from kernels.sampling import sample

Call = Callable[[], object]


@dataclass
class Case:
    """One op at one shape. `bytes` or `flops` is the least that any implementation moves or computes."""

    op: str
    shape: str
    ours: Call
    peers: dict[str, Call] = field(default_factory=dict)
    bytes: float | None = None
    flops: float | None = None
    reach: str | None = None
    """What was aimed at, in words; `reached` decides, given the row as a dictionary."""
    reached: Callable[[dict[str, Any]], bool] | None = None
    recorded: bool = False
    """Timed from a CUDA graph, as decode steps run."""


def all_cases(device: torch.device, *, quick: bool) -> Iterator[Case]:
    """One after the other, so that only one case's tensors are alive."""
    make = _Maker(device, quick)
    yield from flash_cases(make)
    yield from growth_cases(make)
    yield from paged_cases(make)
    yield from row_cases(make)
    yield from quantized_cases(make)
    yield from sampling_cases(make)


@dataclass(frozen=True)
class _Maker:
    device: torch.device
    quick: bool
    dtype: torch.dtype = torch.bfloat16

    def randn(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=torch.float32).mul_(scale).to(self.dtype)

    def pick(self, real: int, small: int) -> int:
        """A size: the real one, or the rehearsal's."""
        return small if self.quick else real


def at_least(key: str, value: float) -> Callable[[dict[str, Any]], bool]:
    return lambda row: row[key] is not None and row[key] >= value


def _fast_forward(row: dict[str, Any]) -> bool:
    flash_us = row["peers_us"]["sdpa flash"]
    return row["flops"] >= 350e12 and (flash_us is None or row["us"] <= flash_us)


# Dense attention


def flash_cases(make: _Maker) -> Iterator[Case]:
    real = [(64, 32, 32, 4096, True), (128, 16, 16, 4096, True), (128, 32, 8, 8192, True), (128, 16, 16, 16384, True)]
    real += [(128, 16, 16, 16384, False), (256, 8, 8, 8192, True)]
    for dim, heads, kv_heads, length, causal in real:
        if make.quick:
            dim, heads, kv_heads, length = min(dim, 32), 2, 2 if heads == kv_heads else 1, 40
        q, k, v = (make.randn(1, length, h, dim) for h in (heads, kv_heads, kv_heads))
        shape = f"D={dim} heads {heads}/{kv_heads} length {length} {'causal' if causal else 'full'}"
        flops = 4 * heads * length**2 * dim * (0.5 if causal else 1)
        aimed = length == 16384 and dim == 128 and causal
        yield Case(
            "flash forward",
            shape,
            partial(kernels.flash_attention, q, k, v, causal=causal, backend="triton"),
            _sdpa_peers(q, k, v, causal),
            flops=flops,
            reach=">= 350 TFLOP/s and torch's flash" if aimed else None,
            reached=_fast_forward if aimed else None,
        )
        yield _backward(make, q, k, v, shape, causal, 2.5 * flops, aimed)


def growth_cases(make: _Maker) -> Iterator[Case]:
    """What the matrix of scores costs as sequences grow: time and memory with the square of the length."""
    for length in (512, 1024, 2048, 4096, 8192):
        length, heads, dim = make.pick(length, length // 64), make.pick(16, 2), make.pick(128, 32)
        q, k, v = (make.randn(1, length, heads, dim) for _ in range(3))
        yield Case(
            "flash against standard attention",
            f"D={dim} heads {heads} length {length} causal",
            partial(kernels.flash_attention, q, k, v, backend="triton"),
            {"standard (whole matrix of scores)": partial(_standard, q, k, v)},
            flops=2 * heads * length**2 * dim,
        )  # fmt: skip


def _standard(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dense_attention(q, k, v, True, None, None, q.shape[-1] ** -0.5, False, naive=True)[0]


def _backward(
    make: _Maker, q: Tensor, k: Tensor, v: Tensor, shape: str, causal: bool, flops: float, aimed: bool
) -> Case:
    grad = make.randn(*q.shape)

    def backward_of(forward: Callable[..., Any]) -> Call:
        def call() -> object:  # the forward runs once, at the first call
            if not held:
                inputs = [t.detach().clone().requires_grad_() for t in (q, k, v)]
                held.extend([forward(*inputs), inputs])
            return torch.autograd.grad(held[0], held[1], grad, retain_graph=True)

        held: list[Any] = []
        return call

    def sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _sdpa(backend, q, k, v, causal)

    peers = {name: backward_of(partial(sdpa, backend)) for name, backend in _SDPA.items()}
    return Case(
        "flash backward",
        shape,
        backward_of(partial(kernels.flash_attention, causal=causal, backend="triton")),
        peers,
        flops=flops,
        reach=">= 250 TFLOP/s" if aimed else None,
        reached=at_least("flops", 250e12) if aimed else None,
    )


_SDPA = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def _sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """q [B, S, Hq, D]; KV heads are repeated beforehand where a backend could not share them."""
    with sdpa_kernel(backend):
        gqa = q.shape[2] != k.shape[2]
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal, enable_gqa=gqa
        )
    return out.transpose(1, 2)


def _sdpa_peers(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> dict[str, Call]:
    return {name: partial(_sdpa, backend, q, k, v, causal) for name, backend in _SDPA.items()}


# Paged attention


def paged_cases(make: _Maker) -> Iterator[Case]:
    for sequences, length, heads, kv_heads in [
        (1, 65536, 32, 8), (32, 2048, 32, 8), (64, 4096, 32, 8), (256, 1024, 32, 8), (16, 4096, 32, 32),
    ]:  # fmt: skip
        for dtype in (torch.bfloat16, torch.int8, torch.float8_e4m3fn):
            yield _decode(make, sequences, length, heads, kv_heads, dtype)
    for sequences, length in [(1, 16384), (8, 2048)]:
        yield _prefill(make, sequences, length)
    yield _write(make, make.pick(64, 3), "decode")
    yield _write(make, make.pick(8192, 5), "prefill")


def _paged(
    make: _Maker, sequences: int, length: int, heads: int, query_len: int, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """Caches, table and lengths of sequences whose pages lie scattered."""
    page, dim = (16, 32) if make.quick else (64, 128)
    pages = -(-length // page)
    table = (torch.randperm(sequences * pages, device=make.device) + 1).view(sequences, pages).int()
    shape = (sequences * pages + 1, heads, page, dim)
    tensors: dict[str, Any] = {
        "block_table": table,
        "cu_seqlens_q": torch.arange(sequences + 1, device=make.device, dtype=torch.int32) * query_len,
        "kv_lens": torch.full((sequences,), length, device=make.device, dtype=torch.int32),
    }
    for name in ("k", "v"):
        cache = make.randn(*shape)
        if dtype == torch.bfloat16:
            tensors[f"{name}_cache"] = cache
            continue
        codes, scales = quantize_kv(cache, dtype)
        tensors |= {f"{name}_cache": codes, f"{name}_scale": scales}
    return tensors


def _decode(make: _Maker, sequences: int, length: int, heads: int, kv_heads: int, dtype: torch.dtype) -> Case:
    if make.quick:
        sequences, length, heads, kv_heads = min(sequences, 2), 40, 2, 1
    tensors = _paged(make, sequences, length, kv_heads, 1, dtype)
    dim = tensors["k_cache"].shape[-1]
    q = make.randn(sequences, heads, dim)
    peers: dict[str, Call] = {}
    if dtype == torch.bfloat16:
        k, v = (make.randn(sequences, length, kv_heads, dim) for _ in range(2))
        peers = {"sdpa flash, contiguous": partial(_sdpa, _SDPA["sdpa flash"], q[:, None], k, v, False)}
    tokens = sequences * length
    share = 0.9 if tokens >= 2**18 else 0.8 if tokens >= 2**16 else None
    return Case(
        "paged decode",
        f"{sequences} x {length} tokens, heads {heads}/{kv_heads}, KV {str(dtype).removeprefix('torch.')}",
        partial(kernels.paged_attention, q, **tensors, max_query_len=1, backend="triton"),
        peers,
        bytes=2 * tokens * kv_heads * PageLayout(1, dim, dtype).nbytes,
        reach=f">= {share:.0%} of copy bandwidth" if share and dtype == torch.bfloat16 else None,
        reached=at_least("share_of_copy", share) if share and dtype == torch.bfloat16 else None,
        recorded=True,
    )


def _prefill(make: _Maker, sequences: int, length: int) -> Case:
    heads, kv_heads = 32, 8
    if make.quick:
        sequences, length, heads, kv_heads = min(sequences, 2), 24, 2, 1
    tensors = _paged(make, sequences, length, kv_heads, length)
    dim = tensors["k_cache"].shape[-1]
    q = make.randn(sequences * length, heads, dim)
    k, v = (make.randn(sequences, length, kv_heads, dim) for _ in range(2))
    dense = partial(kernels.flash_attention, q.view(sequences, length, heads, dim), k, v, backend="triton")
    return Case(
        "paged prefill",
        f"{sequences} x {length} tokens, heads {heads}/{kv_heads}",
        partial(kernels.paged_attention, q, **tensors, backend="triton"),
        {"our dense kernel": dense},
        flops=2 * sequences * heads * length**2 * dim,
        reach="within 10 % of dense",
        reached=at_least("speedup", 0.9),
    )


def _write(make: _Maker, tokens: int, kind: str) -> Case:
    heads, kv_heads = (2, 1) if make.quick else (32, 8)
    tensors = _paged(make, 1, tokens, kv_heads, 1)
    page, dim = tensors["k_cache"].shape[2:]
    qkv = make.randn(tokens, heads + 2 * kv_heads, dim)
    angles = torch.rand(tokens, dim // 2, device=make.device)
    slots = torch.randperm(tokens, device=make.device) + page
    options: dict[str, Any] = {
        "positions": torch.arange(tokens, device=make.device),
        "cos": angles.cos(),
        "sin": angles.sin(),
    }
    caches = (tensors["k_cache"], tensors["v_cache"])
    return Case(
        "rope and cache write",
        f"{tokens} tokens ({kind}), heads {heads}/{kv_heads}",
        partial(kernels.rope_and_write, qkv, *caches, slots, **options, backend="triton"),
        {"torch": partial(kernels.rope_and_write, qkv, *caches, slots, **options, backend="torch")},
        bytes=2 * qkv.nbytes,
        recorded=kind == "decode",
    )


# Norms, rotary embedding, gated activations


def row_cases(make: _Maker) -> Iterator[Case]:
    rows = make.pick(8192, 4)
    for size in (4096, 8192):
        size = make.pick(size, 96)
        x, weight, residual = make.randn(rows, size), make.randn(size), make.randn(rows, size)
        yield _bandwidth(
            "rms_norm", f"{rows} x {size}", partial(kernels.rms_norm, x, weight, 1e-5, backend="triton"),
            partial(F.rms_norm, x, (size,), weight, 1e-5), 2 * x.nbytes,
        )  # fmt: skip
        yield _bandwidth(
            "rms_norm + residual", f"{rows} x {size}",
            partial(kernels.rms_norm, x, weight, 1e-5, residual, backend="triton"),
            partial(_add_and_norm, x, residual, weight), 4 * x.nbytes,
        )  # fmt: skip
    size = make.pick(14336, 96)
    gate_up = make.randn(rows, 2 * size)
    yield _bandwidth(
        "swiglu", f"{rows} x {size}", partial(kernels.swiglu, gate_up, backend="triton"),
        lambda: F.silu(gate_up[:, :size]) * gate_up[:, size:], 1.5 * gate_up.nbytes,
    )  # fmt: skip
    heads, kv_heads, dim = (2, 1, 32) if make.quick else (32, 8, 128)
    q, k = make.randn(rows, heads, dim), make.randn(rows, kv_heads, dim)
    angles = torch.rand(rows, dim // 2, device=make.device)
    tables = (angles.cos(), angles.sin(), torch.arange(rows, device=make.device))
    yield _bandwidth(
        "rope", f"{rows} x {heads}+{kv_heads} heads", partial(kernels.rope, q, k, *tables, backend="triton"),
        partial(kernels.rope, q, k, *tables, backend="torch"), 2 * (q.nbytes + k.nbytes),
    )  # fmt: skip


def _add_and_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(residual.add_(x), weight.shape, weight, 1e-5)


def _bandwidth(op: str, shape: str, ours: Call, torch_call: Call, size: float) -> Case:
    return Case(
        op, shape, ours, {"torch": torch_call}, bytes=size,
        reach=">= 85 % of copy bandwidth", reached=at_least("share_of_copy", 0.85),
    )  # fmt: skip


# Quantized weights


def quantized_cases(make: _Maker) -> Iterator[Case]:
    size = make.pick(8192, 128)
    codes = torch.randint(0, 256, (size, size), dtype=torch.uint8, device=make.device)
    plain = make.randn(size, size, scale=0.02)
    names = {("int", 4): "int4", ("int", 8): "int8", ("int", 2): "int2", ("nf4", 4): "nf4", ("fp8", 8): "fp8"}
    for kind, bits, group in [("int", 4, 128), ("int", 8, 128), ("int", 2, 128), ("nf4", 4, 64), ("fp8", 8, -1)]:
        groups = 1 if group == -1 else size // group
        scales = torch.full((size, groups), 0.01, dtype=torch.bfloat16, device=make.device)
        used = codes & (0x77 if kind == "fp8" else 2**bits - 1)  # 0x7f and 0xff are no fp8 numbers
        packed = pack(used, scales, bits=bits, group_size=group, kind=kind)
        for rows in (1, 4, 16, 64, 256):
            x = make.randn(make.pick(rows, min(rows, 2)), size)
            wanted = {("int", 4): 1.8, ("int", 8): 1.6}.get((kind, bits)) if rows <= 16 else None
            yield Case(
                f"{names[kind, bits]} linear",
                f"{x.shape[0]} x {size} x {size}, groups of {group}",
                partial(kernels.quant_linear, x, packed, backend="triton"),
                {"bfloat16 cuBLAS": partial(F.linear, x, plain)},
                bytes=packed.nbytes + 2 * x.nbytes,
                flops=2 * x.shape[0] * size * size,
                reach=None if wanted is None else f">= {wanted}x bfloat16",
                reached=None if wanted is None else at_least("speedup", wanted),
                recorded=True,
            )


# Sampling


def sampling_cases(make: _Maker) -> Iterator[Case]:
    vocabulary = make.pick(151_936, 300)
    for rows, settings in itertools.product((1, 16, 128), ("plain", "top_k 50 top_p 0.9")):
        rows = make.pick(rows, 2)
        logits = torch.randn(rows, vocabulary, device=make.device) * 3
        filtered = settings != "plain"
        cut: dict[str, Any] = {"top_k": [50] * rows, "top_p": [0.9] * rows} if filtered else {}
        parameters = RowParameters.of([0.8] * rows, range(rows), [7] * rows, **cut, device=make.device)
        aimed = rows == 128
        yield Case(
            "sample",
            f"{rows} x {vocabulary}, {settings}",
            partial(sample, logits, parameters, backend="triton"),
            {"torch": partial(_torch_sample, logits, filtered)},
            bytes=logits.nbytes,
            reach="< 150 us" if aimed else None,
            reached=(lambda row: row["us"] < 150) if aimed else None,
            recorded=True,
        )


def _torch_sample(logits: Tensor, filtered: bool) -> Tensor:
    """What a plain torch sampler does: sort, cut, softmax, exponential race."""
    scaled = logits / 0.8
    ids = None
    if filtered:
        scaled, ids = scaled.sort(dim=-1, descending=True)
        probabilities = scaled.softmax(-1)
        cut = probabilities.cumsum(-1) - probabilities > 0.9
        cut[:, 50:] = True
        scaled = scaled.masked_fill(cut, float("-inf"))
    probabilities = scaled.softmax(-1)
    best = (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1, keepdim=True)
    return best if ids is None else ids.gather(1, best)
