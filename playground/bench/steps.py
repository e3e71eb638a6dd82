"""What the engine's own step events say: where a step's time goes, and each request's share of it. Pure arithmetic."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from playground.engine.events import ScheduledSlice, StepEvent

PARTS = ("schedule", "prepare", "forward", "sample", "post")
OVERHEAD_TARGET = 0.05


@dataclass(frozen=True)
class StepSplit:
    """Medians over the pure decode steps with the wanted number of running requests."""

    num_running: int
    num_steps: int
    part_ns: dict[str, float]
    """Median of each part, and "between": from the end of one step to the start of the next."""
    overhead_share: float
    """Everything but forward and sample, as a share of the time from one step's start to the next one's."""

    @property
    def total_ns(self) -> float:
        return sum(self.part_ns.values())


def split(events: Sequence[StepEvent], num_running: int) -> StepSplit:
    """The split over the steps that decode one token for each of `num_running` requests and do nothing else."""
    pairs = [
        (event, after)
        for event, after in pairwise(events)
        if event.num_decode_tokens == num_running and not event.num_prefill_tokens and after.step == event.step + 1
    ]
    if not pairs:
        raise ValueError(f"none of {len(events)} steps decoded {num_running} requests alone")
    parts = {part: median(getattr(event, f"{part}_ns") for event, _ in pairs) for part in PARTS}
    parts["between"] = median(max(0, after.time_ns - event.time_ns - event.duration_ns) for event, after in pairs)
    total = sum(parts.values())
    overhead = total - parts["forward"] - parts["sample"]
    return StepSplit(num_running, len(pairs), parts, overhead / total)


def histogram(values: Sequence[int]) -> tuple[int, ...]:
    """How often each of 0, 1, 2 … occurs."""
    counts = Counter(values)
    return tuple(counts[i] for i in range(max(values, default=-1) + 1))


def decode_rows(events: Sequence[StepEvent]) -> Iterator[tuple[ScheduledSlice, int]]:
    """Every request's share of every step without prompt tokens, and how many tokens it was still to get then."""
    left = Counter[int]()
    for event in events:
        for one in event.requests:
            left[one.request_id] += one.num_emitted
    for event in events:
        for one in event.requests:
            if one.num_emitted and not event.num_prefill_tokens:
                yield one, left[one.request_id]
            left[one.request_id] -= one.num_emitted
