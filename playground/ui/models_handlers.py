"""What happens when the Models page asks for something. Thin: the work is the host's, the judgement is elsewhere.

How a load goes on reaches every browser tab with the host's own changes, and not from here.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from playground.config import EngineConfig
from playground.errors import PlaygroundError
from playground.ui import calculator, fit, models_view
from playground.ui.config_form import read
from playground.ui.host import EngineHost
from playground.ui.model_list import ModelFolders, known_models
from playground.ui.wording import PAGE_NAME, model_name

logger = logging.getLogger(__name__)

View = dict[str, Any]
FAULT = f"{PAGE_NAME} could not do that because of a fault of its own; its log says more."
_revisions = itertools.count(time.time_ns() // 1_000_000)


class ModelsHandlers:
    """The handlers of one page over one host."""

    def __init__(self, host: EngineHost, folders: ModelFolders) -> None:
        self._host = host
        self._folders = folders

    # The list

    async def refresh(self) -> View:
        return await self._listed()

    async def add(self, event: gr.EventData) -> View:
        typed = _text(event, "folder")
        return await self._listed(await _attempt(lambda: self._folders.add(typed)), typed)

    async def remove(self, event: gr.EventData) -> View:
        folder = _text(event, "folder")
        return await self._listed(await _attempt(lambda: self._folders.remove(folder)), folder)

    async def _listed(self, error: str | None = None, asked: str | None = None) -> View:
        started = _dated({})  # of two readings the one that began later has the newer list

        def make() -> View:
            return models_view.listed(known_models(self._folders.list()), error, asked)

        return started | await asyncio.to_thread(make)

    # Loading

    async def check(self, event: gr.EventData) -> View:
        """What the configuration that was typed would take."""
        values = _values(event)

        def make() -> View:
            try:
                return self._fit(read(values))
            except PlaygroundError as error:
                return models_view.refused(error)
            except Exception:
                logger.exception("the fit check failed")
                return models_view.refused(PlaygroundError(FAULT))

        return _dated(await asyncio.to_thread(make))

    async def load(self, event: gr.EventData) -> View:
        """Begin to load; a refusal is said at once, everything else with the host's changes."""
        values = _values(event)

        def make() -> View:
            try:
                config = read(values)
                self._host.load(config)
            except PlaygroundError as error:
                return models_view.refused(error) | {"blocked": False}
            return {"started": True}

        return _dated(await asyncio.to_thread(make))

    async def cancel(self) -> None:
        if self._host.task is not None:
            self._host.task.cancel()

    async def unload(self) -> View:
        error = await _attempt(self._host.unload)
        return _dated({"error": error, "started": False})

    def _fit(self, config: EngineConfig) -> View:
        serving = self._host.serving
        found = fit.find(config, local_only=True)
        present = None if serving is None else serving.engine
        checked = fit.check(
            found, None if present is None else present.config, None if present is None else present.stats()
        )
        return models_view.fit_view(checked, model_name(config.model or str(found.path)))

    # The calculator

    async def calculate(self, event: gr.EventData) -> View:
        return _dated(calculator.calculate(_values(event)))


async def _attempt(action: Callable[[], Any]) -> str | None:
    """Do it off the event loop; the sentence of what went wrong, or None."""
    try:
        await asyncio.to_thread(action)
    except PlaygroundError as problem:
        return str(problem)
    except Exception:
        logger.exception("a request of the Models page failed")
        return FAULT
    return None


def _dated(view: View) -> View:
    """With a number that grows, so that a late answer never replaces a newer one."""
    return {"rev": next(_revisions), **view}


def _values(event: gr.EventData) -> dict[str, Any]:
    data = event._data
    values = data.get("values") if isinstance(data, dict) else None
    return values if isinstance(values, dict) else {}


def _text(event: gr.EventData, key: str) -> str:
    data = event._data
    return str(data.get(key, "")) if isinstance(data, dict) else ""
