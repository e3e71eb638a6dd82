"""What the Lab page fetches: its state, results, what the formulas start from, and plotly.js.

All of it is reading; what changes something goes through the page's events.
"""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from playground.ui.host import EngineHost
from playground.ui.lab import reports, theory
from playground.ui.lab.catalogue import BENCHMARKS
from playground.ui.lab.results import ResultError, ResultFiles, ResultInfo
from playground.ui.lab.runner import LabRunner

FRESH = {"Cache-Control": "no-store"}
PLOTLY_SECONDS = 86_400


def lab_routes(host: EngineHost, runner: LabRunner, results: ResultFiles) -> list[Route]:
    """Routes for `launch(app_kwargs={"routes": ...})`."""

    def answering(make: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            try:
                return JSONResponse(await asyncio.to_thread(make, request), headers=FRESH)
            except ResultError as error:
                return JSONResponse({"error": str(error)}, status_code=404, headers=FRESH)

        return answer

    async def export(request: Request) -> Response:
        try:
            file = results.path(request.path_params["id"])
        except ResultError as error:
            return JSONResponse({"error": str(error)}, status_code=404, headers=FRESH)
        return FileResponse(file, media_type="application/json", filename=f"{request.path_params['id']}.json")

    async def plotly(request: Request) -> Response:
        file = str(resources.files("plotly") / "package_data" / "plotly.min.js")
        headers = {"Cache-Control": f"public, max-age={PLOTLY_SECONDS}"}
        return FileResponse(file, media_type="text/javascript", headers=headers)

    return [
        Route("/lab/plotly.min.js", plotly),
        Route("/lab/state", answering(lambda request: state(runner, results))),
        Route("/lab/measured", answering(lambda request: theory.measured(host, results))),
        Route("/lab/export/{id}", export),
        Route("/lab/results/{id}", answering(lambda request: result(results, request.path_params["id"]))),
    ]


def state(runner: LabRunner, results: ResultFiles) -> dict[str, Any]:
    """Everything that changes while the page is open."""
    job = runner.job
    return {
        "job": None if job is None else job.view(),
        "results": [asdict(info) for info in results.list()],
        "revision": results.revision,
        "unavailable": {one.name: reason for one in BENCHMARKS if (reason := one.unavailable())},
    }


def result(results: ResultFiles, result_id: str) -> dict[str, Any]:
    """A result as it is shown. Raises `ResultError`."""
    results.path(result_id)
    info = next((one for one in results.list() if one.id == result_id), None)
    if info is None or info.error is not None:
        empty = info or ResultInfo(result_id, "", result_id, "", "", "", "", False)
        return {**asdict(empty), "sections": [], "definitions": []}
    return reports.view(info, results.read(result_id))
