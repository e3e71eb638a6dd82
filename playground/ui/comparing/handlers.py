"""What happens when the compare page asks for something. Handlers keep nothing but which comparison a tab shows: fields
come with every event, and the truth is the run or the store.
"""

import asyncio
import itertools
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import gradio as gr

from playground.errors import PlaygroundError
from playground.sessions import SessionStore
from playground.ui.comparing import markdown, setup, view
from playground.ui.comparing.runs import ComparisonRun, ComparisonRuns
from playground.ui.host import EngineHost

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.15
SAVED_SHOWN = 50
FAULT = "The playground could not do that because of a fault of its own; its log says more. Try again."

View = dict[str, Any]
Frames = AsyncGenerator[View, None]
_revisions = itertools.count(time.time_ns() // 1_000_000)


class CompareHandlers:
    """The handlers of the compare page over the engine of the moment and one store."""

    def __init__(self, host: EngineHost, store: SessionStore) -> None:
        self._host, self._store = host, store
        self.runs = ComparisonRuns(host, store)
        self._shown: dict[str, object] = {}
        """A mark for what each tab shows, to end a stream whose tab has moved on."""

    async def load(self, request: gr.Request) -> Frames:
        """The page was opened: the comparison that runs, or the empty page."""
        run = self.runs.current
        if run is None:
            yield await self._view()
            return
        async with aclosing(self._watch(run, _tab(request))) as frames:
            async for frame in frames:
                yield frame

    async def run(self, event: gr.EventData, request: gr.Request) -> Frames:
        async with aclosing(self._start(lambda: dict(event._data), _tab(request))) as frames:
            async for frame in frames:
                yield frame

    async def preset(self, event: gr.EventData, request: gr.Request) -> Frames:
        """One click: its fields are filled in and it runs."""
        key, blind = str(event._data.get("key", "")), bool(event._data.get("blind"))
        async with aclosing(self._start(lambda: setup.of_preset(key, blind=blind), _tab(request))) as frames:
            async for frame in frames:
                yield frame

    async def stop(self) -> None:
        run = self.runs.current
        if run is not None:
            run.stop()

    async def own(self, request: gr.Request) -> View:
        """The fields for a comparison of one's own, from the present configuration."""
        self._shown.pop(_tab(request), None)
        serving = self._host.serving
        return await self._view(fields=setup.own(None if serving is None else serving.config))

    async def overview(self, request: gr.Request) -> View:
        self._shown.pop(_tab(request), None)
        return await self._view()

    async def open(self, event: gr.EventData, request: gr.Request) -> View:
        self._shown.pop(_tab(request), None)
        return await self._saved(_id(event))

    async def vote(self, event: gr.EventData) -> View:
        choice, comparison_id = str(event._data.get("choice", "")), _id(event)
        try:
            _, data = await asyncio.to_thread(self._store.get_comparison, comparison_id)
            allowed = ["tie", "bad", *map(str, range(len(data["record"]["sides"])))]
            if choice in allowed:
                await asyncio.to_thread(self._store.vote_on_comparison, comparison_id, choice)
        except PlaygroundError as problem:
            return await self._view(problem=str(problem))
        return await self._saved(comparison_id)

    async def remove(self, event: gr.EventData) -> View:
        try:
            await asyncio.to_thread(self._store.delete_comparison, _id(event))
        except PlaygroundError as problem:
            return await self._view(problem=str(problem))
        return await self._view()

    async def export(self, event: gr.EventData) -> View:
        """A file for the browser to keep; nothing else on the page changes."""
        comparison_id, kind = _id(event), str(event._data.get("kind", ""))
        try:
            info, data = await asyncio.to_thread(self._store.get_comparison, comparison_id)
        except PlaygroundError as problem:
            return {"rev": next(_revisions), "download": None, "problem": {"text": str(problem)}}
        name = f"comparison-{comparison_id}"
        if kind == "markdown":
            text = markdown.render(data["record"], data["setup"])
            file = {"name": f"{name}.md", "type": "text/markdown", "text": text}
        else:
            text = json.dumps({"comparison": asdict(info), **data}, indent=1, ensure_ascii=False)
            file = {"name": f"{name}.json", "type": "application/json", "text": text}
        return {"rev": next(_revisions), "download": file, "problem": None}

    # Streaming

    async def _start(self, fields: Callable[[], View], tab: str) -> Frames:
        given: View | None = None
        try:
            given = fields()
            plan = setup.read(given)
            run = await asyncio.to_thread(self.runs.start, plan, given)
        except setup.SetupError as problem:
            where = {"text": str(problem), "side": problem.side, "field": problem.field}
            yield await self._view(fields=given, problem=where)
            return
        except PlaygroundError as problem:
            yield await self._view(fields=given, problem=str(problem))
            return
        async with aclosing(self._watch(run, tab)) as frames:
            async for frame in frames:
                yield frame

    async def _watch(self, run: ComparisonRun, tab: str) -> Frames:
        """Frames of a run, whenever there is something new, until it is stored or the tab shows something else."""
        mark = self._shown[tab] = object()
        told = -1
        while not run.ended:
            if self._shown.get(tab) is not mark:
                return
            if run.revision != told:
                told = run.revision
                yield await self._view(run)
            await asyncio.sleep(LOOK_SECONDS)
        if self._shown.get(tab) is mark:
            yield await self._view(run, problem=run.problem)

    # Views

    async def _saved(self, comparison_id: int) -> View:
        try:
            info, data = await asyncio.to_thread(self._store.get_comparison, comparison_id)
            shown = await asyncio.to_thread(view.result, data["record"], data["setup"], info.id, info.vote)
        except PlaygroundError as problem:
            return await self._view(problem=str(problem))
        except Exception:
            logger.exception("a saved comparison could not be shown")
            return await self._view(problem=FAULT)
        return await self._view(fields=data["setup"], result=shown)

    async def _view(
        self,
        run: ComparisonRun | None = None,
        *,
        fields: View | None = None,
        result: View | None = None,
        problem: View | str | None = None,
    ) -> View:
        """`fields` replace what the page's fields hold, once for every `fields_key`; None leaves them."""
        revision = next(_revisions)
        fields_key = f"revision {revision}"
        if run is not None:
            fields, result, fields_key = run.setup, run.result, f"run {id(run)}"
        doing, done = (None, 0.0) if run is None or run.ended else run.progress()
        if isinstance(problem, str):
            problem = {"text": problem, "side": None, "field": None}
        return {
            "rev": revision,
            "fields_key": fields_key,
            "fields": fields,
            "running": None if doing is None else {"text": doing, "done": done},
            "result": result,
            "problem": problem,
            "saved": [] if doing is not None else await self._list(),
        }

    async def _list(self) -> list[View]:
        try:
            saved = await asyncio.to_thread(self._store.list_comparisons, SAVED_SHOWN)
        except PlaygroundError:
            logger.warning("the list of comparisons could not be read", exc_info=True)
            return []
        return [
            {"id": one.id, "title": one.title, "created": one.created_ms, "voted": one.vote is not None}
            for one in saved
        ]


def _tab(request: gr.Request) -> str:
    return str(request.session_hash)


def _id(event: gr.EventData) -> int:
    value = event._data.get("id") if isinstance(event._data, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
