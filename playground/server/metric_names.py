"""The metrics of `GET /metrics`: names, kinds, labels, buckets and definitions, in one place.

Names that begin with "vllm:" are those of vLLM 0.33, with its meaning and its buckets, so that dashboards made for it
work here; what it does not have begins with "playground:". Counters get "_total" when they are written.
"""

from dataclasses import dataclass
from typing import Literal


def _one_two_five(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 ... up to `most`."""
    powers = (10**power for power in range(len(str(most))))
    return tuple(float(step * power) for power in powers for step in (1, 2, 5) if step * power <= most)


FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
LENGTH_BUCKETS = _one_two_five(200_000)
ITERATION_BUCKETS = (1.0, *(float(2**power) for power in range(3, 15)))
PREEMPTION_BUCKETS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
STEP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

MODEL = "model_name"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family; every one has the label `model_name` and those named here."""

    kind: Literal["gauge", "counter", "histogram"]
    name: str
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def all_labels(self) -> tuple[str, ...]:
        return (MODEL, *self.labels)


_ALL = (
    Metric("gauge", "vllm:num_requests_running", "Requests that take part in the steps."),
    Metric("gauge", "vllm:num_requests_waiting", "Requests that were sent but are not running."),
    Metric(
        "gauge",
        "vllm:kv_cache_usage_perc",
        "Share of the KV blocks that requests hold, 1 is all. Cached blocks that nobody holds count as free.",
    ),
    Metric("counter", "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache, resumed ones not."),
    Metric("counter", "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    Metric("counter", "vllm:num_preemptions", "Requests that were put back to free blocks for others."),
    Metric("counter", "vllm:prompt_tokens", "Prompt tokens of requests that have their first token, cached ones too."),
    Metric(
        "counter",
        "vllm:prompt_tokens_by_source",
        "The same, by where their keys and values came from: local_compute or local_cache_hit.",
        ("source",),
    ),
    Metric("counter", "vllm:prompt_tokens_cached", "The part of them that was found in the prefix cache."),
    Metric("counter", "vllm:generation_tokens", "Tokens generated."),
    Metric(
        "counter", "vllm:request_success", "Requests that ended: stop, length, abort or error.", ("finished_reason",)
    ),
    Metric("counter", "vllm:spec_decode_num_drafts", "Requests' steps that verified at least one draft token."),
    Metric("counter", "vllm:spec_decode_num_draft_tokens", "Draft tokens verified."),
    Metric("counter", "vllm:spec_decode_num_accepted_tokens", "Draft tokens accepted, without the bonus token."),
    Metric(
        "counter",
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "The same, by position in the draft, from 0. For drafts that branch: by depth.",
        ("position",),
    ),
    Metric(
        "histogram",
        "vllm:time_to_first_token_seconds",
        "From when the engine received a request to its first token.",
        buckets=FIRST_TOKEN_BUCKETS,
    ),
    Metric(
        "histogram",
        "vllm:inter_token_latency_seconds",
        "Between steps that gave a request tokens: one sample a step, however many tokens it gave.",
        buckets=TOKEN_BUCKETS,
    ),
    Metric(
        "histogram",
        "vllm:request_time_per_output_token_seconds",
        "Of an ended request: from its first token to its last, over the tokens after the first.",
        buckets=TOKEN_BUCKETS,
    ),
    Metric("histogram", "vllm:e2e_request_latency_seconds", "From received to ended.", buckets=REQUEST_BUCKETS),
    Metric("histogram", "vllm:request_queue_time_seconds", "From received to its first step.", buckets=REQUEST_BUCKETS),
    Metric(
        "histogram",
        "vllm:request_prefill_time_seconds",
        "From its first step to its first token, preemptions included.",
        buckets=REQUEST_BUCKETS,
    ),
    Metric(
        "histogram",
        "vllm:request_decode_time_seconds",
        "From its first token to its end, preemptions included.",
        buckets=REQUEST_BUCKETS,
    ),
    Metric(
        "histogram", "vllm:request_inference_time_seconds", "From its first step to its end.", buckets=REQUEST_BUCKETS
    ),
    Metric("histogram", "vllm:request_prompt_tokens", "Prompt tokens of ended requests.", buckets=LENGTH_BUCKETS),
    Metric("histogram", "vllm:request_generation_tokens", "Tokens of ended requests.", buckets=LENGTH_BUCKETS),
    Metric(
        "histogram",
        "vllm:request_prefill_kv_computed_tokens",
        "Prompt tokens of ended requests that were computed, cached ones not.",
        buckets=LENGTH_BUCKETS,
    ),
    Metric(
        "histogram",
        "vllm:iteration_tokens_total",
        "Per step: prompt tokens computed and tokens generated.",
        buckets=ITERATION_BUCKETS,
    ),
    Metric(
        "histogram",
        "vllm:request_num_preemptions",
        "Preemptions of ended requests; the first bucket is 0 and 1.",
        buckets=PREEMPTION_BUCKETS,
    ),
    Metric(
        "gauge", "playground:kv_blocks", "KV blocks: in_use, cached (kept, nobody holds them) or empty.", ("state",)
    ),
    Metric("gauge", "playground:weights_bytes", "Bytes of the weights, a draft model's included."),
    Metric("gauge", "playground:kv_cache_bytes", "Bytes of the KV cache."),
    Metric(
        "gauge",
        "playground:memory_used_bytes",
        "Memory in use, by who says so: process (this one), nvml or torch (everything on the GPU).",
        ("source",),
    ),
    Metric("gauge", "playground:memory_total_bytes", "Memory that there is, by the same sources.", ("source",)),
    Metric("gauge", "playground:gpu_busy_ratio", "Share of the time in which the GPU ran any kernel (NVML)."),
    Metric("gauge", "playground:gpu_power_watts", "Power that the GPU draws (NVML)."),
    Metric("gauge", "playground:gpu_clock_hertz", "Clock of the GPU's multiprocessors (NVML)."),
    Metric("counter", "playground:steps", "Engine steps."),
    Metric(
        "counter",
        "playground:step_part_seconds",
        "Time of the steps by part: schedule, draft, prepare, forward, sample, post.",
        ("part",),
    ),
    Metric("histogram", "playground:step_seconds", "Time of a step.", buckets=STEP_BUCKETS),
    Metric("counter", "playground:estimated_flops", "Operations of the model's forwards, on paper."),
    Metric("counter", "playground:estimated_moved_bytes", "Bytes that the forwards read and wrote at least, on paper."),
    Metric("counter", "playground:events_dropped", "Events lost on the way here: the other counters miss them."),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
