"""`GET /metrics` and `GET /health`, as routes for the server that serves the pages."""

from collections.abc import Callable

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from playground.server.health import health
from playground.server.metrics import EngineMetrics
from playground.server.watched import WatchedHost

NO_STORE = {"Cache-Control": "no-store"}


def operations_routes(host: WatchedHost) -> tuple[list[Route], Callable[[], None]]:
    """Routes for `launch(app_kwargs={"routes": ...})`, and what ends their counting."""
    metrics = EngineMetrics(host)

    # Plain functions: the server runs them on a thread of their own, and no stream waits for them.
    def show_metrics(request: Request) -> Response:
        metrics.catch_up()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={**NO_STORE, "Content-Type": content_type})

    def show_health(request: Request) -> Response:
        now = health(host, metrics)
        body = {"status": now.status, "reason": now.reason}
        return JSONResponse(body, status_code=200 if now.healthy else 503, headers=NO_STORE)

    return [Route("/metrics", show_metrics), Route("/health", show_health)], metrics.close
