"""The page's live surfaces: `gr.HTML` with an empty, constant template, drawn by our own files in `static/`.

Values reach the browser as JSON and are read with `watch('value')`; no text from a model or a user ever passes through
an HTML template, where it would be executed.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("core.js", "markdown.js", "transcript.js", "live.js", "composer.js", "sessions.js", "strip.js")


@cache
def page_head() -> str:
    """Our styles and scripts, inline in the page's head: there before any component is mounted, and nothing is fetched.

    `launch(css=…)` would put every selector below Gradio's container, where the body's classes cannot be seen.
    """
    style = (STATIC / "app.css").read_text(encoding="utf-8")
    code = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    assert "</s" not in (style + code).lower()  # nothing may end the element early
    return f'<meta name="color-scheme" content="light dark"><style>\n{style}\n</style><script>\n{code}\n</script>'


def surface(
    mount: str, elem_id: str, *, events: tuple[str, ...] = (), config: dict[str, Any] | None = None, value: Any = None
) -> gr.HTML:
    """A component drawn by `Playground.<mount>`. It sends the named `events`; `config` never changes."""
    arguments = ["element"]
    if value is not None or mount != "mountTopbar":
        arguments += ["props", "watch"]
    if events:
        arguments.append("(name, data) => trigger(name, data)")
    if config is not None:
        arguments.append(json.dumps(config))
    js = f"/* events: {json.dumps(list(events))} */ window.Playground.{mount}({', '.join(arguments)});"
    return gr.HTML(value=value, html_template="", js_on_load=js, apply_default_css=False, elem_id=elem_id)
