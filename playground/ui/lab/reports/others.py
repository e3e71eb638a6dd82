"""Results with one table and one picture: shared blocks, quantization, compression, ceilings, kernels."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from playground.bench.ceilings import limits
from playground.telemetry.format import MISSING, format_bytes, format_count, format_number, format_percent
from playground.ui.lab.reports.charts import PATTERNS, SYMBOLS, Palette, chart, one_line, safe, whiskers
from playground.ui.lab.reports.section import Data, Section, cells, reach, seconds, span, times

FLOOR = 0.001
"""Percent: the least change of perplexity on the logarithmic axis."""


def samples(data: Data) -> Iterator[Section]:
    rows, plan = data["rows"], data["plan"]

    def draw(palette: Palette) -> Any:
        from plotly.graph_objects import Bar

        labels = [_width(row) for row in rows]
        kinds = (
            ("blocks_shared", "shared, as held", palette.ours),
            ("blocks_private", "with a cache each", palette.idle),
            ("blocks_separate", "separate requests, measured", palette.other),
        )
        bars = [
            Bar(
                x=labels, y=[row[name] for row in rows], name=text,
                marker={"color": color, "pattern": {"shape": pattern, "fgcolor": palette.ink, "fgopacity": 0.35}},
                hovertemplate="%{x}: %{y} blocks<extra>" + text + "</extra>",
            )
            for (name, text, color), pattern in zip(kinds, PATTERNS, strict=False)
        ]  # fmt: skip
        return chart(
            palette, bars, x={"title": "", "type": "category"}, y="KV blocks at the peak", barmode="group", bargap=0.4
        )

    yield Section(
        f"KV blocks: {plan['model']}",
        ("case", "shared", "a cache each", "separate", "bytes shared", "of", "saved", "copies"),
        tuple(
            cells(
                _width(row),
                row["blocks_shared"],
                row["blocks_private"],
                row["blocks_separate"],
                format_bytes(row["bytes_shared"]),
                format_bytes(row["bytes_private"]),
                format_percent(row["saved"]),
                row["copies"],
            )
            for row in rows
        ),
        f"{plan['prompt_tokens']} prompt tokens and {plan['output_tokens']} new ones; blocks of {data['block_size']} "
        f"tokens, {format_bytes(data['block_bytes'])} each.",
        1,
        draw,
        "; ".join(f"{_width(row)}: {row['saved']:.0%} saved" for row in rows),
    )


def _width(row: Data) -> str:
    return f"{row['width']} {row['kind'] if row['width'] > 1 else row['kind'].removesuffix('s')}"


def quantization(data: Data) -> Iterator[Section]:
    rows, plan = data["rows"], data["plan"]

    yield Section(
        f"Decoding: {plan['model']}, {plan['dtype']}",
        (
            "method",
            "at once",
            "tok/s",
            "unquantized",
            "ratio",
            "lowest to highest",
            "weights",
            "bound",
            "to be reached",
        ),
        tuple(
            cells(
                row["method"],
                row["batch"],
                format_number(row["quantized_median"]),
                format_number(row["unquantized_median"]),
                times(row["ratio"]),
                span(row["ratio_min"], row["ratio_max"]),
                format_bytes(row["weights_bytes"]),
                times(row["bound"]),
                reach(row["reach"], row["reached"]),
            )
            for row in rows
        ),
        f"Medians of {plan['repeats']} pairs.",
        1,
        partial(_speeds, rows),
        "; ".join(f"{row['method']}, {row['batch']} at once: {times(row['ratio'])}" for row in rows),
    )
    if data["crossovers"]:
        yield Section(
            "Crossover",
            ("layout", "shape", "packed up to"),
            tuple(
                cells(one["layout"], f"{one['outputs']} × {one['inputs']}", f"{one['rows']} rows")
                for one in data["crossovers"]
            ),
            data["definitions"].get("crossover", ""),
            2,
        )


def _speeds(rows: list[Data], palette: Palette) -> Any:
    from plotly.graph_objects import Scatter

    traces = []
    for number, batch in enumerate(dict.fromkeys(row["batch"] for row in rows)):
        mine = [row for row in rows if row["batch"] == batch]
        ratios = [row["ratio"] for row in mine]
        low, high = [row["ratio_min"] for row in mine], [row["ratio_max"] for row in mine]
        color = palette.series[number % 5]
        traces.append(
            Scatter(
                x=ratios, y=[safe(row["method"]) for row in mine], mode="markers", name=f"{safe(batch)} at once",
                marker={"color": color, "symbol": SYMBOLS[number % 5], "size": 9},
                error_x=whiskers(ratios, low, high, color), hovertemplate="%{y}: %{x:.3g}×<extra></extra>",
            )
        )  # fmt: skip
    bounds = {row["method"]: row["bound"] for row in rows}
    traces.append(
        Scatter(
            x=list(bounds.values()), y=[safe(name) for name in bounds], mode="markers",
            name="bound: only reads weights", hovertemplate="%{y}: %{x:.3g}× at most<extra></extra>",
            marker={"color": palette.mute, "symbol": "line-ns-open", "size": 15, "line": {"width": 2}},
        )
    )  # fmt: skip
    return chart(
        palette,
        traces,
        x={"title": "decode speed over unquantized", "rangemode": "tozero"},
        y={"title": "", "autorange": "reversed", "type": "category"},
        height=100 + 40 * len(bounds),
        shapes=[one_line(palette)],
    )


def compression(data: Data) -> Iterator[Section]:
    good = [row for row in data["rows"] if not row["error"]]
    groups = data["groups"]

    def draw(palette: Palette) -> Any:
        from plotly.graph_objects import Scatter

        traces = []
        for number, (group, title) in enumerate(groups.items()):
            mine = [row for row in good if row["group"] == group]
            if not mine:
                continue
            changes = [100 * row["change"] for row in mine]
            low = [100 * row["change_low"] for row in mine]
            high = [100 * row["change_high"] for row in mine]
            color = palette.series[number % 5]
            traces.append(
                Scatter(
                    x=[100 * row["memory_share"] for row in mine], y=[max(value, FLOOR) for value in changes],
                    customdata=changes, text=[safe(row["label"]) for row in mine], mode="markers", name=safe(title),
                    marker={"color": color, "symbol": SYMBOLS[number % 5], "size": 9},
                    error_y=whiskers(changes, low, high, color),
                    hovertemplate="%{text}: %{customdata:+.3g} % perplexity, %{x:.3g} % of the memory<extra></extra>",
                )
            )  # fmt: skip
        return chart(
            palette,
            traces,
            x={"title": "weights in memory, % of the unchanged model's", "rangemode": "tozero"},
            y={"title": f"perplexity, change in %; {FLOOR} and less at the foot", "type": "log"},
            height=380,
        )

    note = f"{data['text']['tokens']:,} tokens of {data['text']['name']}; unchanged: {data['base']['perplexity']:.4g}."
    yield Section(
        f"Loss against memory: {data['model']['name']}",
        ("", "perplexity", "change", "95 % interval", "memory", "share", "load", "decode, 1", "decode, 16"),
        tuple(_compressed(row) for row in data["rows"]),
        note,
        1,
        draw if good else None,
        "; ".join(f"{row['label']}: {100 * row['change']:+.3g} %, {row['memory_share']:.0%} of memory" for row in good),
    )
    if data["goals"]:
        yield Section(
            "To be reached",
            ("", "asked", "measured", "", "why not"),
            tuple(
                cells(one["what"], one["reach"], one["measured"], "reached" if one["reached"] else "missed", one["why"])
                for one in data["goals"]
            ),
            texts=5,
        )


def _compressed(row: Data) -> tuple[str, ...]:
    if row["error"]:
        return (row["label"], row["error"], *[MISSING] * 7)
    return cells(
        row["label"],
        f"{row['perplexity']:.4g}",
        f"{100 * row['change']:+.3g} %",
        f"{100 * row['change_low']:+.3g} to {100 * row['change_high']:+.3g}",
        format_bytes(row["memory_bytes"]),
        format_percent(row["memory_share"]),
        seconds(row["load_seconds"]),
        times(row.get("speedup_1")),
        times(row.get("speedup_16")),
    )


def ceilings(data: Data) -> Iterator[Section]:
    yield Section(
        "Ceilings",
        ("", "how", "dtype", "best, G/s", "median, G/s", "repeats"),
        tuple(
            cells(
                {"bandwidth": "Bytes", "operations": "Operations"}.get(row["what"], row["what"]),
                row["how"],
                row["dtype"],
                format_number(row["best"] / 1e9),
                format_number(row["median"] / 1e9),
                len(row["per_second"]),
            )
            for row in data["rows"]
        ),
        texts=3,
    )
    found = limits(data)

    def draw(palette: Palette) -> Any:
        from plotly.graph_objects import Scatter

        lines = []
        for number, (dtype, bandwidth, operations) in enumerate(found):
            ridge = operations / bandwidth
            x = [ridge / 100, ridge, ridge * 100]
            color, dash = palette.series[number % 5], ("solid", "dash")[number % 2]
            lines.append(
                Scatter(
                    x=x, y=[min(operations, one * bandwidth) / 1e9 for one in x], mode="lines", name=safe(dtype),
                    line={"color": color, "dash": dash, "width": 1.6},
                    hovertemplate="%{x:.3g} operations a byte: %{y:.3g} G a second<extra>%{fullData.name}</extra>",
                )
            )  # fmt: skip
        return chart(
            palette,
            lines,
            x={"title": "operations per byte", "type": "log", "dtick": 1},
            y={"title": "10⁹ operations per second", "type": "log", "dtick": 1},
        )

    yield Section(
        "Roofline",
        ("dtype", "bytes, G/s", "operations, G/s", "ridge, operations a byte"),
        tuple(
            cells(dtype, format_number(b / 1e9), format_number(o / 1e9), format_number(o / b)) for dtype, b, o in found
        ),
        "Left of the ridge a step waits for memory, right of it for arithmetic.",
        1,
        draw,
        "; ".join(f"{dtype}: ridge at {o / b:.3g} operations a byte" for dtype, b, o in found),
    )


def kernels(data: Data) -> Iterator[Section]:
    measured = data.get("kernels")
    if measured is not None:
        yield _kernels(measured, data["rehearsal"])
    steps = [row for row in data.get("engine", []) if "step_ms" in row]
    if steps:
        yield Section(
            "Engine",
            ("requests", "prompt tokens", "CUDA graphs", "step", "tok/s", "of the bound"),
            tuple(
                cells(
                    row["requests"],
                    format_count(row["prompt_tokens"]),
                    "on" if row["cuda_graphs"] else "off",
                    seconds(row["step_ms"] / 1e3),
                    format_number(row["tokens_per_second"]),
                    format_percent(row["share_of_bound"]),
                )
                for row in steps
            ),
        )


def _kernels(measured: Data, rehearsal: bool) -> Section:
    note = "A rehearsal without a GPU: every case ran once at a tiny size, and nothing was measured."
    if not rehearsal:
        top = measured["ceilings"]
        note = (
            f"Ceilings of this run: copy {top['copy_bytes_per_second'] / 1e12:.3g} TB/s, bfloat16 products "
            f"{top['matmul_flops'] / 1e12:.3g} TFLOP/s."
        )
    timed = [row for row in measured["rows"] if row["speedup"] is not None]
    return Section(
        "Kernels",
        ("op", "shape", "ours, µs", "best peer, µs", "speed-up", "of copy", "of products", "to be reached"),
        tuple(_kernel(row) for row in measured["rows"]),
        note,
        2,
        partial(_speed_ups, timed) if timed else None,
        "; ".join(f"{row['op']}, {row['shape']}: {times(row['speedup'])}" for row in timed),
    )


def _speed_ups(timed: list[Data], palette: Palette) -> Any:
    from plotly.graph_objects import Scatter

    return chart(
        palette,
        [
            Scatter(
                x=[row["speedup"] for row in timed], y=[safe(f"{r['op']}, {r['shape']}") for r in timed],
                mode="markers", marker={"color": palette.ours, "size": 8},
                hovertemplate="%{y}: %{x:.3g}×<extra></extra>",
            )
        ],
        x={"title": "times as fast as the best peer", "type": "log"},
        y={"title": "", "autorange": "reversed", "type": "category"},
        height=70 + 20 * len(timed),
        legend=False,
        shapes=[one_line(palette)],
    )  # fmt: skip


def _kernel(row: Data) -> tuple[str, ...]:
    peers = [us for us in row["peers_us"].values() if us is not None]
    verdict = {None: "", True: ": reached", False: ": missed"}[row["reached"]]
    return cells(
        row["op"],
        row["shape"],
        "failed" if "ours" in row["errors"] else format_number(row["us"]),
        format_number(min(peers, default=None)),
        times(row["speedup"]),
        format_percent(row["share_of_copy"]),
        format_percent(row["share_of_matmul"]),
        None if row["reach"] is None else f"{row['reach']}{verdict}",
    )
