"""The compare page: two to four configurations side by side, their texts, their numbers and every single run."""

from typing import Any

from playground.bench.compare.plan import LETTERS, MAX_SIDES, MIN_SIDES
from playground.bench.compare.presets import PRESETS
from playground.bench.compare.prompts import SETS
from playground.ui import config_form
from playground.ui.comparing.handlers import CompareHandlers
from playground.ui.components import surface
from playground.ui.pages.page import MANY, QUIET, Page, PageContext

EVENTS = ("run", "preset", "ended", "stop", "own", "overview", "open", "vote", "remove", "export")


def build(context: PageContext) -> None:
    do = CompareHandlers(context.host, context.store)
    context.on_close.callback(do.runs.close)
    context.sources.append(do.stream)
    page = surface("mountCompare", "compare", events=EVENTS, config=_config(), live=True)
    download = surface("mountDownload", "compare-download", live=True)
    context.demo.load(do.load, None, [page], **QUIET)
    page.run(do.run, None, [page], **MANY)
    page.preset(do.preset, None, [page], **MANY)
    page.ended(do.ended, None, [page], **MANY)
    page.stop(do.stop, None, None, queue=False, **MANY)
    page.own(do.own, None, [page], **MANY)
    page.overview(do.overview, None, [page], **MANY)
    page.open(do.open, None, [page], **MANY)
    page.vote(do.vote, None, [page], **MANY)
    page.remove(do.remove, None, [page], **MANY)
    page.export(do.export, None, [download], **MANY)


def _config() -> dict[str, Any]:
    presets = [{"key": one.key, "group": one.group, "name": one.name, "expect": one.expect} for one in PRESETS]
    sets = [{"key": one.key, "name": one.name, "count": len(one.prompts), "prompts": one.prompts} for one in SETS]
    return {
        "presets": presets,
        "sets": sets,
        "groups": config_form.groups(),
        "letters": LETTERS,
        "sides": [MIN_SIDES, MAX_SIDES],
    }


PAGE = Page(
    "compare",
    "Compare",
    build,
    scripts=(
        "compare/parts.js",
        "compare/dots.js",
        "compare/results.js",
        "compare/setup.js",
        "compare/compare.js",
    ),
    styles=("compare/compare.css",),
)
