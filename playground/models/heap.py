"""Gives memory that was freed back to the system, which the C library would keep for itself."""

import ctypes


def return_memory_to_system() -> None:
    """Some milliseconds with glibc, nothing elsewhere."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library: nothing to trim
        return
