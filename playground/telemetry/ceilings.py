"""What this machine can do at most, measured once: how fast it reads memory and multiplies matrices.

The measuring takes about a second and is only worth something while nothing else computes, so that `CeilingProbe` waits
for an idle engine, throws away what a request disturbed, and keeps the result in the user's cache folder. Without a
result there is none: nothing is taken from a data sheet.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from playground.engine.outputs import EngineStats
from playground.telemetry.roofline import Ceilings

CACHE = Path("~/.cache/inference-playground/ceilings.json")
CPU_BYTES = tuple(2**power for power in range(22, 29))
"""Working sets, 4 to 256 MiB: from what a core's own cache holds to what none does."""
GPU_BYTES = tuple(2**power for power in (22, 24, 26, 30))
CPU_SIZE, GPU_SIZE = 1024, 8192
"""Rows and columns of the matrices multiplied."""
ROUND_SECONDS = 0.002
MEASURE_SECONDS = 0.08
"""How long each rate is measured at least, after one call that is not counted."""
FULL_SHARE = 0.7
"""Of the cores' time: the rest is for what runs on one thread only, like filling the buffers."""
REST_SECONDS = 2.0
"""How long the engine must have rested."""
LOOK_SECONDS = 0.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MachineRates:
    """What was measured on one device with one dtype and number of threads."""

    device: str
    dtype: str
    flops_per_second: float
    reads: tuple[tuple[int, float], ...]
    """(bytes of the working set, bytes read per second), ascending."""
    undisturbed: bool = True
    """Whether this process had the processor's cores to itself meanwhile."""

    def ceilings(self, working_set_bytes: int) -> Ceilings:
        """For a model of that many bytes: with the reading rate of the next larger working set."""
        rates = [rate for size, rate in self.reads if size >= working_set_bytes] or [self.reads[-1][1]]
        return Ceilings(self.flops_per_second, rates[0], self.reads[-1][1], self.dtype, self.device, self.undisturbed)


def measure(device: str, dtype: str) -> MachineRates:
    """Measure now, on the calling thread; `dtype` by its torch name."""
    import torch

    on = torch.device(device)
    wait = torch.cuda.synchronize if on.type == "cuda" else lambda: None
    sizes, size = (GPU_BYTES, GPU_SIZE) if on.type == "cuda" else (CPU_BYTES, CPU_SIZE)
    began, worked = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        reads: list[tuple[int, float]] = []
        for nbytes in reversed(sizes):
            values = torch.ones(nbytes // 4, dtype=torch.float32, device=on)
            rate = nbytes * _calls_per_second(values.sum, wait)
            # Less is read at least as fast: where it was not, something else had the cores.
            reads.insert(0, (nbytes, max([rate, *(larger for _, larger in reads)])))
        del values
        kind = getattr(torch, dtype)
        left, right = (torch.ones(size, size, dtype=torch.float32, device=on).to(kind) for _ in range(2))
        out = torch.empty_like(left)
        flops = 2 * size**3 * _calls_per_second(lambda: torch.mm(left, right, out=out), wait)
    undisturbed = time.process_time() - worked >= FULL_SHARE * torch.get_num_threads() * (time.perf_counter() - began)
    return MachineRates(_name(device), dtype, flops, tuple(reads), undisturbed or on.type == "cuda")


def _calls_per_second(call: Callable[[], object], wait: Callable[[], None]) -> float:
    """The best of many short rounds: a ceiling is what was reached, not what was usual."""
    call()
    wait()
    best, count, until = 0.0, 1, time.perf_counter() + MEASURE_SECONDS
    while True:
        started = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        now = time.perf_counter()
        best = max(best, count / (now - started))
        if now >= until:
            return best
        if now - started < ROUND_SECONDS:  # too short for the clock and, on a GPU, for launches to overlap
            count *= 2


class RatesFile:
    """What was measured before, in a JSON file. A file that cannot be read or written is one that is not there."""

    def __init__(self, path: Path = CACHE) -> None:
        self._path = path.expanduser()

    def find(self, device: str, dtype: str) -> MachineRates | None:
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))[_key(device, dtype)]
            reads = tuple((int(size), float(rate)) for size, rate in raw["reads"])
            rates = MachineRates(str(raw["device"]), str(raw["dtype"]), float(raw["flops_per_second"]), reads)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return rates if reads and min(rates.flops_per_second, *(rate for _, rate in reads)) > 0 else None

    def store(self, device: str, dtype: str, rates: MachineRates) -> None:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        known = known if isinstance(known, dict) else {}
        known[_key(device, dtype)] = asdict(rates)
        partial = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
            partial.replace(self._path)
        except OSError as error:
            logger.info("the measured ceilings were not stored in %s: %s", self._path, error)


def _key(device: str, dtype: str) -> str:
    """What the rates depend on."""
    import torch

    threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 0
    return f"{_name(device)} | {dtype} | {threads} threads | torch {torch.__version__}"


def _name(device: str) -> str:
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    from playground.info import machine

    here = machine()
    return f"{here['processor']}, {here['cores_usable']} cores"


class ProbedEngine(Protocol):
    """All that the probe needs of an engine: whether it rests."""

    def stats(self) -> EngineStats: ...


class CeilingProbe:
    """Finds the rates of one engine's device: in the file, or by measuring once the engine rests and it is `wanted`."""

    def __init__(
        self,
        engine: ProbedEngine,
        device: str,
        dtype: str,
        *,
        file: RatesFile,
        wanted: Callable[[], bool],
        found: Callable[[MachineRates], None],
        rest_seconds: float = REST_SECONDS,
    ) -> None:
        """`found` is called once, on any thread; `wanted` is asked before measuring, which takes a second's work."""
        self._engine, self._device, self._dtype = engine, device, dtype
        self._file, self._wanted, self._found = file, wanted, found
        self._rest_seconds = rest_seconds
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="ceilings", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Measure no more. Waits for a measurement that is under way; may be called twice."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            rates = self._file.find(self._device, self._dtype) or self._measured()
        except Exception:
            logger.exception("measuring the machine's ceilings failed")
            return
        if rates is not None:
            self._found(rates)

    def _measured(self) -> MachineRates | None:
        while self._rested():
            before = self._engine.stats()
            rates = measure(self._device, self._dtype)
            after = self._engine.stats()
            if (before.steps, 0, 0) == (after.steps, after.num_running, after.num_waiting):
                if rates.undisturbed:  # else it is used, and measured again the next time
                    self._file.store(self._device, self._dtype, rates)
                return rates
        return None

    def _rested(self) -> bool:
        """Wait until the engine has rested; False where that is not to be waited for any more."""
        steps, since = -1, time.monotonic()
        while not self._stopping.wait(min(LOOK_SECONDS, self._rest_seconds)):
            stats = self._engine.stats()
            if stats.steps != steps or stats.num_running or stats.num_waiting or not self._wanted():
                steps, since = stats.steps, time.monotonic()
            elif time.monotonic() - since >= self._rest_seconds:
                return True
        return False
