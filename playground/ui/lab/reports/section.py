"""What a result is shown as: sections of a picture and the table of the same numbers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from playground.telemetry.format import MISSING, format_number, format_seconds
from playground.ui.lab.reports.charts import DARK, LIGHT, Palette

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Data = dict[str, Any]


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
