"""Memory in use, always with where the figure comes from: the GPU's driver, the CUDA runtime, or this process.

Never imports NVML or torch when it is imported, and never raises: what cannot be read is None. NVML is asked by the
GPU's UUID, since its own numbering ignores CUDA_VISIBLE_DEVICES.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from playground.telemetry.definitions import Definition, define

MemorySource = Literal["process", "nvml", "torch"]
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes used and available at most, from one source; None where it could not be read."""

    source: MemorySource
    used_bytes: int | None = None
    total_bytes: int | None = None
    reserved_bytes: int | None = None
    """On a GPU: what this process took from the device for its tensors, in use or kept for later ones."""

    @property
    def definition(self) -> Definition:
        return define(f"memory_{self.source}")

    @property
    def label(self) -> str:
        return self.definition.label


class MemorySample(NamedTuple):
    """A reading and when it was made, on the `perf_counter_ns` clock: what is recorded beside the engine's events."""

    time_ns: int
    source: MemorySource
    used_bytes: int | None
    total_bytes: int | None
    reserved_bytes: int | None = None


class MemorySampler:
    """Reads the memory of one device ("cpu", "cuda" or "cuda:N"); falls back from NVML to torch to the process."""

    def __init__(self, device: str = "cpu") -> None:
        self._process = psutil.Process()
        self._process_total = _memory_limit()
        self._cuda_index = _cuda_index(device)
        self._nvml: Any = None
        self._handle: Any = None
        if self._cuda_index is not None:
            self._open_nvml(self._cuda_index)

    def sample(self) -> MemoryReading:
        """The best reading there is now."""
        if self._cuda_index is not None:
            reading = self._from_nvml() or self._from_torch(self._cuda_index)
            if reading is not None:
                return reading
        return self.process()

    def process(self) -> MemoryReading:
        """This process's resident memory, whatever the device."""
        with contextlib.suppress(psutil.Error, OSError):
            return MemoryReading("process", self._process.memory_info().rss, self._process_total)
        return MemoryReading("process", None, self._process_total)

    def unique_bytes(self) -> int | None:
        """Memory that ending this process would free (USS). Reads every mapping: for reports, not for live figures."""
        with contextlib.suppress(psutil.Error, OSError):
            return int(self._process.memory_full_info().uss)
        return None

    def close(self) -> None:
        """Let go of NVML."""
        if self._nvml is not None:
            with contextlib.suppress(Exception):
                self._nvml.nvmlShutdown()
        self._nvml = self._handle = None

    def _open_nvml(self, index: int) -> None:
        """Find this CUDA device's NVML handle; without a driver, library or permission there is none."""
        try:
            import pynvml
            import torch

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(_nvml_uuid(torch.cuda.get_device_properties(index).uuid))
        except Exception:  # NVML raises its own classes, torch RuntimeError, a missing library OSError
            self.close()

    def _from_nvml(self) -> MemoryReading | None:
        if self._handle is None:
            return None
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            return MemoryReading("nvml", int(memory.used), int(memory.total), self._reserved())
        except Exception:  # a GPU that fell off the bus, or a driver reloaded underneath
            return None

    def _from_torch(self, index: int) -> MemoryReading | None:
        try:
            import torch

            free, total = torch.cuda.mem_get_info(index)
        except Exception:
            return None
        return MemoryReading("torch", int(total - free), int(total), self._reserved())

    def _reserved(self) -> int | None:
        try:
            import torch

            return int(torch.cuda.memory_reserved(self._cuda_index))
        except Exception:
            return None


def _cuda_index(device: str) -> int | None:
    """The CUDA device's number in this process; None for other devices."""
    kind, _, number = str(device).partition(":")
    if kind != "cuda":
        return None
    return int(number) if number.isdecimal() else 0


def _nvml_uuid(uuid: object) -> str:
    """NVML names a GPU "GPU-<uuid>"; torch gives the bare uuid."""
    text = str(uuid)
    return text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"


def _memory_limit() -> int | None:
    """What this process may use at most: the machine's memory, or less where its container is limited."""
    limits = []
    with contextlib.suppress(psutil.Error, OSError):
        limits.append(int(psutil.virtual_memory().total))
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            limits.append(int(path.read_text()))
    return min(limits, default=None)
