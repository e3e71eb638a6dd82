"""The training loop on tiny runs: exact resume, stages, schedule, what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from playground.errors import ConfigError
from playground.training.checkpoint import checkpoints
from playground.training.config import parse_config
from playground.training.trainer import Trainer, TrainingInterrupted, learning_rate, train
from tests.training.helpers import tiny_config, write_config


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_run_that_was_interrupted_twice_ends_with_the_very_same_weights(tmp_path: Path) -> None:
    straight = train(write_config(tmp_path, tiny_config(tmp_path, output_dir=str(tmp_path / "a")), "a.json"))
    config = write_config(tmp_path, tiny_config(tmp_path, output_dir=str(tmp_path / "b")), "b.json")
    with pytest.raises(TrainingInterrupted, match=r"step 4; .*--resume"):
        train(config, stop_after_steps=4)  # inside the first stage
    with pytest.raises(TrainingInterrupted, match="step 13"):
        train(config, resume=True, stop_after_steps=13)  # inside the second stage
    resumed = train(config, resume=True)
    expected, actual = weights_of(checkpoints(tmp_path / "a")[-1]), weights_of(checkpoints(tmp_path / "b")[-1])
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert (straight / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_training_lowers_the_loss_and_writes_curve_evaluation_and_samples(tmp_path: Path) -> None:
    stage = {"name": "s", "length": 32, "batch_size": 8, "tokens": 20480, "mix": {"greetings": 2.0}}
    train(write_config(tmp_path, tiny_config(tmp_path, stages=[stage])))
    curve = [json.loads(line) for line in (tmp_path / "run/loss.jsonl").read_text().splitlines()]
    assert curve[0]["step"] == 1 and curve[-1]["tokens"] == 20480
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    assert "**Who are you?**" in (tmp_path / "run/samples.md").read_text()
    assert json.loads((tmp_path / "run/eval.jsonl").read_text().splitlines()[-1])["tokens"] == 20480


def test_sigterm_saves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(parse_config(tiny_config(tmp_path)), resume=False)
    original = trainer._next_batch

    def terminate_at_the_third(stage):  # type: ignore[no-untyped-def]
        if trainer.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(stage)

    monkeypatch.setattr(trainer, "_next_batch", terminate_at_the_third)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match="step 3"):
        trainer.run()
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((checkpoints(tmp_path / "run")[-1] / "progress.json").read_text())["step"] == 3


def test_a_partial_checkpoint_is_not_mistaken_for_a_whole_one(tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_config(tmp_path))
    with pytest.raises(TrainingInterrupted):
        train(config, stop_after_steps=2)
    (tmp_path / "run/.partial-0000009").mkdir()
    (tmp_path / "run/checkpoint-0000009").mkdir()  # no progress.json: copied only half
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint-0000002"]


def test_two_processes_train_the_same_model_as_one(tmp_path: Path) -> None:
    stage = {
        "name": "s",
        "length": 32,
        "batch_size": 4,
        "tokens": 768,
        "mix": {"greetings": 1.0},
        "assistant_only": True,
    }
    for folder, workers in (("a", 1), ("b", 2)):
        config = tiny_config(tmp_path, stages=[stage], output_dir=str(tmp_path / folder), workers=workers)
        train(write_config(tmp_path, config, f"{folder}.json"))
    expected, actual = weights_of(checkpoints(tmp_path / "a")[-1]), weights_of(checkpoints(tmp_path / "b")[-1])
    for name in expected:  # the same up to the order of float32 sums
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-4)


def test_helper_processes_leave_quietly_when_the_run_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(write_config(tmp_path, tiny_config(tmp_path)))
    with pytest.raises(ConfigError, match="already holds checkpoints"):
        train(write_config(tmp_path, tiny_config(tmp_path, workers=2)))
    assert "Traceback" not in capfd.readouterr().err


def test_the_learning_rate_warms_up_stays_and_decays_to_the_final_fraction(tmp_path: Path) -> None:
    schedule = {"learning_rate": 1.0, "warmup_steps": 10, "decay_fraction": 0.5, "final_fraction": 0.1}
    config = parse_config(tiny_config(tmp_path, schedule=schedule))
    total = 2560
    assert learning_rate(config, 0, 0) == pytest.approx(0.1)
    assert learning_rate(config, 9, 100) == learning_rate(config, 50, total / 2) == 1.0
    assert learning_rate(config, 60, total * 0.75) == pytest.approx(0.55)
    assert learning_rate(config, 99, total) == pytest.approx(0.1)


def test_continuing_from_an_exported_model_starts_at_its_weights(tmp_path: Path) -> None:
    exported = train(write_config(tmp_path, tiny_config(tmp_path)))
    more = tiny_config(tmp_path, output_dir=str(tmp_path / "more"), init_from=str(exported), tokenizer=str(exported))
    trainer = Trainer(parse_config(more), resume=False)
    start = {name: p.detach().bfloat16() for name, p in trainer.model.named_weights().items()}
    assert all(torch.equal(start[name], w) for name, w in weights_of(exported).items())


def test_what_is_exported_is_averaged_with_the_start_as_asked(tmp_path: Path) -> None:
    exported = train(write_config(tmp_path, tiny_config(tmp_path)))
    changes = {"output_dir": str(tmp_path / "more"), "init_from": str(exported), "tokenizer": str(exported)}
    trainer = Trainer(parse_config(tiny_config(tmp_path, start_weight=0.25, **changes)), resume=False)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.fill_(2.0)
    trainer._average_with_start()
    for name, start in weights_of(exported).items():
        assert torch.allclose(trainer.model.named_weights()[name], 0.25 * start.float() + 1.5)
    averaged = write_config(
        tmp_path, tiny_config(tmp_path, **changes | {"start_weight": 0.5, "output_dir": str(tmp_path / "a")})
    )
    first = weights_of(train(averaged))
    again = weights_of(train(averaged, resume=True))  # a finished run, exported once more: averaged once, not twice
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(ConfigError, match="start_weight needs init_from"):
        parse_config(tiny_config(tmp_path, start_weight=0.5))


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    exported = train(write_config(tmp_path, tiny_config(tmp_path)))
    model = {**tiny_config(tmp_path)["model"], "intermediate_size": 64}
    changes = {"model": model, "init_from": str(exported), "output_dir": str(tmp_path / "other")}
    with pytest.raises(ConfigError, match=r"gate_proj.weight should be \(64, 32\), is \(48, 32\)"):
        Trainer(parse_config(tiny_config(tmp_path, **changes)), resume=False)


def test_starting_over_a_finished_run_or_resuming_nothing_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_config(tmp_path))
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(config, resume=True)
    train(config)
    with pytest.raises(ConfigError, match="already holds checkpoints"):
        train(config)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data_dir": "/nowhere", "mix": {"cased_stories": 1}}, "no data folder at /nowhere"),
        ({"mix": {"wikipedia": 1}}, "unknown source 'wikipedia'"),
        ({"device": "tpu9"}, "device 'tpu9' is not known"),
        ({"tokenizer": "/nowhere"}, "no tokenizer.json in /nowhere"),
        ({"init_from": "/nowhere"}, "no weights in /nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(tmp_path: Path, changes: dict, says: str) -> None:
    config = tiny_config(tmp_path, **{k: v for k, v in changes.items() if k != "mix"})
    if "mix" in changes:
        config["stages"][0]["mix"] = changes["mix"]
    with pytest.raises(ConfigError, match=says) as caught:
        train(write_config(tmp_path, config))
    assert "\n" not in str(caught.value)
