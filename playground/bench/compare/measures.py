"""What one run of a workload is measured by: the metrics, what they mean, and how they come from the engine's own.

A run gives one number a metric, or None for what was not measured. Pure: the engine's results and events are given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from playground.bench.samples import most_in_use
from playground.bench.speculation.figures import mean_over_rows, position_sums
from playground.bench.steps import decode_rows, histogram
from playground.engine.events import Event, StepEvent
from playground.engine.outputs import EngineStats, Generation
from playground.engine.speculation.formula import expected_tokens_by_position
from playground.telemetry import define

Kind = Literal["seconds", "rate", "number", "share", "count", "bytes"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. `better` says which way is better, where one is."""

    key: str
    label: str
    text: str
    kind: Kind
    better: Literal["lower", "higher"] | None = None


def _known(key: str, kind: Kind, better: Literal["lower", "higher"] | None, more: str) -> Metric:
    definition = define(key)
    return Metric(key, definition.label, f"{definition.hover} {more}", kind, better)


METRICS: tuple[Metric, ...] = (
    _known("time_to_first_token", "seconds", "lower", "Here the median over the prompts of a run."),
    _known("time_per_output_token", "seconds", "lower", "Here the median over the prompts of a run."),
    Metric(
        "tokens_per_second",
        "Tokens per second",
        "Tokens of all replies of a run over the time from sending the first prompt to the end of the last reply.",
        "rate",
        "higher",
    ),
    Metric(
        "longest_gap",
        "Longest gap between tokens",
        "The longest time that any reply of a run stood still between two steps that gave it tokens.",
        "seconds",
        "lower",
    ),
    Metric(
        "seconds",
        "Time for all prompts",
        "From sending the first prompt to the end of the last reply.",
        "seconds",
        "lower",
    ),
    Metric("steps", "Engine steps", "How often the model ran in a run, for all prompts together.", "count", "lower"),
    Metric(
        "tokens_per_step",
        "Tokens per step",
        "Tokens that one reply gained from a step, after its first token: 1 without speculation. The formula is what "
        "the measured acceptance at each position of the draft predicts: 1 + Σ Π a (arXiv 2211.17192).",
        "number",
        "higher",
    ),
    _known("acceptance_rate", "share", "higher", "n is the number of drafts in all runs."),
    _known("num_cached_tokens", "count", "higher", "Of all prompts of a run together."),
    Metric(
        "kv_blocks_peak",
        "KV blocks, peak",
        "The most KV blocks in use at one time in a run, a shared block counted once. A contiguous cache has one large "
        "block for each request.",
        "count",
    ),
    Metric(
        "kv_bytes_peak",
        "KV memory in use, peak",
        "The most KV blocks in use at one time, times the bytes of a block: keys and values of its tokens in all "
        "layers, those of a draft model included.",
        "bytes",
        "lower",
    ),
    Metric(
        "memory_weights_bytes",
        "Weights",
        "Memory of the model's weights, a draft model's included.",
        "bytes",
        "lower",
    ),
    Metric("memory_kv_bytes", "KV memory reserved", "Memory that the engine keeps for its KV blocks.", "bytes"),
)
BY_KEY = {metric.key: metric for metric in METRICS}


def measure(
    generations: Sequence[Generation], seconds: float, events: Sequence[Event], dropped: int, stats: EngineStats
) -> dict[str, float | None]:
    """One run: `seconds` from its first prompt to its last reply, `events` of that time (`dropped` were lost)."""
    metrics = [one.metrics for one in generations]
    drafts = sum(one.num_draft_tokens for one in metrics)
    gaps = [gap for one in metrics for gap in one.inter_token_latencies]
    after_first = sum(max(0, one.num_output_tokens - 1) for one in metrics)
    complete = not dropped
    blocks = most_in_use(events) if complete and stats.kv_blocks_total else None
    # One block more than there are for requests: it is written by rows that are only padding.
    block_bytes = stats.memory_kv_bytes // (stats.kv_blocks_total + 1) if stats.kv_blocks_total else 0
    return {
        "time_to_first_token": _median([one.time_to_first_token for one in metrics]),
        "time_per_output_token": _median([one.time_per_output_token for one in metrics]),
        "tokens_per_second": sum(one.num_output_tokens for one in metrics) / seconds if seconds > 0 else None,
        "longest_gap": max(gaps, default=None),
        "seconds": seconds,
        "steps": sum(isinstance(event, StepEvent) for event in events) if complete else None,
        "tokens_per_step": after_first / len(gaps) if gaps else None,
        "acceptance_rate": sum(one.num_accepted_tokens for one in metrics) / drafts if drafts else None,
        "num_cached_tokens": sum(one.num_cached_tokens for one in metrics),
        "kv_blocks_peak": blocks,
        "kv_bytes_peak": None if blocks is None else blocks * block_bytes,
        "memory_weights_bytes": stats.memory_weights_bytes,
        "memory_kv_bytes": stats.memory_kv_bytes,
    }


def draft_counts(generations: Sequence[Generation], events: Sequence[Event], dropped: int) -> dict[str, Any]:
    """Drafts of a run: how many, by position how often each was reached and accepted, and in how many of the requests'
    shares of a step there were 0, 1, 2 … of them (None where events were lost)."""
    metrics = [one.metrics for one in generations]
    steps = [event for event in events if isinstance(event, StepEvent)]
    return {
        "drafts": sum(one.num_draft_tokens for one in metrics),
        "reached": position_sums([one.drafts_reached for one in metrics]),
        "accepted": position_sums([one.drafts_accepted for one in metrics]),
        "rows": None if dropped else histogram([min(len(row.draft_ids), left - 1) for row, left in decode_rows(steps)]),
    }


def predicted_tokens_per_step(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """What the formula says for the acceptance that the runs' `draft_counts` measured; None without drafts.

    A step has as many drafts as it had: n-gram drafts, for instance, are not always there.
    """
    reached, accepted = (position_sums([run[name] for run in runs]) for name in ("reached", "accepted"))
    counted = [run.get("rows") for run in runs]
    if not sum(reached) or not all(counted):
        return None
    rows = position_sums([row for row in counted if row])
    acceptance = [taken / seen if seen else 0.0 for seen, taken in zip(reached, accepted, strict=True)]
    return mean_over_rows(rows, [expected_tokens_by_position(acceptance[:drafts]) for drafts in range(len(rows))])


def _median(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return median(found) if found else None
