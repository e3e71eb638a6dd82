"""Turns what a user calls a model into a local folder or file: as it is, or a hub id downloaded. Reads no weights."""

import logging
import re
from pathlib import Path

from playground.errors import ModelLoadError
from playground.validation import shorten

logger = logging.getLogger(__name__)

GGUF_SUFFIX = ".gguf"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]


def is_gguf(path: Path) -> bool:
    """Whether a resolved model is a GGUF file, which holds everything, and not a folder in Hugging Face format."""
    return path.suffix.lower() == GGUF_SUFFIX


def resolve_model_path(path_or_id: str | Path, revision: str | None = None, *, load_format: str = "auto") -> Path:
    """The local folder or GGUF file of a model; downloads a hub id (only its small files for random weights).

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
    return _download(name, revision, weights=load_format != "dummy")


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


def _download(name: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    patterns = _SMALL_FILES + (["*.safetensors"] if weights else [])
    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
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
    except Exception as error:  # the client raises many kinds: its own, its transport's, the disk's
        logger.debug("download of %s failed", name, exc_info=True)
        raise ModelLoadError(
            f"model={name!r}{at}: no such folder here, and the hub cannot be reached ({_one_line(error)}). "
            "Check the network, or give a local folder."
        ) from None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
