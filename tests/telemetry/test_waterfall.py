"""The waterfall says when a request waited and what each step did for it."""

from playground.engine.events import RequestEvent, ScheduledSlice, StepEvent
from playground.engine.kv_snapshot import KVSnapshot
from playground.telemetry.frames import LiveEvent
from playground.telemetry.recording import Recording, replay_frames
from playground.telemetry.rows import EngineFacts
from playground.telemetry.waterfall import Span, waterfall

MS = 1_000_000


def step(number: int, at_ms: int, *slices: ScheduledSlice) -> StepEvent:
    return StepEvent(number, at_ms * MS, 0, 0, 0, MS, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, slices)


def test_waits_chunks_steps_and_preemptions_are_spans_in_order() -> None:
    events: list[LiveEvent] = [
        RequestEvent(1 * MS, 5, "queued", None, 8),
        RequestEvent(3 * MS, 5, "running", None, 8),
        step(1, 3, ScheduledSlice(5, 0, 4, 0)),
        step(2, 4, ScheduledSlice(5, 4, 4, 1, (), (), (7,))),
        step(3, 5, ScheduledSlice(5, 8, 3, 2, (1, 2), (0,), (1, 9))),
        RequestEvent(6 * MS, 5, "preempted", "out of KV blocks", 8),
        step(4, 7, ScheduledSlice(9, 0, 2, 1, (), (), (3,))),
        RequestEvent(8 * MS, 5, "running", None, 8),
        step(5, 8, ScheduledSlice(5, 0, 11, 1, (), (), (4,))),
        RequestEvent(9 * MS, 5, "finished", "length", 8, 0, 4),
    ]
    frames = replay_frames(Recording(EngineFacts(), KVSnapshot(0, 0, 0, (), ()), events, ()))
    assert waterfall(frames, 5) == [
        Span("queued", 1.0, 3.0, None, 0, 0, 0, 0),
        Span("prefill", 3.0, 4.0, 1, 4, 0, 0, 0),
        Span("prefill", 4.0, 5.0, 2, 4, 1, 0, 0),
        Span("decode", 5.0, 6.0, 3, 3, 2, 2, 1),
        Span("preempted", 6.0, 8.0, None, 0, 0, 0, 0),
        Span("recomputed", 8.0, 9.0, 5, 11, 1, 0, 0),
    ]
    assert waterfall(frames, 77) == []
