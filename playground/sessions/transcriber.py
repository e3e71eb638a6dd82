"""`Transcriber`: turns the events of one engine into rows, a batch at a time. Pure: no thread, no clock, no database.

Events are kept in segments. One begins with the first request after a rest, from the state of all blocks at that
moment, and ends when nothing runs any more, or when it has become long: so every run can be played without what was
before it.
"""

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from playground.engine.events import BlockEvent, RequestEvent, StepEvent
from playground.engine.kv_snapshot import KVSnapshot
from playground.engine.token_text import TextStream, text_stream
from playground.sessions.codec import canonical_json, clean_text, split_metrics
from playground.sessions.rows import Row, event_row, row_bytes, snapshot_json, step_tokens
from playground.telemetry.frames import LiveEvent, LiveState
from playground.telemetry.gpu import GpuSample
from playground.telemetry.memory import MemorySample
from playground.telemetry.rates import NS_PER_S
from playground.telemetry.recording import RecordedToken, shifted, told_ns
from playground.telemetry.rows import EngineFacts

SEGMENT_EVENTS = 20_000
SEGMENT_NS = 60 * NS_PER_S
"""A segment that is longer ends, so that old ones can be deleted while an engine never rests."""
PROMPT_CHARS = 32_768
RECENT_REQUESTS = 512
"""Ended requests about which more may still be said: which reply they made."""


@dataclass(slots=True)
class Batch:
    """What is to be stored at once."""

    segments: list[Row] = field(default_factory=list)
    events: dict[str, list[Row]] = field(default_factory=dict)
    """By table; each row has its `segment` and `seq`."""
    requests: dict[int, Row] = field(default_factory=dict)
    """Whole rows, new and changed ones, by the engine's id."""
    logprobs: list[tuple[int, int, float]] = field(default_factory=list)
    """Engine's id of the request, position of the token, log-probability."""
    broken: set[int] = field(default_factory=set)
    """Numbers of segments in which events are missing: they cannot be played, and go."""

    @property
    def num_rows(self) -> int:
        return sum(len(rows) for rows in self.events.values()) + len(self.requests) + len(self.logprobs)


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of a request beside the engine's events: told by whoever sent it."""

    chat_id: int | None = None
    message_id: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Sequence[float] = ()
    """Of its tokens, in order."""
    prompt: str | None = None
    """What was asked, where the request's own prompt has a chat's frame around it."""


class _Open:
    """A request that has not ended: its row so far, and what its figures are worked out from."""

    def __init__(self, row: Row, queued_ns: int, stream: TextStream) -> None:
        self.row = row
        self.queued_ns = queued_ns
        self.stream = stream
        self.first_token_ns: int | None = None
        self.last_emitted_ns: int | None = None
        self.ended = False
        self.num_tokens = self.num_blocks = 0
        self.gaps = array("f")


class Transcriber:
    """Follows one engine. `take` its events in the order in which they were emitted, `drain` what is to be stored."""

    def __init__(
        self, facts: EngineFacts, start: KVSnapshot, *, created_ms: int, config_id: str, model: str, tokenizer: Any
    ) -> None:
        """`start.time_ns` is time 0 of what is stored, and `created_ms` when that was by the wall clock."""
        self.epoch_ns = start.time_ns
        self.num_segments = 0
        self._created_ms = created_ms
        self._config_id = config_id
        self._model = model
        self._tokenizer = tokenizer
        self._state = LiveState(facts, self.epoch_ns)
        self._state.resync(start)
        self._segment: Row | None = None
        self._segment_ns = 0
        self._seq = 0
        self._readings: dict[type, MemorySample | GpuSample] = {}
        self._open: dict[int, _Open] = {}
        self._recent: OrderedDict[int, Row] = OrderedDict()
        self._batch = Batch()

    @property
    def recording(self) -> bool:
        """Whether a segment is open: whether there is a run to which a reading of memory or GPU belongs."""
        return self._segment is not None

    @property
    def pending(self) -> int:
        """Rows that were not drained yet."""
        return self._batch.num_rows

    def take(self, events: Sequence[LiveEvent]) -> None:
        for event in events:
            if isinstance(event, MemorySample | GpuSample):
                self._readings[type(event)] = event
            elif self._segment is None and (self._open or _begins_run(event)):
                self._begin(event.time_ns)
            if isinstance(event, RequestEvent):
                self._take_request(event)
            elif isinstance(event, StepEvent):
                self._take_step(event)
            elif isinstance(event, BlockEvent):
                self._take_block(event)
            self._state.apply(event)
            if self._segment is not None:
                self._put_event(event)
        for request_id in [request_id for request_id, one in self._open.items() if one.ended]:
            self._end(request_id)
        if events:
            last_ns = told_ns(events[-1])
            self._state.frame(last_ns)  # nobody looks at it: lets go of what it would tell
            long = self._seq > SEGMENT_EVENTS or last_ns - self._segment_ns > SEGMENT_NS
            if not self._open or long:
                self._segment = None

    def note(self, request_id: int, note: Note) -> bool:
        """Add what is known of a request; False where it is unknown, perhaps still to come."""
        row = self._recent.get(request_id)
        if row is None:
            return False
        row |= {"chat_id": note.chat_id, "message_id": note.message_id, "params": canonical_json(note.params)}
        if note.prompt is not None:
            row["prompt"] = clean_text(note.prompt[:PROMPT_CHARS])
        columns = split_metrics(note.metrics)
        row |= {name: value for name, value in columns.items() if name in row and value is not None}
        self._batch.requests[request_id] = row
        self._batch.logprobs += [(request_id, position, value) for position, value in enumerate(note.logprobs)]
        return True

    def resync(self, snapshot: KVSnapshot) -> None:
        """Events were lost: go on from here, in a new segment."""
        self._state.resync(snapshot)
        self.break_segment()
        alive = {one.request_id for one in snapshot.requests}
        for request_id in [request_id for request_id in self._open if request_id not in alive]:
            self._end(request_id)

    def break_segment(self) -> None:
        """Something of the present segment was lost or deleted: what comes begins a new one."""
        if self._segment is not None:
            self._batch.broken.add(self._segment["number"])
        self._segment = None

    def lose(self, batch: Batch) -> None:
        """A batch could not be stored: what it had of segments is missing, what it had of requests is kept."""
        self.break_segment()
        numbers = {row["segment"] for rows in batch.events.values() for row in rows}
        self._batch.broken |= batch.broken | numbers | {row["number"] for row in batch.segments}
        self._batch.requests = batch.requests | self._batch.requests

    def close(self) -> None:
        """Nothing comes any more: requests that have not ended stay without a finish reason."""
        for request_id in list(self._open):
            self._end(request_id)

    def drain(self) -> Batch:
        batch, self._batch = self._batch, Batch()
        return batch

    # Parts

    def _begin(self, time_ns: int) -> None:
        self.num_segments += 1
        snapshot = self._state.snapshot(time_ns - 1 - self.epoch_ns)
        self._segment = {
            "number": self.num_segments,
            "created_ms": self._created_ms + (time_ns - self.epoch_ns) // 1_000_000,
            "keyframe": snapshot_json(snapshot),
            "num_bytes": 0,
        }
        self._segment_ns, self._seq = time_ns, 0
        self._batch.segments.append(self._segment)
        for reading in self._readings.values():
            self._put_event(reading)

    def _put_event(self, event: LiveEvent) -> None:
        self._put(*event_row(shifted(event, -self.epoch_ns)))

    def _put(self, table: str, row: Row) -> None:
        assert self._segment is not None, "events belong to a segment"
        row |= {"segment": self._segment["number"], "seq": self._seq}
        self._seq += 1
        self._segment["num_bytes"] += row_bytes(table, row)
        self._batch.events.setdefault(table, []).append(row)

    def _take_request(self, event: RequestEvent) -> None:
        request_id = event.request_id
        one = self._open.get(request_id)
        if event.state == "queued" and one is None:
            one = self._open[request_id] = self._opened(event)
            self._batch.requests[request_id] = one.row
        if one is None:
            return
        one.row["num_cached_tokens"] = event.num_cached_tokens
        one.row["num_cache_write_tokens"] = event.num_cache_write_tokens
        if event.state == "running" and one.row["queue_ns"] is None:
            one.row["queue_ns"] = event.time_ns - one.queued_ns
        elif event.state == "first_token":
            one.first_token_ns = event.time_ns
            one.row["time_to_first_token_ns"] = event.time_ns - one.queued_ns
        elif event.state == "preempted":
            one.row["num_preemptions"] += 1
        elif event.state == "finished":
            one.ended = True
            one.row |= {
                "finish": event.reason,
                "num_output_tokens": event.num_output_tokens,
                "e2e_latency_ns": event.time_ns - one.queued_ns,
            }

    def _opened(self, event: RequestEvent) -> _Open:
        assert self._segment is not None, "a queued request begins one"
        ids = list(event.prompt_token_ids)
        text = "" if self._tokenizer is None else str(self._tokenizer.decode(ids, skip_special_tokens=True))
        row = {
            "engine_id": event.request_id,
            "first_segment": self._segment["number"],
            "last_segment": None,
            "chat_id": None,
            "message_id": None,
            "config_id": self._config_id,
            "model": self._model,
            "created_ms": self._created_ms + (event.time_ns - self.epoch_ns) // 1_000_000,
            "prompt": clean_text(text[:PROMPT_CHARS]),
            "params": "{}",
            "finish": None,
            "num_prompt_tokens": event.num_prompt_tokens,
            "num_output_tokens": None,
            "num_cached_tokens": None,
            "num_cache_write_tokens": None,
            "num_preemptions": 0,
            "num_draft_tokens": 0,
            "num_accepted_tokens": 0,
            "kv_blocks_peak": 0,
            "queue_ns": None,
            "time_to_first_token_ns": None,
            "time_per_output_token_ns": None,
            "e2e_latency_ns": None,
            "gaps": None,
        }
        return _Open(row, event.time_ns, text_stream(self._tokenizer, ids))

    def _take_step(self, event: StepEvent) -> None:
        ended_ns = told_ns(event)
        for share in event.requests:
            one = self._open.get(share.request_id)
            if one is None:
                continue
            one.row["num_draft_tokens"] += len(share.draft_ids)
            one.row["num_accepted_tokens"] += len(share.accepted_drafts)
            if share.num_emitted:
                if one.last_emitted_ns is not None:
                    one.gaps.append((ended_ns - one.last_emitted_ns) / NS_PER_S)
                one.last_emitted_ns = ended_ns
        for share, token_id, place, origin, draft_position in step_tokens(event):
            one = self._open.get(share.request_id)
            if one is None or (place is not None and place >= share.num_emitted):  # a stop cut it off
                continue
            position, text = None, ""
            if place is not None:
                position, text = one.num_tokens, clean_text(one.stream.feed(token_id))
                one.num_tokens += 1
            elif self._tokenizer is not None:
                text = clean_text(str(self._tokenizer.decode([token_id])))
            values = (share.request_id, event.step, position, token_id, text, None, origin, draft_position)
            self._put("token", RecordedToken(*values)._asdict())  # type: ignore[arg-type]

    def _take_block(self, event: BlockEvent) -> None:
        one = self._open.get(event.request_id) if event.request_id is not None else None
        if one is not None:
            if event.action in ("alloc", "share"):
                one.num_blocks += 1
                one.row["kv_blocks_peak"] = max(one.row["kv_blocks_peak"], one.num_blocks)
            elif event.action in ("release", "free", "cache"):
                one.num_blocks -= 1

    def _end(self, request_id: int) -> None:
        one = self._open.pop(request_id)
        row = one.row
        row["last_segment"] = self.num_segments
        tokens = row["num_output_tokens"] or one.num_tokens
        row["num_output_tokens"] = tokens
        if one.first_token_ns is not None and one.last_emitted_ns is not None and tokens > 1:
            row["time_per_output_token_ns"] = max(0, one.last_emitted_ns - one.first_token_ns) // (tokens - 1)
        row["gaps"] = one.gaps.tobytes() if one.gaps else None
        self._recent[request_id] = self._batch.requests[request_id] = row
        while len(self._recent) > RECENT_REQUESTS:
            self._recent.popitem(last=False)


def _begins_run(event: LiveEvent) -> bool:
    return isinstance(event, RequestEvent) and event.state == "queued"
