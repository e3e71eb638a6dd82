"""Draws whose tokens stay on the device until somebody asks, so that the next step can be launched without them.

A sampler that can do that offers `draw_on_device`; any other one is read at once, with the same result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from playground.engine.logit_rules import SamplingRow
from playground.engine.sampler import SampledToken, Sampler


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """One token a row of logits, drawn but not necessarily read."""

    token_ids: Tensor
    """int64 [R] on the device of the logits, in memory that no later draw reuses; -1 in a row without a token."""
    resolve: Callable[[], list[SampledToken]]
    """Waits for the device and returns what `Sampler.sample` would have, every time it is called. Never looks at the
    logits again: by then the next forward may have overwritten them."""


@runtime_checkable
class DeviceSampler(Protocol):
    """A sampler that draws without waiting for the device."""

    def draw_on_device(self, logits: Tensor, rows: Sequence[SamplingRow]) -> DrawnTokens:
        """One token for each row of logits [R, V], launched and not read."""
        ...


def draw(sampler: Sampler, logits: Tensor, rows: Sequence[SamplingRow]) -> DrawnTokens:
    """One token for each row of logits [R, V], without waiting for the device where the sampler can."""
    if isinstance(sampler, DeviceSampler):
        return sampler.draw_on_device(logits, rows)
    tokens = sampler.sample(logits, rows)
    ids = torch.tensor([token.token_id for token in tokens], dtype=torch.int64)
    return DrawnTokens(ids.to(logits.device, non_blocking=True), lambda: tokens)
