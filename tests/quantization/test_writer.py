"""Writing a checkpoint: what is there under its own name is whole, whatever happened."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from playground.errors import ConfigError
from playground.quantization import writer as module
from playground.quantization.writer import CheckpointWriter

PARTS = ["first", "second", "third"]
RECIPE = {"method": "gptq", "bits": 4}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenizer.json", "generation_config.json", "config.json", "model.safetensors.index.json"):
        (folder / name).write_text(json.dumps({"from": "source"}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    save_file({"x": torch.zeros(2)}, folder / "model.safetensors")
    return folder


def tensors(part: str) -> dict[str, torch.Tensor]:
    return {f"{part}.weight": torch.arange(6.0).view(2, 3).t(), f"{part}.scale": torch.ones(2, dtype=torch.bfloat16)}


def fill(writer: CheckpointWriter, parts: list[str] = PARTS) -> None:
    for part in parts:
        writer.add(part, tensors(part))


def refusal(*arguments: Any, call: Any = CheckpointWriter) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_finished_folder_holds_shards_index_config_and_the_small_files(tmp_path: Path, source: Path) -> None:
    writer = CheckpointWriter(tmp_path / "out", PARTS, RECIPE)
    fill(writer)
    folder = writer.finish(source, {"from": "us"})
    names = {file.name for file in folder.iterdir()}
    shards = {f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}
    small = {"tokenizer.json", "generation_config.json", "chat_template.jinja", "config.json"}
    assert names == shards | small | {"model.safetensors.index.json"}
    assert json.loads((folder / "config.json").read_text()) == {"from": "us"}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == shards
    assert index["metadata"]["total_size"] == 3 * (6 * 4 + 2 * 2)
    for part in PARTS:
        own = load_file(folder / index["weight_map"][f"{part}.weight"])
        assert torch.equal(own[f"{part}.weight"], tensors(part)[f"{part}.weight"])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]


def test_one_part_is_one_file_without_an_index(tmp_path: Path, source: Path) -> None:
    writer = CheckpointWriter(tmp_path / "out", ["all"], RECIPE)
    fill(writer, ["all"])
    names = {file.name for file in writer.finish(source, {}).iterdir()}
    assert "model.safetensors" in names and "model.safetensors.index.json" not in names


def test_an_interrupted_run_goes_on_with_what_it_has(tmp_path: Path, source: Path) -> None:
    fill(CheckpointWriter(tmp_path / "out", PARTS, RECIPE), ["first"])
    writer = CheckpointWriter(tmp_path / "out", PARTS, RECIPE)
    assert [writer.is_done(part) for part in PARTS] == [True, False, False]
    assert torch.equal(writer.read("first")["first.weight"], tensors("first")["first.weight"])
    assert not (tmp_path / "out").exists()
    fill(writer, ["second", "third"])
    assert writer.finish(source, {}) == tmp_path / "out"


def test_parts_of_another_run_are_refused(tmp_path: Path) -> None:
    fill(CheckpointWriter(tmp_path / "out", PARTS, RECIPE), ["first"])
    assert "parts of another run" in refusal(tmp_path / "out", PARTS, {**RECIPE, "bits": 3})
    assert "parts of another run" in refusal(tmp_path / "out", PARTS[:2], RECIPE)


def test_an_output_that_exists_is_refused_and_left_alone(tmp_path: Path, source: Path) -> None:
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    assert "exists already" in refusal(source, PARTS, RECIPE)
    assert "exists already" in refusal(source / "tokenizer.json", PARTS, RECIPE)
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


def test_an_empty_output_folder_is_used(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    writer = CheckpointWriter(tmp_path / "out", ["all"], RECIPE)
    fill(writer, ["all"])
    assert (writer.finish(source, {}) / "config.json").is_file()


def test_an_incomplete_checkpoint_is_not_finished(tmp_path: Path, source: Path) -> None:
    writer = CheckpointWriter(tmp_path / "out", PARTS, RECIPE)
    fill(writer, ["first", "third"])
    assert "second is missing" in refusal(source, {}, call=writer.finish)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_nothing_half_written(
    error: Exception, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(tmp_path / "out", PARTS, RECIPE)
    fill(writer, ["first"])

    def half(_: object, path: Path, __: object) -> None:
        path.write_bytes(b"half of it")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_tensors", half)
        text = refusal("second", tensors("second"), call=writer.add)
    assert "is full" in text and "run the same with --resume: the parts that are done are kept" in text
    assert [file.name for file in writer.folder.iterdir()] == ["model-00001-of-00003.safetensors"]
    fill(writer, ["second", "third"])
    assert writer.finish(source, {}).is_dir()


def test_a_checkpoint_of_one_part_has_nothing_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = CheckpointWriter(tmp_path / "out", ["all"], RECIPE)
    monkeypatch.setattr(module, "save_tensors", refuse)
    assert refusal("all", tensors("all"), call=writer.add).endswith("Make room and run the same again.")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_every_file_has_the_mode_that_the_umask_leaves(umask: int, mode: int, tmp_path: Path, source: Path) -> None:
    before = os.umask(umask)
    try:
        writer = CheckpointWriter(tmp_path / "out", PARTS, RECIPE)
        fill(writer)
        folder = writer.finish(source, {})
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()} == {
        file.name: mode for file in folder.iterdir()
    }


def test_what_a_killed_run_left_behind_is_dropped(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "out", PARTS, RECIPE)
    (writer.folder / ".model-00001-of-00003.safetensors.unfinished").write_bytes(b"half of it")
    again = CheckpointWriter(tmp_path / "out", PARTS, RECIPE)
    assert not again.is_done("first") and not list(again.folder.iterdir())


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = refusal(tmp_path / "file" / "out", PARTS, RECIPE)
    assert "could not be written" in text
