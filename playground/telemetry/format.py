"""How numbers are written for people: three significant digits, "—" for what was not measured, binary byte units.

Pure functions. Number and unit come apart, because the interface sets units smaller; `str()` joins them.
"""

import math
from typing import NamedTuple, TypeGuard

MISSING = "—"
DIGITS = 3
SMALLEST = 0.001
"""Below this (in the chosen unit) only "<0.001" is said."""
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Quantity(NamedTuple):
    """A number as text and its unit, which is empty for plain numbers and for missing ones."""

    number: str
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.number} {self.unit}" if self.unit else self.number


NOTHING = Quantity(MISSING)


def format_count(value: int | None) -> Quantity:
    """A count, exactly, in groups of three digits."""
    return NOTHING if value is None else Quantity(f"{value:,}")


def format_number(value: float | None, unit: str = "") -> Quantity:
    return Quantity(_digits(value), unit) if _is_measured(value) else NOTHING


def format_rate(value: float | None, unit: str = "tok/s") -> Quantity:
    return format_number(value, unit)


def format_percent(fraction: float | None) -> Quantity:
    """A fraction (1 is all) in per cent."""
    return Quantity(_digits(fraction * 100), "%") if _is_measured(fraction) else NOTHING


def format_seconds(value: float | None) -> Quantity:
    """A duration: milliseconds below one second, else seconds."""
    if not _is_measured(value):
        return NOTHING
    milliseconds = _round(value * 1000)
    if abs(milliseconds) < 1000:
        return Quantity(_digits(value * 1000), "ms")
    return Quantity(_digits(value), "s")


def format_bytes(value: float | None) -> Quantity:
    """A size in the largest unit that keeps the number at 1 or more; whole numbers below 1 KiB."""
    if not _is_measured(value):
        return NOTHING
    if abs(value) < 1024:
        return Quantity(f"{value:.0f}", "B")
    scaled, power = float(value), 0
    while abs(scaled) >= 1024 and power < len(BYTE_UNITS) - 1:
        scaled /= 1024
        power += 1
    return Quantity(_digits(scaled), BYTE_UNITS[power])


def _is_measured(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _round(value: float) -> float:
    """`value` to three significant digits, as it will be shown."""
    return float(f"{value:.{DIGITS}g}")


def _digits(value: float) -> str:
    """Three significant digits without an exponent; trailing zeros stay, so that a changing number keeps its width."""
    rounded = _round(value)
    if rounded == 0 and value == 0:
        return "0"
    if abs(rounded) < SMALLEST:
        return f"<{SMALLEST}" if value > 0 else f">-{SMALLEST}"
    decimals = DIGITS - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(0, decimals)}f}"
