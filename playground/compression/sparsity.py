"""Zeros in the matrices of every layer, one block after another: by magnitude, Wanda or SparseGPT.

For study: a matrix with zeros is as large and as slow as before on nearly all hardware. Unstructured (a share of all
weights) or n of every m neighbours. Embeddings, norms and the output head stay whole.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from playground.compression.blocks import PlainDecoder
from playground.compression.float_checkpoint import FloatCheckpoint
from playground.compression.hessian import inverse_factor, second_moment
from playground.compression.states import CalibrationStates
from playground.errors import ConfigError

logger = logging.getLogger(__name__)

SparseMethod = Literal["magnitude", "wanda", "sparsegpt"]
_COLUMNS_AT_ONCE = 128
_DAMPING = 0.01


@dataclass(frozen=True)
class Pattern:
    """Which weights become zero: a share of them, or `zeros` of every `of` neighbours along the inputs."""

    share: float | None = None
    zeros: int = 0
    of: int = 0

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """ "0.5" or "2:4"; raises `ConfigError`."""
        if match := re.fullmatch(r"(\d+):(\d+)", text):
            zeros, of = int(match[1]), int(match[2])
            if 0 < zeros < of:
                return cls(zeros=zeros, of=of)
        else:
            try:
                share = float(text)
            except ValueError:
                share = 0.0
            if 0 < share < 1:
                return cls(share=share)
        raise ConfigError(
            f"sparsity {text!r} is not allowed: give a share between 0 and 1, like 0.5, or zeros like 2:4."
        )

    def __str__(self) -> str:
        return f"{self.zeros}:{self.of}" if self.share is None else f"{self.share:g}"

    def check(self, inputs: int) -> None:
        """`ConfigError` where rows of so many weights do not divide into neighbours."""
        if self.share is None and inputs % self.of:
            raise ConfigError(f"sparsity {self} does not divide rows of {inputs} weights: choose another pattern.")


def magnitude_mask(weight: Tensor, pattern: Pattern) -> Tensor:
    """True where W [N, K] becomes zero: the smallest weights of the whole matrix, or of every few neighbours."""
    if pattern.share is None:
        return _smallest_neighbours(weight.abs(), pattern)
    return _smallest(weight.abs().flatten()[None], pattern.share).view_as(weight)


def wanda_mask(weight: Tensor, mean_squares: Tensor, pattern: Pattern) -> Tensor:
    """True where W [N, K] becomes zero: the smallest |W| * ||x|| of every row, or of every few neighbours.

    `mean_squares` [K] of the inputs: their norms but for a factor. arXiv 2306.11695.
    """
    scores = weight.abs() * mean_squares.sqrt()
    return _smallest_neighbours(scores, pattern) if pattern.share is None else _smallest(scores, pattern.share)


def sparsegpt(weight: Tensor, hessian: Tensor, pattern: Pattern, damping: float = _DAMPING) -> Tensor:
    """W [N, K] with zeros, the other weights changed to make up for them; `hessian` [K, K]. arXiv 2301.00774.

    Columns are settled one after another, as in GPTQ; what a zero costs is w^2 / U_ii^2 at that moment, compared over a
    block of 128 columns (all rows together) or over the few neighbours of a row.
    """
    factor = inverse_factor(hessian, damping).to(weight.dtype)
    costs = factor.diagonal().square()
    columns = weight.t().contiguous().clone()  # [K, N]: one row is one column of W
    width = _COLUMNS_AT_ONCE
    if pattern.share is None:  # whole neighbourhoods
        width = max(pattern.of, width // pattern.of * pattern.of)
    for start in range(0, len(columns), width):
        stop = min(start + width, len(columns))
        block = columns[start:stop]
        zero = torch.zeros_like(block, dtype=torch.bool)
        if pattern.share is not None:
            scores = block.square() / costs[start:stop, None]
            zero = _smallest(scores.flatten()[None], pattern.share).view_as(block)
        errors = torch.empty_like(block)
        for i in range(stop - start):
            if pattern.share is None and i % pattern.of == 0:
                here = slice(i, i + pattern.of)
                scores = block[here].square() / costs[start:stop][here, None]
                zero[here] = _smallest_neighbours(scores.t(), pattern).t()
            error = block[i].masked_fill(~zero[i], 0) / factor[start + i, start + i]
            block[i].masked_fill_(zero[i], 0)
            block[i + 1 :].addr_(factor[start + i, start + i + 1 : stop], error, alpha=-1)
            errors[i] = error
        columns[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return columns.t().contiguous()


@torch.inference_mode()
def sparsify(model: FloatCheckpoint, ids: Tensor, pattern: Pattern, method: SparseMethod) -> FloatCheckpoint:
    """The model with zeros in every matrix of its layers; `ids` int64 [S, L] is calibration text.

    Every matrix is pruned for the inputs that the pruned ones before it give.
    """
    plain = PlainDecoder(model.config, model)
    states = CalibrationStates(plain.embed(ids))
    changed: dict[str, Tensor] = {}
    for block in plain.blocks():
        for role in block.roles:
            hessian = second_moment(states, lambda x, block=block, role=role: block.inputs(role, x))  # type: ignore[misc]
            for name in block.names(role):
                key = f"{name}.weight"
                weight = block.tensors[key]
                pattern.check(weight.shape[1])
                if method == "sparsegpt":
                    pruned = sparsegpt(weight, hessian, pattern)
                elif method == "wanda":
                    pruned = weight.masked_fill(wanda_mask(weight, hessian.diagonal(), pattern), 0)
                else:
                    pruned = weight.masked_fill(magnitude_mask(weight, pattern), 0)
                block.tensors[key] = pruned.to(model.tensors[key].dtype).float()
                changed[key] = pruned.t() if model.config.family.transposed else pruned
        states.advance(block)
        logger.info("layer %d %s: %s zeros by %s", block.layer, block.kind, pattern, method)
    return model.changed(changed)


def _smallest(scores: Tensor, share: float) -> Tensor:
    """True at the floor(share * n) smallest of every row, ties broken somehow but the count exact."""
    count = int(share * scores.shape[1] + 1e-9)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, scores.argsort(dim=1)[:, :count], True)


def _smallest_neighbours(scores: Tensor, pattern: Pattern) -> Tensor:
    """True at the `zeros` smallest of every `of` neighbours of a row."""
    grouped = scores.reshape(-1, pattern.of)
    chosen = grouped.topk(pattern.zeros, dim=1, largest=False).indices
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, chosen, True).view_as(scores)
