"""Numbers for people: three significant digits, a dash for missing, units that never overflow."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.telemetry.format import (
    BYTE_UNITS,
    MISSING,
    SMALLEST,
    format_bytes,
    format_count,
    format_number,
    format_percent,
    format_rate,
    format_seconds,
)

FORMATTERS = (format_number, format_rate, format_percent, format_seconds, format_bytes)
SECONDS = {"ms": 1e-3, "s": 1.0}


def parse(number: str) -> float:
    return float(number.replace(",", ""))


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_was_not_measured_is_a_dash_without_a_unit(formatter, value):
    assert str(formatter(value)) == MISSING


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        (format_count(0), "0"),
        (format_count(None), MISSING),
        (format_count(12_345), "12,345"),
        (format_rate(0.0), "0 tok/s"),
        (format_rate(5), "5.00 tok/s"),
        (format_rate(41.27), "41.3 tok/s"),
        (format_rate(1234.5), "1,230 tok/s"),
        (format_percent(0.8049), "80.5 %"),
        (format_percent(1), "100 %"),
        (format_seconds(0.0123), "12.3 ms"),
        (format_seconds(0.9994), "999 ms"),
        (format_seconds(0.9996), "1.00 s"),
        (format_seconds(75), "75.0 s"),
        (format_bytes(0), "0 B"),
        (format_bytes(1023), "1023 B"),
        (format_bytes(1024), "1.00 KiB"),
        (format_bytes(123_456_789), "118 MiB"),
        (format_bytes(1023.7 * 1024**2), "1,020 MiB"),
        (format_bytes(150 * 1024**3), "150 GiB"),
        (format_number(0.00001), "<0.001"),
    ],
)
def test_known_values_read_as_expected(quantity, text):
    assert str(quantity) == text


@given(st.floats(min_value=SMALLEST, max_value=1e15))
def test_a_number_is_within_half_of_its_third_digit(value):
    shown = parse(format_number(value).number)
    assert math.isclose(shown, value, rel_tol=0.00501)


@given(st.floats(min_value=SMALLEST, max_value=1e15))
def test_a_number_never_shows_an_exponent_and_has_at_least_three_digits(value):
    text = format_number(value).number
    assert re.fullmatch(r"[\d,]+(\.\d+)?", text)
    assert len(text.replace(",", "").replace(".", "").lstrip("0")) >= 3


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_a_duration_keeps_its_value_and_milliseconds_stay_below_a_thousand(value):
    quantity = format_seconds(value)
    assert math.isclose(parse(quantity.number) * SECONDS[quantity.unit], value, rel_tol=0.00501)
    assert quantity.unit == "s" or parse(quantity.number) < 1000


@given(st.integers(min_value=0, max_value=2**59))
def test_a_size_keeps_its_value_and_its_number_stays_below_1024(value):
    quantity = format_bytes(value)
    shown = parse(quantity.number)
    assert math.isclose(shown * 1024 ** BYTE_UNITS.index(quantity.unit), value, rel_tol=0.00501)
    assert shown < 1024


@given(st.floats(min_value=1e-9, max_value=1e12), st.floats(min_value=1e-9, max_value=1e12))
def test_a_larger_number_never_reads_smaller(first, second):
    low, high = sorted((first, second))
    texts = [format_number(value).number for value in (low, high)]
    shown = [0.0 if text.startswith("<") else parse(text) for text in texts]
    assert shown[0] <= shown[1]


@given(st.floats(min_value=-1e12, max_value=-1))
def test_a_negative_number_is_the_positive_one_with_a_minus(value):
    assert format_number(value).number == "-" + format_number(-value).number
