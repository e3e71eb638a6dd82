"""What a page is, and what it is given to be built from."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import gradio as gr
from starlette.routing import BaseRoute

from playground.sessions import SessionStore
from playground.sessions.recorder import RunRecorder
from playground.ui.host import EngineHost
from playground.ui.live_route import Source

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
"""For every event of ours: no spinner over the component, not in the public API, no queue of its own."""
MANY: dict[str, Any] = {**QUIET, "trigger_mode": "multiple"}
"""For events that may come while one of their kind is being handled: the handler itself judges."""


@dataclass(frozen=True, slots=True)
class PageContext:
    """All that pages work with. It outlives none of them: what a page starts, it ends through `on_close`."""

    demo: gr.Blocks
    host: EngineHost
    """The engine of the moment, with what watches it."""
    store: SessionStore
    recorder: RunRecorder
    """Stores every run of the host's engines."""
    routes: list[BaseRoute]
    """What pages answer over HTTP beside Gradio: they add theirs while they are built."""
    on_close: ExitStack
    """Callbacks for when the app ends, last one first."""
    on_leave: list[Callable[[str], None]]
    """Called with a page's own name (`Playground.page`) when its tab is closed or reloaded.

    In place of `demo.unload`, for which Gradio keeps a connection a tab open: a browser has six for all tabs together.
    """
    sources: list[Source]
    """What pages add to the one stream that every browser reads."""


@dataclass(frozen=True, slots=True)
class Page:
    """One entry of the top bar."""

    name: str
    """In the address and in element ids: lower case, one word."""
    title: str
    """In the top bar."""
    build: Callable[[PageContext], None]
    """Makes the page's components inside the current column, and wires them."""
    scripts: tuple[str, ...] = ()
    """Files in `static/`, after the shared ones, in the order in which they are to be run."""
    styles: tuple[str, ...] = ()
