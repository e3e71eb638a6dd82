"""Tells one checkpoint from another without reading all of it: for what was computed with it and must not be mixed."""

from pathlib import Path

import xxhash

SAMPLE_BYTES = 4096
MAX_SAMPLES = 1024
WEIGHT_SUFFIXES = (".safetensors", ".gguf")


def model_fingerprint(path: Path) -> str:
    """32 hex digits over the config, and over size, time of change and evenly spaced samples of every weight file.

    `path` is a folder or a single file. Every matrix of a model is larger than the distance between two samples, so
    that one changed matrix is seen.
    """
    digest = xxhash.xxh3_128()
    weights = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES]
    configs = [] if path.is_file() else [path / "config.json"]
    for file in (*configs, *sorted(weights)):
        status = file.stat()
        digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        distance = max(SAMPLE_BYTES, status.st_size // MAX_SAMPLES)
        with file.open("rb") as handle:
            for offset in range(0, status.st_size, distance):
                handle.seek(offset)
                digest.update(handle.read(SAMPLE_BYTES))
    return digest.hexdigest()
