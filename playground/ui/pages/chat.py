"""The chat page: sessions, conversation, and the instrument panel that shows what the engine does meanwhile."""

from typing import Any

import gradio as gr

from playground.ui import strip
from playground.ui.chat_routes import chat_routes
from playground.ui.components import surface
from playground.ui.handlers import ChatHandlers
from playground.ui.pages.page import MANY, QUIET, Page, PageContext
from playground.ui.settings import DEFAULTS, PRESETS, SETTINGS
from playground.ui.trash import UNDO_SECONDS
from playground.ui.wording import EMPTY_TITLE, EXAMPLES, PAGE_NAME

VIEWS = ("blocks", "requests", "throughput", "memory", "roofline", "predicted", "gpu")
"""The panel's views from top to bottom: each is one file in `static/live/` that names itself so with `P.view`."""


def build(context: PageContext) -> None:
    do = ChatHandlers(context.host, context.store, context.recorder)
    context.on_close.callback(do.close)
    context.routes.extend(chat_routes(context.store, context.recorder))
    context.on_leave.append(do.leave)
    context.sources.append(do.replies)
    words = {
        "name": PAGE_NAME,
        "empty_title": EMPTY_TITLE,
        "examples": EXAMPLES,
    }
    surface("mountStrip", "strip", config={"tiles": strip.tiles()})
    sessions = surface(
        "mountSessions",
        "sessions",
        events=("open", "new", "rename", "delete", "restore", "search"),
        config={"undo_seconds": UNDO_SECONDS},
        live=True,
    )
    with gr.Column(elem_id="chat"):
        with gr.Column(elem_id="conversation"):
            events = ("retry", "extend", "undo", "edit", "switch")
            transcript = surface("mountTranscript", "transcript", events=events, config=words, live=True)
            reply = surface("mountReply", "live", events=("again",), live=True)
        composer = surface("mountComposer", "composer", events=("send", "stop"), config=_settings())
    surface("mountPanel", "panel", config={"views": VIEWS})

    everything = [transcript, reply, sessions]
    context.demo.load(do.load, None, everything, **QUIET)
    composer.send(do.send, None, everything, **MANY)
    composer.stop(do.stop, None, None, queue=False, **MANY)
    transcript.edit(do.edit, None, everything, **MANY)
    transcript.retry(do.retry, None, everything, **MANY)
    transcript.extend(do.extend, None, everything, **MANY)
    transcript.switch(do.switch, None, [transcript], **MANY)
    transcript.undo(do.undo, None, [transcript, sessions], **MANY)
    reply.again(do.again, None, everything, **MANY)
    sessions.open(do.open, None, everything, **MANY)
    sessions.new(do.new, None, [transcript, reply], **MANY)
    sessions.rename(do.rename, None, [transcript, sessions], **MANY)
    sessions.delete(do.delete, None, everything, **MANY)
    sessions.restore(do.restore, None, everything, **MANY)
    sessions.search(do.search, None, [sessions], **{**MANY, "trigger_mode": "always_last"})


def _settings() -> dict[str, Any]:
    """The composer's sampling settings."""
    fields = [
        {
            "name": setting.name,
            "label": setting.label,
            "tip": setting.tip,
            "step": 1 if setting.whole else 0,
            "placeholder": setting.placeholder,
        }
        for setting in SETTINGS
    ]
    return {"fields": fields, "presets": PRESETS, "defaults": DEFAULTS}


PAGE = Page(
    "chat",
    "Chat",
    build,
    scripts=(
        "chat/markdown.js",
        "chat/tokens.js",
        "chat/transcript.js",
        "chat/reply.js",
        "chat/composer.js",
        "chat/sessions.js",
        "chat/shortcuts.js",
        "live/strip.js",
        "live/panel.js",
        "live/chart.js",
        *(f"live/{view}.js" for view in VIEWS),
    ),
    styles=("chat/chat.css", "chat/tokens.css", "live/live.css"),
)
