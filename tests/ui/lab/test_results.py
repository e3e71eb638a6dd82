"""Kept results: listed, read, deleted; and that everything which ships can be shown."""

import json
from pathlib import Path
from typing import Any

import pytest

from playground.ui.lab.reports import INCOMPLETE, UNKNOWN, view
from playground.ui.lab.reports.charts import DARK, LIGHT
from playground.ui.lab.reports.speculation import points
from playground.ui.lab.results import SHIPPED, ResultError, ResultFiles, ResultInfo, machine_text
from playground.ui.lab.routes import result


@pytest.fixture
def results(tmp_path: Path) -> ResultFiles:
    return ResultFiles(tmp_path / "mine")


def info(kind: str) -> ResultInfo:
    return ResultInfo("x", kind, "X", "", "", "", "", False)


def test_newest_first_then_what_ships(results: ResultFiles) -> None:
    old = results.keep({"benchmark": "engine", "created": "2026-01-01T00:00:00+00:00"}, "engine", {})
    new = results.keep({"benchmark": "engine", "created": "2026-02-01T00:00:00+00:00"}, "engine", {"what": "full"})
    listed = results.list()
    assert [one.id for one in listed][:2] == [new, old] and old != new
    assert all(one.shipped and one.machine and one.created for one in listed[2:])
    assert {one.id for one in listed[2:]} == {f"shipped-{file.stem}" for file in SHIPPED.glob("*.json")}


def test_one_can_be_deleted_and_what_ships_cannot(results: ResultFiles) -> None:
    mine = results.keep({"benchmark": "engine"}, "engine", {})
    results.delete(mine)
    with pytest.raises(ResultError, match="does not exist"):
        results.read(mine)
    with pytest.raises(ResultError, match="came with the project"):
        results.delete("shipped-engine-cpu")
    assert results.revision == 2


@pytest.mark.parametrize("name", ["../chats", "shipped-../../pyproject", "", ".hidden", "a/b", "%2e%2e", "A"])
def test_no_name_leads_out_of_the_folder(results: ResultFiles, name: str) -> None:
    results.folder.mkdir()
    (results.folder.parent / "chats.json").write_text("{}")
    with pytest.raises(ResultError):
        results.path(name)


def test_a_file_that_cannot_be_read_is_listed_with_the_reason_and_can_be_deleted(results: ResultFiles) -> None:
    results.folder.mkdir()
    for name, text in (("broken", "{"), ("list", "[1]"), ("deep", "[" * 100_000)):
        (results.folder / f"{name}.json").write_text(text)
    own = {one.id: one for one in results.list() if not one.shipped}
    assert set(own) == {"broken", "list", "deep"} and all(
        one.error and one.error.count("\n") == 0 for one in own.values()
    )
    assert result(results, "broken")["error"] == own["broken"].error
    for name in own:
        results.delete(name)


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.json")), ids=lambda file: file.stem)
def test_every_result_that_ships_is_shown_in_both_palettes(file: Path) -> None:
    shown = result(ResultFiles(file.parent / "none"), f"shipped-{file.stem}")
    assert shown["error"] is None and shown["definitions"]
    drawn = [section for section in shown["sections"] if section["figure"]]
    assert drawn and json.dumps(shown, allow_nan=False)
    for section in shown["sections"]:
        assert all(len(row) == len(section["columns"]) for row in section["rows"]), section["title"]
    for section in drawn:
        assert section["rows"] and section["says"], "a picture needs its numbers in words, too"
        light, dark = (json.dumps(section["figure"][name]) for name in ("light", "dark"))
        assert LIGHT.mute in light and DARK.mute in dark and LIGHT.mute not in dark


def test_measured_points_are_what_the_file_says() -> None:
    data = json.loads((SHIPPED / "speculation-cpu.json").read_text(encoding="utf-8"))
    found = points(data)
    rows = [row for row in data["rows"] if row["error"] is None and row["acceptance"] is not None]
    assert [one["speedup"] for one in found] == [row["speedup"] for row in rows if row["draft_cost"] is not None]
    assert all(one["low"] <= one["speedup"] <= one["high"] for one in found)


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        ("another", {}, UNKNOWN),
        ("engine", {}, INCOMPLETE),
        ("speculation", {"rows": [{}], "plan": {}}, INCOMPLETE),
        ("samples", {"rows": 3, "plan": {}}, INCOMPLETE),
        ("ceilings", {"rows": [{"what": "bandwidth", "best": None}]}, INCOMPLETE),
        ("gpu", {"kernels": {"rows": None}, "rehearsal": True}, INCOMPLETE),
    ],
)
def test_a_foreign_or_incomplete_file_is_said_to_be_one(kind: str, data: dict[str, Any], said: str) -> None:
    shown = view(info(kind), data)
    assert shown["error"] == said and shown["sections"] == []


def test_markup_in_a_file_stays_text_in_pictures() -> None:
    data = json.loads((SHIPPED / "engine-cpu.json").read_text(encoding="utf-8"))
    for row in data["rows"]:
        row["case"] = "<a href='x'>link</a>"
    shown = view(info("engine"), data)
    assert shown["error"] is None and "<a " not in json.dumps(shown["sections"][0]["figure"])


def test_what_a_machine_is_called_with_and_without_a_gpu() -> None:
    here = {"processor": "EPYC", "cores_usable": 2, "memory_bytes": 2**34}
    assert machine_text({"machine": here}) == "EPYC, 2 cores, 16 GiB"
    assert machine_text({"machine": here, "gpus": [{"name": "H200"}]}) == "H200, 2 cores, 16 GiB"
    assert machine_text({}) == "" and machine_text({"machine": "?"}) == ""


def test_measured_ceilings_are_shown() -> None:
    rows = [
        {"what": "bandwidth", "how": "copy", "dtype": None, "per_second": [1e10], "best": 1e10, "median": 1e10},
        {
            "what": "operations",
            "how": "product",
            "dtype": "float32",
            "per_second": [2e11],
            "best": 2e11,
            "median": 2e11,
        },
    ]
    shown = view(info("ceilings"), {"rows": rows})
    assert shown["error"] is None
    assert shown["sections"][1]["rows"] == (("float32", "10.0", "200", "20.0"),)
