"""The prompt-cache benchmark's result: the first token with a cold and a warm prefix, by its length and by tier."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from playground.telemetry.format import format_count, format_percent
from playground.ui.lab.reports.charts import SYMBOLS, Palette, chart, safe
from playground.ui.lab.reports.section import Data, Section, cells, reach, seconds, span


def sections(data: Data) -> Iterator[Section]:
    for model in dict.fromkeys(row["model"] for row in data["first_tokens"]):
        rows = [row for row in data["first_tokens"] if row["model"] == model]
        yield Section(
            f"First token: {model}",
            ("from", "shared tokens", "cold", "warm", "warm over cold", "lowest to highest", "to be reached"),
            tuple(
                cells(
                    row["tier"],
                    format_count(row["shared"]),
                    seconds(row["cold_median"]),
                    seconds(row["warm_median"]),
                    format_percent(row["ratio"]),
                    span(row["ratio_min"], row["ratio_max"], lambda value: str(format_percent(value))),
                    reach(row["reach"], row["reached"], "≤"),
                )
                for row in rows
            ),
            f"Medians of {len(rows[0]['cold'])} pairs, one directly after the other.",
            1,
            partial(_times, rows),
            "; ".join(f"{row['tier']}, {row['shared']} shared: {row['ratio']:.1%} of the cold time" for row in rows),
        )
    yield Section(
        "The same tokens",
        ("model", "from", "replies", "the same as without a cache", "prompt tokens from the cache"),
        tuple(
            cells(row["model"], row["tier"], row["requests"], row["identical"], format_count(row["cached_tokens"]))
            for row in data["equality"]
        ),
        texts=2,
    )
    played = data["replay"]
    if "skipped" in played:
        yield Section("Replay of a trace", (), (), played["skipped"])
        return
    yield Section(
        f"Replay of {played['trace']}",
        ("shared", "prompt tokens", "possible", "found", "written", "first token off", "on", "same"),
        tuple(
            cells(
                row["scenario"],
                format_count(row["prompt_tokens"]),
                *(
                    format_percent(row[name] / row["prompt_tokens"])
                    for name in ("possible_tokens", "cached_tokens", "cache_write_tokens")
                ),
                seconds(row["first_token_off"]),
                seconds(row["first_token_on"]),
                f"{row['identical']} of {row['requests']}",
            )
            for row in played["rows"]
        ),
        f"Lengths divided by {played['rows'][0]['divisor']}; {played['model']}.",
    )


def _times(rows: list[Data], palette: Palette) -> Any:
    from plotly.graph_objects import Scatter

    tiers = list(dict.fromkeys(row["tier"] for row in rows))
    traces = []
    for number, tier in enumerate(tiers):
        mine = [row for row in rows if row["tier"] == tier]
        for name, dash, filled in (("cold", "dot", False), ("warm", "solid", True)):
            symbol = SYMBOLS[number % 5] + ("" if filled else "-open")
            traces.append(
                Scatter(
                    x=[row["shared"] for row in mine], y=[row[f"{name}_median"] * 1e3 for row in mine],
                    mode="lines+markers", name=f"{safe(tier)}, {name}",
                    line={"color": palette.series[number % 5], "width": 1.4, "dash": dash},
                    marker={"symbol": symbol, "size": 8},
                    hovertemplate="%{x} shared tokens: %{y:.3g} ms<extra>%{fullData.name}</extra>",
                )
            )  # fmt: skip
    lengths = sorted({row["shared"] for row in rows})
    return chart(
        palette,
        traces,
        x={"title": "shared tokens", "type": "log", "tickvals": lengths, "ticktext": [f"{n:,}" for n in lengths]},
        y={"title": "time to the first token, ms", "rangemode": "tozero"},
    )
