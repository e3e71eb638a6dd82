"""Lets a thread that has nothing to do give up the OpenMP workers that torch made for it.

GNU OpenMP keeps workers for every thread that ever ran something in parallel. Once there are more of them than cores,
workers that wait sleep instead of spinning, and each of the hundred or so parallel regions of a small step pays for
waking them: two engines in one process, or an engine and anybody else who uses torch, slow each other down even when
only one of them works. 60 products of 64 x 256 with 256 x 1024 on two cores: 25.5 ms where another thread keeps a
worker, 20 where it has given it up.
"""

import ctypes
from functools import cache
from typing import Any

_SOFT_PAUSE = 1


def release_workers() -> None:
    """End the calling thread's OpenMP workers; its next parallel work makes new ones. Does nothing without OpenMP 5."""
    pause = _pause()
    if pause is not None:
        pause(_SOFT_PAUSE)


@cache
def _pause() -> Any | None:
    """`omp_pause_resource_all` of the library that torch has loaded."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if "omp" in line.rpartition("/")[2]}
        names = ("libgomp", "libiomp5", "libomp")
        path = next(path for path in sorted(paths) if path.rpartition("/")[2].startswith(names))
        return ctypes.CDLL(path).omp_pause_resource_all
    except (OSError, StopIteration, AttributeError):  # no Linux, no OpenMP, or one older than version 5.0
        return None
