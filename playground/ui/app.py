"""`build_ui`: the app's pages over an engine and a store, and everything `launch` needs to serve them.

Knows nothing of the command line, and nothing of what is on a page.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import gradio as gr

from playground.engine.engine import Engine
from playground.sessions import SessionStore
from playground.telemetry import FrameFeed, TelemetryHub
from playground.ui.components import page_head, surface
from playground.ui.live_route import live_routes
from playground.ui.pages import PAGES, PageContext
from playground.ui.theme import theme
from playground.ui.topbar import chips
from playground.ui.wording import PAGE_NAME


@dataclass(frozen=True, slots=True)
class App:
    """The built app. `close` ends what it runs; the engine and the store belong to the caller."""

    demo: gr.Blocks
    hub: TelemetryHub
    feed: FrameFeed
    on_close: ExitStack
    on_leave: list[Callable[[str], None]]

    @property
    def launch_options(self) -> dict[str, Any]:
        """For `demo.launch`: our looks and routes, and nothing that would report, record or fetch."""
        scripts = [name for page in PAGES for name in page.scripts]
        styles = [name for page in PAGES for name in page.styles]
        return {
            "theme": theme(),
            "head": page_head(scripts, styles),
            "app_kwargs": {"routes": live_routes(self.feed, self.on_leave)},
            "ssr_mode": False,
            "run_history": False,
            "footer_links": [],
            "enable_monitoring": False,
        }

    def close(self) -> None:
        self.on_close.close()


def build_ui(engine: Engine, store: SessionStore) -> App:
    on_close = ExitStack()
    hub = on_close.enter_context(TelemetryHub(engine, device=engine.config.device))
    feed = FrameFeed(engine, hub)
    on_close.callback(feed.close)
    with gr.Blocks(title=PAGE_NAME, analytics_enabled=False, fill_width=True) as demo:
        context = PageContext(demo, engine, store, hub, feed, on_close, on_leave=[])
        names = [{"name": page.name, "title": page.title} for page in PAGES]
        with gr.Column(elem_id="page"):
            surface("mountTopbar", "topbar", config={"name": PAGE_NAME, "pages": names, "chips": chips(engine)})
            for page in PAGES:
                with gr.Column(elem_id=f"page-{page.name}", elem_classes="page"):
                    page.build(context)
    demo.queue(max_size=None)
    return App(demo, hub, feed, on_close, context.on_leave)
