"""The page's live surfaces: `gr.HTML` with an empty, constant template, drawn by our own files in `static/`.

Values reach the browser as JSON and are read with `watch('value')`; no text from a model or a user ever passes through
an HTML template, where it would be executed.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

STATIC = Path(__file__).parent / "static"
SHARED_SCRIPTS = (
    "core/core.js",
    "core/format.js",
    "core/theme.js",
    "core/pages.js",
    "core/canvas.js",
    "core/form.js",
    "live/store.js",
    "live/stream.js",
)
"""What every page may use. A page's own files are named by its `Page`."""
SHARED_STYLES = ("core/core.css",)


@cache
def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def page_head(scripts: Iterable[str], styles: Iterable[str]) -> str:
    """Our styles and scripts, inline in the page's head: there before any component is mounted, and nothing is fetched.

    `launch(css=…)` would put every selector below Gradio's container, where the body's classes cannot be seen.
    """
    style = "\n".join(map(_static, dict.fromkeys((*SHARED_STYLES, *styles))))
    code = "\n".join(map(_static, dict.fromkeys((*SHARED_SCRIPTS, *scripts))))
    assert "</s" not in (style + code).lower()  # nothing may end the element early
    return f'<meta name="color-scheme" content="light dark"><style>\n{style}\n</style><script>\n{code}\n</script>'


def surface(
    mount: str, elem_id: str, *, events: tuple[str, ...] = (), config: dict[str, Any] | None = None, live: bool = False
) -> gr.HTML:
    """A component drawn by `Playground.<mount>(element, [props, watch,] [trigger,] [config])`.

    It sends the named `events`; with `live` it is also given the values that handlers return for it, and a way to watch
    them. `config` never changes.
    """
    arguments = ["element"]
    if live:
        arguments += ["props", "watch"]
    if events:
        arguments.append("(name, data) => trigger(name, data)")
    if config is not None:
        arguments.append(json.dumps(config))
    js = f"/* events: {json.dumps(list(events))} */ window.Playground.{mount}({', '.join(arguments)});"
    return gr.HTML(html_template="", js_on_load=js, apply_default_css=False, elem_id=elem_id)
