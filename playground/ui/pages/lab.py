"""The Lab page: benchmarks to run, their results, and the theory beside them with sliders."""

import asyncio
import itertools
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from playground.errors import PlaygroundError
from playground.sessions import SessionStore
from playground.sessions.database import MEMORY
from playground.ui.components import surface
from playground.ui.lab import theory
from playground.ui.lab.catalogue import BENCHMARKS, form
from playground.ui.lab.results import ResultFiles
from playground.ui.lab.routes import lab_routes
from playground.ui.lab.runner import LabRunner
from playground.ui.pages.page import MANY, Page, PageContext
from playground.ui.wording import PAGE_NAME

logger = logging.getLogger(__name__)
FAULT = f"{PAGE_NAME} could not do that because of a fault of its own; its log says more."


def build(context: PageContext) -> None:
    results = ResultFiles(_folder(context))
    runner = LabRunner(context.host, results)
    context.on_close.callback(runner.close)
    context.routes.extend(lab_routes(context.host, runner, results))
    do = LabHandlers(runner, results)
    page = surface("mountLab", "lab", events=("run", "stop", "remove"), config=_config(), live=True)
    page.run(do.run, None, [page], **MANY)
    page.stop(do.stop, None, None, queue=False, **MANY)
    page.remove(do.remove, None, [page], **MANY)


class LabHandlers:
    """What the page's events do. An answer says what went wrong, or that nothing did; the rest the page fetches."""

    def __init__(self, runner: LabRunner, results: ResultFiles) -> None:
        self._runner, self._results = runner, results
        self._answers = itertools.count(1)

    async def run(self, event: gr.EventData) -> dict[str, Any]:
        return await self._try(lambda: self._runner.start(event._data))

    async def stop(self) -> None:
        self._runner.stop()

    async def remove(self, event: gr.EventData) -> dict[str, Any]:
        data = event._data if isinstance(event._data, dict) else {}
        return await self._try(lambda: self._results.delete(str(data.get("id", ""))))

    async def _try(self, action: Callable[[], object]) -> dict[str, Any]:
        error = None
        try:
            await asyncio.to_thread(action)
        except PlaygroundError as problem:
            error = str(problem)
        except Exception:
            logger.exception("an event of the Lab page failed")
            error = FAULT
        return {"answer": next(self._answers), "error": error}


def _folder(context: PageContext) -> Path:
    """Beside the database; for one in memory, a folder that goes with the app."""
    store: SessionStore = context.store
    if store.path != MEMORY:
        return Path(store.path).parent / "benchmarks"
    folder = tempfile.TemporaryDirectory(prefix="playground-results-", ignore_cleanup_errors=True)
    context.on_close.callback(folder.cleanup)
    return Path(folder.name)


def _config() -> dict[str, Any]:
    benchmarks = [
        {"name": one.name, "title": one.title, "what": one.what, "takes": one.takes, "form": form(one)}
        for one in BENCHMARKS
    ]
    return {"benchmarks": benchmarks, "models": theory.MODELS, "devices": theory.DEVICES}


THEORY = ("speculation", "kv", "waste", "roofline")
"""The theory's views from top to bottom: each is one file in `static/lab/` that names itself so."""

PAGE = Page(
    "lab",
    "Lab",
    build,
    scripts=(
        "lab/formulas.js",
        "lab/plot.js",
        "lab/controls.js",
        *(f"lab/{view}.js" for view in THEORY),
        "lab/run.js",
        "lab/result.js",
        "lab/lab.js",
    ),
    styles=("lab/lab.css",),
)
