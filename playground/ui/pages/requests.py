"""The Requests page: every run that was recorded, its percentiles, its replay; and the guided tours."""

from playground.sessions.run_store import RunStore
from playground.ui.components import surface
from playground.ui.pages.page import Page, PageContext
from playground.ui.run_routes import RunRoutes

VIEWS = ("blocks", "requests", "throughput", "memory")
"""Of a replay: the same views as the instrument panel's."""


def build(context: PageContext) -> None:
    context.routes.extend(RunRoutes(RunStore(context.store), context.recorder).routes())
    surface("mountRuns", "runs", config={"views": VIEWS})


PAGE = Page(
    "requests",
    "Requests",
    build,
    scripts=(
        "runs/runs.js",
        "runs/table.js",
        "runs/tokens.js",
        "runs/waterfall.js",
        "runs/player.js",
        "runs/detail.js",
    ),
    styles=("runs/runs.css",),
)
