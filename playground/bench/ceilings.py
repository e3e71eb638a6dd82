"""`playground bench ceilings`: what this machine can do at most, measured: the two lines of its roofline.

Bandwidth is that of a plain copy of arrays far larger than any cache, reads and writes counted; the arithmetic limit
is that of a large matrix product. On a GPU both are `device_timing`'s. The best of several repeats counts, since a
ceiling is what can be reached; all repeats are kept beside it.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch

from playground import info
from playground.bench.device_timing import Timer, measure_ceilings

Say = Callable[[str], None]
COPY_BYTES, PRODUCT = 256 * 2**20, 2048
QUICK_COPY_BYTES, QUICK_PRODUCT = 8 * 2**20, 256
REPEATS, QUICK_REPEATS = 9, 3
GPU_NAMES = "copy of 1 GiB", "product of 8192 x 8192 matrices"
DEFINITIONS = {
    "bandwidth": "Bytes read and bytes written per second while an array is copied.",
    "operations": "Multiplications and additions per second of a matrix product, 2 n^3 of them.",
    "best, median": "Of the repeats. The roofline takes the best.",
    "ridge": "Operations per byte at which both limits meet: below it a step waits for memory, above for arithmetic.",
}


def run_ceilings(*, quick: bool = False, say: Say = print) -> dict[str, Any]:
    """Measure both limits of the GPU where there is one, else of the CPU with torch's threads."""
    rows = _gpu_rows(say) if torch.cuda.is_available() else _cpu_rows(quick, say)
    return {
        "benchmark": "ceilings",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "definitions": DEFINITIONS,
        "versions": info.versions(),
        "machine": info.machine(),
        "gpus": info.gpus(),
        "quick": quick,
        "rows": rows,
    }


def _gpu_rows(say: Say) -> list[dict[str, Any]]:
    say("copy and matrix product on the GPU")
    found = measure_ceilings(Timer(torch.device("cuda")))
    copy, product = GPU_NAMES
    return [
        _row("bandwidth", copy, None, [found.copy_bytes_per_second or 0.0]),
        _row("operations", product, "bfloat16", [found.matmul_flops or 0.0]),
    ]


def _cpu_rows(quick: bool, say: Say) -> list[dict[str, Any]]:
    repeats = QUICK_REPEATS if quick else REPEATS
    size, n = (QUICK_COPY_BYTES, QUICK_PRODUCT) if quick else (COPY_BYTES, PRODUCT)
    say(f"copying {size // 2**20} MiB")
    source = torch.ones(size, dtype=torch.int8)
    target = torch.empty_like(source)
    seconds = _times(lambda: target.copy_(source), repeats)
    rows = [_row("bandwidth", f"copy of {size // 2**20} MiB", None, [2 * size / one for one in seconds])]
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        say(f"multiplying {n} x {n} matrices in {name}")
        a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
        seconds = _times(lambda a=a, b=b: torch.mm(a, b), repeats)  # type: ignore[misc]
        rows.append(_row("operations", f"product of {n} x {n} matrices", name, [2 * n**3 / one for one in seconds]))
    return rows


def _times(call: Callable[[], object], repeats: int) -> list[float]:
    call()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found


def _row(what: str, how: str, dtype: str | None, rates: list[float]) -> dict[str, Any]:
    ordered = sorted(rates)
    return {
        "what": what,
        "how": how,
        "dtype": dtype,
        "per_second": rates,
        "best": ordered[-1],
        "median": ordered[len(ordered) // 2],
    }


def limits(data: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(dtype, bytes a second, operations a second) of a result, for each type that was multiplied."""
    bandwidth = max((row["best"] for row in data["rows"] if row["what"] == "bandwidth"), default=0.0)
    return [(row["dtype"], bandwidth, row["best"]) for row in data["rows"] if row["what"] == "operations"]


def render(data: dict[str, Any]) -> None:
    """Print the result of `run_ceilings`."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, text in data["definitions"].items():
        console.print(f"[bold]{name}[/bold]: {text}", highlight=False)
    table = Table("", "how", "dtype", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("best", "median", ""):
        table.add_column(name, justify="right")
    for row in data["rows"]:
        unit = "GB/s" if row["what"] == "bandwidth" else "GFLOP/s"
        values = (f"{row['best'] / 1e9:.1f}", f"{row['median'] / 1e9:.1f}", unit)
        table.add_row(row["what"], row["how"], row["dtype"] or "—", *values)
    for dtype, bandwidth, operations in limits(data):
        table.add_row("ridge", "operations per byte", dtype, f"{operations / bandwidth:.1f}", "—", "")
    console.print(table)
