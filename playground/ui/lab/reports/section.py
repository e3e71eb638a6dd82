"""What a result is shown as: sections of a picture and the table of the same numbers. And how pictures look.

Pictures are made with plotly in two palettes, for the light and the dark page; texts from files are escaped, because
plotly reads a few tags in them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from playground.telemetry.format import MISSING, format_number, format_seconds

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Data = dict[str, Any]
FONT = "ui-sans-serif, system-ui, sans-serif"


@dataclass(frozen=True, slots=True)
class Palette:
    """The design's colours by their meaning; a colour means the same in every picture."""

    ink: str
    mute: str
    line: str
    ours: str
    """What is measured, "this"."""
    other: str
    """What it is compared with."""
    third: str
    fourth: str
    bad: str
    idle: str

    @property
    def series(self) -> tuple[str, ...]:
        return (self.ours, self.other, self.third, self.fourth, self.bad)


LIGHT = Palette("#1d1f21", "#63686d", "#e4e4e0", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#c9cdd2")
DARK = Palette("#e6e8ea", "#9aa1a8", "#2c3034", "#4aa3d8", "#f0b740", "#35c79c", "#dd9cc0", "#f08a4b", "#4a5159")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")
"""A second mark beside the colour."""
PATTERNS = ("", "/", "x", "\\", "-", ".")


@dataclass(frozen=True, slots=True)
class Section:
    """One picture with its table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    texts: int = 1
    """How many of the first columns are words; the others are numbers."""
    draw: "Callable[[Palette], Figure] | None" = None
    says: str = ""
    """What the picture shows, in words, for those who do not see it."""

    def view(self) -> Data:
        figures = None
        if self.draw is not None:
            figures = {name: json.loads(self.draw(one).to_json()) for name, one in (("light", LIGHT), ("dark", DARK))}
        return {
            "title": self.title,
            "note": self.note,
            "columns": self.columns,
            "rows": self.rows,
            "texts": self.texts,
            "figure": figures,
            "says": self.says,
        }


def chart(
    palette: Palette,
    traces: Sequence[Any],
    *,
    x: Data | str,
    y: Data | str,
    height: int = 300,
    legend: bool = True,
    **layout: Any,
) -> "Figure":
    """A figure in our looks; `x` and `y` are axis titles, or plotly's axis options."""
    from plotly.graph_objects import Figure

    figure = Figure(list(traces))
    axis = {
        "gridcolor": palette.line, "linecolor": palette.line, "zerolinecolor": palette.line, "tickcolor": palette.line,
        "automargin": True, "title": {"standoff": 8, "font": {"size": 12}}, "fixedrange": True,
    }  # fmt: skip
    figure.update_layout(
        template={},
        height=height,
        margin={"l": 8, "r": 12, "t": 34 if legend else 10, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12, "color": palette.mute},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1.0, "xanchor": "left", "yanchor": "bottom", "itemclick": False,
                "itemdoubleclick": False},
        dragmode=False,
        hoverlabel={"font": {"family": FONT, "size": 12}},
        xaxis=_axis(axis, x),
        yaxis=_axis(axis, y),
        **layout,
    )  # fmt: skip
    return figure


def _axis(common: Data, own: Data | str) -> Data:
    mine = {"title": own} if isinstance(own, str) else own
    title = mine.get("title", "")
    return {**common, **mine, "title": {**common["title"], "text": title}}


def whiskers(middle: Sequence[float], low: Sequence[float], high: Sequence[float], color: str) -> Data:
    """Error bars from the lowest to the highest measured."""
    return {
        "type": "data", "symmetric": False, "color": color, "thickness": 1.2, "width": 3,
        "array": [b - a for a, b in zip(middle, high, strict=True)],
        "arrayminus": [a - b for a, b in zip(middle, low, strict=True)],
    }  # fmt: skip


def one_line(palette: Palette, at: float = 1.0, axis: str = "x") -> Data:
    """A line at a value on one axis, across the whole of the other."""
    other = "y" if axis == "x" else "x"
    place = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
    return {"type": "line", "line": {"color": palette.mute, "width": 1, "dash": "dot"}, "layer": "below", **place}


def safe(text: object) -> str:
    """A text from a file, for plotly."""
    return escape(str(text))


def times(value: float | None) -> str:
    """A ratio."""
    number = format_number(value).number
    return number if number == MISSING else f"{number}×"


def span(low: float, high: float, text: Callable[[float | None], str] = times) -> str:
    return f"{text(low)} to {text(high)}"


def reach(asked: float | None, reached: bool | None, relation: str = "≥") -> str:
    """What was to be reached, and whether it was."""
    if asked is None:
        return MISSING
    verdict = {None: "", True: ": reached", False: ": missed"}[reached]
    return f"{relation} {asked:.3g}{verdict}"


def seconds(value: float | None) -> str:
    return str(format_seconds(value))


def cells(*values: object) -> tuple[str, ...]:
    return tuple(MISSING if value is None else str(value) for value in values)
