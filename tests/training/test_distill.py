"""Distillation: the loss is a divergence from the teacher, and a tiny student learns from a tiny teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from playground.errors import ConfigError
from playground.training.config import parse_config
from playground.training.distill import Distiller, distillation_loss
from playground.training.model import IGNORE_INDEX
from playground.training.trainer import train
from tests.training.helpers import TINY_MODEL, tiny_config, write_config


def test_the_soft_loss_is_the_divergence_plus_the_teachers_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 11, generator=generator).unbind(0)
    labels = torch.tensor([1, 2, IGNORE_INDEX, 3, IGNORE_INDEX, 4])
    kept = labels != IGNORE_INDEX
    p = teacher.softmax(-1)[kept]
    divergence = F.kl_div(student.log_softmax(-1)[kept], p, reduction="none").sum(-1).mean()
    entropy = -(p * p.log()).sum(-1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, labels, 1.0, 0.0), divergence + entropy)
    hard = F.cross_entropy(student, labels, ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(distillation_loss(student, teacher, labels, 1.0, 1.0), hard)


def test_a_student_equal_to_its_teacher_gets_no_gradient() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(1), requires_grad=True)
    distillation_loss(logits, logits.detach(), torch.tensor([0, 1, 2, 3]), 1.0, 0.0).backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-7


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return train(write_config(folder, tiny_config(folder)))


def student_config(folder: Path, teacher: Path) -> dict:
    stage = {"name": "d", "length": 64, "batch_size": 4, "tokens": 5120, "pack": "rows", "mix": {"greetings": 2.0}}
    return tiny_config(
        folder,
        stages=[stage],
        model={**TINY_MODEL, "num_layers": 1, "hidden_size": 24},
        distill={"teacher": str(teacher), "teacher_text_fraction": 0.3},
    )


def test_a_student_comes_closer_to_its_teacher_and_shares_its_tokenizer(teacher: Path, tmp_path: Path) -> None:
    exported = train(write_config(tmp_path, student_config(tmp_path, teacher)))
    curve = [json.loads(line)["loss"] for line in (tmp_path / "run/loss.jsonl").read_text().splitlines()]
    assert curve[-1] < curve[0]
    assert (exported / "tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()


def test_part_of_an_epoch_is_written_by_the_teacher_after_real_openings(teacher: Path, tmp_path: Path) -> None:
    distiller = Distiller(parse_config(student_config(tmp_path, teacher)), resume=False)
    stage = distiller.config.stages[0]
    rows = distiller.build_epoch(stage, 0)
    again = distiller.build_epoch(stage, 0)
    assert (rows.ids == again.ids).all()
    assert 0.2 * len(rows.ids) < rows.mask.all(axis=1).sum() < len(rows.ids)


def test_a_missing_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no teacher model in"):
        train(write_config(tmp_path, student_config(tmp_path, tmp_path / "nowhere")))
