"""`RunCapture`: records the requests of one engine that is run by hand, from its making to `end`.

What the app's own recorder does for the engine that serves, for one that is there for a moment: a comparison's, or the
one of a single call on a GPU that is lent.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from playground.config import EngineConfig
from playground.engine.engine import Engine
from playground.engine.outputs import Generation
from playground.errors import PlaygroundError
from playground.sampling_params import SamplingParams
from playground.sessions.recorder import RunRecorder
from playground.sessions.run_store import RunStore
from playground.sessions.transcriber import Note
from playground.telemetry import TelemetryHub

logger = logging.getLogger(__name__)


class RunCapture:
    """One engine's runs, stored as they happen. Made before its first request; `end` it before the engine is closed."""

    def __init__(
        self,
        runs: RunStore,
        engine: Engine,
        describe: Callable[[EngineConfig], Mapping[str, Any]],
        name: Callable[[str], str],
    ) -> None:
        """`describe` says what machine and versions the engine runs on; `name` what its model is called."""
        self._runs = runs
        self._engine = engine
        self._hub = TelemetryHub(engine, device=engine.config.device)
        self._hub.start()
        self._recorder = RunRecorder(runs, describe, name)
        self._recorder.watch(engine, self._hub)
        self._recorder.flush()  # it knows the engine's state from before the first request

    def end(
        self, generations: Sequence[Generation], params: Sequence[SamplingParams], asked: Sequence[str]
    ) -> list[int | None]:
        """Store what is left; the run of each of these requests, None for one that could not be stored. `asked` is what
        each of them answers."""
        for generation, one, prompt in zip(generations, params, asked, strict=True):
            logprobs = [entry.logprob for entry in generation.logprobs or ()]
            metrics = asdict(generation.metrics)
            told = Note(prompt=prompt, params=one.model_dump(mode="json"), metrics=metrics, logprobs=logprobs)
            self._recorder.note(self._engine, generation, told)
        recording = self._recorder.recording_of(self._engine)
        self._recorder.close()
        self._hub.stop()
        found: dict[int, int] = {}
        if recording is not None:
            try:
                found = self._runs.of_engine(recording)
            except PlaygroundError as error:
                logger.warning("what was recorded could not be found again: %s", error)
        return [found.get(generation.request_id) for generation in generations]
