"""Gives memory that was freed back to the system, which the C library would keep for itself."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGE = 128 << 10
"""Bytes: glibc looks at the end of a heap when a block of half of that is freed in it."""
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""Where glibc's own, which grows with what is freed, ends; its threshold for trimming is twice that."""


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libc.so.6")
        library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        library.free.argtypes = [ctypes.c_void_p]
        return library if library.malloc_trim and library.mallopt else None
    except (OSError, AttributeError):  # another C library: nothing to trim
        return None


def return_memory_to_system() -> None:
    """Some milliseconds with glibc, nothing elsewhere."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _trim_ends(library: ctypes.CDLL) -> None:
    """Free a large block in every heap whose thread has ended: new threads take those heaps over, one each."""
    num_threads = torch.get_num_threads() + 1  # of an engine: its loop, and what torch had for it
    together = threading.Barrier(num_threads)

    def run() -> None:
        with suppress(threading.BrokenBarrierError):
            together.wait()
            library.free(library.malloc(_LARGE))
            together.wait()  # a thread that has ended would leave its heap to one that begins

    started: list[threading.Thread] = []
    try:
        for _ in range(num_threads):
            thread = threading.Thread(target=run, name="trim-heap")
            thread.start()
            started.append(thread)
    except RuntimeError:  # no more threads, as while the interpreter ends: the heaps stay as large as they are
        together.abort()
    for thread in started:
        thread.join()


@contextmanager
def returning_memory_to_system() -> Iterator[None]:
    """What is freed inside goes back to the system, whatever thread allocated it.

    `malloc_trim` leaves the free end of every heap but the main one's alone, up to 64 MB for each thread that ever
    allocated. Only a free of a large block looks at it, and only above the threshold for trimming.
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_TRIM_THRESHOLD, 0)
    try:
        yield
    finally:
        if library is not None:
            library.malloc_trim(0)
            _trim_ends(library)
            _restore(library)


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Blocks of a megabyte and more that are allocated inside are mappings of their own: freed, they are gone at once,
    and leave no hole in the heap that the next one does not fit."""
    library = _glibc()
    if library is not None:
        library.mallopt(_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        if library is not None:
            _restore(library)


def _restore(library: ctypes.CDLL) -> None:
    """The thresholds that grow with what is freed do so no more once one was set: as large as they would become."""
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
