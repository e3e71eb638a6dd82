"""Turns what a user calls a model into a local folder or file: as it is, or a hub id downloaded. Reads no weights."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playground.errors import ModelLoadError, PlaygroundError
from playground.validation import shorten

logger = logging.getLogger(__name__)

GGUF_SUFFIX = ".gguf"
OnBytes = Callable[[int, int], None]
"""Called with the bytes that have come, and how many there are as far as is known."""
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]


class NotDownloaded(ModelLoadError):
    """A hub id whose files are not in the download cache, where nothing was to be downloaded."""


def is_gguf(path: Path) -> bool:
    """Whether a resolved model is a GGUF file, which holds everything, and not a folder in Hugging Face format."""
    return path.suffix.lower() == GGUF_SUFFIX


def resolve_model_path(
    path_or_id: str | Path,
    revision: str | None = None,
    *,
    load_format: str = "auto",
    local_only: bool = False,
    on_bytes: OnBytes | None = None,
) -> Path:
    """The local folder or GGUF file of a model; downloads a hub id (only its small files for random weights).

    With `local_only` nothing is downloaded: a hub id must be in the download cache. `on_bytes` hears of the download,
    and ends it by raising a `PlaygroundError`.

    A folder stands for the GGUF file in it where `load_format` asks for one, or where it has nothing else.
    """
    name = str(path_or_id)
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path.resolve(), load_format)
    if path.exists():
        if not is_gguf(path):
            raise ModelLoadError(
                f"model={name!r} is a file: give a {GGUF_SUFFIX} file, or the folder with its config.json."
            )
        if load_format == "safetensors":
            raise ModelLoadError(f"model={name!r} is a GGUF file: leave load_format='safetensors' out, or give 'gguf'.")
        return path.resolve()
    if load_format == "gguf":
        raise ModelLoadError(
            f"model={shorten(name, 200)}: no such file or folder here; a hub id is not enough for load_format='gguf': "
            f"download one {GGUF_SUFFIX} file and give its path."
        )
    if isinstance(path_or_id, Path) or not _HUB_ID.match(name):
        raise ModelLoadError(
            f"model={shorten(name, 200)}: no such folder or file, and not a hub id of the form 'owner/name'."
        )
    return _download(name, revision, load_format != "dummy", local_only, on_bytes)


def _in_folder(folder: Path, load_format: str) -> Path:
    wanted = load_format == "gguf"
    if not wanted and (load_format != "auto" or (folder / "config.json").is_file()):
        return folder
    files = sorted(file for file in folder.iterdir() if is_gguf(file))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise ModelLoadError(f"{folder} holds {len(files)} GGUF files ({names}): give the path of one of them.")
    if wanted and not files:
        raise ModelLoadError(f"{folder} holds no {GGUF_SUFFIX} file: give the path of one, or another load_format.")
    return files[0] if files else folder


def _download(name: str, revision: str | None, weights: bool, local_only: bool, on_bytes: OnBytes | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    patterns = _SMALL_FILES + (["*.safetensors"] if weights else [])
    at = f" at revision {revision!r}" if revision else ""
    try:
        bar = None if on_bytes is None else _bar_class(on_bytes)
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=local_only, tqdm_class=bar
            )
        )
    except PlaygroundError:  # from `on_bytes`
        raise
    except errors.GatedRepoError:
        raise ModelLoadError(
            f"model={name!r} is gated: accept its licence on the hub and log in with a token."
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelLoadError(
            f"model={name!r} has no revision {revision!r}: use a branch, tag or commit of it."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelLoadError(
            f"model={name!r}: no such folder here and no such model on the hub: check the name."
        ) from None
    except errors.HFValidationError as error:
        raise ModelLoadError(f"model={shorten(name)} is not a hub id: {_one_line(error)}") from None
    except errors.LocalEntryNotFoundError as error:
        if local_only:
            raise NotDownloaded(f"model={name!r}{at} is not on this machine: it has to be downloaded first.") from None
        raise _unreachable(name, at, error) from None
    except Exception as error:  # the client raises many kinds: its own, its transport's, the disk's
        logger.debug("download of %s failed", name, exc_info=True)
        raise _unreachable(name, at, error) from None


def _unreachable(name: str, at: str, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"model={name!r}{at}: no such folder here, and the hub cannot be reached ({_one_line(error)}). "
        "Check the network, or give a local folder."
    )


def _bar_class(on_bytes: OnBytes) -> type[Any]:
    """A progress bar for the hub's client that draws nothing and tells `on_bytes` instead."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*arguments, **(options | {"disable": True}))
            self._done = options.get("initial") or 0

        def update(self, n: float | None = 1) -> None:
            self._done += n or 0
            if self._counts_bytes and self.total:
                on_bytes(int(self._done), int(self.total))

    return Bar


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
