"""The served page in headless Chromium: one server for a test module, and a page object that notes everything amiss.

Skips with a reason where there is no Chromium; with PLAYGROUND_REQUIRE_BROWSER=1 that is a failure instead.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
OWN_ADDRESS = re.compile(r"(https?|wss?)://127\.0\.0\.1:|data:|blob:")
PATIENCE_MS = 45_000  # a machine that is busy with something else is not a failure


def missing(reason: str) -> None:
    if os.environ.get("PLAYGROUND_REQUIRE_BROWSER") == "1":
        pytest.fail(f"PLAYGROUND_REQUIRE_BROWSER=1, but {reason}")
    pytest.skip(reason)


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser handle on the system's Chromium, or the one that Playwright installed."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        missing("Playwright is not installed")
    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        except Error as error:
            missing(f"no Chromium could be started ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


@dataclass(frozen=True)
class Served:
    """A running app."""

    address: str
    port: int
    process: subprocess.Popen[bytes]


@contextmanager
def served(folder: Path, *arguments: str, port: int | None = None) -> Iterator[Served]:
    """`python app.py` on this port, or a free one, with its database in `folder`. Checks that it ends in order."""
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    log = folder / "app.log"
    command = [sys.executable, "app.py", "--port", str(port), "--db", str(folder / "chats.sqlite"), *arguments]
    with log.open("w") as output:
        # Less eager than the browser, which is what is looked at: an engine at full speed would starve it on two cores.
        app = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, preexec_fn=_be_nice)
    try:
        deadline = time.monotonic() + 180
        while "Inference Playground: http" not in log.read_text():
            assert app.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        yield Served(f"http://127.0.0.1:{port}/", port, app)
        if app.poll() is not None:  # the test has killed it
            return
        app.terminate()
        assert app.wait(30) == 0, log.read_text()[-2000:]
        assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
    finally:
        if app.poll() is None:
            app.kill()
            app.wait()


def _be_nice() -> None:
    os.nice(5)


class Tab:
    """One browser tab on the page, in words of what a user does and sees."""

    def __init__(self, browser: Any, address: str, width: int = 1440, height: int = 900, theme: str = "light") -> None:
        self._begin(browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme), address, [])

    def beside(self) -> "Tab":
        """Another tab of the same browser: they share its storage and its six connections, and what is amiss."""
        other = Tab.__new__(Tab)
        other._begin(self.context, self.address, self.problems)
        return other

    def _begin(self, context: Any, address: str, problems: list[str]) -> None:
        self.context, self.address, self.problems = context, address, problems
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self._watch(self.page)
        self.open()

    def _watch(self, page: Any) -> None:
        note = self.problems.append
        page.on("pageerror", lambda error: note(f"page error: {error}"))
        page.on("console", lambda said: note(f"console: {said.text}") if said.type in ("error", "warning") else None)
        page.on("request", lambda sent: None if OWN_ADDRESS.match(sent.url) else note(f"foreign request: {sent.url}"))
        page.on("response", lambda got: note(f"status {got.status}: {got.url}") if got.status >= 400 else None)
        page.on("dialog", lambda dialog: (note(f"dialog: {dialog.message}"), dialog.dismiss()))

    def open(self, query: str = "") -> None:
        self.page.goto(self.address + query)
        self.page.locator("#transcript .transcript > *").first.wait_for()
        self.page.locator("#topbar .about .chip").first.wait_for(state="attached")

    def close(self) -> None:
        self.context.close()

    # What a user does

    def set(self, settings: dict[str, str]) -> None:
        self.page.get_by_role("button", name="Sampling", exact=True).click()
        for name, value in settings.items():
            self.page.locator(f"#setting-{name}").fill(value)
        self.page.get_by_role("button", name="Sampling", exact=True).click()

    @property
    def box(self) -> Any:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    def send(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def ask(self, text: str) -> str:
        """Send and wait for the end of the reply; its text."""
        before = self.replies.count()
        self.send(text)
        self.wait("([n]) => document.querySelectorAll('#transcript .message.reply').length > n", [before])
        self.wait_idle()
        return self.reply_text()

    def stop(self) -> None:
        self.page.keyboard.press("Escape")

    # What a user sees

    @property
    def replies(self) -> Any:
        return self.page.locator("#transcript .message.reply")

    @property
    def questions(self) -> Any:
        return self.page.locator("#transcript .bubble")

    @property
    def sessions(self) -> Any:
        return self.page.locator("#sessions .session .title")

    def reply_text(self) -> str:
        return str(self.replies.last.locator(".text").inner_text())

    def live_text(self) -> str:
        return str(self.page.evaluate("document.querySelector('#live .text').textContent"))

    def tile(self, label: str) -> str:
        return str(self.page.locator("#strip .tile", has_text=label).locator("b").inner_text())

    def wait_tile(self, label: str, text: str) -> None:
        """Until the figure is this: figures change at most four times a second."""
        self.wait(
            """([label, text]) => [...document.querySelectorAll('#strip .tile')]
            .some((tile) => tile.innerText.includes(label) && tile.querySelector('b').textContent === text)""",
            [label, text],
        )

    def wait_running(self, requests: int) -> None:
        """Until so many requests run in the engine."""
        self.wait("([n]) => document.querySelector('#view-throughput .batch').textContent === n", [str(requests)])

    def view(self, name: str) -> Any:
        """One of the panel's views."""
        return self.page.locator(f"#view-{name}")

    def wait(self, condition: str, argument: Any = None) -> None:
        self.page.wait_for_function(condition, arg=argument)

    def wait_streaming(self, characters: int = 40) -> None:
        self.wait("([n]) => document.querySelector('#live .text').textContent.length > n", [characters])

    def wait_idle(self) -> None:
        self.page.get_by_role("button", name="Send the message").wait_for()

    def wait_stopped(self) -> None:
        """Until the reply is in the transcript; it must have been stopped."""
        self.replies.last.wait_for()
        assert "Stopped here" in self.replies.last.inner_text()

    def scrolls_sideways(self) -> bool:
        widest = "Math.max(document.documentElement.scrollWidth, document.getElementById('page').scrollWidth)"
        return bool(self.page.evaluate(f"{widest} > innerWidth"))


NewTab = Callable[..., Tab]
"""Opens a tab with the options of `Tab`."""
