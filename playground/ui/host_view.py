"""What every page says about the engine, as one JSON value: sent when a page opens and after every change of it."""

from typing import Any

from playground.ui import models_view
from playground.ui.host import NO_MODEL, EngineHost, LoadTask
from playground.ui.topbar import chips
from playground.ui.wording import caption, empty_text, model_name

PHASES = {
    "looking": "looking for its files",
    "downloading": "downloading",
    "unloading": "unloading the old model to make room",
    "reading": "reading weights",
}


def host_view(host: EngineHost) -> dict[str, Any]:
    """`revision` grows with every change."""
    serving, busy = host.serving, host.busy
    view: dict[str, Any] = {
        "revision": host.revision,
        "busy": busy,
        "loading": None if host.task is None else _loading(host.task),
    }
    if serving is None:
        return view | {
            "loaded": False,
            "chips": [{"text": busy or "No model", "short": busy or "No model", "tip": NO_MODEL}],
            "caption": NO_MODEL if busy is None else f"{busy}.",
            "empty_text": [NO_MODEL],
            "context": 0,
        }
    config, parameters = serving.engine.config, serving.engine.model_config.num_parameters
    name = model_name(config.model or "")
    return view | {
        "loaded": True,
        "chips": chips(serving.engine),
        "caption": caption(name, parameters),
        "empty_text": empty_text(name, parameters),
        "context": config.max_model_len or 0,
        "details": models_view.loaded(serving),
    }


def _loading(task: LoadTask) -> dict[str, Any]:
    progress = task.progress
    return {
        "number": task.number,
        "model": model_name(task.config.model or "the bundled model"),
        "phase": progress.phase,
        "text": PHASES.get(progress.phase, ""),
        "done": progress.done,
        "ended": progress.ended,
        "error": progress.error,
        "note": progress.note,
    }
