"""Distillation: a small student learns the teacher's whole next-token distribution instead of the one true token.

The loop, schedule, checkpoints and resume are the trainer's. A part of every epoch can be text that the teacher writes
itself, because that is what a draft model will be asked to guess.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from playground.errors import ConfigError
from playground.training.checkpoint import load_weights, read_shape
from playground.training.config import StageConfig, TrainConfig
from playground.training.data import Rows
from playground.training.generation import generate
from playground.training.model import IGNORE_INDEX, TrainableLlama
from playground.training.tokenizer import load_tokenizer, save_tokenizer
from playground.training.trainer import LossFunction, Trainer
from playground.training.workers import Group

log = logging.getLogger(__name__)

OPENING_TOKENS = 48
TEACHER_BATCH = 128


class Distiller(Trainer):
    def __init__(self, config: TrainConfig, resume: bool, group: Group | None = None) -> None:
        if config.distill is None:
            raise ConfigError("a distillation needs a [distill] table with the teacher's folder.")
        self.settings = config.distill
        self.teacher_folder = Path(self.settings.teacher)
        if not (self.teacher_folder / "config.json").is_file():
            raise ConfigError(
                f"no teacher model in {self.teacher_folder}; train the target first or correct distill.teacher."
            )
        super().__init__(config, resume, group)
        self.teacher = load_model(self.teacher_folder, self.model.compute_dtype).to(self.device)
        self.teacher.requires_grad_(False)

    def _tokenizer(self) -> Tokenizer:
        """Always the teacher's: draft and target must agree on every id."""
        tokenizer = load_tokenizer(self.teacher_folder)
        if self.group.rank == 0:
            save_tokenizer(tokenizer, self.output, self.config.model.max_position_embeddings)
        return tokenizer

    def loss_function(self) -> LossFunction:
        temperature, hard = self.settings.temperature, self.settings.cross_entropy_weight

        def loss(ids: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                teacher = self.teacher(ids).flatten(0, 1) / temperature
            return distillation_loss(self.model(ids).flatten(0, 1), teacher, labels.flatten(), temperature, hard)

        return loss

    def build_epoch(self, stage: StageConfig, epoch: int) -> Rows:
        rows = super().build_epoch(stage, epoch)
        count = round(len(rows.ids) * self.settings.teacher_text_fraction)
        if count < self.group.size:
            return rows
        written = self._teacher_rows(rows.ids[:count], f"{self.config.seed}{epoch}")
        kept = Rows(rows.ids[count:], rows.mask[count:])
        ids, mask = np.concatenate([written.ids, kept.ids]), np.concatenate([written.mask, kept.mask])
        order = np.random.default_rng(self.config.seed + epoch).permutation(len(ids))
        return Rows(ids[order], mask[order])

    def _teacher_rows(self, openings: np.ndarray, seed: str) -> Rows:
        """Rows of the same length: a real opening, then what the teacher makes of it (half greedy, half sampled).

        Every process of the run writes its share.
        """
        rank, size = self.group.rank, self.group.size
        generator = torch.Generator().manual_seed(int(seed) * size + rank)
        length = openings.shape[1]
        mine = openings[: len(openings) // size * size][rank::size]
        done = []
        for start in range(0, len(mine), TEACHER_BATCH):
            prompts = torch.from_numpy(mine[start : start + TEACHER_BATCH, :OPENING_TOKENS]).long().to(self.device)
            temperature = 0.0 if (start // TEACHER_BATCH + rank) % 2 else 0.8
            written = generate(self.teacher, prompts, length - OPENING_TOKENS, temperature, generator)
            done.append(torch.cat([prompts, written], dim=1).cpu())
        ids = self.group.gather(torch.cat(done)).numpy().astype(np.int32)
        log.info("the teacher wrote %d rows", len(ids))
        return Rows(ids, np.ones((len(ids), length - 1), dtype=bool))


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, hard: float) -> Tensor:
    """(1 - hard) * cross-entropy against the teacher's distribution + hard * cross-entropy against the labels.

    The first term is KL(teacher || student) up to the teacher's entropy, a constant. Positions whose label is
    IGNORE_INDEX do not count. `teacher` is already divided by the temperature.
    """
    counts = (labels != IGNORE_INDEX).float()
    total = counts.sum().clamp(min=1.0)
    log_probs = F.log_softmax(student / temperature, dim=-1)
    soft = -(torch.softmax(teacher, dim=-1) * log_probs).sum(-1)
    targets = labels.clamp(min=0)[:, None]
    nll = -(student.gather(1, targets)[:, 0] - student.logsumexp(-1))
    return (((1 - hard) * soft + hard * nll) * counts).sum() / total


def load_model(folder: Path, compute_dtype: torch.dtype) -> TrainableLlama:
    """A TrainableLlama from a Hugging Face folder; see `read_shape` for which can be."""
    model = TrainableLlama(read_shape(folder), compute_dtype)
    load_weights(folder, model)
    return model
