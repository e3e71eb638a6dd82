"""`GET /metrics` and `GET /health` over a real tiny engine: what is counted is what the engine did."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from playground import Engine, EngineConfig, SamplingParams
from playground.engine.events import RequestEvent, ScheduledSlice
from playground.engine.outputs import EngineStats
from playground.server import operations_routes
from playground.server.health import health
from playground.server.metric_names import METRICS
from playground.server.metrics import EngineMetrics
from playground.telemetry import TelemetryHub
from tests.ui.endless import write_endless_model

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "assets" / "grafana" / "inference-playground.json"


class Host:
    """A host of one engine that a test gives and takes away."""

    def __init__(self) -> None:
        self.serving: Any = None
        self.busy: str | None = None
        self._followers: list[tuple[Any, Any]] = []

    def follow(self, arrives: Any, leaves: Any) -> Callable[[], None]:
        follower = (arrives, leaves)
        self._followers.append(follower)
        if self.serving is not None:
            arrives(self.serving)
        return lambda: self._followers.remove(follower) if follower in self._followers else None

    def swap(self, serving: Any) -> None:
        """As the app's host does: the new one comes before the old one goes."""
        old, self.serving = self.serving, serving
        for arrives, _ in self._followers if serving is not None else ():
            arrives(serving)
        for _, leaves in self._followers if old is not None else ():
            leaves(old)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = write_endless_model(tmp_path_factory.mktemp("metrics") / "tiny-endless")
    with Engine(EngineConfig(model=str(folder), device="cpu", dtype="float32", num_kv_blocks=64)) as engine:
        yield engine


@pytest.fixture
def host(engine: Engine) -> Iterator[Host]:
    host = Host()
    with TelemetryHub(engine) as hub:
        host.swap(SimpleNamespace(engine=engine, hub=hub))
        yield host
        host.swap(None)


@pytest.fixture
def client(host: Host) -> Iterator[TestClient]:
    routes, close = operations_routes(host)
    with TestClient(Starlette(routes=routes)) as client:
        yield client
    close()


def read(client: TestClient) -> dict[str, dict[tuple[str, ...], float]]:
    """Every sample by its name and the values of its labels, the model's name left out."""
    response = client.get("/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            assert sample.labels["model_name"] == "tiny-endless"
            rest = tuple(value for label, value in sorted(sample.labels.items()) if label != "model_name")
            found.setdefault(sample.name, {})[rest] = sample.value
    return found


def settled(client: TestClient, ended: int) -> dict[str, dict[tuple[str, ...], float]]:
    """Once so many requests have been counted as ended; events take a moment to pass the hub."""
    until = time.monotonic() + 20
    while True:
        found = read(client)
        if sum(found.get("vllm:request_success_total", {}).values()) >= ended or time.monotonic() > until:
            return found
        time.sleep(0.02)


def test_the_counters_say_what_the_engine_did(client: TestClient, engine: Engine) -> None:
    prompt = list(range(20, 60))
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    results = [engine.generate(prompt, params)[0] for _ in range(2)]
    found = settled(client, 2)

    def value(name: str, *labels: str) -> float:
        return found[name][labels]

    cached = results[1].metrics.num_cached_tokens
    assert cached > 0
    assert value("vllm:generation_tokens_total") == 16
    assert value("vllm:prompt_tokens_total") == value("vllm:prefix_cache_queries_total") == 80
    assert value("vllm:prefix_cache_hits_total") == value("vllm:prompt_tokens_cached_total") == cached
    assert value("vllm:prompt_tokens_by_source_total", "local_compute") == 80 - cached
    assert value("vllm:request_success_total", "length") == 2
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert value(f"vllm:{name}_seconds_count") == 2
    assert value("vllm:inter_token_latency_seconds_count") == 14
    steps = value("playground:steps_total")
    assert value("vllm:iteration_tokens_total_count") == value("playground:step_seconds_count") == steps
    assert value("vllm:iteration_tokens_total_sum") == 80 - cached + 16
    first_tokens = sum(result.metrics.time_to_first_token or 0 for result in results)
    assert value("vllm:time_to_first_token_seconds_sum") == pytest.approx(first_tokens, rel=0.05)
    each = [result.metrics.time_per_output_token or 0 for result in results]
    assert value("vllm:request_time_per_output_token_seconds_sum") == pytest.approx(sum(each), rel=0.05)
    assert value("vllm:num_requests_running") == value("vllm:kv_cache_usage_perc") == 0
    assert sum(found["playground:kv_blocks"].values()) == 64
    assert value("playground:estimated_flops_total") > 0
    assert "playground:gpu_busy_ratio" not in found, "there is no GPU, so there is no figure of one"


def test_an_aborted_request_counts_as_aborted(client: TestClient, engine: Engine) -> None:
    handle = engine.submit(list(range(30)), SamplingParams(max_tokens=400, ignore_eos=True))
    next(iter(handle))
    handle.cancel()
    assert settled(client, 1)["vllm:request_success_total"] == {("abort",): 1}


def test_only_named_metrics_are_exported_and_every_one_has_a_definition(client: TestClient, engine: Engine) -> None:
    engine.generate(list(range(20)), SamplingParams(max_tokens=2))
    found = settled(client, 1)
    bases = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in found} | set(found)
    assert {name for name in bases if name in METRICS} >= {"vllm:num_requests_running", "vllm:generation_tokens"}
    unknown = {
        name for name in found if not {name, re.sub(r"_(total|bucket|sum|count|created)$", "", name)} & set(METRICS)
    }
    assert unknown == set()


def test_drafts_are_counted_by_position() -> None:
    host = Host()
    metrics = EngineMetrics(host)
    hub = SimpleNamespace(num_events_dropped=0, unsubscribe=lambda events: None)
    queue = SimpleNamespace(drain=list, num_dropped=0)
    hub.subscribe = lambda: queue
    nothing_loaded = SimpleNamespace(config=EngineConfig(model="m"), model_config=None)
    nothing_loaded.stats = EngineStats
    host.swap(SimpleNamespace(engine=nothing_loaded, hub=hub))
    from tests.telemetry.test_frames import step_event

    slices = [
        ScheduledSlice(1, 10, 4, 3, (5, 6, 7), (0, 1), (5, 6, 9)),
        ScheduledSlice(2, 10, 3, 3, (5, 6), (0, 1), (5, 6, 9), True),
    ]
    queue.drain = lambda: [step_event(1, 0, slices)]
    metrics.catch_up()
    queue.drain = list

    def value(name: str, **labels: str) -> float:
        found = metrics.registry.get_sample_value(f"vllm:spec_decode_{name}_total", {"model_name": "m", **labels})
        assert found is not None
        return found

    assert (value("num_drafts"), value("num_draft_tokens"), value("num_accepted_tokens")) == (2, 5, 4)
    assert [value("num_accepted_tokens_per_pos", position=str(i)) for i in (0, 1)] == [2, 2]
    metrics.close()


def test_counting_follows_the_host_to_another_engine_and_leaves_no_thread(client: TestClient, host: Host) -> None:
    def counting() -> int:
        return sum(thread.name == "metrics" for thread in threading.enumerate())

    assert counting() == 1
    serving = host.serving
    host.swap(SimpleNamespace(engine=serving.engine, hub=serving.hub))
    assert counting() == 1
    serving.engine.generate(list(range(20)), SamplingParams(max_tokens=3, temperature=0, ignore_eos=True))
    assert settled(client, 1)["vllm:generation_tokens_total"][()] == 3, "counted once, not by two watchers"
    host.swap(None)
    assert counting() == 0
    gone = read(client)
    assert "vllm:num_requests_running" not in gone, "no engine, no state of one"
    assert gone["vllm:generation_tokens_total"][()] == 3, "what was counted stays"


def test_health_without_a_model_says_so(host: Host, client: TestClient) -> None:
    assert client.get("/health").status_code == 200
    host.swap(None)
    answer = client.get("/health")
    assert answer.status_code == 503 and answer.json() == {"status": "unloaded", "reason": "No model is loaded."}
    host.busy = "A model is being loaded"
    assert client.get("/health").json()["reason"] == "A model is being loaded."


def test_health_is_about_steps_and_not_about_requests_alone(host: Host, engine: Engine) -> None:
    metrics = EngineMetrics(host)
    assert health(host, metrics).status == "idle"
    engine.pause()
    try:
        handle = engine.submit(list(range(20)), SamplingParams(max_tokens=2))
        until = time.monotonic() + 20
        while metrics.stalled_seconds() is None and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.05)
        assert health(host, metrics).healthy, "not for long yet"
        stalled = health(host, metrics, stall_seconds=0.01)
        assert not stalled.healthy and stalled.status == "stalled" and "no step was completed" in stalled.reason
        host.busy = "A comparison is running"
        assert health(host, metrics, stall_seconds=0.01) == (
            True, "paused", "A comparison is running: requests wait until that has ended."
        )  # fmt: skip
    finally:
        engine.resume()
    host.busy = None
    handle.result()
    until = time.monotonic() + 20
    while health(host, metrics).status != "idle" and time.monotonic() < until:
        time.sleep(0.02)
    assert health(host, metrics, stall_seconds=0.0).status == "idle"
    metrics.close()


def test_a_request_whose_beginning_was_lost_is_not_counted_half(host: Host) -> None:
    metrics = EngineMetrics(host)
    watch = metrics.watch
    assert watch is not None
    metrics._apply(watch, [RequestEvent(5, 999, "first_token"), RequestEvent(6, 999, "finished", "stop")])
    name = {"model_name": watch.model_name}
    assert metrics.registry.get_sample_value("vllm:e2e_request_latency_seconds_count", name) == 0
    metrics.close()


def test_the_dashboard_uses_only_metrics_that_exist() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [
        variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"
    ]
    used = {name for query in queries for name in re.findall(r"(?:vllm|playground):[a-z0-9_]+", query)}
    exported = {
        f"{metric.name}{suffix}"
        for metric in METRICS.values()
        for suffix in {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}[metric.kind]
    }
    assert len(used) >= 20 and used - exported == set()
