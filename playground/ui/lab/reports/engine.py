"""The engine benchmark's result: ours against the peer, and where the time of a step goes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from playground.bench.report import STEP_PARTS
from playground.telemetry.format import format_percent, format_rate
from playground.ui.lab.reports.charts import PATTERNS, Palette, chart, one_line, safe, whiskers
from playground.ui.lab.reports.section import Data, Section, cells, reach, seconds, span, times


def sections(data: Data) -> Iterator[Section]:
    for model, dtype in dict.fromkeys((row["model"], row["dtype"]) for row in data["rows"]):
        mine = {"model": model, "dtype": dtype}
        rows = [row for row in data["rows"] if mine.items() <= row.items()]
        compared = [row for row in rows if row["ratio"] is not None]
        yield Section(
            f"Against {data['peer']}: {model}, {dtype}" if compared else f"Measured: {model}, {dtype}",
            ("", "case", "ours", data["peer"], "ratio", "lowest to highest", "to be reached"),
            tuple(_cells(row) for row in rows),
            f"Medians of {len(rows[0]['ours'])} pairs. A ratio above 1 is better.",
            2,
            partial(_ratios, compared) if compared else None,
            "Ratios over the peer with their range: "
            + "; ".join(f"{row['metric']}, {row['case']}: {times(row['ratio'])}" for row in compared),
        )
    if data["steps"]:
        yield _steps(data["steps"])


def _cells(row: Data) -> tuple[str, ...]:
    def value(measured: float | None) -> str:
        return seconds(measured) if row["unit"] == "s" else str(format_rate(measured))

    ratio = row["ratio"]
    return cells(
        row["metric"],
        row["case"],
        value(row["ours_median"]),
        value(row["peer_median"]),
        times(ratio),
        None if ratio is None else span(row["ratio_min"], row["ratio_max"]),
        reach(row["reach"], row["reached"]),
    )


def _ratios(rows: list[Data], palette: Palette) -> Any:
    from plotly.graph_objects import Scatter

    labels = [safe(f"{row['metric']}, {row['case']}") for row in rows]
    ratios = [row["ratio"] for row in rows]
    ranges = whiskers(ratios, [row["ratio_min"] for row in rows], [row["ratio_max"] for row in rows], palette.ours)
    ours = Scatter(
        x=ratios, y=labels, mode="markers", name="measured, with its range", error_x=ranges,
        marker={"color": palette.ours, "size": 8}, hovertemplate="%{y}: %{x:.3g}×<extra></extra>",
    )  # fmt: skip
    asked = [row for row in rows if row["reach"] is not None]
    goal = Scatter(
        x=[row["reach"] for row in asked], y=[safe(f"{row['metric']}, {row['case']}") for row in asked],
        mode="markers", name="to be reached", hovertemplate="%{y}: %{x:.3g}× to be reached<extra></extra>",
        marker={"color": palette.mute, "symbol": "line-ns-open", "size": 13, "line": {"width": 2}},
    )  # fmt: skip
    return chart(
        palette,
        [ours, goal],
        x={"title": "ratio, 1 is as fast as the peer", "rangemode": "tozero"},
        y={"title": "", "autorange": "reversed", "type": "category"},
        height=70 + 26 * len(rows),
        shapes=[one_line(palette)],
    )


def _steps(steps: list[Data]) -> Section:
    names = [f"{step['model']}, {step['dtype']}" for step in steps]
    return Section(
        "A decode step",
        ("", "requests", *STEP_PARTS.values(), "whole", "all but the model"),
        tuple(
            cells(
                name,
                step["num_running"],
                *(seconds(step["part_ns"][part] / 1e9) for part in STEP_PARTS),
                seconds(step["total_ns"] / 1e9),
                format_percent(step["overhead_share"]),
            )
            for name, step in zip(names, steps, strict=True)
        ),
        f"Medians of {steps[0]['num_steps']} steps, from the start of one to the start of the next.",
        1,
        lambda palette: _split(palette, names, steps),
        "; ".join(
            f"{name}: {step['overhead_share']:.2%} outside the model" for name, step in zip(names, steps, strict=True)
        ),
    )


def _split(palette: Palette, names: list[str], steps: list[Data]) -> Any:
    from plotly.graph_objects import Bar

    colors = (palette.mute, palette.other, palette.ours, palette.fourth, palette.third, palette.idle)
    bars = [
        Bar(
            y=[safe(name) for name in names],
            x=[step["part_ns"][part] / step["total_ns"] for step in steps],
            customdata=[step["part_ns"][part] / 1e6 for step in steps],
            name=text,
            orientation="h",
            marker={
                "color": color,
                "pattern": {"shape": pattern, "fgcolor": palette.ink, "fgopacity": 0.35, "size": 5},
            },
            hovertemplate=text + ": %{customdata:.3g} ms, %{x:.2%}<extra>%{y}</extra>",
        )
        for (part, text), color, pattern in zip(STEP_PARTS.items(), colors, PATTERNS, strict=True)
    ]
    return chart(
        palette,
        bars,
        x={"title": "share of the step", "tickformat": ".0%", "range": [0, 1]},
        y={"title": "", "autorange": "reversed", "type": "category"},
        height=120 + 40 * len(steps),
        barmode="stack",
        bargap=0.4,
    )
