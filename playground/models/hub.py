"""Turns what a user calls a model into a local folder: a folder as it is, a hub id downloaded. Reads no weights."""

import logging
import re
from pathlib import Path

from playground.errors import ModelLoadError
from playground.validation import shorten

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]


def resolve_model_path(path_or_id: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """The local folder of a model; downloads a hub id (only its small files with `weights=False`)."""
    name = str(path_or_id)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ModelLoadError(f"model={name!r} is a file: give the folder that holds it, with its config.json.")
    if isinstance(path_or_id, Path) or not _HUB_ID.match(name):
        raise ModelLoadError(f"model={shorten(name, 200)}: no such folder, and not a hub id of the form 'owner/name'.")
    return _download(name, revision, weights)


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
