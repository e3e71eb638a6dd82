"""The speculation benchmark's result for people: a table for each workload, the published ones, the reaches."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from playground.bench.speculation.reaches import case_name

VERDICT = {True: "yes", False: "no"}


def render(data: dict[str, Any], console: Console | None = None) -> None:
    """Print the result of `run_benchmark`."""
    console = console or Console()
    here, versions, model = data["machine"], data["versions"], data["model"]
    for name, text in data["definitions"].items():
        console.print(f"[bold]{name}[/bold]: {text}", highlight=False)
    console.print(
        f"\n{here['processor']}, {here['torch_threads']} threads, {model['device']}, {model['dtype']}, "
        f"{data['plan']['repeats']} pairs a case; torch {versions['torch']}, commit {versions['commit'] or '—'}",
        highlight=False,
    )
    for workload in data["plan"]["workloads"]:
        rows = [row for row in data["rows"] if row["workload"] == workload["name"]]
        console.print(f"\n[bold]{workload['name']}[/bold]: {workload['does']}", highlight=False)
        measured = [row for row in rows if row["error"] is None]
        console.print(_speed(measured))
        console.print(_drafts(measured))
        for line in _remarks(rows):
            console.print(line, highlight=False)
    _render_published(data["published"], console)
    console.print(_reaches(data["reaches"]))


def _speed(rows: list[dict[str, Any]]) -> Table:
    title = "Speed-up, and milliseconds of a step"
    table = _table(title, "draft", "verify", "plain", "c", "v", "expected", "measured", "range")
    for row in rows:
        table.add_row(
            case_name(row),
            milliseconds(row["draft_seconds"]),
            milliseconds(row["verify_seconds"]),
            milliseconds(row["plain_step_seconds"]),
            number(row["draft_cost"]),
            number(row["verify_cost"]),
            times(row["expected_speedup"]),
            times(row["speedup"]),
            f"{row['speedup_min']:.2f}–{row['speedup_max']:.2f}",
        )
    return table


def _drafts(rows: list[dict[str, Any]]) -> Table:
    title = "Acceptance, and tokens per step beside the formula"
    table = _table(title, "α", "first–last", "tokens/step", "by position", "one α", "same text")
    for row in rows:
        same, positions = row["same_text"], [a for a in row["acceptance_by_position"] if a is not None]
        table.add_row(
            case_name(row),
            percent(row["acceptance"]),
            f"{percent(positions[0])}–{percent(positions[-1])}" if positions else "—",
            number(row["tokens_per_step"]),
            number(row["tokens_per_step_by_position"]),
            number(row["tokens_per_step_one_alpha"]),
            "" if same is None else f"{same['identical']} of {same['requests']}",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    """Cases by figures; in a narrow terminal the names of the cases break, never a figure."""
    table = Table("case", title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _remarks(rows: list[dict[str, Any]]) -> list[str]:
    """Why cases failed, and what the adaptive ones ended with."""
    lines = []
    for row in rows:
        if row["error"] is not None:
            lines.append(f"{case_name(row)} failed: {row['error']}")
        elif row["num_tokens"] == "auto" and row["speculation"] is not None:
            state = row["speculation"]
            reason = f" ({state['reason']})" if state["reason"] else ""
            share = f"drafts in {row['drafting_share']:.0%} of the steps"
            lines.append(f"{case_name(row)}: {state['state']}{reason} at the end, {share}")
    return lines


def _render_published(data: dict[str, Any], console: Console) -> None:
    for source in data["sources"].values():
        console.print(source, highlight=False)
    console.print(_formula(data))
    if data["ours"]:
        console.print(_ours(data["ours"]))
    console.print(_measured_elsewhere(data))


def _formula(data: dict[str, Any]) -> Table:
    title = "The formula: speed-up for a draft of c plain steps, v = 1"
    table = Table("K", "acceptance", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("tokens/step", justify="right")
    for column in data["formula"][0]["speedups"]:
        table.add_column(f"c = {column['draft_cost']:g}", justify="right")
    for row in data["formula"]:
        table.add_row(
            str(row["num_tokens"]),
            percent(row["acceptance"]),
            number(row["tokens_per_step"]),
            *(times(one["speedup"]) for one in row["speedups"]),
        )
    return table


def _ours(rows: list[dict[str, Any]]) -> Table:
    title = "This run's draft model at these K, batch 1"
    table = Table("K", "workload", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("acceptance", "tokens/step", "formula", "c", "v", "expected", "measured"):
        table.add_column(name, justify="right")
    for row in sorted(rows, key=lambda row: row["num_tokens"]):
        table.add_row(
            str(row["num_tokens"]),
            row["workload"],
            percent(row["acceptance"]),
            number(row["tokens_per_step"]),
            number(row["tokens_per_step_one_alpha"]),
            number(row["draft_cost"]),
            number(row["verify_cost"]),
            times(row["expected_speedup"]),
            times(row["speedup"]),
        )
    return table


def _measured_elsewhere(data: dict[str, Any]) -> Table:
    table = Table("published", "K", title="Measured elsewhere", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("acceptance", "c", "expected", "measured"):
        table.add_column(name, justify="right")
    for row in data["leviathan"]:
        table.add_row(
            f"{row['task']}, {row['draft']}, temperature {row['temperature']:g}",
            str(row["num_tokens"]),
            percent(row["acceptance"]),
            number(row["draft_cost"]),
            times(row["expected_speedup"]),
            times(row["measured_speedup"]),
        )
    for row in data["chen"]:
        table.add_row(f"{row['task']}, 4B draft", "4", "—", "—", "—", times(row["speedup"]))
    return table


def _reaches(entries: list[dict[str, Any]]) -> Table:
    title = "To be reached on the bundled pair, CPU"
    table = Table("what", "workload", "case", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("measured", "reach", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        measured, reach = reach_texts(entry)
        table.add_row(entry["what"], entry["workload"], entry["case"], measured, reach, VERDICT[entry["reached"]])
    return table


def reach_texts(entry: dict[str, Any]) -> tuple[str, str]:
    """(measured, reach) of an entry of `reaches`."""
    if entry["unit"] == "state":
        return entry["value"], entry["reach"]
    if entry["unit"] == "deviation":
        return f"{entry['value']:.1%}", f"≤ {entry['reach']:.0%}"
    return times(entry["value"]), f"≥ {times(entry['reach'])}"


def times(value: float) -> str:
    return f"{value:.2f}x"


def number(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    return "—" if value is None else f"{value:.0%}"


def milliseconds(value: float) -> str:
    return f"{value * 1000:.2f}"
