"""The tensors of a checkpoint some of whose matrices are quantized, in whichever of `quantization.formats`.

Which matrices those are, the files say; every part of them is checked before the first weight is read.
"""

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from playground.errors import ModelLoadError
from playground.models.checkpoint import Checkpoint, NamedTensors, match_tensors, some
from playground.models.config import DecoderConfig
from playground.quantization.formats import QuantizedFormat
from playground.quantization.weight import QuantizedWeight


class QuantizedTensors:
    """A checkpoint's tensors under names of ours: see `TensorSource` and `QuantizedSource`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plain: NamedTensors,
        quantized: QuantizedFormat,
        matrices: Mapping[str, tuple[str, tuple[int, int], list[str]]],
        transposed: Collection[str],
    ) -> None:
        """`matrices`: our name -> name in the files (both without ".weight"), (N, K), and the tensors it is made of.

        `transposed` are those of them that plain files store as [K, N].
        """
        self._checkpoint, self._plain, self._format = checkpoint, plain, quantized
        self._matrices, self._transposed = dict(matrices), frozenset(transposed)

    def read(self, name: str, use: Callable[[Tensor], None]) -> None:
        """See `Checkpoint.read`. A quantized matrix is given as the numbers that it stands for, float32."""
        matrix = name.removesuffix(".weight")
        weight = self.quantized(matrix) if name.endswith(".weight") else None
        if weight is None:
            self._plain.read(name, use)
        else:
            values = weight.dequantize()
            use(values.t() if matrix in self._transposed else values)

    def quantized(self, name: str) -> QuantizedWeight | None:
        """The matrix `name`.weight as [outputs, inputs]; None where it is not quantized."""
        if name not in self._matrices:
            return None
        stored, shape, parts = self._matrices[name]
        return self._format.unpack(stored, shape, {part: _copy(self._checkpoint, part) for part in parts})


def match_quantized(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    quantized: QuantizedFormat,
    shapes: Mapping[str, tuple[int, ...]],
    in_file: Mapping[str, str],
    *,
    also: Collection[str] = (),
) -> QuantizedTensors:
    """`match_tensors` for a checkpoint with quantized matrices: those of `shapes` that the files hold so."""
    stored, family = _StoredTensors(checkpoint), config.family
    tables = (f"{family.names.embed}.weight", f"{family.names.positions}.weight", f"{family.names.head}.weight")
    matrices: dict[str, tuple[str, tuple[int, int], list[str]]] = {}
    transposed = set()
    for name, shape in shapes.items():
        file_name = in_file[name].removesuffix(".weight")
        if len(shape) != 2 or not quantized.holds(file_name, stored):
            continue
        matrix, (n, k) = name.removesuffix(".weight"), shape
        if family.transposed and name not in tables:
            n, k = k, n
            transposed.add(matrix)
        matrices[matrix] = (file_name, (n, k), quantized.check(file_name, (n, k), stored))
    if not matrices:
        raise ModelLoadError(
            f"config.json of {checkpoint.folder} says that its weights are quantized ({quantized.method}), and none "
            "is: restore the config.json of these files."
        )
    parts = [part for _, _, names in matrices.values() for part in names]
    biases = _empty_biases(stored, [file_name for file_name, _, _ in matrices.values()], set(in_file.values()))
    plain = match_tensors(
        checkpoint,
        shapes,
        {name: file_name for name, file_name in in_file.items() if name.removesuffix(".weight") not in matrices},
        also=[*also, *parts, *biases],
        ignored_suffixes=family.ignored_suffixes,
        owner=family.architecture,
    )
    return QuantizedTensors(checkpoint, plain, quantized, matrices, transposed)


def _empty_biases(stored: "_StoredTensors", matrices: list[str], expected: Collection[str]) -> list[str]:
    """Biases that a model does not have: some writers give every quantized matrix one of zeros."""
    found = [f"{name}.bias" for name in matrices if f"{name}.bias" not in expected]
    found = [name for name in found if stored.described(name) is not None]
    filled = [name for name in found if bool(stored.small(name).any())]
    if filled:
        raise ModelLoadError(
            f"{stored.where} has {len(filled)} biases that its model has no place for ({some(filled)}): the "
            "config.json belongs to another model."
        )
    return found


class _StoredTensors:
    """See `playground.quantization.formats.base.Stored`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self.where = checkpoint, str(checkpoint.folder)

    def described(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        entry = self._checkpoint.entries.get(name)
        return None if entry is None else (entry.dtype, entry.shape)

    def small(self, name: str) -> Tensor:
        return _copy(self._checkpoint, name)


def _copy(checkpoint: Checkpoint, name: str) -> Tensor:
    copies: list[Tensor] = []
    checkpoint.read(name, lambda tensor: copies.append(tensor.clone()))
    return copies[0]
