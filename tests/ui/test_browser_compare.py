"""The compare page in a real browser: a comparison from its fields to the marked difference, a blind vote, a stop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_tiny_model
from tests.ui.browser import NewTab, Tab, served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HAS_AMBER = """() => {
    const canvas = document.querySelector('.compare canvas');
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < data.length; i += 4)
        if (data[i] > 200 && data[i + 1] > 130 && data[i + 2] < 90 && data[i + 3] > 150) return true;
    return false;
}"""
HOSTILE = "<img src=x onerror=window.__pwned=1> {{value}}"


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def address(browser: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    with served(folder, "--model", str(tiny_model), "--device", "cpu", "--dtype", "float32") as app:
        yield app.address


@pytest.fixture
def new_tab(new_tab: NewTab) -> NewTab:
    """Opens tabs on the compare page."""

    def make(**options: Any) -> Tab:
        tab = new_tab(**options)
        tab.page.locator("#topbar a", has_text="Compare").click()
        tab.page.locator(".compare .card").first.wait_for()
        return tab

    return make


def button(tab: Tab, name: str) -> Any:
    return tab.page.locator(".compare").get_by_role("button", name=name, exact=True)


def fill_in(tab: Tab, other_model: Path, prompts: str) -> None:
    """A comparison of one's own: the present model and another one, few tokens, two rounds."""
    button(tab, "Compare configurations of my own").click()
    second = tab.page.locator(".compare .col").nth(1)
    second.locator("input.name").fill("another model")
    second.get_by_label("Model", exact=True).fill(str(other_model))
    tab.page.locator(".compare .openers").get_by_role("button", name="Prompts").click()
    tab.page.locator(".compare [data-field=prompt_set]").select_option("own")
    tab.page.locator(".compare textarea").fill(prompts)
    tab.page.locator(".compare .openers").get_by_role("button", name="Sequential").click()
    tab.page.locator(".compare [data-field=repeats]").fill("2")
    tab.page.locator(".compare .openers").get_by_role("button", name="Greedy").click()
    tab.page.locator(".compare [data-field=max_tokens]").fill("16")


def test_a_comparison_shows_the_first_difference_the_numbers_and_every_run(new_tab: NewTab, other_model: Path) -> None:
    tab = new_tab()
    fill_in(tab, other_model, f"one two three\n\n{HOSTILE}")
    button(tab, "Run").click()
    button(tab, "Run again").wait_for()
    compare = tab.page.locator(".compare")
    assert compare.locator(".parting").count() == 2  # a mark in each text
    said = compare.locator(".bands").inner_text()
    assert "first difference at token" in said and "log p −" in said and "two models, two texts" in said
    assert compare.locator(".col .differs").nth(1).inner_text() == f"Model: {other_model.name}"
    rows = compare.locator("tbody tr").all_inner_texts()
    assert any(row.startswith("Time to first token") and " ms" in row for row in rows)
    assert compare.locator("thead").inner_text().startswith("median of n = 2, 95 % interval")
    compare.get_by_role("button", name="Tokens per second").click()
    label = compare.locator("canvas").get_attribute("aria-label")
    assert label.startswith("Tokens per second of every run in tok/s. A: ")
    assert tab.page.evaluate(HAS_AMBER)  # a dot of side B
    compare.get_by_role("button", name="The next prompt").click()
    assert HOSTILE in compare.locator(".asked").inner_text()
    assert tab.page.evaluate("window.__pwned") is None
    assert "/#compare/" in tab.page.url

    # The run behind a text opens on the Requests page, and the back button leads here again.
    compare.locator(".col").nth(1).get_by_role("link", name="replay it").click()
    runs = tab.page.locator("#runs")
    runs.get_by_text("from a comparison").wait_for()
    assert HOSTILE in runs.locator(".spoken .prompt").inner_text()
    tab.page.go_back()
    compare.locator("table").wait_for()

    # A link to it opens it again, for another user and on a narrow page too, where the sides stand below each other.
    narrow = new_tab(width=390, height=844)
    narrow.page.goto(tab.page.url)
    narrow.page.reload()
    narrow.page.locator(".compare table").wait_for()
    boxes = [narrow.page.locator(".compare .col").nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["x"] == boxes[1]["x"] and boxes[1]["y"] > boxes[0]["y"]
    assert not narrow.scrolls_sideways()


def test_a_blind_vote_comes_before_names_and_numbers(new_tab: NewTab, other_model: Path) -> None:
    tab = new_tab()
    fill_in(tab, other_model, "one two three")
    button(tab, "Blind").click()
    button(tab, "Run").click()
    button(tab, "Tie").wait_for()
    compare = tab.page.locator(".compare")
    assert "another model" not in compare.inner_text() and compare.locator("table").count() == 0
    button(tab, "2 is better").click()
    compare.locator("table").wait_for()
    assert "another model" in compare.inner_text() and button(tab, "Tie").count() == 0


def test_one_click_runs_a_preset_and_stop_ends_it(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.page.locator(".compare .card", has_text="KV cache on / off").first.click()
    button(tab, "Stop").wait_for()
    tab.page.locator("#topbar", has_text="A comparison is running").wait_for()
    tab.wait("() => document.querySelector('.compare .doing').textContent.length > 5")
    button(tab, "Stop").click()
    button(tab, "Run again").wait_for()
    assert "Stopped" in tab.page.locator(".compare .low").inner_text()
    assert "no KV cache" in tab.page.locator(".compare").inner_text()


def test_a_setting_that_cannot_be_is_said_beside_its_field(new_tab: NewTab) -> None:
    tab = new_tab()
    button(tab, "Compare configurations of my own").click()
    second = tab.page.locator(".compare .col").nth(1)
    second.locator("summary", has_text="Scheduling").click()
    second.get_by_label("Requests at once").fill("0")
    button(tab, "Run").click()
    tab.page.locator(".compare .problem", has_text="max_num_seqs=0 is not allowed").wait_for()
    assert second.locator("[aria-invalid]").count() == 1
