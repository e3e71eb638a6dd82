"""Where the time of an engine step goes, computed from the engine's own step events. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from playground.engine.events import StepEvent

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
