"""What a machine can do at most, as measured: every number there, positive, and the best at least the median."""

from playground.bench.ceilings import limits, run_ceilings


def test_both_limits_are_measured_for_every_type_that_is_multiplied() -> None:
    said: list[str] = []
    data = run_ceilings(quick=True, say=said.append)
    assert data["quick"] and said
    for row in data["rows"]:
        assert row["best"] == max(row["per_second"]) >= row["median"] > 0
    found = limits(data)
    assert {dtype for dtype, _, _ in found} == {row["dtype"] for row in data["rows"] if row["what"] == "operations"}
    assert all(bandwidth > 0 and operations > 0 for _, bandwidth, operations in found)
