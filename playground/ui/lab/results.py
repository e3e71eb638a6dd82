"""`ResultFiles`: the results of benchmarks, one JSON file each, in a folder; and those that ship with the project.

A file is what the benchmark wrote, with one more entry, `lab`: what was asked for and how long it took. A file that
cannot be read is listed with the reason, and spoils nothing else.
"""

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from playground.errors import PlaygroundError
from playground.ui.lab.catalogue import title_of

SHIPPED = Path(__file__).resolve().parents[3] / "assets" / "benchmarks"
SHIPPED_PREFIX = "shipped-"
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,120}")
MAX_BYTES = 50_000_000
GONE = "This result does not exist any more."


class ResultError(PlaygroundError):
    """A result that is not there, or cannot be read, in one sentence."""


@dataclass(frozen=True, slots=True)
class ResultInfo:
    """A result's line in the list. Texts are empty where the file does not say."""

    id: str
    kind: str
    """What the file says it is; empty where it could not be read."""
    title: str
    created: str
    """ISO 8601, UTC."""
    what: str
    """What was asked for: "quick", a model, …"""
    machine: str
    versions: str
    shipped: bool
    seconds: float | None = None
    error: str | None = None


class ResultFiles:
    """Results in `folder`, made when the first one is kept. Thread-safe."""

    def __init__(self, folder: Path, shipped: Path = SHIPPED) -> None:
        self.folder, self._shipped = folder, shipped
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[tuple[int, int], ResultInfo]] = {}
        self.revision = 0
        """Counts what was kept and deleted."""

    def list(self) -> list[ResultInfo]:
        """Newest first, the shipped ones after them."""
        found = []
        for folder, shipped in ((self.folder, False), (self._shipped, True)):
            files = sorted(folder.glob("*.json")) if folder.is_dir() else []
            infos = [self._info(file, shipped) for file in files if _ID.fullmatch(file.stem)]
            found += sorted(infos, key=lambda info: (info.created, info.id), reverse=True)
        return found

    def read(self, result_id: str) -> dict[str, Any]:
        """The file's content. Raises `ResultError`."""
        return _read(self.path(result_id))

    def path(self, result_id: str) -> Path:
        """Raises `ResultError` where there is none of this name."""
        shipped = result_id.startswith(SHIPPED_PREFIX)
        name = result_id.removeprefix(SHIPPED_PREFIX)
        file = (self._shipped if shipped else self.folder) / f"{name}.json"
        if not _ID.fullmatch(name) or not file.is_file():
            raise ResultError(GONE)
        return file

    def keep(self, data: Mapping[str, Any], name: str, lab: Mapping[str, Any]) -> str:
        """Store a result of the benchmark `name`; its id. The file appears whole or not at all."""
        text = json.dumps({**data, "lab": lab}, indent=1, ensure_ascii=False)
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
            result_id, number = stem, 1
            while (self.folder / f"{result_id}.json").exists():
                number += 1
                result_id = f"{stem}-{number}"
            part = self.folder / f".{result_id}.part"
            part.write_text(text, encoding="utf-8")
            os.replace(part, self.folder / f"{result_id}.json")
            self.revision += 1
        return result_id

    def delete(self, result_id: str) -> None:
        """Raises `ResultError` for what is not there, and for what came with the project."""
        if result_id.startswith(SHIPPED_PREFIX):
            raise ResultError("This result came with the project and cannot be deleted here.")
        with self._lock:
            self.path(result_id).unlink(missing_ok=True)
            self.revision += 1

    def newest(self, *kinds: str, shipped: bool = True) -> tuple[ResultInfo, dict[str, Any]] | None:
        """The newest readable result of one of these kinds, one's own before those that ship."""
        for info in self.list():
            if info.kind in kinds and (shipped or not info.shipped):
                return info, self.read(info.id)
        return None

    def _info(self, file: Path, shipped: bool) -> ResultInfo:
        stat = file.stat()
        state = (stat.st_mtime_ns, stat.st_size)
        known = self._known.get(file)
        if known is None or known[0] != state:
            known = self._known[file] = (state, _describe(file, shipped))
        return known[1]


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ResultError(f"{file.name} is larger than {MAX_BYTES // 10**6} MB: it is no result of a benchmark.")
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(GONE) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"{file.name} cannot be read as JSON ({error}): delete it, or restore it.") from None
    if not isinstance(data, dict):
        raise ResultError(f"{file.name} holds no result of a benchmark: delete it.")
    return data


def _describe(file: Path, shipped: bool) -> ResultInfo:
    result_id = (SHIPPED_PREFIX if shipped else "") + file.stem
    try:
        data = _read(file)
    except ResultError as error:
        return ResultInfo(result_id, "", file.stem, "", "", "", "", shipped, error=str(error))
    kind = kind_of(data)
    lab = _mapping(data, "lab")
    seconds = lab.get("seconds")
    return ResultInfo(
        result_id,
        kind,
        title_of(kind),
        str(data.get("created", "")),
        str(lab.get("what", "")),
        machine_text(data),
        versions_text(data),
        shipped,
        float(seconds) if isinstance(seconds, int | float) else None,
    )


def kind_of(data: Mapping[str, Any]) -> str:
    """Which benchmark wrote it; "another" where it does not say."""
    return str(data.get("benchmark") or data.get("report") or "another")


def machine_text(data: Mapping[str, Any]) -> str:
    """Processor or GPU, cores and memory in a few words."""
    here, gpus = _mapping(data, "machine"), data.get("gpus")
    names = [str(gpu.get("name")) for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    names = names or [str(here["processor"])] if here.get("processor") or names else []
    if here.get("cores_usable"):
        names.append(f"{here['cores_usable']} cores")
    if isinstance(here.get("memory_bytes"), int):
        names.append(f"{here['memory_bytes'] / 2**30:.3g} GiB")
    return ", ".join(names)


def versions_text(data: Mapping[str, Any]) -> str:
    versions = _mapping(data, "versions")
    named = [f"{name} {versions[name]}" for name in ("torch", "transformers", "python") if versions.get(name)]
    return ", ".join([*named, f"commit {versions['commit']}"] if versions.get("commit") else named)


def _mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, dict) else {}
