"""The speculation benchmark's result: speed-up beside what the formula makes of the measured costs, and acceptance."""

from collections.abc import Iterator
from typing import Any

from playground.telemetry.format import format_number, format_percent
from playground.ui.lab.reports.charts import SYMBOLS, Palette, chart, one_line, safe, whiskers
from playground.ui.lab.reports.section import Data, Section, cells, span, times


def label(row: Data) -> str:
    """A case in a few words."""
    words = [row["workload"], row["proposer"], f"K {row['num_tokens']}"]
    if row["batch_size"] != 1:
        words.append(f"{row['batch_size']} at once")
    if row["temperature"] and row["verification"] != "rejection":
        words.append(row["verification"])
    return ", ".join(words)


def sections(data: Data) -> Iterator[Section]:
    rows = [row for row in data["rows"] if row["error"] is None]
    if rows:
        yield Section(
            "Speed-up",
            ("case", "speed-up", "lowest to highest", "expected", "tokens a step", "acceptance", "c", "v", "same text"),
            tuple(_cells(row) for row in rows),
            f"Medians of {data['plan']['repeats']} pairs or more, decode tokens per second with drafts over without. "
            "Expected: the formula with the measured acceptance and costs.",
            1,
            lambda palette: _speedups(palette, rows),
            "; ".join(
                f"{label(row)}: {times(row['speedup'])}, expected {times(row['expected_speedup'])}" for row in rows
            ),
        )
        drafting = [row for row in rows if any(value is not None for value in row["acceptance_by_position"])]
        if drafting:
            yield _acceptance(drafting)
    failed = [row for row in data["rows"] if row["error"] is not None]
    if failed:
        yield Section("Failed", ("case", "why"), tuple((label(row), row["error"]) for row in failed), texts=2)
    if data["reaches"]:
        yield Section(
            "To be reached",
            ("", "workload", "case", "measured", "asked", ""),
            tuple(
                cells(one["what"], one["workload"], one["case"], _amount(one["value"]), _amount(one["reach"]),
                      "reached" if one["reached"] else "missed")
                for one in data["reaches"]
            ),
            texts=3,
        )  # fmt: skip


def _amount(value: Any) -> str:
    return str(format_number(value)) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _cells(row: Data) -> tuple[str, ...]:
    same = row["same_text"]
    return cells(
        label(row),
        times(row["speedup"]),
        span(row["speedup_min"], row["speedup_max"]),
        times(row["expected_speedup"]),
        format_number(row["tokens_per_step"]),
        format_percent(row["acceptance"]),
        format_number(row["draft_cost"]),
        format_number(row["verify_cost"]),
        None if same is None else f"{same['identical']} of {same['requests']}",
    )


def _speedups(palette: Palette, rows: list[Data]) -> Any:
    from plotly.graph_objects import Scatter

    labels = [safe(label(row)) for row in rows]
    measured = [row["speedup"] for row in rows]
    ranges = whiskers(measured, [r["speedup_min"] for r in rows], [r["speedup_max"] for r in rows], palette.ours)
    return chart(
        palette,
        [
            Scatter(
                x=measured, y=labels, mode="markers", name="measured, with its range", error_x=ranges,
                marker={"color": palette.ours, "size": 8}, hovertemplate="%{y}: %{x:.3g}×<extra>measured</extra>",
            ),
            Scatter(
                x=[row["expected_speedup"] for row in rows], y=labels, mode="markers", name="expected",
                marker={"color": palette.other, "symbol": "diamond-open", "size": 9, "line": {"width": 1.5}},
                hovertemplate="%{y}: %{x:.3g}×<extra>expected</extra>",
            ),
        ],
        x={"title": "speed-up, 1 is as fast as without drafts", "rangemode": "tozero"},
        y={"title": "", "autorange": "reversed", "type": "category"},
        height=70 + 22 * len(rows),
        shapes=[one_line(palette)],
    )  # fmt: skip


def _acceptance(rows: list[Data]) -> Section:
    longest = max(len(row["acceptance_by_position"]) for row in rows)
    shown = [row for row in rows if row["num_tokens"] != "auto" and row["batch_size"] == 1] or rows

    def draw(palette: Palette) -> Any:
        from plotly.graph_objects import Scatter

        lines: list[Any] = []
        for number, proposer in enumerate(dict.fromkeys(row["proposer"] for row in shown)):
            for row in (one for one in shown if one["proposer"] == proposer):
                values = row["acceptance_by_position"]
                lines.append(
                    Scatter(
                        x=list(range(1, len(values) + 1)), y=values, mode="lines+markers", name=safe(proposer),
                        legendgroup=proposer, showlegend=all(line.legendgroup != proposer for line in lines),
                        line={"color": palette.series[number % 5], "width": 1.2}, connectgaps=False,
                        marker={"symbol": SYMBOLS[number % 5], "size": 7},
                        hovertemplate=safe(label(row)) + ": draft %{x}, %{y:.1%}<extra></extra>",
                    )
                )  # fmt: skip
        return chart(
            palette,
            lines,
            x={"title": "position of the draft", "dtick": 1},
            y={"title": "accepted of those reached", "tickformat": ".0%", "range": [0, 1.03]},
        )

    return Section(
        "Acceptance by position",
        ("case", *map(str, range(1, longest + 1))),
        tuple(
            cells(
                label(row),
                *(
                    format_percent(row["acceptance_by_position"][i]) if i < len(row["acceptance_by_position"]) else None
                    for i in range(longest)
                ),
            )
            for row in rows
        ),
        "A draft is reached when all before it were accepted. The picture leaves batches and adaptive lengths out.",
        1,
        draw,
        "Acceptance by position in the draft, one line a case; the table has the numbers.",
    )


def points(data: Data) -> list[Data]:
    """Measured cases for the theory's picture: what goes into the formula, and what came out."""
    return [
        {
            "label": label(row),
            "k": row["num_tokens"] if isinstance(row["num_tokens"], int) else row["drafts_per_row"],
            "adaptive": not isinstance(row["num_tokens"], int),
            "acceptance": row["acceptance"],
            "draft_cost": row["draft_cost"],
            "verify_cost": row["verify_cost"],
            "tokens": row["tokens_per_step"],
            "speedup": row["speedup"],
            "low": row["speedup_min"],
            "high": row["speedup_max"],
            "pairs": len(row["tokens_per_second"]),
        }
        for row in data["rows"]
        if row["error"] is None and row["acceptance"] is not None and row["draft_cost"] is not None
    ]
