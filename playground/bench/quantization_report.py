"""The quantization benchmark's result for people: tables in the terminal, and the README's."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

FILE = "assets/benchmarks/quantization-cpu.json"


def render(data: dict[str, Any], console: Console | None = None) -> None:
    """Print the result of `quantization.run_benchmark`."""
    console = console or Console()
    here = data["machine"]
    for name, text in data["definitions"].items():
        console.print(f"[bold]{name}[/bold]: {text}", highlight=False)
    console.print(
        f"\n{here['processor']}, {here['torch_threads']} threads, {data['plan']['repeats']} pairs; torch "
        f"{data['versions']['torch']}, commit {data['versions']['commit'] or '—'}\n",
        highlight=False,
    )
    console.print(_decoding(data))
    console.print(_bounds(data))
    if data["crossovers"]:
        console.print(_crossovers(data["crossovers"]))


def _decoding(data: dict[str, Any]) -> Table:
    table = _table(
        f"Decoding, {data['plan']['model']}, {data['plan']['dtype']}",
        ("batch", "method"),
        ("tok/s", "unquantized", "ratio", "95 %", "bound", "reach"),
    )
    for row in data["rows"]:
        verdict = {None: "", True: " yes", False: " no"}[row["reached"]]
        table.add_row(
            row["batch"],
            row["method"],
            f"{row['quantized_median']:.1f}",
            f"{row['unquantized_median']:.1f}",
            f"{row['ratio']:.2f}x",
            _interval(row),
            f"{row['bound']:.2f}x",
            "—" if row["reach"] is None else f"{row['reach']:.1f}x{verdict}",
        )
    return table


def _bounds(data: dict[str, Any]) -> Table:
    """What the weights allow: the unquantized ones first in every batch."""
    table = _table(
        "A step, and what reading its weights takes at least",
        ("batch", "method"),
        ("weights", "read", "floor ms", "step ms", "bound", "bytes alone", "ratio"),
    )
    seen: set[str] = set()
    for row in data["rows"]:
        if row["batch"] not in seen:
            seen.add(row["batch"])
            table.add_row(row["batch"], "unquantized", *_step(row, "unquantized_"), "—", "—", "—")
        ratios = (f"{row[name]:.2f}x" for name in ("bound", "bytes_alone", "ratio"))
        table.add_row(row["batch"], row["method"], *_step(row, ""), *ratios)
    return table


def _step(row: dict[str, Any], whose: str) -> tuple[str, ...]:
    weights = row["unquantized_bytes" if whose else "weights_bytes"]
    return (
        f"{weights / 1e6:.1f} MB",
        f"{row[f'{whose}read_bytes'] / 1e6:.1f} MB",
        f"{1e3 * row[f'{whose}floor_seconds']:.2f}",
        f"{1e3 * row[f'{whose}step_seconds']:.2f}",
    )


def _crossovers(crossovers: list[dict[str, Any]]) -> Table:
    table = _table("Crossover", ("layout", "shape", "packed up to", "us packed / written out, by rows"), ())
    for one in crossovers:
        times = ", ".join(
            f"{rows}: {one['packed_us'][rows]:.0f}/{one['written_us'][rows]:.0f}" for rows in one["packed_us"]
        )
        table.add_row(one["layout"], f"{one['outputs']} x {one['inputs']}", f"{one['rows']} rows", times)
    return table


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _interval(row: dict[str, Any]) -> str:
    """Of the ratio; a dash where one pair is all there is."""
    return "—" if row["ratio_low"] is None else f"{row['ratio_low']:.2f}–{row['ratio_high']:.2f}"


def markdown(data: dict[str, Any]) -> str:
    """Every row with its bound, as the README shows them."""
    here, versions, plan = data["machine"], data["versions"], data["plan"]
    fastest = data["reading"][-1]
    lines = [
        f"What decoding gains (`playground bench quantization`): {plan['model']}, {plan['dtype']}, measured "
        f"{data['created'][:10]} at commit {versions['commit'] or '—'} on {here['processor']}, "
        f"{here['torch_threads']} threads, torch {versions['torch']}; medians of {plan['repeats']} pairs and 95 % "
        f"intervals ([all of it]({FILE})). {fastest['bytes'] / 2**20:.0f} MiB are read at "
        f"{fastest['bytes_per_second'] / 1e9:.1f} GB/s here; the floor is the time of reading a step's weights.",
        "",
        "| Weights | at once | tok/s | unquantized | ratio | read a step | floor | step | bound | to reach |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in data["rows"]:
        verdict = {None: "—", True: "yes", False: "not reached"}[row["reached"]]
        reach = verdict if row["reach"] is None else f"{row['reach']:.1f}x: {verdict}"
        lines.append(
            f"| {row['method']} | {row['requests']} | {row['quantized_median']:.1f} | {row['unquantized_median']:.1f} "
            f"| {row['ratio']:.2f}x ({_interval(row)}) | {row['read_bytes'] / 1e6:.0f} of "
            f"{row['unquantized_read_bytes'] / 1e6:.0f} MB | {1e3 * row['floor_seconds']:.1f} ms "
            f"| {1e3 * row['step_seconds']:.1f} ms | {row['bound']:.2f}x | {reach} |"
        )
    lines += ["", *_missed(data["rows"])]
    return "\n".join(lines).rstrip()


def _missed(rows: list[dict[str, Any]]) -> list[str]:
    """One sentence for every ratio that was to be reached and was not: what the bytes allow."""
    return [
        f"{row['method']} at {row['requests']}: {row['ratio']:.2f}x of {row['reach']:.1f}x. The unquantized step takes "
        f"{1e3 * row['unquantized_step_seconds']:.1f} ms, of which reading its weights takes at least "
        f"{1e3 * row['unquantized_floor_seconds']:.1f}; the fewer bytes alone make it {row['bytes_alone']:.2f} "
        f"times as fast, and {row['bound']:.2f} times if both did nothing but read."
        for row in rows
        if row["reached"] is False
    ]
