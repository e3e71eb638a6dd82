"""How long a call takes on a GPU, and what the GPU can do at most: copy bandwidth and matmul rate, measured.

Times come from CUDA events around single calls, with the L2 cache flushed before each. Without a GPU every call still
runs once, so that a benchmark can be rehearsed; then there are no times.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

FLUSH_BYTES = 256 * 2**20  # larger than any L2 cache there is (B200: 126 MB)


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one call: the median, and the 20th and 80th percentile."""

    median_us: float
    p20_us: float
    p80_us: float


class Timer:
    """Times calls on one device; `measures` is False on a CPU."""

    def __init__(self, device: torch.device, *, warmup: int = 5, repeats: int = 40) -> None:
        self.device, self.measures = device, device.type == "cuda"
        self._warmup, self._repeats = warmup, repeats
        size = FLUSH_BYTES if self.measures else 0
        self._flush = torch.empty(size, dtype=torch.int8, device=device)

    def time(self, call: Callable[[], object]) -> Timing | None:
        """Median of single calls; None on a CPU, where the call only runs once."""
        if not self.measures:
            call()
            return None
        for _ in range(self._warmup):
            call()
        pairs = [(_event(), _event()) for _ in range(self._repeats)]
        for start, end in pairs:
            self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        times = sorted(start.elapsed_time(end) * 1e3 for start, end in pairs)
        at = [times[int(share * (len(times) - 1))] for share in (0.5, 0.2, 0.8)]
        return Timing(*at)

    def extra_bytes(self, call: Callable[[], object]) -> int | None:
        """Most memory that one call holds beyond what was held before it, its result included; None on a CPU."""
        if not self.measures:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before

    def time_recorded(self, call: Callable[[], object]) -> Timing | None:
        """As `time`, replayed from a CUDA graph: what the call costs where the host does not launch its kernels."""
        if not self.measures:
            return self.time(call)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return self.time(graph.replay)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this device reached in this run: the bounds that the kernels are held against. None on a CPU."""

    copy_bytes_per_second: float | None
    """Bytes read plus bytes written, of a fast (20th percentile) copy of 1 GiB."""
    matmul_flops: float | None
    """Of an 8192^3 product in bfloat16 by cuBLAS."""


def measure_ceilings(timer: Timer) -> Ceilings:
    if not timer.measures:
        return Ceilings(None, None)
    size = 2**30
    source = torch.empty(size, dtype=torch.int8, device=timer.device)
    target = torch.empty_like(source)
    copied = timer.time(lambda: target.copy_(source))
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device=timer.device)
    b = torch.randn(8192, 8192, dtype=torch.bfloat16, device=timer.device)
    multiplied = timer.time(lambda: torch.mm(a, b))
    assert copied is not None and multiplied is not None
    return Ceilings(2 * size / (copied.p20_us * 1e-6), 2 * 8192**3 / (multiplied.median_us * 1e-6))
