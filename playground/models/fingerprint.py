"""Tells one checkpoint from another without reading all of it: for what was computed with it and must not be mixed."""

from pathlib import Path

import xxhash

SAMPLE_BYTES = 4096
MAX_SAMPLES = 1024


def model_fingerprint(folder: Path) -> str:
    """32 hex digits over the config, and over size, time of change and evenly spaced samples of every weight file.

    Every matrix of a model is larger than the distance between two samples, so that one changed matrix is seen.
    """
    digest = xxhash.xxh3_128()
    for file in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        status = file.stat()
        digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        distance = max(SAMPLE_BYTES, status.st_size // MAX_SAMPLES)
        with file.open("rb") as handle:
            for offset in range(0, status.st_size, distance):
                handle.seek(offset)
                digest.update(handle.read(SAMPLE_BYTES))
    return digest.hexdigest()
