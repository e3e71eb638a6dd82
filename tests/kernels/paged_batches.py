"""Ragged batches over a paged cache whose unused slots hold garbage, with their definition and eager torch's answer."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import kernels
from kernels import reference


@dataclass
class Paged:
    """A ragged batch over a cache whose unused slots hold stale numbers."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    cu_seqlens_q: Tensor
    kv_lens: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    def run(self, **options: object) -> Tensor:
        return kernels.paged_attention(*self.arguments(), **self.scales(), **options)  # type: ignore[return-value,arg-type]

    def arguments(self) -> tuple[Tensor, ...]:
        return self.q, self.k_cache, self.v_cache, self.block_table, self.cu_seqlens_q, self.kv_lens

    def scales(self) -> dict[str, Tensor]:
        """The scales of a quantized cache, as arguments."""
        return (
            {} if self.k_scale is None or self.v_scale is None else {"k_scale": self.k_scale, "v_scale": self.v_scale}
        )

    def oracle(self, **options: object) -> tuple[Tensor, Tensor]:
        """The definition in float64: out and lse."""
        q, k, v, *rest = self.arguments()
        return reference.paged_attention(q.double(), k.double(), v.double(), *rest, **self.scales(), **options)  # type: ignore[arg-type]

    def eager(self, **options: object) -> tuple[Tensor, Tensor]:
        """What plain torch gives when every number that a kernel would keep wide is rounded to the queries' dtype.

        Scores, probabilities and dequantized keys and values are; the reductions stay torch's own.
        """
        k, v = (self._dequantized(c, s) for c, s in ((self.k_cache, self.k_scale), (self.v_cache, self.v_scale)))
        out, lse = torch.zeros_like(self.q), torch.full(self.q.shape[:2], -math.inf, device=self.q.device)
        starts = self.cu_seqlens_q.tolist()
        window, causal, sinks = (options.get(name) for name in ("window", "causal", "sinks"))
        softcap, tree_mask, scale = (options.get(name) for name in ("softcap", "tree_mask", "scale"))
        for row, kv_len in enumerate(self.kv_lens.tolist()):
            rows = slice(starts[row], starts[row + 1])
            blocks = self.block_table[row, : -(-kv_len // k.shape[2])].long()
            own_k, own_v = (
                c[blocks].transpose(1, 2).flatten(0, 1)[:kv_len].repeat_interleave(self.q.shape[1] // k.shape[1], 1)
                for c in (k, v)
            )
            count = rows.stop - rows.start
            seen = reference.visible(count, kv_len, causal is not False, window, k.device)  # type: ignore[arg-type]
            if tree_mask is not None and count <= 64:
                seen = reference.tree_visible(tree_mask[rows], kv_len, window)  # type: ignore[index,arg-type]
            scores = torch.einsum("qhd,khd->hqk", self.q[rows], own_k) * (scale or self.q.shape[-1] ** -0.5)
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            scores = scores.masked_fill(~seen, -math.inf)
            if sinks is not None:
                column = sinks.to(scores.dtype)[:, None, None].expand(-1, count, 1)  # type: ignore[attr-defined]
                scores = torch.cat((scores, column), -1)
            probs = torch.softmax(scores, -1)[..., :kv_len].nan_to_num(0.0)
            out[rows] = torch.einsum("hqk,khd->qhd", probs, own_v)
            lse[rows] = torch.logsumexp(scores.float(), -1).T * reference.LOG2E
        return out, lse

    def _dequantized(self, cache: Tensor, scale: Tensor | None) -> Tensor:
        wide = cache.float() if scale is None else cache.float() * reference.kv_scale(scale).float()[..., None]
        return wide.to(self.q.dtype)

    def permuted(self, seed: int = 1) -> "Paged":
        """The same sequences in other physical blocks."""
        count = self.k_cache.shape[0]
        order = torch.cat((torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(count - 1, generator=rng(seed))))
        place = torch.argsort(order).to(torch.int32).to(self.q.device)
        order = order.to(self.q.device)
        table = torch.where(self.block_table > 0, place[self.block_table.long()], 0)
        return replace(self, k_cache=self.k_cache[order], v_cache=self.v_cache[order], block_table=table)

    def sequence(self, row: int) -> "Paged":
        """One sequence of the batch alone."""
        begin, end = self.cu_seqlens_q[row : row + 2].tolist()
        starts = torch.tensor([0, end - begin], dtype=torch.int32, device=self.q.device)
        return replace(
            self,
            q=self.q[begin:end],
            block_table=self.block_table[row : row + 1],
            cu_seqlens_q=starts,
            kv_lens=self.kv_lens[row : row + 1],
        )

    def quantized(self, dtype: torch.dtype) -> "Paged":
        """The same keys and values as codes, one scale a token and head; where garbage was the scale is NaN."""
        codes, scales = [], []
        for cache in (self.k_cache, self.v_cache):
            tokens = cache.float().nan_to_num(0.0).transpose(1, 2).flatten(0, 1)  # [N * block, Hkv, D]
            code, scale = reference.quantize_kv(tokens, dtype)
            shape = (cache.shape[0], cache.shape[2], cache.shape[1])
            codes.append(code.view(torch.int8).view(*shape, -1).transpose(1, 2).contiguous().view(dtype))
            stale = cache.isnan().any(-1)
            scales.append(scale.view(shape).transpose(1, 2).masked_fill(stale, 255).contiguous())
        return replace(self, k_cache=codes[0], v_cache=codes[1], k_scale=scales[0], v_scale=scales[1])

    def to(self, device: torch.device) -> "Paged":
        tensors = [t.to(device) for t in self.arguments()]
        return Paged(*tensors)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paged(
    query_lens: list[int],
    kv_lens: list[int],
    *,
    heads: int = 6,
    kv_heads: int = 2,
    dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    stale: float = 1e4,
) -> Paged:
    """A batch; slots behind a sequence's last token hold `stale`, and where that is NaN also every unused block.

    Unused entries of the table name block 0.
    """
    generator = rng(seed)
    counts = [-(-n // block_size) for n in kv_lens]
    num_blocks = 1 + sum(counts) + 3
    shape = (2, num_blocks, kv_heads, block_size, dim)
    cache = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    ids = (1 + torch.randperm(num_blocks - 1, generator=generator)).tolist()
    table = torch.zeros(len(kv_lens), max([*counts, 1]), dtype=torch.int32)
    for row, count in enumerate(counts):
        table[row, :count] = torch.tensor([ids.pop() for _ in range(count)], dtype=torch.int32)
        if count and kv_lens[row] % block_size:
            cache[:, table[row, count - 1], :, kv_lens[row] % block_size :] = stale
    if math.isnan(stale):
        cache[:, [0, *ids]] = stale
    q = torch.randn(sum(query_lens), heads, dim, generator=generator, dtype=torch.float64).to(dtype)
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
    return Paged(q, cache[0], cache[1], table, starts, torch.tensor(kv_lens, dtype=torch.int32))


def random_tree(count: int, seed: int) -> list[int]:
    """Masks of a tree of up to 64 tokens whose parents come first: each sees its ancestors and itself."""
    numbers = torch.rand(count, generator=rng(seed)).tolist()
    masks = [1]
    for i, number in enumerate(numbers[1:], 1):
        masks.append(masks[int(number * i)] | 1 << i)
    return [mask - (1 << 64) if mask >> 63 else mask for mask in masks]
