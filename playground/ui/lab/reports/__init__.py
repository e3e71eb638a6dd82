"""Results as the Lab page shows them: facts, sections of pictures and tables, definitions. Plain data in and out."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from playground.ui.lab.reports import engine, others, prompt_cache, speculation
from playground.ui.lab.reports.section import Section
from playground.ui.lab.results import ResultInfo

KINDS: dict[str, Callable[[dict[str, Any]], Iterable[Section]]] = {
    "engine": engine.sections,
    "speculation": speculation.sections,
    "prompt-cache": prompt_cache.sections,
    "samples": others.samples,
    "quantization": others.quantization,
    "compression": others.compression,
    "ceilings": others.ceilings,
    "gpu": others.kernels,
}
UNKNOWN = "The Lab has no picture for this kind of result. Export it to look at its numbers."
INCOMPLETE = "This file lacks something that a result of this kind has; it may come from another version. Export it."


def view(info: ResultInfo, data: dict[str, Any]) -> dict[str, Any]:
    """A whole result; `error` says in a sentence why there are no sections."""
    sections: list[dict[str, Any]] = []
    error = None
    make = KINDS.get(info.kind)
    if make is None:
        error = UNKNOWN
    else:
        try:
            sections = [section.view() for section in make(data)]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError):
            error = INCOMPLETE
    definitions = data.get("definitions")
    named = definitions.items() if isinstance(definitions, dict) else ()
    return {
        **asdict(info),
        "sections": sections,
        "definitions": [[str(name), str(text)] for name, text in named],
        "error": error,
    }
