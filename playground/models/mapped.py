"""A file in memory without being read: tensors of it on demand, their pages given back once they have been copied."""

import math
import mmap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor


class MappedFile:
    """One mapped file. Resident memory does not hold it and the model that is made of it together."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file cannot be read, ValueError where it is empty."""
        with path.open("rb") as handle:
            # A private writable map: torch wants writable buffers, and nothing is ever written back.
            self.bytes = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)

    def read(self, start: int, dtype: torch.dtype, shape: tuple[int, ...], use: Callable[[Tensor], None]) -> None:
        """Call `use` with the mapped tensor, which must be copied there: afterwards its pages are gone."""
        count = math.prod(shape)
        if count == 0:
            use(torch.empty(shape, dtype=dtype))
            return
        view = torch.frombuffer(self.bytes, dtype=dtype, count=count, offset=start)
        use(view.view(shape))
        del view
        first = start - start % mmap.PAGESIZE
        if hasattr(self.bytes, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self.bytes.madvise(mmap.MADV_DONTNEED, first, start + count * dtype.itemsize - first)

    def close(self) -> None:
        with suppress(BufferError):  # an exception's traceback may still hold a view: then it goes with that
            self.bytes.close()
