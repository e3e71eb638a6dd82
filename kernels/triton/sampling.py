"""Draws tokens from rows of logits, and says with which probabilities: at most six launches and no host sync.

The definition is `kernels.cpu_sampling`, the passes are in `row_passes` and `filters`. Whatever decides is float64, so
that a row draws the same token here and on a CPU. No program holds more than one tile of the vocabulary, whose size
needs no padding.

Cost of a row: two readings of the logits, a third and fourth with top_k or top_p, V float64 exponentials, and
V / 256 + 256 hashes. A consumer card does float64 at a 32nd of a data-center card's rate.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import triton
from torch import Tensor

from kernels.row_parameters import RowParameters
from kernels.triton import filters, row_passes
from kernels.triton.arch import Arch, current
from kernels.triton.launch import launch

GROUP_SIZE = 256
_MOST_SPLITS = 64


@dataclass(frozen=True)
class _Plan:
    """How rows are split over programs, and the tiles each of them goes through."""

    splits: int
    tile: int
    tiles: int
    block_n: int
    capacity: int


def pick_config(arch: Arch, rows: int, vocab: int) -> _Plan:
    """Enough programs to fill the GPU twice, tiles of 2048 logits (8 float64 a thread and array)."""
    if arch.interpreted:
        tile, wanted, block_n, capacity = 512, 3, 512, 96
    else:
        tile, wanted, block_n, capacity = 2048, triton.cdiv(2 * arch.num_sms, max(rows, 1)), 1024, 16384
    tiles = triton.cdiv(vocab, tile)
    splits = min(triton.next_power_of_2(min(wanted, tiles)), _MOST_SPLITS)
    return _Plan(splits, tile, triton.cdiv(tiles, splits), block_n, min(capacity, vocab))


@dataclass(frozen=True)
class _Passed:
    """Workspace that the last pass reads."""

    plan: _Plan
    part_max: Tensor
    part_id: Tensor
    sums: Tensor
    cut: Tensor
    last_tie: Tensor


def sample(logits: Tensor, parameters: RowParameters) -> tuple[Tensor, Tensor]:
    """One token for each row of logits [R, V]: (token ids int64 [R], largest logits float32 [R]).

    A row whose largest logit is NaN or infinite has no token: its id is -1. Raises ValueError for float64 logits.
    """
    done = _passes(logits, parameters)
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    largest = torch.empty(rows, dtype=torch.float32, device=logits.device)
    launch(
        row_passes._draw_kernel, (rows,), logits, done.part_max, done.part_id, parameters.temperature,
        parameters.floor, parameters.seeds, parameters.positions, done.cut, done.last_tie, done.sums, tokens, largest,
        vocab, logits.stride(0), done.sums.shape[1],
        SPLITS=done.plan.splits, CUT=parameters.some_cut, BLOCK_N=done.plan.block_n,
    )  # fmt: skip
    return tokens, largest


def probabilities(logits: Tensor, parameters: RowParameters) -> Tensor:
    """What `sample` draws with: float32 [R, V], one-hot in rows of temperature 0, NaN where there is no token."""
    done = _passes(logits, parameters)
    rows, vocab = logits.shape
    out = torch.empty(rows, vocab, dtype=torch.float32, device=logits.device)
    launch(
        row_passes._probabilities_kernel, (rows, done.plan.splits), logits, done.part_max, done.part_id,
        parameters.temperature, parameters.floor, done.cut, done.last_tie, done.sums, out,
        vocab, logits.stride(0), done.sums.shape[1], done.plan.tiles,
        SPLITS=done.plan.splits, CUT=parameters.some_cut, BLOCK_V=done.plan.tile, BLOCK_N=done.plan.block_n,
    )  # fmt: skip
    return out


def _passes(logits: Tensor, parameters: RowParameters) -> _Passed:
    """Everything before the last pass: largest logits, group sums, and the cuts of rows that have top_k or top_p."""
    rows, vocab = logits.shape
    if logits.dtype not in (torch.float32, torch.float16, torch.bfloat16) or logits.stride(1) != 1 or vocab == 0:
        raise ValueError(f"logits must be float32, float16 or bfloat16 [R, V] with dense rows, not {logits.dtype}.")
    parameters.check(rows, logits.device)
    plan = pick_config(current(logits.device), rows, vocab)
    splits, grid = plan.splits, (rows, plan.splits)
    num_groups, stride = triton.cdiv(vocab, GROUP_SIZE), logits.stride(0)

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=logits.device)

    part_max, part_id = empty(rows, splits, dtype=torch.float32), empty(rows, splits)
    sums, cut, last_tie = empty(rows, num_groups, dtype=torch.float64), empty(rows), empty(rows)
    counts, masses = empty(rows, splits, 4), empty(rows, splits, 4, dtype=torch.float64)
    launch(row_passes._largest_kernel, grid, logits, part_max, part_id, vocab, stride, plan.tiles, BLOCK_V=plan.tile)

    def sum_groups(survey: bool, with_cut: bool) -> None:
        launch(
            row_passes._group_sums_kernel, grid, logits, part_max, part_id, parameters.temperature, parameters.floor,
            cut, last_tie, sums, counts, masses, vocab, stride, num_groups, plan.tiles,
            SPLITS=splits, SURVEY=survey, CUT=with_cut, BLOCK_G=plan.tile // GROUP_SIZE, num_warps=8,
        )  # fmt: skip

    sum_groups(parameters.some_cut, False)
    if parameters.some_cut:
        row = (parameters.temperature, parameters.floor, parameters.top_k, parameters.top_p)
        candidates = (empty(rows, plan.capacity, dtype=torch.float32), empty(rows, plan.capacity), empty(rows))
        sizes = (vocab, stride, num_groups, plan.capacity)
        launch(
            filters._compact_kernel, grid, logits, part_max, part_id, *row, sums, counts, masses, *candidates, *sizes,
            plan.tiles, SPLITS=splits, BLOCK_V=plan.tile, BLOCK_N=plan.block_n,
        )  # fmt: skip
        launch(
            filters._cut_kernel, (rows,), logits, part_max, part_id, *row, sums, *candidates, cut, last_tie, *sizes,
            SPLITS=splits, BLOCK_N=plan.block_n,
        )  # fmt: skip
        sum_groups(False, True)
    return _Passed(plan, part_max, part_id, sums, cut, last_tie)


def aot_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.empty(64, 151936, dtype=dtype, device="meta")
        number = torch.empty(64, dtype=torch.float64, device="meta")
        word = torch.empty(64, dtype=torch.int64, device="meta")
        cut = RowParameters(number, number, word, number, word, word, some_cut=True)
        yield f"with top_p {dtype}", partial(sample, logits, cut)
    plain = RowParameters(number, number, word, number, word, word, some_cut=False)
    yield f"plain {dtype}", partial(sample, logits, plain)
    yield f"probabilities {dtype}", partial(probabilities, logits, cut)
