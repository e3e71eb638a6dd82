"""Takes the README's pictures anew: `python -m tests.ui.pictures`. All are the real page during or after a real run.

With names of pictures only those are taken.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ui.browser import ROOT, Tab, chromium, served

FOLDER = ROOT / "assets" / "screenshots"
STORY = "Tell me a story about a fox who could not sleep."
OTHERS = ("Tell me a story about a girl and a little boat.", "Tell me a story about an owl who was afraid of the dark.")
SYSTEM = (
    "You are a friendly storyteller. You speak in short sentences. In your stories animals talk, and all ends well."
)
LONG = {"max_tokens": "400", "temperature": "0.8"}


class Camera:
    """Keeps pictures, small, in the README's folder."""

    def __init__(self, wanted: set[str]) -> None:
        self._wanted = wanted

    def wants(self, *names: str) -> bool:
        return not self._wanted or bool(self._wanted.intersection(names))

    def take(self, tab: Tab, **names: list[Any] | None) -> None:
        """One moment of a page, from which each named picture is cut: the whole, or the rectangle around elements."""
        names = {name.replace("_", "-"): parts for name, parts in names.items() if self.wants(name.replace("_", "-"))}
        boxes = {name: parts and [part.bounding_box() for part in parts] for name, parts in names.items()}
        data = tab.page.screenshot() if names else b""
        for name, around in boxes.items():
            self._keep(name, data, around)

    def _keep(self, name: str, data: bytes, around: list[dict[str, float]] | None) -> None:
        from PIL import Image

        image = Image.open(io.BytesIO(data)).convert("RGB")
        if around:
            left, top = min(box["x"] for box in around) - 12, min(box["y"] for box in around) - 2
            right = max(box["x"] + box["width"] for box in around) + 12
            bottom = max(box["y"] + box["height"] for box in around) + 10
            image = image.crop((int(left), int(top), min(image.width, int(right)), min(image.height, int(bottom))))
        path = FOLDER / f"{name}.png"
        usual = sorted(image.getcolors(image.width * image.height), reverse=True)[:256]
        palette = Image.new("P", (1, 1))
        palette.putpalette([part for _, color in usual for part in color])
        image.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1024:.0f} KiB")


def in_system(tab: Tab) -> None:
    """Give the chat the system prompt that all of them share, so that they share its blocks."""
    tab.page.get_by_role("button", name="System prompt").click()
    tab.page.locator("#setting-system").fill(SYSTEM)
    tab.page.get_by_role("button", name="System prompt").click()


def chat(camera: Camera, new_tab: Callable[..., Tab]) -> None:
    """The chat page while three requests run, and its instruments one by one."""
    tabs = [new_tab() for _ in range(3)]
    for tab in tabs:
        in_system(tab)
        tab.set(LONG)
    tabs[0].ask("Hello!")  # what the three prompts share is in the cache, and what was slow once is over
    tabs[0].page.get_by_role("button", name="New chat").click()
    in_system(tabs[0])
    tabs[0].page.keyboard.press("Alt+2")
    for tab, text in zip(tabs[1:], OTHERS, strict=True):
        tab.send(text)
    tabs[0].send(STORY)
    tab = tabs[0]
    tab.wait("() => document.querySelectorAll('#live .t').length > 60")
    camera.take(tab, chat=None, blocks=[tab.view("blocks")], requests_over_time=[tab.view("requests")])
    tab.page.locator("#instruments").evaluate("(node) => { node.scrollTop = 1e6; }")
    tab.page.wait_for_timeout(600)
    camera.take(
        tab,
        throughput_and_memory=[tab.view("throughput"), tab.view("memory")],
        roofline=[tab.view("roofline"), tab.view("predicted")],
    )
    tab.wait_idle()


def tokens(camera: Camera, new_tab: Callable[..., Tab]) -> None:
    """One reply, seen by where its tokens came from, by confidence and by timing."""
    tab = new_tab()
    tab.set({"max_tokens": "90", "temperature": "0.9", "seed": "7"})
    tab.page.keyboard.press("Alt+3")
    tab.ask(STORY)
    tab.page.mouse.move(300, 700)
    for key, name in (("2", "speculation"), ("3", "confidence"), ("4", "timing")):
        tab.page.keyboard.press(f"Alt+{key}")
        if name == "confidence":
            tab.replies.last.locator(".t.unsure").first.hover()
        tab.page.wait_for_timeout(400)
        camera.take(tab, **{f"tokens_{name}": [tab.replies.last]})
        tab.page.mouse.move(300, 700)
    tab.page.keyboard.press("Alt+1")


def replay(camera: Camera, new_tab: Callable[..., Tab]) -> None:
    """A guided tour in its middle."""
    tab = new_tab()
    tab.page.goto(f"{tab.address}#requests/tour/copy-on-write-fork")
    tab.page.locator("#runs .captions li").nth(2).get_by_role("button").click()
    tab.page.wait_for_timeout(800)
    camera.take(tab, replay=None)


def compare(camera: Camera, new_tab: Callable[..., Tab]) -> None:
    """Speculation against its baseline."""
    tab = new_tab()
    tab.page.goto(f"{tab.address}#compare")
    tab.page.locator(".compare .card", has_text="Draft model, K = 4").first.click()
    tab.page.locator(".compare").get_by_role("button", name="Run again", exact=True).wait_for(timeout=300_000)
    tab.page.wait_for_timeout(800)
    camera.take(tab, compare=None)


def still(name: str) -> Callable[[Camera, Callable[..., Tab]], None]:
    """A page as it is when it is opened."""

    def scene(camera: Camera, new_tab: Callable[..., Tab]) -> None:
        tab = new_tab()
        tab.page.goto(f"{tab.address}#{name}")
        tab.page.wait_for_timeout(2500)
        camera.take(tab, **{name: None})

    return scene


SCENES: dict[tuple[str, ...], Callable[[Camera, Callable[..., Tab]], None]] = {
    ("chat", "blocks", "requests-over-time", "throughput-and-memory", "roofline"): chat,
    ("tokens-speculation", "tokens-confidence", "tokens-timing"): tokens,
    ("replay",): replay,
    ("compare",): compare,
    ("requests",): still("requests"),
    ("lab",): still("lab"),
    ("models",): still("models"),
}


def main() -> None:
    camera = Camera(set(sys.argv[1:]))
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        chromium() as browser,
        served(Path(folder), "--speculation", "draft", "--draft-tokens", "4") as app,
    ):
        rested = Tab(browser, app.address)  # the ceilings are measured once somebody looks and the engine rests
        rested.wait("() => Playground.live.facts.ceilings")
        rested.close()
        for names, scene in SCENES.items():
            if not camera.wants(*names):
                continue
            tabs: list[Tab] = []

            def new_tab(tabs: list[Tab] = tabs, **options: Any) -> Tab:
                tabs.append(Tab(browser, app.address, **options))
                return tabs[-1]

            scene(camera, new_tab)
            for tab in tabs:
                assert tab.problems == [], tab.problems
                tab.close()


if __name__ == "__main__":
    main()
