"""What a newcomer does first: start the app without options and say hello; and what is there after a crash."""

import time
from pathlib import Path

import pytest

from playground.models.bundled import BUNDLED_MODEL
from playground.ui.runs import SAVE_SECONDS
from tests.ui.browser import Tab, chromium, served
from tests.ui.endless import ENDLESS, SHORT, write_endless_model

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_the_bundled_model_greets_in_the_browser(tmp_path: Path) -> None:
    assert (BUNDLED_MODEL / "model.safetensors").is_file()
    with chromium() as browser, served(tmp_path) as app:
        tab = Tab(browser, app.address)
        assert "storyteller is a tiny model" in tab.page.locator("#page").inner_text()
        tab.page.get_by_role("combobox", name="Sampling preset").select_option("Precise")
        tab.send("Hello!")
        sent = time.monotonic()
        tab.wait(
            "() => /[a-z]{2}/.test([...document.querySelectorAll('.reply .text')].map((n) => n.innerText).join(''))"
        )
        first_words = time.monotonic() - sent
        tab.replies.last.wait_for()
        assert "Stopped" not in tab.replies.last.inner_text() and len(tab.reply_text()) > 5
        assert first_words < 10, f"{first_words:.1f} s"  # 1 s is the aim on two idle cores; tests share theirs
        assert tab.problems == []
        tab.close()


def test_kill_9_in_mid_reply_keeps_what_was_written_and_an_open_tab_finds_it_by_itself(tmp_path: Path) -> None:
    model = write_endless_model(tmp_path / "endless")
    options = ("--model", str(model), "--device", "cpu", "--dtype", "float32")
    written = "[...document.querySelectorAll('#transcript .reply .text')].map((node) => node.textContent)"
    with chromium() as browser:
        with served(tmp_path, *options) as app:
            tab = Tab(browser, app.address)
            tab.set(SHORT)
            first = tab.ask("Hello!")
            tab.set(ENDLESS)
            tab.send("Tell me a story about a very long road.")
            tab.wait_streaming()
            tab.page.wait_for_timeout(1500 * SAVE_SECONDS)
            app.process.kill()
            app.process.wait()
            tab.page.get_by_text("Connection lost, trying again").wait_for()
            seen = tab.live_text()
        with served(tmp_path, *options, port=app.port):
            tab.wait_idle()
            tab.replies.nth(1).wait_for()
            assert tab.questions.all_inner_texts() == ["Hello!", "Tell me a story about a very long road."]
            assert "Stopped here: the playground was ended while this was written" in tab.replies.last.inner_text()
            kept_first, kept = tab.page.evaluate(written)
            assert kept_first == first and len(kept) > 20 and kept.startswith(seen[:20])
            tab.set(SHORT)
            tab.ask("Go on, please.")
            tab.page.reload()
            tab.replies.nth(2).wait_for()
            assert tab.page.evaluate(written)[:2] == [first, kept]
            tab.close()
