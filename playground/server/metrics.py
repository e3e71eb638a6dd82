"""`EngineMetrics`: what Prometheus is told of the engine, counted from its events as they pass the telemetry hub.

One thread drains a bounded queue a few times a second; gauges are read when they are asked for. Counters go on when the
model changes, under its own `model_name`; gauges are only of the model that serves. The engine does nothing for it.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily

from playground.engine.events import Event, RequestEvent, StepEvent, Subscription
from playground.server.metric_names import METRICS, MODEL
from playground.server.watched import Served, WatchedHost
from playground.telemetry.feed import work_of
from playground.telemetry.roofline import ModelWork, Share

NS_PER_S = 1_000_000_000
DRAIN_SECONDS = 0.25
PARTS = ("schedule", "draft", "prepare", "forward", "sample", "post")


@dataclass(slots=True)
class _Request:
    """What is known of a request that has not ended."""

    queued_ns: int
    started_ns: int | None = None
    first_token_ns: int | None = None
    emitted_ns: int | None = None
    num_preemptions: int = 0


@dataclass(slots=True)
class _Watch:
    """One engine that serves, and its requests."""

    served: Served
    model_name: str
    events: Subscription
    work: ModelWork | None
    requests: dict[int, _Request] = field(default_factory=dict)
    num_dropped: int = 0
    ended: list[tuple[_Request, RequestEvent]] = field(default_factory=list)
    """Requests that ended in a step whose own event has still to come."""
    num_steps: int = -1
    moved_at: float | None = None
    """When a step was last seen to have ended, or the first request to have come; None without requests."""
    stopping: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


class EngineMetrics:
    """Counts the events of whatever engine the host runs. All methods are thread-safe."""

    def __init__(self, host: WatchedHost) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._lock = threading.Lock()
        self._watches: tuple[_Watch, ...] = ()
        """The latest last. The engine that goes is watched until after the one that follows it has come."""
        self._families: dict[str, Any] = {}
        for metric in METRICS.values():
            if metric.kind == "counter":
                self._families[metric.name] = Counter(
                    metric.name, metric.text, metric.all_labels, registry=self.registry
                )
            elif metric.kind == "histogram":
                self._families[metric.name] = Histogram(
                    metric.name, metric.text, metric.all_labels, registry=self.registry, buckets=metric.buckets
                )
        self.registry.register(_Gauges(self))
        self._stop_following = host.follow(self._arrives, self._leaves)

    def close(self) -> None:
        """Count no more. May be called twice."""
        self._stop_following()
        for watch in self._watches:
            self._leaves(watch.served)

    def catch_up(self) -> None:
        """Count what has come until now."""
        with self._lock:
            for watch in self._watches:
                self._take(watch)

    @property
    def watch(self) -> _Watch | None:
        """The engine of the moment."""
        watches = self._watches
        return watches[-1] if watches else None

    def stalled_seconds(self) -> float | None:
        """How long requests have been waiting for any step to end; None while there are none."""
        self.catch_up()
        watch = self.watch
        moved_at = None if watch is None else watch.moved_at
        return None if moved_at is None else time.monotonic() - moved_at

    # Following the host

    def _arrives(self, served: Served) -> None:
        name = PurePath(served.engine.config.model or "").name
        watch = _Watch(served, name, served.hub.subscribe(), work_of(served.engine))
        with self._lock:
            self._watches = (*self._watches, watch)
        for metric in METRICS.values():  # so that what has not happened yet is 0 and not missing
            if metric.kind != "gauge" and not metric.labels:
                self._family(metric.name, watch)
        watch.thread = threading.Thread(target=self._run, args=(watch,), name="metrics", daemon=True)
        watch.thread.start()

    def _leaves(self, served: Served) -> None:
        with self._lock:
            watch = next((one for one in self._watches if one.served is served), None)
            if watch is None:
                return
            self._take(watch)
            self._watches = tuple(one for one in self._watches if one is not watch)
        watch.stopping.set()
        served.hub.unsubscribe(watch.events)
        if watch.thread is not None:
            watch.thread.join()

    def _run(self, watch: _Watch) -> None:
        while not watch.stopping.wait(DRAIN_SECONDS):
            with self._lock:
                self._take(watch)

    # Counting

    def _family(self, name: str, watch: _Watch, **labels: str) -> Any:
        return self._families[name].labels(**{MODEL: watch.model_name}, **labels)

    def _add(self, name: str, watch: _Watch, amount: float = 1, **labels: str) -> None:
        if amount:
            self._family(name, watch, **labels).inc(amount)

    def _observe(self, name: str, watch: _Watch, value: float) -> None:
        self._family(name, watch).observe(value)

    def _take(self, watch: _Watch) -> None:
        self._apply(watch, watch.events.drain())
        stats = watch.served.engine.stats()
        if not stats.num_running and not stats.num_waiting:
            watch.moved_at = None
        elif watch.moved_at is None or watch.num_steps != stats.steps:
            watch.moved_at = time.monotonic()
        watch.num_steps = stats.steps
        dropped = watch.events.num_dropped + watch.served.hub.num_events_dropped
        if dropped > watch.num_dropped:
            self._add("playground:events_dropped", watch, dropped - watch.num_dropped)
            watch.num_dropped = dropped
            if watch.moved_at is None:
                watch.requests.clear()  # their ends were among what was lost

    def _apply(self, watch: _Watch, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, StepEvent):
                self._step(watch, event)
            elif isinstance(event, RequestEvent):
                self._request(watch, event)
        self._count_ended(watch)

    def _step(self, watch: _Watch, event: StepEvent) -> None:
        emitted_ns = event.time_ns + event.duration_ns - event.post_ns  # what comes after is bookkeeping
        self._add("playground:steps", watch)
        for part in PARTS:
            self._add("playground:step_part_seconds", watch, getattr(event, f"{part}_ns") / NS_PER_S, part=part)
        self._observe("playground:step_seconds", watch, event.duration_ns / NS_PER_S)
        self._observe("vllm:iteration_tokens_total", watch, event.num_prefill_tokens + event.num_emitted_tokens)
        self._add("vllm:generation_tokens", watch, event.num_emitted_tokens)
        if watch.work is not None:
            shares = (
                Share(one.num_computed_tokens, one.num_tokens, len(one.draft_ids) + 1 if one.num_emitted else 0)
                for one in event.requests
            )
            work = watch.work.step(shares)
            self._add("playground:estimated_flops", watch, work.flops)
            self._add("playground:estimated_moved_bytes", watch, work.moved_bytes)
        requests = watch.requests | {event.request_id: request for request, event in watch.ended}
        for one in event.requests:
            if one.draft_ids:
                self._add("vllm:spec_decode_num_drafts", watch)
                self._add("vllm:spec_decode_num_draft_tokens", watch, len(one.draft_ids))
                self._add("vllm:spec_decode_num_accepted_tokens", watch, len(one.accepted_drafts))
                for position in range(len(one.accepted_drafts)):
                    self._add("vllm:spec_decode_num_accepted_tokens_per_pos", watch, position=str(position))
            request = requests.get(one.request_id)
            if request is not None and one.num_emitted:
                if request.emitted_ns is not None:
                    gap = (emitted_ns - request.emitted_ns) / NS_PER_S
                    self._observe("vllm:inter_token_latency_seconds", watch, gap)
                request.emitted_ns = emitted_ns
        self._count_ended(watch)

    def _request(self, watch: _Watch, event: RequestEvent) -> None:
        if event.state == "queued":
            watch.requests[event.request_id] = _Request(event.time_ns)
            return
        request = watch.requests.get(event.request_id)
        if request is None:  # it came before this engine was watched, or its beginning was lost
            return
        if event.state == "running" and request.started_ns is None:
            request.started_ns = event.time_ns
            self._add("vllm:prefix_cache_queries", watch, event.num_prompt_tokens)
            self._add("vllm:prefix_cache_hits", watch, event.num_cached_tokens)
        elif event.state == "first_token" and request.first_token_ns is None:
            request.first_token_ns = event.time_ns
            cached = event.num_cached_tokens
            self._add("vllm:prompt_tokens", watch, event.num_prompt_tokens)
            self._add("vllm:prompt_tokens_cached", watch, cached)
            source = "vllm:prompt_tokens_by_source"
            self._add(source, watch, event.num_prompt_tokens - cached, source="local_compute")
            self._add(source, watch, cached, source="local_cache_hit")
            waited = (event.time_ns - request.queued_ns) / NS_PER_S
            self._observe("vllm:time_to_first_token_seconds", watch, waited)
        elif event.state == "preempted":
            request.num_preemptions += 1
            self._add("vllm:num_preemptions", watch)
        elif event.state == "finished":
            watch.ended.append((watch.requests.pop(event.request_id), event))

    def _count_ended(self, watch: _Watch) -> None:
        for request, event in watch.ended:
            self._count_end(watch, request, event)
        watch.ended.clear()

    def _count_end(self, watch: _Watch, request: _Request, event: RequestEvent) -> None:
        self._add("vllm:request_success", watch, finished_reason=event.reason or "error")
        self._observe("vllm:e2e_request_latency_seconds", watch, (event.time_ns - request.queued_ns) / NS_PER_S)
        self._observe("vllm:request_prompt_tokens", watch, event.num_prompt_tokens)
        self._observe("vllm:request_generation_tokens", watch, event.num_output_tokens)
        self._observe("vllm:request_num_preemptions", watch, request.num_preemptions)
        if request.started_ns is None:  # it ended in the queue: what follows has no beginning
            return
        self._observe("vllm:request_queue_time_seconds", watch, (request.started_ns - request.queued_ns) / NS_PER_S)
        self._observe("vllm:request_inference_time_seconds", watch, (event.time_ns - request.started_ns) / NS_PER_S)
        if request.first_token_ns is None:
            return
        computed = event.num_prompt_tokens - event.num_cached_tokens
        self._observe("vllm:request_prefill_kv_computed_tokens", watch, computed)
        prefill = (request.first_token_ns - request.started_ns) / NS_PER_S
        self._observe("vllm:request_prefill_time_seconds", watch, prefill)
        decode = (event.time_ns - request.first_token_ns) / NS_PER_S
        self._observe("vllm:request_decode_time_seconds", watch, decode)
        if event.num_output_tokens > 1 and request.emitted_ns is not None:
            spent = max(0, request.emitted_ns - request.first_token_ns) / NS_PER_S
            per_token = spent / (event.num_output_tokens - 1)
            self._observe("vllm:request_time_per_output_token_seconds", watch, per_token)


class _Gauges:
    """The state of the moment, read when it is asked for; nothing while no model is loaded."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[MetricFamily]:
        watch = self._metrics.watch
        if watch is None:
            return
        for name, values in _gauges(watch).items():
            metric = METRICS[name]
            family = GaugeMetricFamily(name, metric.text, labels=metric.all_labels)
            known = [(labels, value) for labels, value in values if value is not None]
            for labels, value in known:
                family.add_metric((watch.model_name, *labels), value)
            if known:
                yield family


_Values = list[tuple[tuple[str, ...], float | None]]
"""(Values of the labels beside the model's name, value or None where it could not be read)."""


def _gauges(watch: _Watch) -> dict[str, _Values]:
    stats, hub = watch.served.engine.stats(), watch.served.hub
    memory, gpu, total = hub.memory(), hub.gpu(), stats.kv_blocks_total
    blocks = {"in_use": stats.kv_blocks_in_use, "cached": stats.kv_blocks_cached, "empty": stats.kv_blocks_empty}
    return {
        "vllm:num_requests_running": [((), stats.num_running)],
        "vllm:num_requests_waiting": [((), stats.num_waiting)],
        "vllm:kv_cache_usage_perc": [((), stats.kv_blocks_in_use / total if total else None)],
        "playground:kv_blocks": [((state,), count if total else None) for state, count in blocks.items()],
        "playground:weights_bytes": [((), stats.memory_weights_bytes)],
        "playground:kv_cache_bytes": [((), stats.memory_kv_bytes)],
        "playground:memory_used_bytes": [((memory.source,), memory.used_bytes)],
        "playground:memory_total_bytes": [((memory.source,), memory.total_bytes)],
        "playground:gpu_busy_ratio": [((), gpu.busy if gpu else None)],
        "playground:gpu_power_watts": [((), gpu.power_w if gpu else None)],
        "playground:gpu_clock_hertz": [((), gpu.clock_mhz * 1e6 if gpu and gpu.clock_mhz is not None else None)],
    }
