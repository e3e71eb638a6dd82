"""The views of a reply's tokens in a real browser, with the bundled pair of models speculating."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ui.browser import Tab, served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HOSTILE = "<img src=x onerror=window.__pwned=1> ${window.__pwned=1} {{value}}"
STORY = "Tell me a story about a fox who could not sleep."


@pytest.fixture(scope="module")
def address(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("served"), "--speculation", "draft", "--draft-tokens", "4") as app:
        yield app.address


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    tab = Tab(browser, address)
    yield tab
    tab.close()
    assert tab.problems == []


def view(tab: Tab, name: str) -> None:
    tab.page.locator("#transcript .segments, #live .segments").get_by_role("button", name=name).last.click()


def shown_text(tab: Tab) -> str:
    """What the tokens of the last reply say, without the ghosts of rejected drafts."""
    script = (
        "() => { const node = [...document.querySelectorAll('#transcript .token-text')].at(-1).cloneNode(true);"
        " node.querySelectorAll('.ghost').forEach((one) => one.remove()); return node.textContent; }"
    )
    return str(tab.page.evaluate(script))


def test_a_reply_shows_its_drafts_its_probabilities_and_its_gaps(tab: Tab) -> None:
    tab.set({"temperature": "0.9", "max_tokens": "160", "seed": "5"})
    tab.page.keyboard.press("Alt+3")
    for seed in range(6, 10):
        tab.ask(STORY)
        drafted = tab.replies.last.locator(".t.accepted").count() and tab.replies.last.locator(".ghost").count()
        if drafted:
            break
        tab.set({"seed": str(seed)})
    unsure = tab.replies.last.locator(".t.unsure").first
    unsure.hover()
    assert re.search(r"^Probability [\d.]+ %, measured", tab.page.get_by_role("tooltip").inner_text())
    unsure.focus()
    tab.page.keyboard.press("ArrowRight")
    assert tab.page.evaluate("document.activeElement.classList.contains('t')")
    tab.page.keyboard.press("2")
    accepted, ghost = tab.replies.last.locator(".t.accepted").first, tab.replies.last.locator(".ghost").first
    assert accepted.is_visible() and ghost.is_visible() and ghost.inner_text().strip()
    ghost.hover()
    assert tab.page.get_by_role("tooltip").inner_text().startswith("Rejected: the draft said “")
    foot = tab.replies.last.locator(".figures").inner_text()
    assert re.search(r"accepted [\d.]+ % \(n = \d+\)", foot)
    text = shown_text(tab)
    tab.page.keyboard.press("4")
    assert tab.replies.last.locator(".t.gap").count() > 10 and not ghost.is_visible()
    assert "median" in tab.replies.last.locator(".token-legend").inner_text()
    tab.page.reload()  # the same from the store
    tab.replies.last.locator(".t.gap").first.wait_for()
    assert shown_text(tab) == text
    view(tab, "Text")
    assert not tab.replies.last.locator(".token-text").is_visible()
    words = tab.reply_text().split()
    assert words == text.split()


def test_versions_lead_back_and_forth(tab: Tab) -> None:
    tab.set({"temperature": "1", "max_tokens": "12", "seed": "1"})
    first = tab.ask(STORY)
    tab.set({"seed": "2"})
    tab.page.get_by_role("button", name="Continue").click()
    tab.replies.last.get_by_text("2 / 2").wait_for()
    tab.wait_idle()
    assert tab.reply_text().split()[:3] == first.split()[:3] and len(tab.reply_text()) > len(first)
    tab.page.get_by_role("button", name="Earlier version").click()
    tab.replies.last.get_by_text("1 / 2").wait_for()
    assert tab.reply_text() == first
    tab.page.get_by_role("button", name="Later version").click()
    tab.replies.last.get_by_text("2 / 2").wait_for()


def test_hostile_text_stays_text_among_tokens_versions_and_files(tab: Tab) -> None:
    tab.set({"max_tokens": "8"})
    tab.ask(HOSTILE)
    rows = [[1, HOSTILE, "corrected", 1, 5, -1, [HOSTILE, HOSTILE], [[HOSTILE, -1]]]]
    tab.page.keyboard.press("Alt+2")
    tab.page.evaluate(
        "(rows) => [...document.querySelectorAll('#transcript .by-token')].at(-1).playgroundView.set(rows)", rows
    )
    for key in ("Alt+2", "Alt+3", "Alt+4"):
        tab.page.keyboard.press(key)
        tab.replies.last.locator(".t").first.hover()
        assert "<img src=x" in tab.page.get_by_role("tooltip").inner_text()
    tab.page.locator("#sessions .session.current").hover()
    tab.page.get_by_role("button", name=re.compile("^Export")).first.click()
    with tab.page.expect_download() as saved:
        tab.page.get_by_role("link", name="Markdown").click()
    assert HOSTILE in Path(saved.value.path()).read_text(encoding="utf-8")
    tab.page.locator("#sessions .session.current").hover()
    tab.page.get_by_role("button", name=re.compile("^Delete")).first.click()
    tab.page.locator(".undo-bar").get_by_role("button", name="Undo").click()
    tab.replies.last.wait_for()
    assert tab.page.evaluate("window.__pwned") is None and tab.page.locator("#page img").count() == 0


def test_the_keys_are_listed_and_move_the_page(tab: Tab) -> None:
    tab.page.keyboard.press("Escape")
    tab.page.keyboard.press("?")
    sheet = tab.page.get_by_role("dialog", name="Keyboard shortcuts")
    assert sheet.is_visible() and "Write the last reply again" in sheet.inner_text()
    tab.page.keyboard.press("Escape")
    sheet.wait_for(state="hidden")
    assert tab.page.locator("#sessions .new").is_visible()
    tab.page.keyboard.press("Control+b")
    assert not tab.page.locator("#sessions .new").is_visible()
    tab.page.keyboard.press("Control+k")
    assert tab.page.locator("#sessions .new").is_visible()
