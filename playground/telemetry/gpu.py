"""How busy a GPU is, what it draws and how fast it is clocked, as its driver reports it (NVML).

Without a GPU, or without NVML, there is no sample at all; what one GPU does not report is None, never 0.
"""

import time
from typing import NamedTuple

from playground.telemetry.nvml import NvmlDevice, cuda_index

_SLOWED = (
    "nvmlClocksEventReasonSwPowerCap",
    "nvmlClocksEventReasonHwSlowdown",
    "nvmlClocksEventReasonSwThermalSlowdown",
    "nvmlClocksEventReasonHwThermalSlowdown",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown",
)
"""Why the driver clocks a GPU below what its work asks for. "Idle" and set clocks are not among them."""
MW_PER_W = 1000


class GpuSample(NamedTuple):
    """One reading, on the `perf_counter_ns` clock; the driver averages over up to a second."""

    time_ns: int
    busy: float | None
    """Share of the time in which any kernel ran, from 0 to 1; it does not say how much of the GPU that kernel used."""
    power_w: float | None
    power_limit_w: float | None
    clock_mhz: int | None
    """Of the multiprocessors."""
    clock_limit_mhz: int | None
    slowed: bool | None
    """Whether heat or power hold the clock down."""


class GpuSampler:
    """Reads one device; for "cpu", and where NVML is missing, every sample is None."""

    def __init__(self, device: str) -> None:
        index = cuda_index(device)
        self._gpu = None if index is None else NvmlDevice.open(index)

    def sample(self) -> GpuSample | None:
        gpu = self._gpu
        if gpu is None:
            return None
        rates = gpu.ask("nvmlDeviceGetUtilizationRates")
        power = gpu.ask("nvmlDeviceGetPowerUsage")
        limit = gpu.ask("nvmlDeviceGetEnforcedPowerLimit")
        reasons = gpu.ask("nvmlDeviceGetCurrentClocksEventReasons")
        sample = GpuSample(
            time.perf_counter_ns(),
            None if rates is None else rates.gpu / 100,
            None if power is None else power / MW_PER_W,
            None if limit is None else limit / MW_PER_W,
            gpu.ask("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
            gpu.ask("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM"),
            None if reasons is None else bool(reasons & gpu.flags(_SLOWED)),
        )
        return None if all(value is None for value in sample[1:]) else sample

    def close(self) -> None:
        """Let go of NVML."""
        if self._gpu is not None:
            self._gpu.close()
        self._gpu = None
