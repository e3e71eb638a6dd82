"""`build_ui`: the app's pages over an engine host and a store, and everything `launch` needs to serve them.

Knows nothing of the command line, and nothing of what is on a page.
"""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import gradio as gr
from starlette.routing import BaseRoute

from playground.server import operations_routes
from playground.sessions import SessionStore
from playground.sessions.recorder import RunRecorder
from playground.sessions.run_store import RunStore
from playground.ui.components import page_head, surface
from playground.ui.environment import describe
from playground.ui.host import EngineHost, Serving
from playground.ui.live_route import live_routes
from playground.ui.machine_rates import MachineRatesFollower
from playground.ui.pages import PAGES, PageContext
from playground.ui.space import answer_once, for_gpu, on_zero_gpu
from playground.ui.theme import theme
from playground.ui.wording import PAGE_NAME, model_name


@dataclass(frozen=True, slots=True)
class App:
    """The built app. `close` ends what it runs; the host and the store belong to the caller."""

    demo: gr.Blocks
    host: EngineHost
    on_close: ExitStack
    routes: list[BaseRoute]
    """What is served beside the pages."""

    @property
    def launch_options(self) -> dict[str, Any]:
        """For `demo.launch`: our looks and routes, and nothing that would report, record or fetch."""
        scripts = [name for page in PAGES for name in page.scripts]
        styles = [name for page in PAGES for name in page.styles]
        return {
            "theme": theme(),
            "head": page_head(scripts, styles),
            "app_kwargs": {"routes": self.routes},
            "ssr_mode": False,
            "run_history": False,
            "footer_links": [],
            "enable_monitoring": False,
            "state_session_capacity": MOST_SESSIONS,
        }

    def close(self) -> None:
        self.on_close.close()


GRADIO_STATISTICS = {"GRADIO_ANALYTICS_MAX_EVENTS": "100", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9)}
"""After every event Gradio's queue makes a table of its last 10,000, for a page of its own that we do not serve."""

MOST_SESSIONS = 100
"""Gradio keeps some 70 KB for each page that was ever opened, which we do not use: the latest of them, not 10,000."""


def build_ui(host: EngineHost, store: SessionStore) -> App:
    for name, value in GRADIO_STATISTICS.items():
        os.environ.setdefault(name, value)
    on_close = ExitStack()
    operations, stop_counting = operations_routes(host)
    on_close.callback(stop_counting)
    on_close.callback(MachineRatesFollower(host).close)
    with gr.Blocks(title=PAGE_NAME, analytics_enabled=False, fill_width=True) as demo:
        recorder = _recorder(host, store, on_close)
        context = PageContext(demo, host, store, recorder, [], on_close, on_leave=[], sources=[])
        names = [{"name": page.name, "title": page.title} for page in PAGES]
        with gr.Column(elem_id="page"):
            # A lent GPU is spent by nobody who only looks: what opens there is what was recorded.
            home = "requests" if on_zero_gpu() else PAGES[0].name
            surface("mountTopbar", "topbar", config={"name": PAGE_NAME, "pages": names, "home": home})
            for page in PAGES:
                with gr.Column(elem_id=f"page-{page.name}", elem_classes="page"):
                    page.build(context)
        if on_zero_gpu():
            gr.api(for_gpu(answer_once), api_name="answer_once")
    # After the pages' own: what their replies became is told before the engine's recording ends.
    on_close.callback(host.follow(leaves=lambda serving: context.recorder.leave(serving.engine)))
    demo.queue(max_size=None)
    live, end_streams = live_routes(host, context.on_leave, context.sources)
    on_close.callback(end_streams)
    return App(demo, host, on_close, [*live, *operations, *context.routes])


def _recorder(host: EngineHost, store: SessionStore, on_close: ExitStack) -> RunRecorder:
    """Records every engine of the host, from before its first request."""
    recorder = RunRecorder(RunStore(store), describe, model_name, host.feed.rates_of)

    def arrives(serving: Serving) -> None:
        recorder.watch(serving.engine, serving.hub)

    on_close.callback(recorder.close)
    on_close.callback(host.follow(arrives))
    return recorder
