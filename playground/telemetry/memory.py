"""Memory in use, always with where the figure comes from: the GPU's driver, the CUDA runtime, or this process.

Never imports NVML or torch when it is imported, and never raises: what cannot be read is None.
"""

import contextlib
import time
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from playground.telemetry.nvml import NvmlDevice, cuda_index

MemorySource = Literal["process", "nvml", "torch"]
_NO_CUDA = (ImportError, RuntimeError, AssertionError)
"""What torch raises without a GPU, a driver or support for them."""
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class MemorySample(NamedTuple):
    """Bytes used and available at most, from one source, and when they were read, on the `perf_counter_ns` clock.

    None where it could not be read.
    """

    time_ns: int
    source: MemorySource
    used_bytes: int | None = None
    total_bytes: int | None = None
    reserved_bytes: int | None = None
    """On a GPU: what this process took from the device for its tensors, in use or kept for later ones."""


class MemorySampler:
    """Reads the memory of one device ("cpu", "cuda" or "cuda:N"); falls back from NVML to torch to the process."""

    def __init__(self, device: str = "cpu") -> None:
        self._process = psutil.Process()
        self._process_total = _memory_limit()
        self._cuda_index = cuda_index(device)
        self._gpu = None if self._cuda_index is None else NvmlDevice.open(self._cuda_index)

    def sample(self) -> MemorySample:
        """The best reading there is now."""
        if self._cuda_index is not None:
            sample = self._from_nvml() or self._from_torch(self._cuda_index)
            if sample is not None:
                return sample
        return self._from_process()

    def close(self) -> None:
        """Let go of NVML."""
        if self._gpu is not None:
            self._gpu.close()
        self._gpu = None

    def _from_process(self) -> MemorySample:
        """This process's resident memory, whatever the device."""
        used = None
        with contextlib.suppress(psutil.Error, OSError):
            used = self._process.memory_info().rss
        return MemorySample(time.perf_counter_ns(), "process", used, self._process_total)

    def _from_nvml(self) -> MemorySample | None:
        memory = None if self._gpu is None else self._gpu.ask("nvmlDeviceGetMemoryInfo")
        if memory is None:
            return None
        return MemorySample(time.perf_counter_ns(), "nvml", int(memory.used), int(memory.total), self._reserved())

    def _from_torch(self, index: int) -> MemorySample | None:
        try:
            import torch

            free, total = torch.cuda.mem_get_info(index)
        except _NO_CUDA:
            return None
        return MemorySample(time.perf_counter_ns(), "torch", int(total - free), int(total), self._reserved())

    def _reserved(self) -> int | None:
        try:
            import torch

            return int(torch.cuda.memory_reserved(self._cuda_index))
        except _NO_CUDA:
            return None


def _memory_limit() -> int | None:
    """What this process may use at most: the machine's memory, or less where its container is limited."""
    limits = []
    with contextlib.suppress(psutil.Error, OSError):
        limits.append(int(psutil.virtual_memory().total))
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            limits.append(int(path.read_text()))
    return min(limits, default=None)
