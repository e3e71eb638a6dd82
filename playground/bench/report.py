"""The engine benchmark's result for people: tables with medians, ratios and what was to be reached."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

STEP_PARTS = {
    "schedule": "choose the requests",
    "prepare": "build the batch",
    "forward": "run the model",
    "sample": "draw the tokens",
    "post": "register, finish, stream",
    "between": "until the next step starts",
}


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
    for model, dtype in dict.fromkeys((row["model"], row["dtype"]) for row in data["rows"]):
        mine = {"model": model, "dtype": dtype}
        console.print()
        console.print(_comparison(f"{model}, {dtype}", _of(data["rows"], mine)))
        for step in _of(data["steps"], mine):
            console.print(_steps(step))
        for line in _of(data["agreement"], mine):
            console.print(
                f"{line['case']}: the peer's very tokens in {line['identical']} of {line['requests']} requests; "
                f"{line['same_tokens_before_first_difference']} of {line['tokens']} tokens before a difference",
                highlight=False,
            )


def _of(rows: list[dict[str, Any]], mine: dict[str, str]) -> list[dict[str, Any]]:
    return [row for row in rows if mine.items() <= row.items()]


def _comparison(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("median of", "case"):
        table.add_column(name, no_wrap=True)
    for name in ("ours", "peer", "ratio", "range", "reach"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        ratio, reach, reached = row["ratio"], row["reach"], row["reached"]
        verdict = {None: "", True: " yes", False: " no"}[reached]
        table.add_row(
            f"{row['metric']}, {'ms' if row['unit'] == 's' else 'tok/s'}",
            row["case"],
            _value(row["ours_median"], row["unit"]),
            _value(row["peer_median"], row["unit"]),
            "—" if ratio is None else f"{ratio:.3g}x",
            "—" if ratio is None else f"{row['ratio_min']:.3g}–{row['ratio_max']:.3g}",
            "—" if reach is None else f"{reach:.1f}x{verdict}",
        )
    return table


def _steps(step: dict[str, Any]) -> Table:
    title = f"A decode step with {step['num_running']} running, median of {step['num_steps']}"
    table = Table("part", "", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("µs", justify="right")
    table.add_column("share", justify="right")
    total = step["total_ns"]
    for part, does in STEP_PARTS.items():
        time = step["part_ns"][part]
        table.add_row(part, does, f"{time / 1000:.0f}", f"{time / total:.1%}")
    table.add_row("total", "", f"{total / 1000:.0f}", "100%", end_section=True)
    verdict = "yes" if step["reached"] else "no"
    table.add_row("overhead", f"below {step['target']:.0%}: {verdict}", "", f"{step['overhead_share']:.1%}")
    return table


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "—"
    return f"{value * 1000 if unit == 's' else value:.1f}"


def markdown(data: dict[str, Any]) -> str:
    """First-token and decode rows, and the split of a step, as the README shows them."""
    here, versions = data["machine"], data["versions"]
    lines = [
        f"Measured {data['created'][:10]} at commit {versions['commit'] or '—'} on {here['processor']}, "
        f"{here['torch_threads']} threads; torch {versions['torch']}, transformers {versions['transformers']}; "
        f"medians of {data['plan']['repeats']} pairs, the range of the pairs in brackets.",
        "",
        "| Model | | ours | transformers | ratio | to reach |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in data["rows"]:
        if row["metric"] == "whole run" or row["ratio"] is None:
            continue
        unit = "ms" if row["unit"] == "s" else "tok/s"
        lines.append(
            f"| {row['model']}, {row['dtype']} | {row['metric']}, {row['case']} "
            f"| {_value(row['ours_median'], row['unit'])} {unit} | {_value(row['peer_median'], row['unit'])} {unit} "
            f"| {row['ratio']:.3g}x ({row['ratio_min']:.3g}–{row['ratio_max']:.3g}) "
            f"| {'—' if row['reach'] is None else format(row['reach'], '.1f') + 'x'} |"
        )
    lines += [
        "",
        "| A decode step, µs | " + " | ".join(STEP_PARTS) + " | overhead |",
        "|---|" + "--:|" * (len(STEP_PARTS) + 1),
    ]
    for step in data["steps"]:
        parts = " | ".join(f"{step['part_ns'][part] / 1000:.0f}" for part in STEP_PARTS)
        case = f"{step['model']}, {step['dtype']}, {step['num_running']} running"
        lines.append(f"| {case} | {parts} | {step['overhead_share']:.1%} |")
    return "\n".join(lines)
