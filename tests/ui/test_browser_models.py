"""The Models page in a real browser: another model is loaded while the page is open, and every part of it follows."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.tiny import write_tiny_model
from tests.ui.browser import Tab, chromium, served
from tests.ui.endless import ENDLESS, SHORT, write_endless_model

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    folder = tmp_path_factory.mktemp("served")
    model = write_endless_model(folder / "endless-test")
    (folder / "other-test").mkdir()
    write_tiny_model(folder / "other-test", seed=2)
    with chromium() as browser, served(folder, "--model", str(model), "--device", "cpu", "--dtype", "float32") as app:
        tab = Tab(browser, app.address)
        tab.other = str(folder / "other-test")  # type: ignore[attr-defined]
        yield tab
        assert tab.problems == []
        tab.close()


def card(tab: Tab, title: str) -> Any:
    return tab.page.locator(f"#models section[aria-label='{title}']")


def test_another_model_is_loaded_while_a_reply_is_written_and_the_page_follows(tab: Tab) -> None:
    page = tab.page
    tab.set(ENDLESS)
    tab.send("Tell me everything.")
    tab.wait_streaming()
    page.evaluate("window.__same = true; window.location.hash = '#models'")
    now, load, known = card(tab, "Loaded now"), card(tab, "Load a model"), card(tab, "On this machine")
    known.get_by_text("storyteller-draft").wait_for()
    assert "endless-test" in now.inner_text() and "Predicted" in now.inner_text()
    known.locator("#model-folder").fill("/no/such/folder")
    known.get_by_role("button", name="Add", exact=True).click()
    known.get_by_text("there is no such folder or file").wait_for()
    known.locator("#model-folder").fill(tab.other)  # type: ignore[attr-defined]
    known.get_by_role("button", name="Add", exact=True).click()
    known.get_by_role("button", name="other-test", exact=True).click()
    load.get_by_text("What other-test needs").wait_for()
    load.get_by_role("button", name="Load", exact=True).click()
    now.get_by_text("other-test", exact=True).wait_for()
    assert "other-test" in page.locator("#topbar .about").inner_text()
    page.evaluate("window.location.hash = '#chat'")
    tab.replies.last.get_by_text("Stopped here: the model was changed").wait_for()
    tab.wait_idle()
    tab.set(SHORT)
    tab.ask("And now?")
    assert "of 256 tokens" in page.locator("#composer .used").inner_text()
    assert page.evaluate("window.__same"), "the page was loaded anew"


def test_what_cannot_be_loaded_is_said_in_place_and_an_unloaded_model_is_not_asked(tab: Tab) -> None:
    page = tab.page
    page.evaluate("window.location.hash = '#models'")
    now, load = card(tab, "Loaded now"), card(tab, "Load a model")
    load.get_by_label("Model", exact=True).fill("some-owner/some-model")
    load.get_by_text("It is not on this machine yet").wait_for()
    load.get_by_role("button", name="Load", exact=True).click()
    load.get_by_text("the hub cannot be reached").wait_for()
    load.get_by_label("Seed", exact=True).fill("many")
    load.get_by_text("Seed: 'many' is not allowed").wait_for()
    assert load.get_by_role("button", name="Load", exact=True).is_disabled()
    now.get_by_role("button", name="Unload").click()
    now.get_by_text("No model is loaded.").wait_for()
    page.evaluate("window.location.hash = '#chat'")
    tab.box.fill("Is anybody there?")
    assert page.get_by_role("button", name="Send the message").is_disabled()
    page.locator("#composer .caption", has_text="No model is loaded: load one").wait_for()


def test_the_calculator_shows_the_published_example_and_the_loaded_model(tab: Tab) -> None:
    tab.page.evaluate("window.location.hash = '#models'")
    calculator = card(tab, "Memory calculator")
    assert "14,000" in calculator.inner_text() and "6.84" in calculator.inner_text()
    calculator.get_by_role("button", name="Llama 2 70B, 32k").click()
    calculator.get_by_text("33.8 GB left for KV").wait_for()
    assert "10.0 GiB" in calculator.inner_text()
    calculator.get_by_label("KV heads").fill("7")
    calculator.get_by_text("cannot share 7 KV heads").wait_for()
