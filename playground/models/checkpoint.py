"""Reads the safetensors files of one checkpoint folder, memory-mapped, one tensor at a time.

Pages of a tensor are given back to the system as soon as it has been copied, so that resident memory does not hold
the file and the model together. Knows nothing of architectures; never unpickles anything.
"""

import json
import math
import mmap
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from playground.errors import ModelLoadError
from playground.models.config import read_json

INDEX_NAME = "model.safetensors.index.json"
WEIGHT_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
"""What a weight may be stored as."""
SAFETENSORS_DTYPES = WEIGHT_DTYPES | {
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""What can be read at all: parts of quantized weights too."""
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: file, byte range in it, dtype and shape."""

    file: Path
    start: int
    end: int
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors of a folder by name. A context manager: the files stay mapped while it is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, TensorEntry] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for file in _weight_files(folder):
            try:
                self.entries.update(_read_header(file))
            except OSError as error:
                raise ModelLoadError(f"{file} cannot be read ({error.strerror}): check its permissions.") from None

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        for mapped in self._maps.values():
            with suppress(BufferError):  # an exception's traceback may still hold a view: then it goes with that
                mapped.close()
        self._maps.clear()

    def read(self, name: str, use: Callable[[Tensor], None]) -> None:
        """Call `use` with the mapped tensor, which must be copied there: afterwards its pages are gone."""
        entry = self.entries[name]
        if entry.end == entry.start:
            use(torch.empty(entry.shape, dtype=SAFETENSORS_DTYPES[entry.dtype]))
            return
        mapped = self._mapped(entry.file)
        dtype = SAFETENSORS_DTYPES[entry.dtype]
        view = torch.frombuffer(mapped, dtype=dtype, count=math.prod(entry.shape), offset=entry.start)
        use(view.view(entry.shape))
        del view
        first = entry.start - entry.start % mmap.PAGESIZE
        if hasattr(mapped, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED, first, entry.end - first)

    def _mapped(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as handle:
                # A private writable map: torch wants writable buffers, and nothing is ever written back.
                self._maps[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[file]


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_NAME
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise ModelLoadError(f"{index} has no weight_map of file names: download the model again.")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelLoadError(f"{folder} lacks {some(missing)} named in {INDEX_NAME}: download the model again.")
        return files
    files = [file for file in [folder / "model.safetensors"] if file.is_file()] or sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickled:
        raise ModelLoadError(
            f"{folder} holds only pickled weights ({pickled[0].name}), which can run code when read: "
            "convert them to safetensors or choose a revision that has them."
        )
    raise ModelLoadError(f"{folder} has no *.safetensors file: give a folder with weights, or load_format='dummy'.")


def _read_header(file: Path) -> dict[str, TensorEntry]:
    """The header of a safetensors file: 8 bytes of its length, then JSON; tensors lie behind it."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        prefix = handle.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ModelLoadError(f"{file} is cut off or not a safetensors file ({size} bytes): download it again.")
        try:
            header = json.loads(handle.read(length))
            entries = {
                name: _entry(file, 8 + length, value) for name, value in header.items() if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelLoadError(f"{file} has a broken safetensors header: download it again.") from None
    needed = max((entry.end for entry in entries.values()), default=8 + length)
    if needed > size:
        raise ModelLoadError(f"{file} is cut off: {size} bytes of {needed}. Download it again.")
    return entries


def _entry(file: Path, base: int, value: dict) -> TensorEntry:
    start, end = value["data_offsets"]
    dtype, shape = value["dtype"], tuple(int(n) for n in value["shape"])
    if dtype in SAFETENSORS_DTYPES and end - start != math.prod(shape) * SAFETENSORS_DTYPES[dtype].itemsize:
        raise ValueError("byte range and shape differ")
    return TensorEntry(file, base + start, base + end, dtype, shape)


class NamedTensors:
    """A checkpoint's tensors under names of ours."""

    def __init__(self, checkpoint: Checkpoint, in_file: Mapping[str, str]) -> None:
        self._checkpoint, self._in_file = checkpoint, in_file

    def read(self, name: str, use: Callable[[Tensor], None]) -> None:
        """See `Checkpoint.read`."""
        self._checkpoint.read(self._in_file[name], use)


def match_tensors(
    checkpoint: Checkpoint,
    shapes: Mapping[str, tuple[int, ...]],
    in_file: Mapping[str, str],
    *,
    also: Collection[str] = (),
    ignored_suffixes: tuple[str, ...] = (),
    owner: str,
) -> NamedTensors:
    """The tensors of `shapes`, which the files name as `in_file` says. Refuses missing, extra and misshapen ones.

    Names in `also` and with `ignored_suffixes` may be there besides; `owner` names in errors what the tensors are for.
    """
    found = checkpoint.entries
    missing = [name for name in in_file.values() if name not in found]
    if missing:
        raise ModelLoadError(
            f"{checkpoint.folder} lacks {len(missing)} tensors that its config.json asks for "
            f"({some(missing)}): the files are incomplete or belong to another config."
        )
    known = {*in_file.values(), *also}
    extra = [name for name in found if name not in known and not name.endswith(ignored_suffixes)]
    if extra:
        raise ModelLoadError(
            f"{checkpoint.folder} has {len(extra)} tensors that {owner} has no place for "
            f"({some(extra)}): the config.json belongs to another model."
        )
    for name, stored in in_file.items():
        entry = found[stored]
        if entry.shape != shapes[name]:
            raise ModelLoadError(
                f"{checkpoint.folder}: {stored} has shape {list(entry.shape)} where config.json asks for "
                f"{list(shapes[name])}: the config.json belongs to another model."
            )
        if entry.dtype not in WEIGHT_DTYPES:
            raise ModelLoadError(
                f"{checkpoint.folder}: {stored} is stored as {entry.dtype}, which is not supported: "
                f"use one of {', '.join(WEIGHT_DTYPES)}."
            )
    return NamedTensors(checkpoint, in_file)


def some(names: list[str], most: int = 3) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
