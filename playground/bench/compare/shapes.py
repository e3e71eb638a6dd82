"""Shapes of models without trained weights, for comparing how many KV heads there are: nobody trained both of a pair.

Each is a folder with a config.json and the bundled tokenizer, to be loaded with `load_format="dummy"`. Written when
first asked for, into the user's cache folder.
"""

import json
import os
import shutil
from pathlib import Path

from playground.errors import ConfigError
from playground.models.bundled import BUNDLED_MODEL

KV_HEADS = {"mha": 8, "gqa": 2, "mqa": 1}
"""Every query head with keys and values of its own; four that share; all that share."""
_LARGER = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "head_dim": 64}


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inference-playground"


def shape_folder(name: str) -> Path:
    """The folder of one of `KV_HEADS`: a decoder of some 25 million parameters with that many KV heads.

    Raises `ConfigError` where the cache folder cannot be written.
    """
    folder = cache_folder() / "shapes" / f"random-{name}"
    raw = json.loads((BUNDLED_MODEL / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**raw, **_LARGER, "num_key_value_heads": KV_HEADS[name]}, indent=2)
    config = folder / "config.json"
    if config.is_file() and config.read_text(encoding="utf-8") == text:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(BUNDLED_MODEL / file, folder / file)
        config.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The shape of a model cannot be written to {folder} ({error.strerror}): make it writable, or name another "
            "folder with XDG_CACHE_HOME."
        ) from None
    return folder
