"""A checkpoint in memory, as its files store it: what pruning changes and writes as another checkpoint.

Tensors that a change leaves alone are shared between the two, never copied. Floating-point checkpoints only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from playground.errors import ConfigError
from playground.models.checkpoint import Checkpoint
from playground.models.config import DecoderConfig, read_json
from playground.models.decoder import Decoder
from playground.models.families import tensor_shapes
from playground.models.loader import check_names, resolve_model_path
from playground.models.weights import build_weights
from playground.quantization.writer import CheckpointWriter


@dataclass(frozen=True)
class FloatCheckpoint:
    """Configuration and weights of one model; a `TensorSource`."""

    folder: Path
    """Where the tokenizer's files are."""
    raw: Mapping[str, Any]
    """config.json."""
    config: DecoderConfig
    tensors: Mapping[str, Tensor]
    """By the names of `families`, in the dtypes and layouts of the file."""

    @classmethod
    def load(cls, path_or_id: str | Path, revision: str | None = None) -> FloatCheckpoint:
        """Raises `ModelLoadError`, and `ConfigError` for a quantized checkpoint."""
        folder = resolve_model_path(path_or_id, revision)
        raw = read_json(folder / "config.json")
        if raw.get("quantization_config"):
            raise ConfigError(f"{folder} is quantized already: prune the original weights and quantize the result.")
        config = DecoderConfig.from_folder(folder)
        tensors: dict[str, Tensor] = {}
        with Checkpoint(folder) as checkpoint:
            source = check_names(config, checkpoint)
            for name in tensor_shapes(config):
                source.read(name, lambda tensor, name=name: tensors.update({name: tensor.clone()}))  # type: ignore[misc]
        return cls(folder, raw, config, tensors)

    def read(self, name: str, use: Callable[[Tensor], None]) -> None:
        """Call `use` with the tensor."""
        use(self.tensors[name])

    def changed(self, tensors: Mapping[str, Tensor], **shape: int) -> FloatCheckpoint:
        """Other tensors in place of those of the same name, and other whole numbers in config.json, by Llama's names.

        A tensor keeps the dtype it was stored in. Tensors that the new shape has no place for are left out.
        """
        keys = {self.config.family.config_keys.get(name, name): value for name, value in shape.items()}
        raw = {**self.raw, **keys}
        config = DecoderConfig.from_dict(raw, str(self.folder))
        stored = {name: t.to(self.tensors[name].dtype) for name, t in tensors.items() if name in self.tensors}
        merged = {**self.tensors, **tensors, **stored}
        return FloatCheckpoint(self.folder, raw, config, {name: merged[name] for name in tensor_shapes(config)})

    def decoder(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Decoder:
        """The model, ready to run."""
        device = torch.device(device)
        return Decoder(self.config, build_weights(self.config, self, dtype, device), dtype=dtype, device=device)

    @property
    def num_parameters(self) -> int:
        return self.config.num_parameters

    def save(self, output: str | Path) -> Path:
        """Write a folder in Hugging Face format with the small files of the original, whole or not at all.

        Raises `ConfigError` where the folder exists and is not empty, or cannot be written.
        """
        writer = CheckpointWriter(Path(output), ["model"], {"config": self.raw})
        try:
            writer.add("model", self.tensors)
            return writer.finish(self.folder, self.raw)
        finally:
            with suppress(OSError):  # where it holds nothing yet
                writer.folder.rmdir()
