"""Healing: a pruned model learns from the one it was made of, on any text, for a few hundred steps.

Cross-entropy against the text and against the original's distribution (distillation). Works on every supported family:
the plain float32 decoder is differentiable. Weights that pruning made zero can be kept so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from playground.compression.blocks import PlainDecoder
from playground.compression.float_checkpoint import FloatCheckpoint
from playground.errors import ConfigError
from playground.training.distill import distillation_loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Healing:
    """A short training run: linear warmup over a tenth of the steps, then linear decay to zero, AdamW."""

    steps: int
    batch_size: int = 8
    length: int = 256
    """Tokens a row; no more than the model's positions are used."""
    learning_rate: float = 1e-3
    cross_entropy_weight: float = 0.5
    """The text's share in the loss; the rest is the original's distribution."""
    keep_zeros: bool = False
    """Weights of matrices that are zero at the start stay zero."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.length < 2:
            raise ConfigError(
                f"{self.steps} steps of {self.batch_size} rows of {self.length} tokens heal nothing: give at least "
                "1, 1 and 2."
            )
        if not self.learning_rate > 0 or not 0 <= self.cross_entropy_weight <= 1:
            raise ConfigError(
                f"a learning rate of {self.learning_rate:g} and a cross-entropy weight of "
                f"{self.cross_entropy_weight:g} are not allowed: give a rate above 0 and a weight from 0 to 1."
            )


class Parameters:
    """A checkpoint's weights as float32 parameters: a `TensorSource` whose copies pass gradients on."""

    def __init__(self, model: FloatCheckpoint) -> None:
        self.by_name = {
            name: nn.Parameter(tensor.to(torch.float32, copy=True)) for name, tensor in model.tensors.items()
        }

    def read(self, name: str, use: Callable[[Tensor], None]) -> None:
        """Call `use` with the parameter."""
        use(self.by_name[name])


def heal(
    model: FloatCheckpoint,
    original: FloatCheckpoint,
    token_ids: list[int],
    settings: Healing,
    progress: Callable[[int, float], None] | None = None,
) -> FloatCheckpoint:
    """The model after training on a text. `original` has the same vocabulary; `progress` gets step and loss.

    Raises `ConfigError` for a text that is shorter than one batch.
    """
    length = min(settings.length, model.config.max_position_embeddings - 1)
    batches = _batches(token_ids, length, settings)
    parameters = Parameters(model)
    student, teacher = PlainDecoder(model.config, parameters), PlainDecoder(original.config, original)
    weights = parameters.by_name
    zeros = {name: weight == 0 for name, weight in weights.items() if settings.keep_zeros and weight.ndim == 2}
    optimizer = torch.optim.AdamW(weights.values(), settings.learning_rate, betas=(0.9, 0.95), weight_decay=0)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings.steps)
        rows = next(batches)
        ids, labels = rows[:, :-1], rows[:, 1:].flatten()
        with torch.no_grad():
            target = logits(teacher, ids).flatten(0, 1)
        found = logits(student, ids).flatten(0, 1)
        loss = distillation_loss(found, target, labels, 1.0, settings.cross_entropy_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, zero in zeros.items():
                weights[name].masked_fill_(zero, 0)
        value = float(loss.detach())
        if progress is not None:
            progress(step + 1, value)
        if (step + 1) % 10 == 0 or step + 1 == settings.steps:
            logger.info("healing step %d of %d: loss %.3f", step + 1, settings.steps, value)
    return model.changed({name: p.detach() for name, p in weights.items()})


def logits(plain: PlainDecoder, ids: Tensor) -> Tensor:
    """int64 [S, L] -> [S, L, vocab]."""
    x = plain.embed(ids)
    for block in plain.blocks():
        x = block(x)
    return plain.logits(x)


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate."""
    return min((step + 1) / max(1, steps // 10), (steps - step) / steps)


def _batches(token_ids: list[int], length: int, settings: Healing) -> Iterator[Tensor]:
    """Rows [batch, length + 1] cut from the text end to end, in another order and from another start every round."""
    count = (len(token_ids) - 1) // length
    if count <= settings.batch_size:
        raise ConfigError(
            f"the text has {len(token_ids)} tokens, {count} rows of {length}: healing takes more than "
            f"{settings.batch_size} rows; give a longer text or ask for fewer or shorter rows."
        )
    return _endless(torch.tensor(token_ids), length, settings)


def _endless(ids: Tensor, length: int, settings: Healing) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        first = int(torch.randint(length, (1,), generator=generator))
        count = (len(ids) - 1 - first) // length
        starts = first + torch.randperm(count, generator=generator) * length
        for chosen in starts.split(settings.batch_size):
            if len(chosen) == settings.batch_size:
                yield ids[chosen[:, None] + torch.arange(length + 1)]
