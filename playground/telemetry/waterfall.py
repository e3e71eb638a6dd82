"""The waterfall of one request: what it waited for and what each step did for it, from the frames of a recording."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from playground.telemetry.frames import Frame
from playground.telemetry.rows import PREFILL, RECOMPUTE, RequestRow, StepRow

SpanKind = Literal["queued", "prefill", "decode", "recomputed", "preempted"]


class Span(NamedTuple):
    """A stretch of a request's time, in ms of the recording."""

    kind: SpanKind
    start_ms: float
    end_ms: float
    step: int | None
    """None while it waited."""
    tokens: int
    """Run in the step."""
    emitted: int
    drafts: int
    accepted: int


def waterfall(frames: Iterable[Frame], request_id: int) -> list[Span]:
    """The spans of a request in the order of their beginnings."""
    waits: list[Span] = []
    works: list[Span] = []
    row: RequestRow | None = None
    preempted: list[float] = []
    for frame in frames:
        for request in frame["requests"]:
            if request[0] == request_id:
                row = RequestRow(*request)
                if row.preempted_ms is not None and row.preempted_ms not in preempted:
                    preempted.append(row.preempted_ms)
        works += [span for step in frame["steps"] for span in _of_step(StepRow(*step), request_id)]
    if row is None:
        return []
    end_ms = row.ended_ms if row.ended_ms is not None else max((span.end_ms for span in works), default=row.queued_ms)
    started = row.started_ms if row.started_ms is not None else end_ms
    if started > row.queued_ms:
        waits.append(_wait("queued", row.queued_ms, started))
    for time_ms in preempted:
        again = min((span.start_ms for span in works if span.start_ms >= time_ms), default=end_ms)
        waits.append(_wait("preempted", time_ms, again))
    return sorted([*waits, *works], key=lambda span: span.start_ms)


def _of_step(step: StepRow, request_id: int) -> Iterable[Span]:
    parts: list[Any] = [step.schedule_ms, step.draft_ms, step.prepare_ms, step.forward_ms, step.sample_ms, step.post_ms]
    end_ms = round(step.start_ms + sum(parts), 3)
    for one in step.slices:
        if one[0] == request_id:
            _, kind, _, tokens, emitted, drafts, accepted = one
            name: SpanKind = "prefill" if kind == PREFILL else "recomputed" if kind == RECOMPUTE else "decode"
            yield Span(name, step.start_ms, end_ms, step.step, tokens, emitted, drafts, accepted)


def _wait(kind: SpanKind, start_ms: float, end_ms: float) -> Span:
    return Span(kind, start_ms, end_ms, None, 0, 0, 0, 0)
