"""Writes a checkpoint folder part by part: what is there under its own name is whole, whatever happens meanwhile.

Everything goes into `<output>.partial` beside the output, one safetensors file a part, each written under another name
and renamed; `finish` adds the small files, config.json last, and renames the folder. So a run that was interrupted, or
had no room on the disk, goes on with the parts that it had finished. Knows nothing of models or formats.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from playground.errors import ConfigError
from playground.quantization.tensor_file import save_tensors

COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""Small files of a model's folder that go with it: tokenizer, chat template, generation config."""
_NOT_COPIED = ("config.json", "quantize_config.json", "quant_config.json")


class CheckpointWriter:
    """One checkpoint being written. `parts` are all the names of its parts, in order, such as one for every layer."""

    def __init__(self, output: Path, parts: Sequence[str], recipe: Mapping[str, Any]) -> None:
        """`recipe` tells one run from another (source, method, bits, ...): parts written by another are refused.

        Raises `ConfigError` where the output is taken or cannot be written.
        """
        self.output = Path(output).expanduser().absolute()
        self.folder = self.output.with_name(f"{self.output.name}.partial")
        """Where the parts lie until all are there."""
        self._recipe = json.dumps(dict(recipe), sort_keys=True, default=str)
        total = len(parts)
        self._files = {
            part: "model.safetensors" if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"
            for number, part in enumerate(parts, 1)
        }
        check_free(self.output)
        with self._writing("the output folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._drop_leftovers()
        for file in self.folder.glob("*.safetensors"):
            if file.name not in self._files.values() or self._recipe_of(file) != self._recipe:
                raise ConfigError(
                    f"{self.folder} holds parts of another run: remove it, or give another output folder."
                )

    def is_done(self, part: str) -> bool:
        """Whether a part is there, from this run or an interrupted one with the same recipe."""
        return self._path(part).exists()

    def read(self, part: str) -> dict[str, Tensor]:
        """The tensors of a part that is done."""
        return load_file(self._path(part))

    def add(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a part, whole or not at all. Raises `ConfigError` where there is no room for it."""
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"format": "pt", "recipe": self._recipe}
        self._put(self._path(part), lambda path: save_tensors(own, path, metadata))

    def finish(self, source: Path, config: Mapping[str, Any]) -> Path:
        """Copy the small files of `source`, write index and `config` (the whole config.json), and rename the folder.

        Returns the output folder. Raises `ConfigError` where a part is missing or there is no room.
        """
        missing = [part for part in self._files if not self.is_done(part)]
        if missing:
            raise ConfigError(f"{self.output} is not complete: {missing[0]} is missing.")
        for file in sorted(Path(source).iterdir()):
            if _goes_along(file):
                self._put(self.folder / file.name, partial(shutil.copyfile, file))
        if len(self._files) > 1:
            self._put_json("model.safetensors.index.json", self._index())
        self._put_json("config.json", config)
        with self._writing("the output folder"):
            if self.output.is_dir():
                self.output.rmdir()
            os.replace(self.folder, self.output)
            _sync(self.output.parent)
        return self.output

    def _index(self) -> dict[str, Any]:
        weight_map: dict[str, str] = {}
        size = 0
        for name in self._files.values():
            with safe_open(self.folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - no mapping: it has keys() and nothing else
                    if key in weight_map:
                        raise ValueError(f"two parts have a tensor {key}")
                    weight_map[key] = name
            size += _tensor_bytes(self.folder / name)
        return {"metadata": {"total_size": size}, "weight_map": weight_map}

    def _path(self, part: str) -> Path:
        return self.folder / self._files[part]

    def _put_json(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2) + "\n"
        self._put(self.folder / name, lambda path: path.write_text(text, encoding="utf-8"))

    def _put(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file under another name, make sure that it is on the disk, and rename it."""
        unfinished = path.with_name(f".{path.name}.unfinished")
        with self._writing(path.name):
            try:
                write(unfinished)
                _sync(unfinished)
                os.replace(unfinished, path)
                _sync(path.parent)
            finally:
                unfinished.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise self._refusal(what, full, error.strerror or str(error)) from None
        except SafetensorError as error:
            text = " ".join(str(error).split())
            raise self._refusal(what, "os error 28" in text or "os error 122" in text, text) from None

    def _refusal(self, what: str, full: bool, why: str) -> ConfigError:
        if full:
            several = len(self._files) > 1
            again = "with --resume: the parts that are done are kept." if several else "again."
            return ConfigError(
                f"the disk of {self.output.parent} is full: {what} could not be written. Make room and run the same "
                f"{again}"
            )
        return ConfigError(f"{what} could not be written to {self.output.parent} ({why}): check its permissions.")

    def _drop_leftovers(self) -> None:
        for file in self.folder.glob(".*.unfinished"):
            file.unlink()

    @staticmethod
    def _recipe_of(file: Path) -> str | None:
        try:
            with safe_open(file, framework="pt") as opened:
                return (opened.metadata() or {}).get("recipe")
        except (SafetensorError, OSError):
            return None


def check_free(output: Path) -> None:
    """Raises `ConfigError` where something stands in the place of a new checkpoint; an empty folder may."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ConfigError(f"{output} exists already: give another output folder, or remove it.")


def _goes_along(file: Path) -> bool:
    return (
        file.is_file()
        and file.suffix in COPIED_SUFFIXES
        and file.name not in _NOT_COPIED
        and not file.name.endswith(".index.json")
    )


def _tensor_bytes(file: Path) -> int:
    with file.open("rb") as handle:
        header = int.from_bytes(handle.read(8), "little")
    return file.stat().st_size - 8 - header


def _sync(path: Path) -> None:
    """Have a file's or folder's bytes on the disk before anything that counts on them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
