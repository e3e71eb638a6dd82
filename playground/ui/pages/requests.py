"""The Requests page: every recorded run, its percentiles and its replay; guided tours; on ZeroGPU "Run live"."""

from playground.sessions.run_store import RunStore
from playground.ui.components import surface
from playground.ui.live_runs import LiveRuns
from playground.ui.pages.page import QUIET, Page, PageContext
from playground.ui.run_routes import RunRoutes
from playground.ui.space import GPU_SECONDS, on_zero_gpu
from playground.ui.wording import EXAMPLES

VIEWS = ("blocks", "requests", "throughput", "memory")
"""Of a replay: the same views as the instrument panel's."""


def build(context: PageContext) -> None:
    runs = RunStore(context.store)
    context.routes.extend(RunRoutes(runs, context.recorder).routes())
    if on_zero_gpu():
        live = LiveRuns(runs)
        words = {"example": EXAMPLES[-1], "seconds": GPU_SECONDS}
        here = surface("mountRunLive", "run-live", events=("run",), config=words, live=True)
        here.run(live.run, None, [here], **QUIET)
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
        "runs/live.js",
    ),
    styles=("runs/runs.css",),
)
