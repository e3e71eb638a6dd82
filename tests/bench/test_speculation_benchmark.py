"""The speculation benchmark runs on the bundled pair: its JSON is whole, its texts agree, its page opens alone."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from playground.bench.command import bench_app
from playground.bench.speculation.figures import Pass, figures
from playground.bench.speculation.page import html
from playground.bench.speculation.report import render
from playground.bench.speculation.run import DEFINITIONS
from tests.ui.browser import chromium

CASES = [
    (workload, *case) for workload in ("story", "copy") for case in (("draft", 2), ("draft", "auto"), ("ngram", "auto"))
]
SIZES = [("light", 1440, 900), ("dark", 390, 844)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("speculation")
    files = {kind: folder / f"out.{kind}" for kind in ("json", "html")}
    options = [text for kind, file in files.items() for text in (f"--{kind}", str(file))]
    done = CliRunner().invoke(
        bench_app, ["speculation", "--quick", "--dtype", "float32", "--device", "cpu", *options], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    assert "To be reached" in done.output and "draft, K auto" in done.output
    return files


@pytest.fixture(scope="module")
def data(files: dict[str, Path]) -> dict[str, Any]:
    return json.loads(files["json"].read_text(encoding="utf-8"))


def test_the_json_carries_its_conditions(data: dict[str, Any]) -> None:
    assert data["benchmark"] == "speculation" and data["created"] and data["ok"] is True
    assert data["definitions"] == DEFINITIONS
    assert data["versions"]["torch"] and data["machine"]["torch_threads"] >= 1
    assert data["model"]["device"] == "cpu" and data["model"]["dtype"] == "float32"
    assert [one["name"] for one in data["plan"]["workloads"]] == ["story", "copy"]


def test_every_case_is_paired_with_no_speculation(data: dict[str, Any]) -> None:
    assert [(row["workload"], row["proposer"], row["num_tokens"]) for row in data["rows"]] == CASES
    for row in data["rows"]:
        assert row["error"] is None
        assert len(row["passes"]) == (4 if row["num_tokens"] == "auto" else 1)
        for one in row["passes"]:
            # Greedy text is the same, so both sides decoded as many tokens, in fewer steps where drafts were accepted.
            assert one["with"]["decode_tokens"] == one["without"]["decode_tokens"] == 11
            assert one["without"]["num_steps"] == 11 and sum(one["without"]["rows_by_drafts"]) == 11
            assert one["with"]["num_steps"] == 11 - sum(one["with"]["drafts_accepted"])


def test_figures_in_the_json_follow_from_its_passes(data: dict[str, Any]) -> None:
    def read(side: dict[str, Any]) -> Pass:
        return Pass(**{name: tuple(value) if isinstance(value, list) else value for name, value in side.items()})

    for row in data["rows"]:
        found = figures([read(one["with"]) for one in row["passes"]], [read(one["without"]) for one in row["passes"]])
        for name, value in vars(found).items():
            assert row[name] == (list(value) if isinstance(value, tuple) else value), name


def test_greedy_text_is_the_same_with_speculation_and_without(data: dict[str, Any]) -> None:
    for row in data["rows"]:
        assert row["same_text"]["identical"] == row["same_text"]["requests"] == len(row["passes"])
        assert row["same_text"]["tokens"] == 12 * len(row["passes"])


def test_drafts_of_the_bundled_pair_are_accepted_and_lookups_find_the_copied_text(data: dict[str, Any]) -> None:
    rows = {(row["workload"], row["proposer"], row["num_tokens"]): row for row in data["rows"]}
    assert rows["story", "draft", 2]["acceptance"] > 0.5 and rows["story", "draft", 2]["draft_seconds"] > 0
    assert rows["copy", "ngram", "auto"]["acceptance"] > 0.5
    assert rows["copy", "ngram", "auto"]["tokens_per_step"] > 2


def test_reaches_name_the_case_that_decides(data: dict[str, Any]) -> None:
    assert {one["what"] for one in data["reaches"]} == {
        "tokens per step off the formula by position",
        "tokens per step off the formula with one α",
        "best speed-up",
        "best speed-up of prompt lookup",
        "adaptive, the worst case",
    }
    assert all(isinstance(one["reached"], bool) and one["case"] for one in data["reaches"])


def test_a_case_that_fails_is_named_and_the_others_go_on(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ["--quick", "--workloads", "story", "--k", "2", "--model", str(tiny_model), "--json", str(file)]
    done = CliRunner().invoke(bench_app, ["speculation", *options], env={"COLUMNS": "200"})
    assert done.exit_code == 1  # there is no draft model that belongs to this one
    assert "draft, K 2 failed: speculation method 'draft' needs a draft_model" in " ".join(done.output.split())
    data = json.loads(file.read_text(encoding="utf-8"))
    assert data["ok"] is False
    draft, ngram = data["rows"]
    assert "needs a draft_model" in draft["error"] and ngram["error"] is None and ngram["speedup"] > 0


def test_sampled_text_is_compared_only_where_it_is_coupled(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ["--workloads", "story-1.0", "--proposers", "ngram", "--k", "2", "--verification", "rejection,coupled"]
    options += ["--batch-sizes", "2", "--quick", "--model", str(tiny_model), "--device", "cpu", "--json", str(file)]
    done = CliRunner().invoke(bench_app, ["speculation", *options])
    assert done.exit_code == 0, done.output
    rejection, coupled = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert rejection["same_text"] is None and rejection["temperature"] == 1
    assert coupled["same_text"]["identical"] == coupled["same_text"]["requests"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k", "nine"], "--k 'nine' is not allowed: give whole numbers from 1 to 64, or auto."),
        (["--workloads", "story,poem"], "--workloads 'poem' is not known"),
        (["--html", "/no/such/folder/page.html"], "--html /no/such/folder/page.html: the folder /no/such/folder"),
        (["--model", "/no/such/model", "--quick"], "/no/such/model"),
    ],
)
def test_bad_options_get_one_sentence(options: list[str], words: str) -> None:
    refused = CliRunner().invoke(bench_app, ["speculation", *options])
    assert isinstance(refused.exception, ValueError), refused.output
    assert words in str(refused.exception) and "\n" not in str(refused.exception)


def test_the_tables_show_what_is_missing_as_a_dash(data: dict[str, Any]) -> None:
    row = {**data["rows"][0], "acceptance": None, "acceptance_by_position": [], "draft_cost": None, "same_text": None}
    out = io.StringIO()
    render({**data, "rows": [row], "reaches": []}, Console(file=out, width=200))
    lines = [line for line in out.getvalue().splitlines() if "draft, K 2" in line]
    assert [line.count("—") for line in lines] == [1, 2]


# The page


def test_no_text_of_the_data_can_end_the_script_it_stands_in(data: dict[str, Any]) -> None:
    hostile = "</script><script>window.__pwned = 1</script>"
    page = html({**data, "rows": [{**data["rows"][0], "error": hostile}]})
    assert hostile not in page and "\\u003c/script>" in page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "width", "height"), SIZES)
def test_the_page_opens_alone_and_draws_every_chart(
    browser: Any, files: dict[str, Path], theme: str, width: int, height: int
) -> None:
    problems: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text))
    page.on("request", lambda sent: problems.append(sent.url) if sent.url != files["html"].as_uri() else None)
    page.goto(files["html"].as_uri())
    page.locator(".plot .main-svg").first.wait_for()
    assert page.title() == "Speculative decoding, measured"
    headings = page.locator(".panel h3").all_inner_texts()
    # Speed-up of both proposers; acceptance of the one that was measured with a fixed number of drafts.
    assert headings == ["Draft model", "Prompt lookup (n-gram)", "Draft model"]
    assert page.locator(".plot .scatterlayer .points path").count() >= 6
    page.get_by_role("button", name="Copy").click()
    assert page.get_by_role("button", name="Copy").get_attribute("aria-pressed") == "true"
    assert "asked for a second time" in page.locator(".chosen").inner_text()
    tables = page.locator("table").all_inner_texts()
    assert any("Draft model, K 2" in text for text in tables) and any("T5-small 77M" in text for text in tables)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()
    assert problems == []
