"""`playground bench kernels`: every Triton kernel against its peer and its bound, on the GPU at hand.

Runs what `kernel_cases` lists and knows nothing of kernels itself. On a CPU the cases run once at tiny
sizes through Triton's interpreter, as a rehearsal without a single number.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from playground.bench.device_timing import Ceilings, Timer, measure_ceilings
from playground.bench.kernel_cases import Case, all_cases

Say = Callable[[str], None]


@dataclass
class Row:
    """What was measured of a case."""

    op: str
    shape: str
    us: float | None
    p20_us: float | None
    p80_us: float | None
    peers_us: dict[str, float | None]
    errors: dict[str, str]
    """Why an implementation has no time, by name; ours is "ours"."""
    extra_bytes: dict[str, int | None]
    """Memory that a call needs beyond its inputs, by name."""
    bytes_per_second: float | None = None
    flops: float | None = None
    share_of_copy: float | None = None
    share_of_matmul: float | None = None
    reach: str | None = None
    reached: bool | None = None

    @property
    def best_peer_us(self) -> float | None:
        return min((t for t in self.peers_us.values() if t is not None), default=None)

    @property
    def speedup(self) -> float | None:
        """Best peer's time over ours: above 1 we are faster."""
        return None if self.us is None or self.best_peer_us is None else self.best_peer_us / self.us


def run_kernels(device: torch.device, *, quick: bool, say: Say, only: str = "") -> dict[str, Any]:
    """Ceilings and a row for every case whose op's name contains `only`."""
    timer = Timer(device)
    say("ceilings")
    ceilings = measure_ceilings(timer)
    rows = []
    for case in all_cases(device, quick=quick):
        if only in case.op:
            say(f"{case.op}: {case.shape}")
            rows.append(measure(case, timer, ceilings))
    return {
        "rehearsal": not timer.measures,
        "ceilings": asdict(ceilings),
        "rows": [asdict(row) | {"speedup": row.speedup} for row in rows],
    }


def measure(case: Case, timer: Timer, ceilings: Ceilings) -> Row:
    """Runs a case; an implementation that fails is named with its reason and the others go on."""
    errors: dict[str, str] = {}
    time = timer.time_recorded if case.recorded else timer.time
    timings, extra = {}, {}
    for name, call in [("ours", case.ours), *case.peers.items()]:
        try:
            timings[name] = time(call)
            extra[name] = timer.extra_bytes(call)
        except Exception as error:  # a peer may lack a shape, and a kernel may fail: both belong in the report
            timings[name] = None
            errors[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    ours = timings.pop("ours")
    peers = {name: None if timing is None else timing.median_us for name, timing in timings.items()}
    if ours is None:
        return Row(case.op, case.shape, None, None, None, peers, errors, extra, reach=case.reach)
    row = Row(case.op, case.shape, ours.median_us, ours.p20_us, ours.p80_us, peers, errors, extra, reach=case.reach)
    seconds = ours.median_us * 1e-6
    if case.bytes is not None:
        row.bytes_per_second = case.bytes / seconds
        row.share_of_copy = row.bytes_per_second / (ceilings.copy_bytes_per_second or 1)
    if case.flops is not None:
        row.flops = case.flops / seconds
        row.share_of_matmul = row.flops / (ceilings.matmul_flops or 1)
    if case.reached is not None:
        row.reached = case.reached(asdict(row) | {"speedup": row.speedup})
    return row


def failures(report: dict[str, Any]) -> Iterator[str]:
    """One line for each of our kernels that did not run."""
    for row in report["rows"]:
        if "ours" in row["errors"]:
            yield f"{row['op']} {row['shape']}: {row['errors']['ours']}"
