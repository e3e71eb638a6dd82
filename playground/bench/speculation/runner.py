"""Both sides of a pair: an engine whose requests draft or do not, and what was counted while it answered prompts."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from playground import Engine, EngineConfig, Generation, SamplingParams
from playground.bench.speculation.figures import Pass, position_sums, total
from playground.bench.stats import decode_span
from playground.bench.steps import decode_rows, histogram
from playground.config import SpeculationConfig
from playground.engine.events import StepEvent, Subscription
from playground.errors import PlaygroundError

TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Answers:
    """What was made of some prompts."""

    counts: Pass
    token_ids: list[list[int]]
    speculation: dict[str, Any] | None
    """State and reason of speculation at the end of the last request."""

    @classmethod
    def together(cls, parts: Sequence["Answers"]) -> "Answers":
        """Those to batches that were answered one after the other."""
        token_ids = [ids for one in parts for ids in one.token_ids]
        return cls(total([one.counts for one in parts]), token_ids, parts[-1].speculation)


class Side:
    """An engine that answers batches of prompts. Remembers no prompt."""

    def __init__(
        self,
        *,
        model: str | None,
        draft_model: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 1,
        speculation: SpeculationConfig | None = None,
    ) -> None:
        """`draft_model` is for speculation method "draft" only; None is the one that belongs to the model."""
        config = EngineConfig(
            model=model,
            draft_model=draft_model if speculation is not None and speculation.method == "draft" else None,
            device=device,
            dtype=dtype,  # type: ignore[arg-type]
            max_num_seqs=max_batch,
            prefix_caching=False,
            speculation=speculation,
        )
        self.engine = Engine(config)

    def run(self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> Answers:
        """Answer prompts that are submitted at once."""
        subscription = self.engine.events.subscribe()
        try:
            submitted, generations = self._answer(prompts, params)
            counts = read_batch(_steps_of(generations, subscription), generations, submitted)
        finally:
            self.engine.events.unsubscribe(subscription)
        state = generations[-1].metrics.speculation
        return Answers(counts, [list(one.token_ids) for one in generations], None if state is None else asdict(state))

    def _answer(
        self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]
    ) -> tuple[list[float], list[Generation]]:
        submitted, handles = [], []
        for prompt, own in zip(prompts, params, strict=True):
            submitted.append(time.perf_counter())
            handles.append(self.engine.submit(prompt, own))
        generations = [handle.result(timeout=TIMEOUT_SECONDS) for handle in handles]
        for generation in generations:
            if generation.error is not None:
                raise PlaygroundError(generation.error)
        return submitted, generations

    def close(self) -> None:
        self.engine.close()


def _steps_of(generations: Sequence[Generation], subscription: Subscription) -> list[StepEvent]:
    """The steps that gave these tokens. The last one is told a moment after the answer that it completes."""
    missing = sum(1 + len(one.metrics.inter_token_latencies) for one in generations)
    steps: list[StepEvent] = []
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while missing:
        if not subscription.wait(deadline - time.monotonic()):
            raise TimeoutError(f"{missing} steps were not told of")
        new = [event for event in subscription.drain() if isinstance(event, StepEvent)]
        missing -= sum(one.num_emitted > 0 for event in new for one in event.requests)
        steps += new
    return steps


def read_batch(events: Sequence[StepEvent], generations: Sequence[Generation], submitted: Sequence[float]) -> Pass:
    """Counts of one batch from its step events. Raises ValueError if no reply went beyond its first token."""
    tokens, seconds = decode_span(_token_times(events, generations, submitted))
    steps = [(event, wall) for event, wall in _with_wall_time(events) if not event.num_prefill_tokens]
    if not tokens or not steps:
        raise ValueError("no reply went beyond its first token: there is no decoding to measure")
    rows = list(decode_rows(events))
    metrics = [one.metrics for one in generations]
    return Pass(
        decode_tokens=tokens,
        decode_seconds=seconds,
        num_steps=len(steps),
        step_seconds=sum(wall for _, wall in steps) * 1e-9,
        draft_seconds=sum(event.draft_ns for event, _ in steps) * 1e-9,
        rows_by_drafts=histogram([len(row.draft_ids) for row, _ in rows]),
        rows_by_room=histogram([min(len(row.draft_ids), left - 1) for row, left in rows]),
        num_emitted=sum(row.num_emitted for row, _ in rows),
        drafts_reached=position_sums([one.drafts_reached for one in metrics]),
        drafts_accepted=position_sums([one.drafts_accepted for one in metrics]),
    )


def _with_wall_time(events: Sequence[StepEvent]) -> Iterator[tuple[StepEvent, int]]:
    """Each step with the nanoseconds until the next one starts; the last one, with its own duration."""
    for event, after in pairwise(events):
        yield event, after.time_ns - event.time_ns
    if events:
        yield events[-1], events[-1].duration_ns


def _token_times(
    events: Sequence[StepEvent], generations: Sequence[Generation], submitted: Sequence[float]
) -> list[list[float]]:
    """When each token came, by request: the metrics say when a step gave some, the events say how many."""
    emitted: dict[int, list[int]] = defaultdict(list)
    for event in events:
        for one in event.requests:
            if one.num_emitted:
                emitted[one.request_id].append(one.num_emitted)
    times = []
    for since, generation in zip(submitted, generations, strict=True):
        metrics = generation.metrics
        assert metrics.time_to_first_token is not None
        moment, own = since + metrics.time_to_first_token, []
        for count, gap in zip(emitted[generation.request_id], (0.0, *metrics.inter_token_latencies), strict=True):
            moment += gap
            own += [moment] * count
        times.append(own)
    return times
