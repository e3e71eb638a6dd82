"""A recording: what the engine told while some requests ran, and the live frames that it makes again.

Pure data and functions, without clock, storage or interface. The frames come from the same `LiveState` that follows a
running engine, so that a recording looks in the browser exactly as the engine did.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from playground.engine.events import BlockEvent, RequestEvent, StepEvent
from playground.engine.kv_snapshot import KVSnapshot
from playground.telemetry.frames import SAMPLES_PER_SECOND, Frame, LiveEvent, LiveState
from playground.telemetry.gpu import GpuSample
from playground.telemetry.memory import MemorySample
from playground.telemetry.rates import NS_PER_S
from playground.telemetry.rows import EngineFacts

Reading = MemorySample | GpuSample
MAX_FRAMES = 1200
"""A longer recording shows several steps at once."""
FULL_EVERY = 32
"""One frame in so many has the whole state: where a reader that goes back begins."""
SAMPLES = 160
"""A short recording gets this many samples, so that its lines are lines."""

Origin = Literal["target", "accepted", "bonus", "rejected"]
"""Where a token came from: the target's own draw, a draft that stayed, the target's one after drafts that all stayed,
or a draft that did not stay."""


class RecordedToken(NamedTuple):
    """One token that a request was given, or a draft that was rejected."""

    request: int
    step: int
    position: int | None
    """Its place in the output, from 0; None for a rejected draft."""
    token_id: int
    text: str
    """Characters that were complete with it."""
    logprob: float | None
    """Natural-log probability under the target, where it was asked for."""
    origin: Origin
    draft_position: int | None
    """Its place in the draft, from 0; None for the target's own."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Events in the order in which they were emitted, and the state that they begin from.

    Times are nanoseconds since the recording's time 0, which is `start.time_ns`.
    """

    facts: EngineFacts
    start: KVSnapshot
    events: Sequence[LiveEvent]
    tokens: Sequence[RecordedToken]

    @property
    def duration_ns(self) -> int:
        return max((told_ns(event) for event in self.events), default=self.start.time_ns) - self.start.time_ns


def told_ns(event: LiveEvent) -> int:
    """When the event was known: a step is at its end."""
    return event.time_ns + event.duration_ns if isinstance(event, StepEvent) else event.time_ns


def shifted(event: LiveEvent, by_ns: int) -> LiveEvent:
    """The event so much later, and not before time 0: a reading of the memory may be older than what it stands beside,
    and a step may have begun before the request that joined it was told."""
    time_ns = max(0, event.time_ns + by_ns)
    return event._replace(time_ns=time_ns)


def excerpt(recording: Recording, request_ids: Iterable[int]) -> Recording:
    """The part from the first to the last moment of these requests, with time 0 where the first of them came.

    It begins with the latest readings of memory and GPU before.
    """
    wanted = set(request_ids)
    own = [
        index
        for index, event in enumerate(recording.events)
        if isinstance(event, RequestEvent) and event.request_id in wanted
    ]
    if not own:
        return recording
    first, last = own[0], _end_of_news(recording.events, own[-1])
    state = LiveState(recording.facts, recording.start.time_ns)
    state.resync(recording.start)
    for event in recording.events[:first]:
        state.apply(event)
    readings = {type(event): event for event in recording.events[:first] if isinstance(event, Reading)}
    events = [*readings.values(), *recording.events[first:last]]
    # Time 0 is before all of them, because a state takes no news of blocks from before its beginning.
    start_ns = min(event.time_ns for event in events if isinstance(event, BlockEvent | RequestEvent)) - 1
    snapshot = replace(state.snapshot(0), time_ns=0)
    moved = tuple(shifted(event, -start_ns) for event in events)
    return Recording(recording.facts, snapshot, moved, recording.tokens)


def replay_frames(recording: Recording, max_frames: int = MAX_FRAMES) -> list[Frame]:
    """The frames of a recording, one a step where they are not too many. The first, and each `FULL_EVERY`th, is full.

    Raises whatever `LiveState` does on events that do not fit together.
    """
    start_ns = recording.start.time_ns
    usual_ns = NS_PER_S // SAMPLES_PER_SECOND
    state = LiveState(recording.facts, start_ns, min(usual_ns, max(1, recording.duration_ns // SAMPLES)))
    state.resync(recording.start)
    frames = [state.frame(start_ns, full=True, final=True)]
    num_steps = sum(isinstance(event, StepEvent) for event in recording.events)
    steps_a_frame = max(1, -(-num_steps // max_frames))
    now_ns, num_seen = start_ns, 0
    for index, event in enumerate(recording.events):
        state.apply(event)
        if not isinstance(event, Reading):
            now_ns = max(now_ns, told_ns(event))
        num_seen += isinstance(event, StepEvent)
        if _ends_step(recording.events, index) and num_seen % steps_a_frame == 0:
            frames.append(state.frame(now_ns, full=len(frames) % FULL_EVERY == 0))
    frames.append(state.frame(now_ns, full=True, final=True))
    return frames


def _ends_step(events: Sequence[LiveEvent], index: int) -> bool:
    """Whether this is the last of what a step told: the step itself, then what became of blocks in it.

    A reading may stand anywhere between; it ends nothing.
    """
    if isinstance(events[index], Reading):
        return False
    after = index + 1
    while after < len(events) and isinstance(events[after], Reading):
        after += 1
    if after < len(events) and isinstance(events[after], BlockEvent):
        return False
    while index >= 0 and isinstance(events[index], BlockEvent | Reading):
        index -= 1
    return index >= 0 and isinstance(events[index], StepEvent)


def _end_of_news(events: Sequence[LiveEvent], index: int) -> int:
    """Where what was told together with the event at `index` ends: its step, and what became of blocks."""
    end = index + 1
    for position in range(end, len(events)):
        event = events[position]
        if isinstance(event, StepEvent):
            if event.time_ns <= events[index].time_ns:
                end = position + 1
            break
    while end < len(events) and isinstance(events[end], BlockEvent):
        end += 1
    return end
