"""`playground train --from`: a run goes on from a model whose shape the config file does not know."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from playground.cli import app
from playground.errors import ConfigError
from playground.training.checkpoint import read_shape
from playground.training.config import parse_config
from playground.training.distill import load_model
from playground.training.trainer import TrainingInterrupted, starting_from, train
from tests.training.helpers import TINY_MODEL, tiny_config, write_config


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one KV head and three layers, trained on other text."""
    folder = tmp_path_factory.mktemp("other")
    shape = {**TINY_MODEL, "num_kv_heads": 1, "num_layers": 3}
    stage = {"name": "s", "length": 32, "batch_size": 4, "tokens": 1280, "mix": {"sessions": 1.0}}
    return train(write_config(folder, tiny_config(folder, model=shape, stages=[stage])))


def short(folder: Path, **changes: Any) -> dict[str, Any]:
    stage = {"name": "s", "length": 32, "batch_size": 4, "tokens": 256, "mix": {"greetings": 1.0}}
    return tiny_config(folder, stages=[stage], **changes)


def test_weights_shape_and_tokenizer_are_the_models(other: Path, tmp_path: Path) -> None:
    rate = {"learning_rate": 1e-6, "warmup_steps": 0}
    exported = train(write_config(tmp_path, short(tmp_path, schedule=rate)), start=other)
    assert read_shape(exported) == read_shape(other) != read_shape_of_config()
    before, after = (load_file(folder / "model.safetensors") for folder in (other, exported))
    for name, weight in before.items():  # a tiny rate: what it began with is what it still is, nearly
        torch.testing.assert_close(after[name], weight, atol=2e-2, rtol=1e-2)
    assert json.loads((exported / "tokenizer.json").read_text()) == json.loads((other / "tokenizer.json").read_text())


def read_shape_of_config() -> object:
    return parse_config(tiny_config(Path())).model.shape(320)


def test_the_run_learns_from_there_and_can_be_resumed(other: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, tiny_config(tmp_path))
    with pytest.raises(TrainingInterrupted):
        train(path, start=other, stop_after_steps=6)
    exported = train(path, start=other, resume=True)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/loss.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert read_shape(exported) == read_shape(other)


def test_the_command_takes_it(other: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", str(write_config(tmp_path, short(tmp_path))), "--from", str(other)])
    assert result.exit_code == 0, result.output
    assert load_model(tmp_path / "run/export", torch.float32).shape == read_shape(other)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "qwen2"}, "a config of another family"),
        ({"tie_word_embeddings": False}, "an output head of its own"),
        ({"attention_bias": True}, "biases"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "scaled rotary positions"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized weights"),
    ],
)
def test_models_with_parts_of_another_kind_are_refused(
    other: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    raw = json.loads((other / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(ConfigError, match=f"has {reason}: training goes on from Llama models"):
        read_shape(tmp_path)


def test_a_start_that_is_none_is_refused_in_one_sentence(other: Path, tmp_path: Path) -> None:
    config = parse_config(short(tmp_path))
    with pytest.raises(ConfigError, match=r"has no readable config.json: give a model folder"):
        starting_from(config, tmp_path / "nowhere")
    long = parse_config(short(tmp_path, model={**TINY_MODEL, "max_position_embeddings": 512}))
    stage = long.stages[0].model_copy(update={"length": 256})
    with pytest.raises(ConfigError, match="length 256, above the model's max_position_embeddings=128"):
        starting_from(long.model_copy(update={"stages": [stage]}), other)
