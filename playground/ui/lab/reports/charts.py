"""How the pictures of results look. They are made with plotly in two palettes, for the light and the dark page; texts
from files are escaped, because plotly reads a few tags in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Options = dict[str, Any]
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


def chart(
    palette: Palette,
    traces: Sequence[Any],
    *,
    x: Options | str,
    y: Options | str,
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


def _axis(common: Options, own: Options | str) -> Options:
    mine = {"title": own} if isinstance(own, str) else own
    title = mine.get("title", "")
    return {**common, **mine, "title": {**common["title"], "text": title}}


def whiskers(middle: Sequence[float], low: Sequence[float], high: Sequence[float], color: str) -> Options:
    """Error bars from the lowest to the highest measured."""
    return {
        "type": "data", "symmetric": False, "color": color, "thickness": 1.2, "width": 3,
        "array": [b - a for a, b in zip(middle, high, strict=True)],
        "arrayminus": [a - b for a, b in zip(middle, low, strict=True)],
    }  # fmt: skip


def one_line(palette: Palette, at: float = 1.0, axis: str = "x") -> Options:
    """A line at a value on one axis, across the whole of the other."""
    other = "y" if axis == "x" else "x"
    place = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
    return {"type": "line", "line": {"color": palette.mute, "width": 1, "dash": "dot"}, "layer": "below", **place}


def safe(text: object) -> str:
    """A text from a file, for plotly."""
    return escape(str(text))
