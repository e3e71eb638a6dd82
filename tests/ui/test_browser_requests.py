"""The Requests page in a real browser: a run is listed, plays, goes back, is exported and opened again; tours play."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ui.browser import Tab, chromium, served
from tests.ui.endless import ENDLESS, SHORT, write_endless_model

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HOSTILE = "<img src=x onerror=window.__pwned=1> {{value}} </script><script>window.__pwned=1</script>"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """One tab on one app, which the tests use one after another; nothing may be amiss at the end."""
    folder = tmp_path_factory.mktemp("served")
    model = write_endless_model(folder / "storyteller-test")
    with chromium() as browser, served(folder, "--model", str(model), "--device", "cpu", "--dtype", "float32") as app:
        tab = Tab(browser, app.address)
        yield tab
        tab.close()
        assert tab.problems == []


def go(tab: Tab, path: str) -> Any:
    tab.page.evaluate("path => { location.hash = path; }", path)
    return tab.page.locator("#runs")


def state(tab: Tab) -> Any:
    """Everything that the replay's clock says, and the text that it shows."""
    shown = "#runs .tokens .token:not([hidden])"
    return tab.page.evaluate(f"[...document.querySelectorAll('{shown}')].map((node) => node.textContent).join('')")


def clock(tab: Tab) -> str:
    return str(tab.page.locator("#runs .clock").inner_text())


def test_without_requests_the_page_says_what_will_be_there(tab: Tab) -> None:
    runs = go(tab, "requests")
    runs.get_by_text("Every request that the engine serves will stand here").wait_for()
    assert runs.get_by_role("link", name="Write a message").is_visible()
    assert runs.locator(".percentiles td").first.inner_text() == "—"


def test_a_reply_is_listed_and_plays_forwards_and_backwards(tab: Tab) -> None:
    go(tab, "chat")
    tab.set({**SHORT, "temperature": "0"})
    reply = tab.ask(HOSTILE)
    runs = go(tab, "requests")
    row = runs.locator(".list tbody tr").first
    row.wait_for()
    assert HOSTILE[:60] in row.locator(".prompt").inner_text()
    row.locator("td.time").click()
    runs.get_by_text("Recording", exact=True).wait_for()
    assert "from this playground" in runs.locator(".recorded").inner_text()
    tab.wait("() => document.querySelectorAll('#runs .tokens .token:not([hidden])').length > 3")
    whole = state(tab)
    assert reply.strip() in whole or whole.strip().startswith(reply.strip()[:40])
    assert "Play again" in runs.locator(".play").inner_text()
    tab.page.locator("#runs .head h2").click()
    tab.page.keyboard.press("Home")
    assert clock(tab).startswith("0 of") and state(tab) == ""
    seen = []
    for _ in range(4):
        tab.page.keyboard.press("ArrowRight")
        seen.append((clock(tab), state(tab)))
    assert len(set(seen)) == 4
    for before in reversed(seen[:-1]):
        tab.page.keyboard.press("ArrowLeft")
        assert (clock(tab), state(tab)) == before
    tab.page.keyboard.press(" ")
    tab.wait("() => document.querySelector('#runs .play').textContent === 'Pause'")
    tab.page.keyboard.press("End")
    tab.wait("() => document.querySelector('#runs .play').textContent === 'Play again'")
    assert state(tab) == whole
    assert tab.page.evaluate("window.__pwned") is None


def test_a_reply_of_the_chat_leads_to_its_replay(tab: Tab) -> None:
    before = tab.page.evaluate("location.hash")
    go(tab, "chat")
    tab.replies.last.get_by_role("button", name="Replay").click()
    tab.wait("([hash]) => location.hash === hash", [before])
    assert HOSTILE[:20] in tab.page.locator("#runs .spoken .prompt").inner_text()


def test_the_replay_shows_the_blocks_that_the_request_held(tab: Tab) -> None:
    tab.page.locator("#runs .head h2").click()
    tab.page.keyboard.press("Home")
    for _ in range(2):
        tab.page.keyboard.press("ArrowRight")
    colour = """(canvas) => { const copy = document.createElement('canvas'); const s = devicePixelRatio;
        [copy.width, copy.height] = [canvas.width, canvas.height];
        const g = copy.getContext('2d', { willReadFrequently: true }); g.drawImage(canvas, 0, 0);
        return [...g.getImageData(6 * s, 12 * s, 1, 1).data].slice(0, 3).join(); }"""
    tab.wait(f"() => ({colour})(document.querySelector('#runs canvas.map')) === '0,114,178'")  # "this request"


def test_an_exported_run_opens_again_and_can_be_deleted(tab: Tab, tmp_path: Path) -> None:
    runs = tab.page.locator("#runs")
    with tab.page.expect_download() as download:
        runs.get_by_role("link", name="Export").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    go(tab, "requests")
    runs.locator("input[type=file]").set_input_files(path)
    runs.get_by_text("from an imported file").wait_for()
    assert HOSTILE[:20] in runs.locator(".spoken .prompt").inner_text()
    runs.get_by_role("button", name="Delete").click()
    runs.get_by_role("button", name="Click again to delete").click()
    tab.wait("() => document.querySelectorAll('#runs .list tbody tr').length === 1")
    bad = tmp_path / "bad.zst"
    bad.write_bytes(b"nothing")
    runs.locator("input[type=file]").set_input_files(bad)
    runs.get_by_text("This file is not a run").wait_for()


def test_a_tour_plays_and_its_captions_lead_to_their_moments(tab: Tab) -> None:
    tours = json.loads(tab.page.evaluate("fetch('runs/tours').then((answer) => answer.text())"))
    assert [tour["name"] for tour in tours][:2] == ["prefill-and-decode", "prefix-hit"] and len(tours) == 6
    runs = go(tab, "requests")
    runs.get_by_role("link", name="Running out of blocks").click()
    runs.get_by_text("from a guided tour").wait_for()
    caption = runs.locator(".captions li", has_text="preempted")
    caption.get_by_role("button").click()
    tab.wait("() => document.querySelector('#runs .captions [aria-current]').textContent.includes('preempted')")
    assert clock(tab).split(" of ")[0] != "0"
    assert "preempted" in runs.locator(".waterfall").first.get_attribute("aria-label")


def test_changes_need_the_pages_own_header(tab: Tab) -> None:
    status = "fetch('runs/clear', {method: 'POST'}).then((answer) => answer.status)"
    assert tab.page.evaluate(status) == 403
    tab.problems[:] = [problem for problem in tab.problems if "403" not in problem]


def test_a_request_that_is_being_served_is_shown_and_plays_once_it_has_ended(tab: Tab) -> None:
    go(tab, "chat")
    tab.set(ENDLESS)
    tab.send("On and on")
    tab.wait_streaming()
    runs = go(tab, "requests")
    runs.locator(".list tbody tr", has_text="On and on").locator("td.time").click()
    runs.get_by_text("This request is being served").wait_for()
    go(tab, "chat")
    tab.stop()
    tab.wait_stopped()
    tab.page.go_back()
    runs.get_by_text("Recording", exact=True).wait_for()
    assert runs.get_by_role("button", name="Play again").is_visible()
