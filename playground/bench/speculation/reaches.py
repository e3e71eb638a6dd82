"""What speculation is meant to reach on the bundled pair, and whether the rows of a run do. Pure arithmetic."""

from collections.abc import Callable, Sequence
from typing import Any

from playground.bench.speculation.workloads import COPY_WORKLOAD, PLAIN_WORKLOADS

Row = dict[str, Any]

FORMULA = 0.10
"""Largest deviation of counted tokens per step, as a share."""
BEST = 1.3
LOOKUP = 1.8
ADAPTIVE = 0.97
"""Smallest speed-ups."""


def reaches(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry for everything asked that the rows can answer: value, reach, reached, and the case that decides."""
    measured = [row for row in rows if row["error"] is None]
    single = [row for row in measured if row["batch_size"] == 1]
    adaptive = [row for row in measured if row["num_tokens"] == "auto"]
    found = []
    for workload in PLAIN_WORKLOADS:
        mine = _of(single, workload=workload)
        fixed = [row for row in mine if row["num_tokens"] != "auto"]
        for formula, figure in (
            ("by position", "tokens_per_step_by_position"),
            ("with one α", "tokens_per_step_one_alpha"),
        ):
            found += _deviation(f"tokens per step off the formula {formula}", workload, fixed, figure)
        found += _speedup("best speed-up", workload, mine, max, BEST)
    copying = _of(single, workload=COPY_WORKLOAD, proposer="ngram")
    found += _speedup("best speed-up of prompt lookup", COPY_WORKLOAD, copying, max, LOOKUP)
    for workload in dict.fromkeys(row["workload"] for row in adaptive):
        found += _speedup("adaptive, the worst case", workload, _of(adaptive, workload=workload), min, ADAPTIVE)
    found += [_noticed(row) for row in _of(adaptive, proposer="ngram", temperature=1)]
    return found


def _of(rows: Sequence[Row], **values: Any) -> list[Row]:
    return [row for row in rows if values.items() <= row.items()]


def _speedup(
    what: str, workload: str, rows: Sequence[Row], choose: Callable[..., Row], reach: float
) -> list[dict[str, Any]]:
    if not rows:
        return []
    row = choose(rows, key=lambda row: row["speedup"])
    return [_entry(what, workload, row, row["speedup"], "x", reach, row["speedup"] >= reach)]


def _deviation(what: str, workload: str, rows: Sequence[Row], figure: str) -> list[dict[str, Any]]:
    """The worst row's share of what the formula says by which the count is off."""
    if not rows:
        return []
    worst, off = max(((row, abs(row["tokens_per_step"] / row[figure] - 1)) for row in rows), key=lambda found: found[1])
    return [_entry(what, workload, worst, off, "deviation", FORMULA, off <= FORMULA)]


def _noticed(row: Row) -> dict[str, Any]:
    state = row["speculation"]["state"]
    what = "n-gram at temperature 1 is found useless"
    return _entry(what, row["workload"], row, state, "state", "not active", state != "active")


def _entry(
    what: str, workload: str, row: Row, value: float | str, unit: str, reach: float | str, reached: bool
) -> dict[str, Any]:
    return {
        "what": what,
        "workload": workload,
        "case": case_name(row),
        "value": value,
        "unit": unit,
        "reach": reach,
        "reached": reached,
    }


def case_name(row: Row) -> str:
    """What a row measures, without its workload: "draft, K 4, coupled, batch 16"."""
    parts = [row["proposer"], f"K {row['num_tokens']}"]
    if row["verification"] == "coupled":
        parts.append("coupled")
    if row["batch_size"] > 1:
        parts.append(f"batch {row['batch_size']}")
    return ", ".join(parts)
