"""A checkpoint in memory: what is saved loads as it was, whole or not at all."""

import json
from pathlib import Path

import pytest
import torch

from playground.compression.float_checkpoint import FloatCheckpoint
from playground.errors import ConfigError
from playground.quantization import writer
from tests.checkpoints import VARIANTS, checkpoint, writable_copy


@pytest.mark.parametrize("variant", ["llama-3", "qwen2-windows", "gpt2"])
def test_what_is_saved_is_what_was_loaded(variant: str, tmp_path: Path) -> None:
    assert variant in VARIANTS
    model = FloatCheckpoint.load(checkpoint(variant))
    again = FloatCheckpoint.load(model.save(tmp_path / "copy"))
    assert again.config == model.config
    assert set(again.tensors) == set(model.tensors)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in model.tensors.items())
    assert (tmp_path / "copy/tokenizer.json").read_bytes() == (model.folder / "tokenizer.json").read_bytes()


def test_shards_of_the_original_do_not_haunt_the_copy(tmp_path: Path) -> None:
    source = checkpoint("llama-2", "20KB")
    assert (source / "model.safetensors.index.json").is_file()
    FloatCheckpoint.load(source).save(tmp_path / "copy")
    assert FloatCheckpoint.load(tmp_path / "copy").num_parameters == FloatCheckpoint.load(source).num_parameters


def test_an_output_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    model = FloatCheckpoint.load(checkpoint("llama-2"))
    (tmp_path / "notes.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ConfigError, match="exists already: give another output folder"):
            model.save(taken)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, path: Path, __: object) -> None:
        path.write_bytes(b"the first half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "save_tensors", full)
    with pytest.raises(ConfigError, match=r"the disk of .* is full.* run the same again\.$"):
        FloatCheckpoint.load(checkpoint("llama-2")).save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = writable_copy("llama-2", tmp_path / "quantized")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ConfigError, match="quantized already: prune the original weights"):
        FloatCheckpoint.load(folder)
