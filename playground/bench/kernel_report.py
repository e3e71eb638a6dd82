"""The device benchmarks' result for people: what was checked, and each kernel beside its peers and its bound."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def render_checks(checks: list[dict[str, Any]], console: Console) -> None:
    table = Table("Checked", "passed", "failed", "skipped", "seconds", box=SIMPLE_HEAD, pad_edge=False)
    for part in checks:
        counts = (str(part[name]) for name in ("passed", "failed", "skipped"))
        table.add_row(part["name"], *counts, f"{part['seconds']:.0f}")
    console.print(table)
    for part in checks:
        for failure in part["failures"]:
            console.print(f"[bold]{part['name']}[/bold]: {failure}", highlight=False)


def render_kernels(report: dict[str, Any], console: Console) -> None:
    if report["rehearsal"]:
        console.print("A rehearsal without a GPU: every case ran once at a tiny size, and nothing was measured.")
    else:
        ceilings = report["ceilings"]
        console.print(
            f"Ceilings of this run: copy {ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s, "
            f"bfloat16 matmul {ceilings['matmul_flops'] / 1e12:.0f} TFLOP/s",
            highlight=False,
        )
    if report["rehearsal"]:
        for row in report["rows"]:
            console.print(f"{row['op']}, {row['shape']}: {row['errors'].get('ours', 'ran')}", highlight=False)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("op", "shape"):
        table.add_column(name, overflow="fold")
    for name in ("ours", "best peer", "speedup", "of the ceiling", "memory", "reach"):
        table.add_column(name, justify="right")
    for row in report["rows"]:
        values = (_us(row), _best_peer(row), _times(row["speedup"]), _share(row), _memory(row), _reach(row))
        table.add_row(row["op"], row["shape"], *values)
    console.print(table)


def render_engine(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table("requests", "prompt", "graphs", "step", "tokens/s", "of the bound", "reach", box=SIMPLE_HEAD)
    for row in rows:
        timed = "step_ms" in row
        table.add_row(
            str(row["requests"]),
            str(row["prompt_tokens"]),
            "on" if row["cuda_graphs"] else "off",
            f"{row['step_ms']:.2f} ms" if timed else "—",
            f"{row['tokens_per_second']:.0f}" if timed else "—",
            f"{row['share_of_bound']:.0%}" if timed else "—",
            _reach(row) if timed else "—",
        )
    console.print(table)


def _us(row: dict[str, Any]) -> str:
    if "ours" in row["errors"]:
        return "failed"
    return "—" if row["us"] is None else f"{row['us']:.1f} us"


def _best_peer(row: dict[str, Any]) -> str:
    timed = {name: us for name, us in row["peers_us"].items() if us is not None}
    if not timed:
        return "—"
    best = min(timed, key=lambda name: timed[name])
    return f"{best} {timed[best]:.1f} us"


def _times(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}x"


def _share(row: dict[str, Any]) -> str:
    shares = [
        f"{row[name]:.0%} {what}"
        for name, what in (("share_of_copy", "copy"), ("share_of_matmul", "matmul"))
        if row[name] is not None
    ]
    return ", ".join(shares) or "—"


def _memory(row: dict[str, Any]) -> str:
    """What ours and the hungriest peer need beyond their inputs."""
    needs = {name: size for name, size in row["extra_bytes"].items() if size is not None}
    peers = [size for name, size in needs.items() if name != "ours"]
    if "ours" not in needs or not peers:
        return "—"
    return f"{needs['ours'] / 2**20:.1f} against {max(peers) / 2**20:.1f} MiB"


def _reach(row: dict[str, Any]) -> str:
    if row.get("reach") is None:
        return ""
    verdict = {None: "", True: ": yes", False: ": no"}[row.get("reached")]
    return f"{row['reach']}{verdict}"
