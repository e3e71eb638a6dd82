"""`LiveRuns`: "Run live" on ZeroGPU. One call on the lent GPU, streamed, whose recorded run then opens as a replay.

The call itself (`space.answer_once`) may happen in a fork that leaves nothing behind; what it tells is stored here, in
the process that serves the page.
"""

import base64
import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from playground.errors import PlaygroundError
from playground.sessions.run_file import unpack
from playground.sessions.run_store import RunStore
from playground.ui.space import answer_once, for_gpu

logger = logging.getLogger(__name__)

MAX_TOKENS = 128
TEMPERATURE = 0.7
SEEDS = 2**31
FAULT = "The run failed because of a fault in the playground; its log says more."

View = dict[str, Any]
_revisions = itertools.count(time.time_ns() // 1_000_000)


class LiveRuns:
    """The handler of the page's "Run live": a sync generator, as ZeroGPU streams no other."""

    def __init__(self, runs: RunStore, answer: Callable[..., Iterator[Any]] = answer_once) -> None:
        self._runs = runs
        self._answer = for_gpu(answer)

    def run(self, event: gr.EventData) -> Iterator[View]:
        """What there is of the reply, then the id of the stored run, or why there is none."""
        message = str(event._data.get("message", "")).strip()
        if not message:
            yield _view(error="The message is empty: write something first.")
            return
        text, figures = "", {"phase": "loading"}
        try:
            for text, figures in self._answer(message, MAX_TOKENS, TEMPERATURE, random.randrange(SEEDS)):
                if figures["phase"] != "ended":
                    yield _view(text, **figures)
            yield self._ended(text, figures)
        except PlaygroundError as problem:
            yield _view(text, error=str(problem))
        except gr.Error:  # of ZeroGPU: no quota left, no GPU free; Gradio says it
            yield _view(text)
            raise
        except Exception:
            logger.exception("a live run failed")
            yield _view(text, error=FAULT)

    def _ended(self, text: str, figures: dict[str, Any]) -> View:
        if "error" in figures:
            return _view(text, error=figures["error"])
        if figures["run"] is None:
            return _view(text, error="The reply is whole, but its run could not be recorded.")
        run, _ = unpack(base64.b64decode(figures["run"]))
        return _view(text, tokens=figures["tokens"], device=figures["device"], run=self._runs.add(run))


def _view(text: str = "", **more: Any) -> View:
    return {"rev": next(_revisions), "text": text, "phase": "ended", "run": None, "error": None, **more}
