"""What happens when the compare page asks for something. Handlers keep nothing: fields come with every event, and the
truth is the run or the store. How a comparison goes on reaches the browser through its live stream.
"""

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gradio as gr

from playground.errors import PlaygroundError
from playground.sessions import SessionStore
from playground.ui.comparing import markdown, setup, view
from playground.ui.comparing.runs import ComparisonRun, ComparisonRuns
from playground.ui.comparing.stream import ComparisonStream
from playground.ui.host import EngineHost

logger = logging.getLogger(__name__)

SAVED_SHOWN = 50
FAULT = "The playground could not do that because of a fault of its own; its log says more. Try again."
LOST = "The playground was started anew while this comparison ran: it is lost. Run it again."

View = dict[str, Any]
_revisions = itertools.count(time.time_ns() // 1_000_000)


class CompareHandlers:
    """The handlers of the compare page over the engine of the moment and one store."""

    def __init__(self, host: EngineHost, store: SessionStore) -> None:
        self._host, self._store = host, store
        self.runs = ComparisonRuns(host, store)
        self.stream = ComparisonStream(self.runs, self._running)

    async def load(self) -> View:
        """The page was opened: the comparison that runs, or the empty page."""
        run = self.runs.current
        return await self._view() if run is None else self._running(run)

    async def run(self, event: gr.EventData) -> View:
        return await self._start(lambda: dict(event._data))

    async def preset(self, event: gr.EventData) -> View:
        """One click: its fields are filled in and it runs."""
        key, blind = str(event._data.get("key", "")), bool(event._data.get("blind"))
        return await self._start(lambda: setup.of_preset(key, blind=blind))

    async def ended(self, event: gr.EventData) -> View:
        """The comparison that a tab shows has ended, or may have."""
        run = self.runs.latest
        if run is None or run.number != event._data.get("number"):  # the playground was started anew
            return await self._view(problem=LOST)
        return await self._now(run)

    async def stop(self) -> None:
        run = self.runs.current
        if run is not None:
            run.stop()

    async def own(self) -> View:
        """The fields for a comparison of one's own, from the present configuration."""
        serving = self._host.serving
        return await self._view(fields=setup.own(None if serving is None else serving.config))

    async def overview(self) -> View:
        return await self._view()

    async def open(self, event: gr.EventData) -> View:
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

    async def _start(self, fields: Callable[[], View]) -> View:
        given: View | None = None
        try:
            given = fields()
            plan = setup.read(given)
            run = await asyncio.to_thread(self.runs.start, plan, given)
        except setup.SetupError as problem:
            where = {"text": str(problem), "side": problem.side, "field": problem.field}
            return await self._view(fields=given, problem=where)
        except PlaygroundError as problem:
            return await self._view(fields=given, problem=str(problem))
        return await self._now(run)

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

    async def _now(self, run: ComparisonRun) -> View:
        return await self._view(run, problem=run.problem) if run.ended else self._running(run)

    def _running(self, run: ComparisonRun) -> View:
        """What there is of a comparison that runs; how it goes on comes with the live stream."""
        text, done = run.progress()
        return self._shown(run.setup, run.result, f"run {run.number}") | {
            "following": run.number,
            "running": {"text": text, "done": done},
        }

    async def _view(
        self,
        run: ComparisonRun | None = None,
        *,
        fields: View | None = None,
        result: View | None = None,
        problem: View | str | None = None,
    ) -> View:
        """`fields` replace what the page's fields hold, once for every `fields_key`; None leaves them."""
        view = self._shown(fields, result) if run is None else self._shown(run.setup, run.result, f"run {run.number}")
        if isinstance(problem, str):
            problem = {"text": problem, "side": None, "field": None}
        return view | {"problem": problem, "saved": await self._list()}

    def _shown(self, fields: View | None, result: View | None, fields_key: str | None = None) -> View:
        revision = next(_revisions)
        return {
            "rev": revision,
            "fields_key": fields_key or f"revision {revision}",
            "fields": fields,
            "following": None,
            "running": None,
            "result": result,
            "problem": None,
            "saved": [],
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


def _id(event: gr.EventData) -> int:
    value = event._data.get("id") if isinstance(event._data, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
