"""Takes the README's pictures anew, from real runs of the bundled model: `python -m tests.ui.take_pictures [NAME …]`.

On a machine with nothing else to do, as their figures are of it. Needs Chromium; takes some two minutes.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ui.browser import ROOT, Tab, chromium, served

ASSETS = ROOT / "assets"
STORIES = ("Tell me a story about a fox who could not sleep.", "Tell me a story about a girl and a little boat.")
PANEL_HEIGHT = 1560
"""Of a window in which the whole instrument panel is seen."""


class Studio:
    """One app and one browser; every picture has a tab of its own."""

    def __init__(self, browser: Any, address: str) -> None:
        self._browser, self._address = browser, address

    def tab(self, theme: str = "light", height: int = 900) -> Tab:
        return Tab(self._browser, self._address, height=height, theme=theme)

    def show(self, tab: Tab, path: str, seen: str) -> None:
        """Go to a page of the app, until an element of it is there."""
        tab.page.evaluate("path => { location.hash = path; }", path)
        tab.page.locator(seen).first.wait_for()
        tab.page.wait_for_timeout(1500)


def chat(studio: Studio) -> Any:
    tab = studio.tab()
    tab.ask(STORIES[1])
    tab.send(STORIES[0])
    tab.wait_streaming(400)
    return tab


def chat_by_origin(studio: Studio) -> Any:
    tab = studio.tab("dark")
    tab.page.get_by_role("radio", name="Speculation").or_(
        tab.page.get_by_role("button", name="Speculation")
    ).first.click()
    tab.send(STORIES[0])
    tab.wait_streaming(400)
    return tab


def panel(studio: Studio) -> Any:
    """Three chats at once, and everything that is seen of the engine meanwhile."""
    tabs = [studio.tab(height=PANEL_HEIGHT) for _ in range(3)]
    for tab in tabs:
        tab.set({"max_tokens": "400", "temperature": "1"})
        tab.send(STORIES[0])
    tabs[0].wait_streaming(500)
    tabs[0].page.wait_for_timeout(1500)
    return tabs[0].page.locator("#panel")


def compare(studio: Studio) -> Any:
    tab = studio.tab()
    studio.show(tab, "compare", ".compare .card")
    tab.page.locator(".compare .card", has_text="Sampled: rejection / coupled").click()
    tab.page.get_by_role("button", name="Run again").wait_for(timeout=300_000)
    tab.page.mouse.move(0, 0)
    tab.page.wait_for_timeout(500)
    return tab


def requests(studio: Studio) -> Any:
    tab = studio.tab()
    studio.show(tab, "requests/tour/running-out-of-blocks", "#runs .captions li")
    tab.page.locator("#runs .captions li", has_text="preempted").get_by_role("button").click()
    tab.page.wait_for_timeout(800)
    return tab


def lab(studio: Studio) -> Any:
    tab = studio.tab()
    studio.show(tab, "lab/speculation", ".lab .plot .scatterlayer .trace")
    return tab


def models(studio: Studio) -> Any:
    tab = studio.tab("dark")
    studio.show(tab, "models", "#models .card table")
    return tab


PICTURES: dict[str, Callable[[Studio], Any]] = {
    "light": chat,
    "dark": chat_by_origin,
    "panel": panel,
    "compare": compare,
    "requests": requests,
    "lab": lab,
    "models": models,
}


def main(names: list[str]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        chromium() as browser,
        served(Path(folder), "--speculation", "draft") as app,
    ):
        studio = Studio(browser, app.address)
        for name in names or list(PICTURES):
            place = PICTURES[name](studio)
            (place.page if isinstance(place, Tab) else place).screenshot(path=ASSETS / f"screenshot-{name}.png")
            for context in browser.contexts:
                context.close()


if __name__ == "__main__":
    main(sys.argv[1:])
