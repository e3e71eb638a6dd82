"""The models that are known to be on this machine: the bundled ones, folders that were added, the hub's cache.

Reads config.json files and GGUF headers, never weights. The list of added folders is one small JSON file beside the
chat database. Knows nothing of gradio.
"""

import json
import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from playground.errors import ConfigError, PlaygroundError
from playground.models.bundled import BUNDLED_DRAFT_MODEL, BUNDLED_MODEL
from playground.models.hub import is_gguf
from playground.models.loader import read_config
from playground.validation import shorten

logger = logging.getLogger(__name__)

FOLDERS_FILE = "model-folders.json"
MOST_FILES = 200
"""Models listed of one added folder at most."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One entry of the list."""

    name: str
    source: str
    """"bundled", "folder" or "hub cache"."""
    value: str
    """What `EngineConfig.model` takes: a path or a hub id; empty for the bundled model."""
    size_bytes: int | None = None
    """Of its files."""
    parameters: int | None = None
    architecture: str = ""
    dtype: str = ""
    """The checkpoint's own, or how it is quantized."""
    context: int | None = None
    problem: str | None = None
    """Why it cannot be loaded, in one sentence."""
    folder: str | None = None
    """The added folder it was found in."""


class ModelFolders:
    """The folders that a user has added, kept in a file. Thread-safe."""

    def __init__(self, file: Path | None) -> None:
        """`file` None keeps them in memory only."""
        self._file = file
        self._lock = threading.Lock()
        self._folders: list[str] = _read(file)

    def list(self) -> list[str]:
        with self._lock:
            return list(self._folders)

    def add(self, typed: str) -> str:
        """Add a folder or a GGUF file; its full path. Raises `ConfigError` where there is no model in it."""
        if not typed.strip():
            raise ConfigError("Give the path of a folder with a model, or of a folder of models.")
        path = Path(typed.strip()).expanduser()
        try:
            path = path.resolve(strict=True)
            is_folder = path.is_dir()
        except (OSError, ValueError) as error:  # ValueError: a zero byte in it
            missing = isinstance(error, FileNotFoundError | ValueError)
            reason = "there is no such folder or file" if missing else getattr(error, "strerror", None)
            raise ConfigError(f"{shorten(typed.strip(), 200)}: {reason}. Give another path.") from None
        if not is_folder and not is_gguf(path):
            raise ConfigError(f"{path} is neither a folder nor a .gguf file: give one of the two.")
        if not _models_in(path):
            raise ConfigError(f"{path} holds no model: give a folder with a config.json, or a .gguf file.")
        with self._lock:
            if str(path) not in self._folders:
                self._folders.append(str(path))
                self._write()
        return str(path)

    def remove(self, folder: str) -> None:
        """Take a folder off the list; its files stay."""
        with self._lock:
            if folder in self._folders:
                self._folders.remove(folder)
                self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._folders, indent=1), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"The list of folders could not be saved to {self._file}: {error.strerror}.") from None


def known_models(folders: list[str]) -> list[KnownModel]:
    """All of them, the bundled ones first."""
    found = [
        _described(BUNDLED_MODEL, "bundled", "", BUNDLED_MODEL.name),
        _described(BUNDLED_DRAFT_MODEL, "bundled", str(BUNDLED_DRAFT_MODEL), BUNDLED_DRAFT_MODEL.name),
    ]
    for folder in folders:
        paths = _models_in(Path(folder))
        found += [_described(path, "folder", str(path), path.name, folder=folder) for path in paths]
        if not paths:
            problem = "Nothing is found here any more: bring the folder back, or take it off the list."
            found.append(KnownModel(Path(folder).name, "folder", folder, problem=problem, folder=folder))
    return found + _cached()


def _cached() -> list[KnownModel]:
    """Models of the hub's download cache that have a config.json or a GGUF file."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return []
    except (OSError, ValueError) as error:  # a cache that is broken somewhere is no reason to show nothing else
        logger.warning("the hub's cache cannot be read: %s", error)
        return []
    found = []
    for repo in sorted(cache.repos, key=lambda repo: repo.repo_id.lower()):
        revisions = sorted(repo.revisions, key=lambda one: one.last_modified, reverse=True)
        if repo.repo_type != "model" or not revisions:
            continue
        snapshot = Path(revisions[0].snapshot_path)
        if (snapshot / "config.json").is_file():
            found.append(_described(snapshot, "hub cache", repo.repo_id, repo.repo_id))
        files = sorted(snapshot.glob("*.gguf"))
        found += [_described(file, "hub cache", str(file), f"{repo.repo_id}: {file.name}") for file in files]
    return found


def _models_in(path: Path) -> list[Path]:
    """The model that a path is, or the models one level below a folder."""
    try:
        if not path.is_dir():
            return [path] if path.is_file() and is_gguf(path) else []
        if (path / "config.json").is_file():
            return [path]
        inside = sorted(path.iterdir())
        found = [one for one in inside if is_gguf(one) or (one / "config.json").is_file()]
        return found[:MOST_FILES]
    except OSError:
        return []


def _described(path: Path, source: str, value: str, name: str, folder: str | None = None) -> KnownModel:
    try:
        config = read_config(path)
        size = path.stat().st_size if is_gguf(path) else sum(f.stat().st_size for f in path.glob("*.safetensors"))
    except PlaygroundError as error:
        return KnownModel(name, source, value, problem=str(error), folder=folder)
    except OSError as error:
        return KnownModel(name, source, value, problem=f"It cannot be read: {error.strerror}.", folder=folder)
    kind = "GGUF" if is_gguf(path) else config.quantization.method if config.quantization else config.torch_dtype
    missing = None if size else "It has no weights here: download them, or give another folder."
    return KnownModel(
        name=name,
        source=source,
        value=value,
        size_bytes=size or None,
        parameters=config.num_parameters,
        architecture=config.family.model_type,
        dtype=kind,
        context=config.max_position_embeddings,
        problem=missing,
        folder=folder,
    )


def _read(file: Path | None) -> list[str]:
    if file is None or not file.is_file():
        return []
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s): no added folders", file, error)
        return []
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
