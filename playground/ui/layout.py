"""Where everything stands on the chat page. Makes components, wires nothing."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from playground.ui import views
from playground.ui.components import surface
from playground.ui.settings import DEFAULTS, PRESETS, SETTINGS
from playground.ui.wording import EMPTY_TITLE, EXAMPLES, PAGE_NAME

PAGES = ("Chat",)


@dataclass(frozen=True, slots=True)
class PageFacts:
    """What the page says about the engine it shows; fixed for the life of the process."""

    chips: list[dict[str, str]]
    caption: str
    empty_text: list[str]
    context: int


@dataclass(frozen=True, slots=True)
class Surfaces:
    """The components that events write to or come from."""

    strip: gr.HTML
    sessions: gr.HTML
    transcript: gr.HTML
    live: gr.HTML
    composer: gr.HTML


def chat_page(facts: PageFacts, strip_value: dict[str, Any]) -> Surfaces:
    """Build the page inside the current `gr.Blocks`."""
    settings = {
        "fields": [
            {
                "name": setting.name,
                "label": setting.label,
                "tip": setting.tip,
                "step": 1 if setting.whole else 0,
                "placeholder": setting.placeholder,
            }
            for setting in SETTINGS
        ],
        "presets": PRESETS,
        "defaults": DEFAULTS,
        "context": facts.context,
        "caption": facts.caption,
    }
    words = {"name": PAGE_NAME, "empty_title": EMPTY_TITLE, "empty_text": facts.empty_text, "examples": EXAMPLES}
    with gr.Column(elem_id="page"):
        surface("mountTopbar", "topbar", config={"name": PAGE_NAME, "pages": PAGES, "chips": facts.chips})
        strip = surface("mountStrip", "strip", config={"tiles": views.strip_tiles()}, value=strip_value)
        sessions = surface("mountSessions", "sessions", events=("open", "new", "rename", "delete", "search"))
        with gr.Column(elem_id="chat"):
            with gr.Column(elem_id="conversation"):
                transcript = surface("mountTranscript", "transcript", events=("retry", "undo", "edit"), config=words)
                live = surface("mountLive", "live")
            composer = surface("mountComposer", "composer", events=("send", "stop"), config=settings)
    return Surfaces(strip, sessions, transcript, live, composer)
