"""`build_ui`: the chat page over an engine and a store, and everything `launch` needs to serve it.

Wires events to handlers; knows nothing of the command line.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch

import kernels
from playground.engine.engine import Engine
from playground.sessions import SessionStore
from playground.telemetry import TelemetryHub
from playground.ui.components import page_head
from playground.ui.handlers import ChatHandlers
from playground.ui.layout import PageFacts, Surfaces, chat_page
from playground.ui.theme import theme
from playground.ui.wording import PAGE_NAME, caption, empty_text, model_name, parameter_count


@dataclass(frozen=True, slots=True)
class Page:
    """The built page. `close` ends what it runs; the engine and the store belong to the caller."""

    demo: gr.Blocks
    handlers: ChatHandlers
    hub: TelemetryHub

    @property
    def launch_options(self) -> dict[str, Any]:
        """For `demo.launch`: our looks, and nothing that would report, record or fetch."""
        return {
            "theme": theme(),
            "head": page_head(),
            "ssr_mode": False,
            "run_history": False,
            "footer_links": [],
            "enable_monitoring": False,
        }

    def close(self) -> None:
        self.handlers.runs.close()
        self.hub.stop()


def build_ui(engine: Engine, store: SessionStore) -> Page:
    hub = TelemetryHub(engine, device=engine.config.device)
    hub.start()
    handlers = ChatHandlers(engine, store, hub)
    with gr.Blocks(title=PAGE_NAME, analytics_enabled=False, fill_width=True) as demo:
        surfaces = chat_page(page_facts(engine), handlers.strip())
        _wire(demo, surfaces, handlers)
    demo.queue(max_size=None)
    return Page(demo, handlers, hub)


def _wire(demo: gr.Blocks, on: Surfaces, do: ChatHandlers) -> None:
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    many: dict[str, Any] = {**quiet, "trigger_mode": "multiple"}  # the handlers themselves refuse a second reply
    everything = [on.transcript, on.live, on.sessions, on.strip]
    demo.load(do.load, None, everything, **quiet)
    demo.unload(do.unload)
    on.composer.send(do.send, None, everything, **many)
    on.composer.stop(do.stop, None, None, queue=False, **many)
    on.transcript.edit(do.edit, None, everything, **many)
    on.transcript.retry(do.retry, None, everything, **many)
    on.transcript.undo(do.undo, None, [on.transcript, on.sessions], **many)
    on.sessions.open(do.open, None, everything, **many)
    on.sessions.new(do.new, None, [on.transcript, on.live], **many)
    on.sessions.rename(do.rename, None, [on.transcript, on.sessions], **many)
    on.sessions.delete(do.delete, None, [on.transcript, on.live, on.sessions], **many)
    on.sessions.search(do.search, None, [on.sessions], **{**many, "trigger_mode": "always_last"})


def page_facts(engine: Engine) -> PageFacts:
    """Model, machine and context as the page words them."""
    config = engine.config
    name = model_name(config.model or "")
    parameters = engine.model_config.num_parameters
    size = parameter_count(parameters)
    device = "CPU" if config.device == "cpu" else torch.cuda.get_device_name(config.device)
    threads = f", {torch.get_num_threads()} threads" if config.device == "cpu" else ""
    choices = kernels.explain(config.device)
    backends = " and ".join(sorted({choice.backend for choice in choices}))
    model_chip = {
        "text": f"{name} · {size} · {config.dtype}",
        "short": name.rpartition("/")[2],
        "tip": f"The model that answers, its parameters and the type of its weights. Loaded from {config.model}.",
    }
    device_chip = {
        "text": f"{device}{threads} · kernels: {backends}",
        "short": "CPU" if config.device == "cpu" else "GPU",
        "tip": f"Where the model runs, and the kernels it runs on: {choices[0].reason}.",
    }
    return PageFacts(
        chips=[model_chip, device_chip],
        caption=caption(name, parameters),
        empty_text=empty_text(name, parameters),
        context=config.max_model_len or 0,
    )
