"""The report for people: tables in the terminal and in Markdown, and one HTML file that needs nothing else.

Everything in the file is either a number or a label of ours; names of files go through `html.escape`.
"""

import sys
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from playground.compression.report.goals import percent

# The file may load nothing, from nowhere: everything is in it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
FILE = "assets/benchmarks/compression-cpu.json"
FLOOR = 0.001
"""Percent; the scale is logarithmic, since int8 and int2 are four orders of magnitude apart."""
COLORS = {"weights": "#0072B2", "kv": "#56B4E9", "zeros": "#E69F00", "layers": "#009E73", "heads": "#CC79A7"}
SYMBOLS = {"weights": "circle", "kv": "diamond", "zeros": "x", "layers": "square", "heads": "triangle-up"}
STYLE = """
:root { color-scheme: light; } body { margin: 0 auto; max-width: 1080px; padding: 24px 16px 64px; background: #fbfbfa;
color: #1d1f21; font: 14px/20px ui-sans-serif, system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 20px; line-height: 26px; font-weight: 600; }
h2 { font-size: 14px; font-weight: 600; margin: 32px 0 8px; }
p, dd { color: #6b7075; margin: 0 0 8px; } dt { font-weight: 600; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th, td { padding: 6px 8px; border-bottom: 1px solid #e4e4e0;
text-align: right; white-space: nowrap; vertical-align: top; }
th { color: #6b7075; font-weight: 400; font-size: 12px; } td:first-child,
th:first-child { text-align: left; white-space: normal; } td:first-child { min-width: 14em; }
.says td:last-child, .says th:last-child { text-align: left; white-space: normal; min-width: 20em; }
"""


def render(data: dict[str, Any], console: Console | None = None) -> None:
    """Print the result of `run_report`."""
    console = console or (Console() if sys.stdout.isatty() else Console(width=160))
    for name, text in data["definitions"].items():
        console.print(f"[bold]{name}[/bold]: {text}", highlight=False)
    console.print(f"\n{_about(data)}\n", highlight=False)
    for group, title in data["groups"].items():
        rows = [row for row in data["rows"] if row["group"] == group]
        if not rows:
            continue
        table = Table("", *COLUMNS, title=title, title_justify="left", box=SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(row["label"], *([row["error"]] if row["error"] else _cells(row)))
        console.print(table)
    goals = Table("to be reached", "reach", "measured", "", "", title="Goals", title_justify="left", box=SIMPLE_HEAD)
    for goal in data["goals"]:
        goals.add_row(goal["what"], goal["reach"], goal["measured"], "yes" if goal["reached"] else "no", goal["why"])
    console.print(goals)


COLUMNS = ("perplexity", "change", "95 %", "z", "memory", "load", "decode 1", "decode 16")


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['perplexity']:.4g}",
        percent(row["change"]),
        f"{100 * row['change_low']:+.3g} to {100 * row['change_high']:+.3g}",
        f"{row['z']:.1f}",
        f"{row['memory_bytes'] / 1e6:.3g} MB, {100 * row['memory_share']:.3g} %",
        f"{row['load_seconds']:.3g} s",
        *(f"{row[key]:.3g}x" if key in row else "—" for key in ("speedup_1", "speedup_16")),
    ]


def markdown(data: dict[str, Any]) -> str:
    """Every row and every goal, as the README shows them."""
    calibration = data["calibration"]
    lines = [
        f"What the bundled model loses (`playground compress --report`): {_about(data)} Measured "
        f"{data['created'][:10]}, calibrated on {calibration['sequences']} x "
        f"{calibration['length']} tokens of {_listed(calibration['text'])}; z is the change over its standard error, "
        f"decode the speed over the unchanged model's, 1 and 16 requests at once ([all of it]({FILE})).",
        "",
        "| | perplexity | 95 % | z | memory | decode, 1 | 16 |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for group, title in data["groups"].items():
        rows = [row for row in data["rows"] if row["group"] == group]
        lines += [f"| **{title}** | | | | | | |"] if rows else []
        for row in rows:
            cells = [row["error"], *[""] * 5] if row["error"] else _short_cells(row)
            lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    lines += ["", "| What larger models show | to reach | here | |", "|---|--:|--:|---|"]
    for goal in data["goals"]:
        verdict = "yes" if goal["reached"] else f"no: {goal['why']}"
        lines.append(f"| {goal['what']} | {goal['reach']} | {goal['measured']} | {verdict} |")
    return "\n".join(lines)


def _short_cells(row: dict[str, Any]) -> list[str]:
    perplexity, change, *_ = _cells(row)
    interval = f"{100 * row['change_low']:+.2g} to {100 * row['change_high']:+.2g}"
    speeds = [f"{row[key]:.2f}x" if key in row else "—" for key in ("speedup_1", "speedup_16")]
    return [f"{perplexity}, {change}", interval, f"{row['z']:.1f}", f"{100 * row['memory_share']:.0f} %", *speeds]


def _listed(text: str | list[str]) -> str:
    return text if isinstance(text, str) else ", ".join(text)


def _about(data: dict[str, Any]) -> str:
    model, here = data["model"], data["machine"]
    return (
        f"{model['name']}, {model['parameters'] / 1e6:.3g} M parameters in {model['dtype']}; {data['text']['name']}, "
        f"{data['text']['tokens']} tokens: perplexity {data['base']['perplexity']:.4g}. {here['processor']}, "
        f"{here['torch_threads']} threads, torch {data['versions']['torch']}, commit "
        f"{data['versions']['commit'] or '—'}."
    )


def page(data: dict[str, Any]) -> str:
    """The HTML file of a result of `run_report`."""
    parts = [
        f"<h1>What smaller models cost</h1><p>{escape(_about(data))}</p>",
        "<h2>Loss against memory</h2>",
        _figure(data, "memory", inline=True),
        "<h2>Speed against loss</h2>",
        _figure(data, "speed"),
        *_tables(data),
        "<h2>Goals</h2>",
        _table(("", "reach", "measured", "reached", "why not"), list(_goal_rows(data["goals"])), "scroll says"),
        "<h2>Definitions</h2><dl>",
        *(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in data["definitions"].items()),
        "</dl>",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>What smaller models cost</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _tables(data: dict[str, Any]) -> Iterator[str]:
    for group, title in data["groups"].items():
        rows = [row for row in data["rows"] if row["group"] == group]
        if rows:
            cells = [[row["label"], *([row["error"]] if row["error"] else _cells(row))] for row in rows]
            yield f"<h2>{escape(title)}</h2>" + _table(("", *COLUMNS), cells)


def _goal_rows(goals: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for goal in goals:
        yield [goal["what"], goal["reach"], goal["measured"], "yes" if goal["reached"] else "no", goal["why"]]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], classes: str = "scroll") -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="{classes}"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(data: dict[str, Any], against: str, inline: bool = False) -> str:
    """Loss of every row, with its interval, against its memory or its speed."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for group, title in data["groups"].items():
        rows = [row for row in data["rows"] if row["group"] == group and not row["error"]]
        if against == "speed":
            rows = [row for row in rows if "speedup_1" in row]
        if not rows:
            continue
        x = [100 * row["memory_share"] if against == "memory" else row["speedup_1"] for row in rows]
        changes = [100 * row["change"] for row in rows]
        figure.add_trace(
            Scatter(
                x=x,
                y=[max(change, FLOOR) for change in changes],
                customdata=changes,
                mode="markers",
                name=title,
                text=[escape(row["label"]) for row in rows],
                marker={"color": COLORS[group], "symbol": SYMBOLS[group], "size": 9},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * (row["change_high"] - row["change"]) for row in rows],
                    "arrayminus": [100 * (row["change"] - row["change_low"]) for row in rows],
                    "thickness": 1,
                },
                hovertemplate="%{text}<br>%{customdata:+.3g} % perplexity, %{x:.3g}"
                + (" % of the memory" if against == "memory" else " times the speed")
                + "<extra></extra>",
            )
        )
    figure.update_layout(
        template="simple_white",
        height=420,
        margin={"l": 64, "r": 16, "t": 8, "b": 48},
        font={"family": "ui-sans-serif, system-ui, sans-serif", "size": 12, "color": "#1d1f21"},
        paper_bgcolor="#fbfbfa",
        plot_bgcolor="#fbfbfa",
        legend={"orientation": "h", "y": 1.08},
        xaxis={
            "title": "weights in memory, % of the unchanged model"
            if against == "memory"
            else "decode speed, one request",
            "rangemode": "tozero",
        },
        yaxis={"title": f"perplexity, change in %; {FLOOR} and less at the foot", "type": "log"},
    )
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=inline, config={"displayModeBar": False, "responsive": True}
    )
    return html
