"""Speculative rejection for chains and trees: walk, what is left of the target's row, and a draw from it.

The definition is `kernels.rejection`. After j children of a row were rejected, what is left of p is
max(p - a_j q, 0) / b_j with a_0 = 0, b_0 = 1, a_{j+1} = a_j + b_j / s_j and b_{j+1} = sum of max(p - a_{j+1} q, 0);
s_j is the part of q that is left when siblings are drawn without replacement, and 1 otherwise. So two numbers stand for
a whole distribution: the walk reads p and q at the drafts only, and goes through the vocabulary once for a rejected
child that has a sibling to try next, never for chains.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import noise as torch_noise
from kernels.rejection import Drafts
from kernels.triton.arch import Arch, current
from kernels.triton.launch import launch
from kernels.triton.noise import gumbel, row_key, uniform
from kernels.triton.row_passes import GROUP, pick_group

_ACCEPT = tl.constexpr(torch_noise.ACCEPT)
_REST_GROUP = tl.constexpr(torch_noise.REST_GROUP)
_REST_TOKEN = tl.constexpr(torch_noise.REST_TOKEN)
_NO_ID = tl.constexpr(2**31 - 1)


@triton.jit
def _walk_kernel(
    ids_ptr,  # [S, N] int64
    parents_ptr,  # [S, N] int64
    counts_ptr,  # [S] int64
    target_ptr,  # [S, N + 1, V]
    proposal_ptr,  # [S, N, V], or None
    seed_ptr,  # [S] int64
    position_ptr,  # [S] int64
    tokens_ptr,  # [S, N + 1] int64, out; filled with -1
    path_ptr,  # [S, N] int64, out; filled with -1
    accepted_ptr,  # [S] int64, out
    row_ptr,  # [S] int32, out: the row that the token after the accepted drafts is drawn from
    minus_ptr,  # [S] float64, out: a, how many times q is taken from p
    num_drafts,
    vocab,
    WITHOUT_REPLACEMENT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    seq = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + seq).to(tl.int32)
    lanes = tl.arange(0, BLOCK_D)
    all_ids = tl.load(ids_ptr + seq * num_drafts + lanes, mask=lanes < count, other=-1)
    all_parents = tl.load(parents_ptr + seq * num_drafts + lanes, mask=lanes < count, other=-2).to(tl.int32)
    key = row_key(tl.load(seed_ptr + seq), tl.load(position_ptr + seq), _ACCEPT)
    coins = uniform(key, lanes)

    row, accepted = 0, 0
    a, b, s = tl.full([], 0.0, tl.float64), tl.full([], 1.0, tl.float64), tl.full([], 1.0, tl.float64)
    for i in range(count):
        token = tl.load(ids_ptr + seq * num_drafts + i)
        parent = tl.load(parents_ptr + seq * num_drafts + i).to(tl.int32)
        if parent == row - 1:
            coin = tl.sum(tl.where(lanes == i, coins, 0.0), 0)
            p_row = target_ptr + (seq * (num_drafts + 1) + row) * vocab
            p = tl.load(p_row + token).to(tl.float64)
            if proposal_ptr is None:
                q = tl.full([], 1.0, tl.float64)
                before = (all_parents == parent) & (all_ids == token) & (lanes < i)
                left = tl.where(tl.sum(before.to(tl.int32), 0) > 0, 0.0, p)
            else:
                q_row = proposal_ptr + (seq * num_drafts + row) * vocab
                q = tl.load(q_row + token).to(tl.float64)
                left = tl.maximum(p - a * q, 0.0)
            if coin * q * b < left * s:
                tl.store(tokens_ptr + seq * (num_drafts + 1) + accepted, token)
                tl.store(path_ptr + seq * num_drafts + accepted, i)
                accepted += 1
                row = i + 1
                a, b, s = a * 0.0, b * 0.0 + 1.0, s * 0.0 + 1.0
            elif proposal_ptr is None:
                b -= left
            else:
                a += b / s
                siblings = (all_parents == parent) & (lanes > i)
                if tl.sum(siblings.to(tl.int32), 0) > 0:
                    sums = tl.zeros([BLOCK_V], tl.float64)
                    for start in range(0, vocab, BLOCK_V):
                        offs = start + tl.arange(0, BLOCK_V)
                        p_all = tl.load(p_row + offs, mask=offs < vocab, other=0.0).to(tl.float64)
                        q_all = tl.load(q_row + offs, mask=offs < vocab, other=0.0).to(tl.float64)
                        sums += tl.maximum(p_all - a * q_all, 0.0)
                    b = tl.sum(sums, 0)
                if WITHOUT_REPLACEMENT:
                    s -= q
    tl.store(accepted_ptr + seq, accepted)
    tl.store(row_ptr + seq, row)
    tl.store(minus_ptr + seq, a)


@triton.jit
def _left(
    seq, ids, row, minus, count, ids_ptr, parents_ptr, target_ptr, proposal_ptr, num_drafts, vocab
):  # fmt: skip
    """Weights float64 of some tokens for the draw after the accepted drafts."""
    inside = ids < vocab
    at = (seq * (num_drafts + 1) + row) * vocab + ids
    p = tl.load(target_ptr + at, mask=inside, other=0.0).to(tl.float64)
    if proposal_ptr is None:
        for i in range(count):
            token = tl.load(ids_ptr + seq * num_drafts + i)
            tried = tl.load(parents_ptr + seq * num_drafts + i) == row - 1
            p = tl.where(ids == tl.where(tried, token, -1), 0.0, p)
    else:
        taken = tl.where(minus > 0, vocab, 0)  # a row without tried children has no q, and may be past its end
        q = tl.load(proposal_ptr + (seq * num_drafts + row) * vocab + ids, mask=ids < taken, other=0.0)
        p = tl.maximum(p - minus * q.to(tl.float64), 0.0)
    return p


@triton.jit
def _left_sums_kernel(
    ids_ptr,  # [S, N] int64
    parents_ptr,  # [S, N] int64
    counts_ptr,  # [S] int64
    target_ptr,  # [S, N + 1, V]
    proposal_ptr,  # [S, N, V], or None
    row_ptr,  # [S] int32
    minus_ptr,  # [S] float64
    sums_ptr,  # [S, groups] float64, out
    num_drafts,
    vocab,
    num_groups,
    BLOCK_G: tl.constexpr,
):
    seq = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + seq).to(tl.int32)
    row, minus = tl.load(row_ptr + seq), tl.load(minus_ptr + seq)
    groups = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    left = _left(
        seq, ids, row, minus, count, ids_ptr, parents_ptr, target_ptr, proposal_ptr, num_drafts, vocab
    )  # fmt: skip
    tl.store(sums_ptr + seq * num_groups + groups, tl.sum(left, 1), mask=groups < num_groups)


@triton.jit
def _rest_kernel(
    ids_ptr,  # [S, N] int64
    parents_ptr,  # [S, N] int64
    counts_ptr,  # [S] int64
    target_ptr,  # [S, N + 1, V]
    proposal_ptr,  # [S, N, V], or None
    seed_ptr,  # [S] int64
    position_ptr,  # [S] int64
    accepted_ptr,  # [S] int64
    row_ptr,  # [S] int32
    minus_ptr,  # [S] float64
    sums_ptr,  # [S, groups] float64
    tokens_ptr,  # [S, N + 1] int64, out
    num_drafts,
    vocab,
    num_groups,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    seq = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + seq).to(tl.int32)
    row, minus = tl.load(row_ptr + seq), tl.load(minus_ptr + seq)
    accepted = tl.load(accepted_ptr + seq)
    seed, position = tl.load(seed_ptr + seq), tl.load(position_ptr + seq) + accepted
    group, any_weight = pick_group(sums_ptr, seq, num_groups, row_key(seed, position, _REST_GROUP), BLOCK_N)
    group = tl.where(any_weight, group, 0)
    ids = group * GROUP + tl.arange(0, GROUP)
    left = _left(
        seq, ids, row, minus, count, ids_ptr, parents_ptr, target_ptr, proposal_ptr, num_drafts, vocab
    )  # fmt: skip
    noise = gumbel(row_key(seed, position, _REST_TOKEN), ids)
    score = tl.where(left > 0, tl.log(tl.where(left > 0, left, 1.0)) + noise, float("-inf"))
    drawn = tl.min(tl.where(score == tl.max(score, 0), ids, _NO_ID), 0)

    # Nothing left: p was q to the last bit, and the draft that was tried last is as good a draw as any.
    lanes = tl.arange(0, BLOCK_D)
    tried = tl.load(parents_ptr + seq * num_drafts + lanes, mask=lanes < count, other=-2) == row - 1
    last = tl.max(tl.where(tried, lanes, 0), 0)
    fallback = tl.load(ids_ptr + seq * num_drafts + last, mask=count > 0, other=0)
    tl.store(tokens_ptr + seq * (num_drafts + 1) + accepted, tl.where(any_weight, drawn.to(tl.int64), fallback))


def pick_config(arch: Arch, num_drafts: int) -> dict[str, int]:
    """Lanes for the drafts, tiles of the vocabulary of the walk, groups a program, groups at a time."""
    drafts = max(triton.next_power_of_2(num_drafts), 16)
    if arch.interpreted:
        return {"BLOCK_D": drafts, "BLOCK_V": 256, "BLOCK_G": 2, "BLOCK_N": 64}
    return {"BLOCK_D": drafts, "BLOCK_V": 4096, "BLOCK_G": 8, "BLOCK_N": 1024}


def verify(drafts: Drafts, parents: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens [S, N + 1], number of accepted drafts [S], path [S, N]): see `kernels.rejection.Verified`."""
    seqs, num_drafts = drafts.ids.shape
    vocab, device = drafts.target.shape[2], drafts.ids.device
    config = pick_config(current(device), num_drafts)
    num_groups = triton.cdiv(vocab, 256)
    ids, parents, target = drafts.ids.contiguous(), parents.contiguous(), drafts.target.contiguous()
    proposal = None if drafts.proposal is None else drafts.proposal.contiguous()
    tokens = torch.full((seqs, num_drafts + 1), -1, dtype=torch.int64, device=device)
    path = torch.full((seqs, num_drafts), -1, dtype=torch.int64, device=device)
    accepted = torch.empty(seqs, dtype=torch.int64, device=device)
    row = torch.empty(seqs, dtype=torch.int32, device=device)
    minus = torch.empty(seqs, dtype=torch.float64, device=device)
    sums = torch.empty(seqs, num_groups, dtype=torch.float64, device=device)
    given = (ids, parents, counts, target, proposal)
    launch(
        _walk_kernel, (seqs,), *given, drafts.seeds, drafts.positions, tokens, path, accepted, row, minus,
        num_drafts, vocab, WITHOUT_REPLACEMENT=drafts.without_replacement,
        BLOCK_D=config["BLOCK_D"], BLOCK_V=config["BLOCK_V"], num_warps=8,
    )  # fmt: skip
    launch(
        _left_sums_kernel, (seqs, triton.cdiv(num_groups, config["BLOCK_G"])), *given, row, minus, sums,
        num_drafts, vocab, num_groups, BLOCK_G=config["BLOCK_G"],
    )  # fmt: skip
    launch(
        _rest_kernel, (seqs,), *given, drafts.seeds, drafts.positions, accepted, row, minus, sums, tokens,
        num_drafts, vocab, num_groups, BLOCK_D=config["BLOCK_D"], BLOCK_N=config["BLOCK_N"],
    )  # fmt: skip
    return tokens, accepted, path


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    word = torch.empty(32, dtype=torch.int64, device="meta")
    for name, num_drafts, drawn in (("chain of n-grams", 4, False), ("chain", 4, True), ("tree", 24, True)):
        ids = torch.empty(32, num_drafts, dtype=torch.int64, device="meta")
        target = torch.empty(32, num_drafts + 1, 151936, device="meta")
        proposal = torch.empty(32, num_drafts, 151936, device="meta") if drawn else None
        drafts = Drafts(ids, target, proposal, word, word, without_replacement=name == "tree")
        yield name, partial(verify, drafts, ids, word)
