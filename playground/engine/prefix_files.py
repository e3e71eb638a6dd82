"""The prefix cache's third tier: blocks in safetensors files of one folder, which outlive the engine.

A file holds many blocks, one tensor each, and describes itself: for which model and layout, and each block's key and
checksum. It is written under another name and renamed when it is whole. Nothing in the folder is trusted: what does not
belong here is left alone and what does not check out is not used, both with a warning, and nothing is ever unpickled.
Whoever can write to the folder decides what is read from it, so it must be the user's own. The files hold the token ids
of prompts in clear and are readable by their owner only; salted prompts are never written.
"""

import json
import logging
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from playground.engine.block_pool import BlockKey
from playground.engine.block_tables import chain_hash
from playground.engine.host_memory import HostMemory
from playground.errors import ConfigError
from playground.validation import shorten

logger = logging.getLogger(__name__)

FORMAT = "inference-playground prefix cache 1"
"""Changes with the layout of the files or of a KV block."""
FILE_BYTES, FILE_BLOCKS = 1 << 25, 1024
MAX_HEADER_BYTES = 1 << 24
_OWN_NAME = re.compile(r"[0-9a-f]{16}\.safetensors")
_UNFINISHED = ".unfinished-"
_UNFINISHED_SECONDS = 3600
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8"}


class NewBlock(NamedTuple):
    """A block to write: its key, when it was last used (wall clock, seconds), and its content."""

    key: BlockKey
    used_at: float
    read: Callable[[], Tensor]


class _Place(NamedTuple):
    file: Path
    offset: int
    checksum: int
    used_at: float


class _Refused(Exception):
    """Why a file is not used."""


class PrefixFiles:
    """The blocks of one model that lie in a folder, as `BlockFiles` for the host tier."""

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        memory: HostMemory,
        *,
        limit_bytes: int,
        ttl: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`identity` is everything that the content of a block depends on, besides its tokens; `limit_bytes` for all
        files of this format in the folder; `ttl` in seconds of the wall clock since the last use.

        Raises `ConfigError` where the folder cannot be used or the limit holds no block.
        """
        self._folder = folder
        self._identity = json.dumps(identity, sort_keys=True)
        self._memory = memory
        self._limit_bytes = limit_bytes
        self._ttl = ttl
        self._clock = clock
        self._places: dict[BlockKey, _Place] = {}
        self._files: set[Path] = set()  # of this model
        self._read_from: set[Path] = set()
        self._dtype = _DTYPES[memory.dtype]
        self._bytes_a_block = memory.block_bytes + 64 * (8 + memory.layout.block_size)  # its description is shorter
        if limit_bytes < self._bytes_a_block:
            raise ConfigError(
                f"prefix_cache_dir_limit={limit_bytes} bytes holds no KV block, which takes up to "
                f"{self._bytes_a_block}: raise it."
            )
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            self._scan()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"prefix_cache_dir={str(folder)!r} cannot be used ({reason}): give a folder that can be written to."
            ) from None

    def __len__(self) -> int:
        return len(self._places)

    # Reading

    def __contains__(self, key: BlockKey) -> bool:
        place = self._places.get(key)
        return place is not None and not self._expired(place.used_at)

    def load(self, key: BlockKey, slot: int) -> bool:
        """Read a block into host memory; a block that is not what it was when it was written is dropped."""
        place, target = self._places[key], self._memory.slot(slot)
        try:
            with place.file.open("rb") as handle:
                handle.seek(place.offset)
                num_read = handle.readinto(_bytes(target))
        except OSError as error:
            return self._drop_file(place.file, error.strerror or str(error))
        if num_read < self._memory.block_bytes:
            return self._drop_file(place.file, "it is cut off")
        if xxhash.xxh3_64_intdigest(_bytes(target)) != place.checksum:
            return self._drop_file(place.file, "a checksum is wrong")
        if not self._memory.layout.is_finite(target):
            return self._drop_file(place.file, "it holds numbers that are not finite")
        if place.file not in self._read_from:  # the order in which files make room
            self._read_from.add(place.file)
            with suppress(OSError):
                os.utime(place.file)
        return True

    def discard(self, key: BlockKey) -> None:
        self._places.pop(key, None)

    def _drop_file(self, file: Path, reason: str) -> bool:
        logger.warning("prefix cache: %s is not used any more: %s; its prefixes are computed again", file, reason)
        self._places = {key: place for key, place in self._places.items() if place.file != file}
        return False

    # Looking around

    def _scan(self) -> None:
        """Note what every file holds. Content is read, and checked, only when it is asked for."""
        foreign: Counter[str] = Counter()
        with os.scandir(self._folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            file = Path(entry.path)
            try:
                if entry.name.startswith(_UNFINISHED):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _UNFINISHED_SECONDS:
                        file.unlink()
                    continue
                if not entry.name.endswith(".safetensors"):
                    continue
                if not _OWN_NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                    foreign["of another kind"] += 1
                    continue
                header, start = _read_header(file)
                metadata = header["__metadata__"]
                if metadata.get("format") != FORMAT:
                    foreign["of another kind or version"] += 1
                elif metadata.get("identity") != self._identity:
                    foreign[f"of another {_difference(metadata.get('identity'), self._identity)}"] += 1
                else:
                    self._note(file, self._blocks_of(file, header, start))
            except (_Refused, OSError) as error:
                logger.warning("prefix cache: ignored %s: %s; delete it", shorten(str(file), 200), error)
        for kind, count in foreign.items():
            files = "1 file" if count == 1 else f"{count} files"
            logger.warning("prefix cache: ignored %s %s in %s", files, kind, self._folder)

    def _note(self, file: Path, blocks: list[tuple[BlockKey, _Place]]) -> None:
        """Offer a file's blocks; a file whose time to live is over is deleted."""
        if all(self._expired(place.used_at) for _, place in blocks):
            file.unlink()
            return
        self._files.add(file)
        for key, place in blocks:
            known = self._places.get(key)
            if known is None or known.used_at < place.used_at:
                self._places[key] = place

    def _blocks_of(self, file: Path, header: dict[str, Any], start: int) -> list[tuple[BlockKey, _Place]]:
        """The blocks of a file of ours. Raises `_Refused` where its description contradicts itself or the file."""
        text, metadata = header["__metadata__"].get("blocks", ""), header["__metadata__"]
        if metadata.get("checksum") != _text_checksum(text):
            raise _Refused("its description is damaged")
        size, now = file.stat().st_size, self._clock()
        blocks = []
        try:
            for name, parent, token_ids, checksum, used_at in json.loads(text):
                key = BlockKey(int(name, 16), int(parent, 16), tuple(token_ids))
                tensor = header[name]
                first, last = tensor["data_offsets"]
                whole = isinstance(first, int) and last - first == self._memory.block_bytes
                whole = whole and first >= 0 and start + last <= size
                if not whole or tensor["dtype"] != self._dtype or tuple(tensor["shape"]) != self._memory.shape:
                    raise _Refused("it is cut off or its tensors have another shape")
                if chain_hash(key.parent_hash, key.token_ids) != key.hash:
                    raise _Refused("its keys do not belong to its tokens")
                used_at = float(used_at) if used_at <= now else now  # a clock that was put back, or no number
                blocks.append((key, _Place(file, start + first, int(checksum, 16), used_at)))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise _Refused("its description is damaged") from None
        return blocks

    def _expired(self, used_at: float) -> bool:
        return self._ttl is not None and self._clock() - used_at > self._ttl

    # Writing

    def write(self, blocks: Iterable[NewBlock]) -> int:
        """Write the blocks that are not here yet, in the given order as far as the limit goes, and make room by
        deleting the files that were used longest ago. Returns how many were written; never raises."""
        wanted = (block for block in blocks if self._is_news(block))
        count = 0
        try:
            for batch in self._batches(wanted):
                self._write_file(batch)
                count += len(batch)
            self._limit()
        except OSError as error:
            logger.warning("prefix cache: could not write to %s: %s", self._folder, error.strerror or error)
        return count

    def clear(self) -> None:
        """Delete this model's files."""
        self._places.clear()
        for file in self._files:
            with suppress(OSError):
                file.unlink()
        self._files.clear()

    def _is_news(self, block: NewBlock) -> bool:
        if block.key.salted or self._expired(block.used_at):
            return False
        known = self._places.get(block.key)
        # A time to live counts from the last use, which a file cannot be told of later.
        return known is None or (self._ttl is not None and known.used_at < block.used_at)

    def _batches(self, blocks: Iterator[NewBlock]) -> Iterator[list[NewBlock]]:
        """Groups of blocks for one file each, with as many blocks altogether as the limit holds."""
        left = self._limit_bytes // self._bytes_a_block
        most = min(FILE_BLOCKS, max(1, FILE_BYTES // self._memory.block_bytes))
        batch: list[NewBlock] = []
        seen: set[BlockKey] = set()
        for block in blocks:
            if len(seen) == left:
                break
            if block.key in seen:
                continue
            seen.add(block.key)
            batch.append(block)
            if len(batch) == most:
                yield batch
                batch = []
        if batch:
            yield batch

    def _write_file(self, batch: list[NewBlock]) -> None:
        tensors: dict[str, Tensor] = {}
        described = []
        for key, used_at, read in batch:
            name = f"{key.hash:016x}"
            tensors[name] = read().clone()  # out of memory that others share, which safetensors refuses
            checksum = f"{xxhash.xxh3_64_intdigest(_bytes(tensors[name])):016x}"
            described.append([name, f"{key.parent_hash:016x}", key.token_ids, checksum, used_at])
        text = json.dumps(described, separators=(",", ":"))
        metadata = {"format": FORMAT, "identity": self._identity, "blocks": text, "checksum": _text_checksum(text)}
        file = self._folder / f"{_text_checksum(text)}.safetensors"
        descriptor, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=self._folder)
        os.close(descriptor)
        unfinished = Path(name)
        try:
            save_file(tensors, unfinished, metadata)
            unfinished.replace(file)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from None
        finally:
            unfinished.unlink(missing_ok=True)
        header, start = _read_header(file)
        self._note(file, self._blocks_of(file, header, start))

    def _limit(self) -> None:
        """Delete the files that were used longest ago until the rest is within the limit."""
        files = []
        with os.scandir(self._folder) as found:
            for entry in found:
                if _OWN_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    files.append((status.st_mtime_ns, entry.name, status.st_size))
        if sum(size for _, _, size in files) <= self._limit_bytes:
            return
        files = [entry for entry in sorted(files) if _is_ours(self._folder / entry[1])]
        excess = sum(size for _, _, size in files) - self._limit_bytes
        for _, name, size in files:
            if excess <= 0:
                return
            file = self._folder / name
            file.unlink(missing_ok=True)
            self._files.discard(file)
            self._places = {key: place for key, place in self._places.items() if place.file != file}
            excess -= size


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.view(torch.uint8).numpy().data.cast("B")


def _text_checksum(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))


def _is_ours(file: Path) -> bool:
    """Whether the file says that it is of this format, for whatever model: only such files are ever deleted."""
    try:
        return _read_header(file)[0]["__metadata__"].get("format") == FORMAT
    except (_Refused, OSError):
        return False


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, with a dict of texts as `__metadata__`, and where its tensors begin."""
    with file.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        prefix = handle.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise _Refused("it is cut off or no safetensors file")
        if length > MAX_HEADER_BYTES:
            raise _Refused(f"its header of {length} bytes is too large")
        try:
            header = json.loads(handle.read(length))
        except (ValueError, RecursionError):
            raise _Refused("its header is damaged") from None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Refused("its header is not that of a prefix cache")
    return header, 8 + length


def _difference(theirs: str | None, ours: str) -> str:
    """Which fields of two identities differ, for a message."""
    try:
        other = json.loads(theirs or "")
        mine = json.loads(ours)
        names = [name for name in mine if other.get(name) != mine[name]]
    except (ValueError, AttributeError, RecursionError):
        return "origin"
    return ", ".join(names) or "origin"
