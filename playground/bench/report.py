"""The engine benchmark's result for people: tables with medians, ratios and what was to be reached."""

from typing import Any

from rich.console import Console
from rich.table import Table


def render(data: dict[str, Any], console: Console | None = None) -> None:
    """Print `Result.to_dict()`."""
    console = console or Console()
    here, versions = data["machine"], data["versions"]
    for name, text in data["definitions"].items():
        console.print(f"[bold]{name}[/bold]: {text}", highlight=False)
    console.print(
        f"\n{here['processor']}, {here['torch_threads']} threads, {data['plan']['repeats']} repeats; torch "
        f"{versions['torch']}, transformers {versions['transformers']}, commit {versions['commit'] or '—'}",
        highlight=False,
    )
    console.print(_comparison(data["rows"]))
    console.print(_steps(data["steps"]))
    for line in data["agreement"]:
        console.print(
            f"{line['model']} {line['dtype']}, {line['case']}: the peer's very tokens in {line['identical']} of "
            f"{line['requests']} requests; {line['same_tokens_before_first_difference']} of {line['tokens']} tokens "
            "come before a difference",
            highlight=False,
        )


def _comparison(rows: list[dict[str, Any]]) -> Table:
    table = Table("Model", "dtype", "Measured", "Case", title="Medians over the repeats", title_justify="left")
    for name in ("ours", "peer", "ratio", "range", "reach"):
        table.add_column(name, justify="right")
    for row in rows:
        ratio, reach = row["ratio"], row["reach"]
        table.add_row(
            row["model"],
            row["dtype"],
            row["metric"],
            row["case"],
            _value(row["ours_median"], row["unit"]),
            _value(row["peer_median"], row["unit"]),
            "—" if ratio is None else f"{ratio:.2f}x",
            "—" if ratio is None else f"{row['ratio_min']:.2f}–{row['ratio_max']:.2f}",
            "—"
            if reach is None
            else f"{reach:.1f}x{'' if row['reached'] is None else ' yes' if row['reached'] else ' no'}",
        )
    return table


def _steps(steps: list[dict[str, Any]]) -> Table:
    table = Table("Model", "dtype", title="Time of one decode step, median, µs", title_justify="left")
    for name in (
        "running",
        "schedule",
        "prepare",
        "forward",
        "sample",
        "post",
        "between",
        "total",
        "overhead",
        "target",
    ):
        table.add_column(name, justify="right")
    for step in steps:
        table.add_row(
            step["model"],
            step["dtype"],
            str(step["num_running"]),
            *(
                f"{step['part_ns'][part] / 1000:.0f}"
                for part in ("schedule", "prepare", "forward", "sample", "post", "between")
            ),
            f"{step['total_ns'] / 1000:.0f}",
            f"{step['overhead_share']:.1%}",
            f"<{step['target']:.0%} {'yes' if step['reached'] else 'no'}",
        )
    return table


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "—"
    return f"{value * 1000:.1f} ms" if unit == "s" else f"{value:.1f} tok/s"
