"""`compress`: a checkpoint in, a quantized one out, layer by layer, resumable at every layer.

Each layer is quantized on what its predecessors, quantized already, make of the calibration text. In memory are one
block in float32, the hidden states of the calibration text, and the second moment of one linear's inputs. The source is
only read; how files are written safely is `CheckpointWriter`'s affair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from playground.compression.blocks import BLOCK_KINDS, PlainDecoder, ResidualBlock, Role
from playground.compression.calibration import Calibration, describe, kept_tokens
from playground.compression.methods import BlockQuantizer, check_groups, choose_format
from playground.compression.states import CalibrationStates
from playground.config import QuantizationConfig
from playground.errors import ConfigError, ModelLoadError
from playground.models.checkpoint import Checkpoint
from playground.models.config import DecoderConfig, read_json
from playground.models.families import ROLES, linear_parts
from playground.models.hub import resolve_model_path
from playground.models.loader import check_names
from playground.quantization.formats import QuantizedFormat
from playground.quantization.weight import QuantizedWeight
from playground.quantization.writer import CheckpointWriter

METHODS = ("rtn", "gptq", "awq", "nf4")
_CALIBRATION_FILE = "calibration.json"
_OUTSIDE = "outside the layers"
Progress = Callable[[int, int], None]
"""Called with the number of layers that are done and that there are."""


@dataclass(frozen=True)
class Compressed:
    """What came of it."""

    output: Path
    bytes_before: int
    """Of the weight files."""
    bytes_after: int


@torch.inference_mode()
def compress(
    model: str | Path,
    quantization: QuantizationConfig,
    output: str | Path,
    *,
    calibration: Calibration | None = None,
    file_format: str | None = None,
    resume: bool = False,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Compressed:
    """Write a quantized copy of a model to `output`, a folder that must not exist yet.

    `file_format` None is the method's usual one (see `choose_format`). An interrupted run leaves what is done in
    `<output>.partial`; with `resume` the same call goes on there and ends with the same numbers, bit for bit. Raises
    `ConfigError` or `ModelLoadError`, one sentence; the source is never touched.
    """
    if quantization.method not in METHODS:
        raise ConfigError(f"method {quantization.method!r} has no file to be written to: use {', '.join(METHODS)}.")
    source, output = resolve_model_path(model, revision), Path(output).expanduser()
    config = _readable_config(source)
    check_groups(quantization, config)
    own_format = choose_format(quantization, config, file_format)
    quantize = BlockQuantizer(quantization)
    own_calibration = (calibration or Calibration()) if quantize.calibrated else None
    if not resume:
        _refuse_leftovers(output)
    with Checkpoint(source) as checkpoint:
        decoder = PlainDecoder(config, check_names(config, checkpoint), device)
        recipe = _recipe(source, checkpoint, quantization, own_format, own_calibration)
        writer = CheckpointWriter(output, [_OUTSIDE, *map(_part, range(config.num_layers))], recipe)

        def states() -> CalibrationStates:
            assert own_calibration is not None
            ids = kept_tokens(writer.folder / _CALIBRATION_FILE, source, config, own_calibration, device)
            return CalibrationStates(decoder.embed(ids).cpu(), device)

        run = _Run(decoder, quantize, own_format, writer)
        run.run(None if own_calibration is None else states, progress or (lambda done, total: None))
        before = sum(file.stat().st_size for file in {entry.file for entry in checkpoint.entries.values()})
    (writer.folder / _CALIBRATION_FILE).unlink(missing_ok=True)
    entry = {"quantization_config": own_format.config_entry()}
    written = writer.finish(source, read_json(source / "config.json") | entry)
    return Compressed(written, before, sum(file.stat().st_size for file in written.glob("*.safetensors")))


class _Run:
    """One pass over the model."""

    def __init__(
        self,
        decoder: PlainDecoder,
        quantize: BlockQuantizer,
        file_format: QuantizedFormat,
        writer: CheckpointWriter,
    ) -> None:
        self._decoder, self._quantize, self._format, self._writer = decoder, quantize, file_format, writer

    def run(self, states: Callable[[], CalibrationStates] | None, progress: Progress) -> None:
        """Write all parts that are not there yet. `states` are asked for where there are any and a layer is left."""
        decoder, writer = self._decoder, self._writer
        if not writer.is_done(_OUTSIDE):
            writer.add(_OUTSIDE, {name: decoder.stored(name) for name in decoder.outside_names()})
        total = decoder.config.num_layers
        todo = [layer for layer in range(total) if not writer.is_done(_part(layer))]
        progress(total - len(todo), total)
        if not todo:
            return
        hidden = None if states is None else states()
        for layer in range(todo[-1] + 1):
            if layer in todo:
                writer.add(_part(layer), self._layer(layer, hidden))
                progress(total - len(todo) + todo.index(layer) + 1, total)
            elif hidden is not None:
                self._pass_through(layer, hidden, writer.read(_part(layer)))

    def _layer(self, layer: int, states: CalibrationStates | None) -> dict[str, Tensor]:
        """Quantize a layer, and take the states through it. Returns what the file holds of it."""
        decoder = self._decoder
        stored: dict[str, Tensor] = {}
        for kind in BLOCK_KINDS:
            block = decoder.block(layer, kind)
            _check_finite(block)
            self._quantize(block, states, _BlockStore(block, self._format, stored))
            if states is not None:
                states.advance(block)
        quantized = {f"{name.format(layer)}.weight" for role in ROLES for name, _ in linear_parts(decoder.config, role)}
        plain = set(decoder.layer_names(layer)) - stored.keys() - quantized
        return stored | {name: decoder.stored(name) for name in sorted(plain)}

    def _pass_through(self, layer: int, states: CalibrationStates, stored: dict[str, Tensor]) -> None:
        """Take the states through a layer that an earlier run has written."""
        for kind in BLOCK_KINDS:
            block = self._decoder.block(layer, kind)
            _BlockStore(block, self._format, stored).restore()
            states.advance(block)


class _BlockStore:
    """Puts what becomes of a block among the tensors of a file, and lets the block compute with just that.

    Formats may round scales, and files round biases: calibration goes on with what is stored.
    """

    def __init__(self, block: ResidualBlock, file_format: QuantizedFormat, stored: dict[str, Tensor]) -> None:
        self._block, self._format, self._stored = block, file_format, stored

    def put(self, role: Role, weight: QuantizedWeight) -> None:
        """The matrices of a role, one below the other."""
        row = 0
        for name, outputs in self._block.parts(role):
            self._stored |= self._format.pack(name, weight.rows(row, row + outputs).to("cpu"))
            row += outputs
        self._load(role)

    def put_changed(self, name: str) -> None:
        """A tensor that is not a matrix, as the block has it now."""
        self._stored[name] = self._block.tensors[name].to("cpu", self._block.dtypes[name])
        self._load_tensor(name)

    def restore(self) -> None:
        """Let the block compute with what is stored already."""
        matrices = {f"{name}.weight" for role in self._block.roles for name in self._block.names(role)}
        for name in self._block.tensors.keys() - matrices:
            self._load_tensor(name)
        for role in self._block.roles:
            self._load(role)

    def _load(self, role: Role) -> None:
        matrices = []
        for name, outputs in self._block.parts(role):
            shape = (outputs, self._block.tensors[f"{name}.weight"].shape[1])
            matrices.append(self._format.unpack(name, shape, self._stored).dequantize())
        self._block.set_weight(role, torch.cat(matrices).to(self._block.device))

    def _load_tensor(self, name: str) -> None:
        self._block.tensors[name] = self._stored[name].to(self._block.device, torch.float32)


def _check_finite(block: ResidualBlock) -> None:
    broken = next((name for name, tensor in block.tensors.items() if not bool(tensor.isfinite().all())), None)
    if broken is not None:
        raise ModelLoadError(f"{broken} holds infinite or undefined numbers: restore the model's files.")


def _part(layer: int) -> str:
    return f"layer {layer}"


def _readable_config(source: Path) -> DecoderConfig:
    entry = read_json(source / "config.json").get("quantization_config")
    if entry:
        method = entry.get("quant_method") if isinstance(entry, dict) else None
        raise ConfigError(f"{source} is quantized already ({method or 'unknown method'}): give the original weights.")
    return DecoderConfig.from_folder(source)


def _refuse_leftovers(output: Path) -> None:
    partial = output.with_name(f"{output.name}.partial")
    if any(partial.glob("*.safetensors")):
        raise ConfigError(f"{partial} holds an unfinished run: resume it (--resume), or remove that folder.")


def _recipe(
    source: Path,
    checkpoint: Checkpoint,
    quantization: QuantizationConfig,
    file_format: QuantizedFormat,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """What decides the bytes of the result."""
    files = sorted({entry.file for entry in checkpoint.entries.values()})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {
        "source": str(source),
        "config": read_json(source / "config.json"),
        "files": stats,
        "quantization": quantization.model_dump(),
        "format": file_format.config_entry(),
        "calibration": None if calibration is None else describe(calibration),
    }
