"""A run as one file: JSON, compressed with Zstandard, which another installation opens without the model or a GPU.

A file comes from anywhere. So it is never unpacked beyond a limit, every value is checked for type and size, and its
events are played once before it is believed. Whatever is wrong with it ends as one sentence.
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

import zstandard
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from playground.engine.events import BlockEvent, RequestEvent, ScheduledSlice, StepEvent
from playground.engine.kv_snapshot import KVSnapshot, RequestBlocks
from playground.errors import PlaygroundError
from playground.sessions.rows import id_runs
from playground.sessions.run_records import RecordedRun, RequestInfo
from playground.telemetry.frames import LiveEvent
from playground.telemetry.gpu import GpuSample
from playground.telemetry.memory import MemorySample, MemorySource
from playground.telemetry.recording import RecordedToken, Recording, replay_frames
from playground.telemetry.rows import EngineFacts

SUFFIX = ".run.json.zst"
FORMAT = "inference-playground-run"
VERSION = 2
"""1 has no readings of a GPU and nothing of the roofline; it is read as well."""
MAX_FILE_BYTES = 16 * 2**20
MAX_JSON_BYTES = 128 * 2**20
MAX_EVENTS = 400_000
MAX_TOKENS = 400_000
MAX_BLOCKS = 2**20
MAX_LENGTH = 2**21
"""Tokens of one request."""
LEVEL = 19
LETTERS = "scbmg"
"""Of the kinds of events, see `RunFile.order`."""
_UNPLAYABLE = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError)
"""What events raise that are each well formed and do not fit together."""


class RunFileError(PlaygroundError):
    """A file that is not a run, or not one that can be played."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Ns = Annotated[int, Field(ge=0, le=10**15)]
"""Up to eleven days."""
Count = Annotated[int, Field(ge=0, le=MAX_LENGTH)]
Id = Annotated[int, Field(ge=-1, le=2**53)]
BlockId = Annotated[int, Field(ge=0, le=MAX_BLOCKS)]
Bytes = Annotated[int, Field(ge=0, le=2**60)]
Text = Annotated[str, Field(max_length=40_000)]
Short = Annotated[str, Field(max_length=400)]
Seconds = Annotated[float, Field(ge=0, le=10**9)]
Amount = Annotated[float, Field(ge=0, le=1e24)]
Rate = Annotated[float, Field(gt=0, le=1e24)]
Ids = Annotated[tuple[Id, ...], Field(max_length=4096)]

_Slice = tuple[Id, Count, Count, Count, Ids, Ids, Ids, bool]
_Step = tuple[
    Id, Ns, Ns, Ns, Ns, Ns, Ns, Ns, Count, Count, Count, Count, Count, Count, Count, Count, BlockId, BlockId, BlockId,
    Annotated[int, Field(ge=0, le=2**40)], Annotated[tuple[_Slice, ...], Field(max_length=4096)],
]  # fmt: skip
_Change = tuple[
    Ns,
    Id,
    Literal["queued", "running", "first_token", "preempted", "finished"],
    Short | None,
    Count,
    Count,
    Count,
    Count,
]
_Block = tuple[
    Ns, Literal["alloc", "share", "copy", "release", "free", "evict", "cache"], BlockId, Count, Id | None,
    BlockId | None, Count | None,
]  # fmt: skip
_Sample = tuple[Ns, MemorySource, Bytes | None, Bytes | None, Bytes | None]
_Load = tuple[
    Ns, Annotated[float, Field(ge=0, le=1)] | None, Amount | None, Amount | None, Count | None, Count | None,
    bool | None,
]  # fmt: skip
_Token = tuple[
    Id, Id, Count | None, Id, Annotated[str, Field(max_length=1000)], float | None,
    Literal["target", "accepted", "bonus", "rejected"], Count | None,
]  # fmt: skip
_Holder = tuple[
    Id, bool, Count, Count, Count, Count, Count, Annotated[tuple[BlockId, ...], Field(max_length=MAX_LENGTH)]
]


class _Work(_Strict):
    """A `ModelWork`."""

    flops_per_token: Amount
    flops_per_logit_row: Amount
    flops_per_pair: Amount
    windows: Annotated[tuple[tuple[Count | None, Count], ...], Field(max_length=1024)]
    weights_bytes: Bytes
    kv_bytes_per_token: Amount


class _Ceilings(_Strict):
    """A `Ceilings`."""

    flops_per_second: Rate
    bytes_per_second: Rate
    memory_bytes_per_second: Rate
    dtype: Short
    device: Short
    undisturbed: bool


class _Facts(_Strict):
    model: Short = ""
    num_blocks: BlockId = 0
    block_size: Annotated[int, Field(ge=0, le=65_536)] = 0
    block_bytes: Annotated[float, Field(ge=0, le=2**50)] = 0
    weights_bytes: Bytes = 0
    max_num_seqs: Count = 0
    max_model_len: Annotated[int, Field(ge=0, le=2**31)] = 0
    speculation: Short | None = None
    draft_tree: bool = False
    draft_kv_bytes_per_token: Amount | None = None
    work: _Work | None = None
    ceilings: _Ceilings | None = None


class _Start(_Strict):
    cached: Annotated[list[tuple[BlockId, BlockId]], Field(max_length=MAX_BLOCKS)]
    """Runs of neighbours: the first and how many."""
    requests: Annotated[list[_Holder], Field(max_length=4096)]


class _Request(_Strict):
    engine_id: Id
    created_ms: Annotated[int, Field(ge=0, le=10**14)]
    model: Short
    prompt: Text
    finish: Literal["stop", "length", "abort", "error"] | None
    params: dict[str, Any]
    num_prompt_tokens: Count | None
    num_output_tokens: Count | None
    num_cached_tokens: Count | None
    num_cache_write_tokens: Count | None
    num_preemptions: Count | None
    num_draft_tokens: Count | None
    num_accepted_tokens: Count | None
    kv_blocks_peak: BlockId | None
    queue_time: Seconds | None
    time_to_first_token: Seconds | None
    time_per_output_token: Seconds | None
    e2e_latency: Seconds | None


class Caption(_Strict):
    """What to look at from a moment of the recording on."""

    time_ms: Annotated[float, Field(ge=0, le=10**9)]
    text: Annotated[str, Field(max_length=1000)]


class Tour(_Strict):
    """What makes a run one of the guided tours."""

    name: Short
    title: Short
    captions: Annotated[list[Caption], Field(max_length=32)]


class RunFile(_Strict):
    """The content of a file. Events as arrays, in the order in which they were emitted: [kind, values]."""

    format: Literal["inference-playground-run"]
    version: Literal[1, 2]
    environment: dict[str, Any]
    config: dict[str, Any]
    facts: _Facts
    request: _Request
    start: _Start
    steps: Annotated[list[_Step], Field(max_length=MAX_EVENTS)]
    changes: Annotated[list[_Change], Field(max_length=MAX_EVENTS)]
    blocks: Annotated[list[_Block], Field(max_length=MAX_EVENTS)]
    samples: Annotated[list[_Sample], Field(max_length=MAX_EVENTS)]
    loads: Annotated[list[_Load], Field(max_length=MAX_EVENTS)] = []
    """Of the GPU."""
    order: Annotated[str, Field(max_length=5 * MAX_EVENTS, pattern="^[scbmg]*$")]
    """One letter an event: the next of the steps, changes, blocks, samples (m) or loads (g)."""
    tokens: Annotated[list[_Token], Field(max_length=MAX_TOKENS)]
    tour: Tour | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "RunFile":
        lists: tuple[list[Any], ...] = (self.steps, self.changes, self.blocks, self.samples, self.loads)
        for letter, events in zip(LETTERS, lists, strict=True):
            if self.order.count(letter) != len(events):
                raise ValueError("its order names more or fewer events than it has")
        ids = [block[2] for block in self.blocks] + [block for one in self.start.requests for block in one[-1]]
        ids += [first + count - 1 for first, count in self.start.cached if count]
        if max(ids, default=0) > self.facts.num_blocks:
            raise ValueError(f"it names a block beyond its {self.facts.num_blocks}")
        if (self.blocks or self.start.cached) and self.facts.block_size == 0:
            raise ValueError("it has blocks of no size")
        work = sum(one[1] + one[2] for step in self.steps for one in step[-1]) // max(1, self.facts.block_size)
        if work > 64 * MAX_LENGTH or sum(count for _, count in self.start.cached) > MAX_BLOCKS:
            raise ValueError("playing it would take too long")
        return self


def pack(run: RecordedRun, *, everyone: bool = False, tour: Tour | None = None) -> bytes:
    """The run as a file. Texts of other requests that ran beside it stay out, unless `everyone`."""
    recording, info = run.recording, run.request
    told: dict[str, list[Any]] = {letter: [] for letter in LETTERS}
    order = []
    for event in recording.events:
        letter, values = _values(event, None if everyone else run.request_engine_id)
        told[letter].append(values)
        order.append(letter)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "environment": dict(run.environment),
        "config": _without_paths(run.config),
        "facts": asdict(recording.facts) | {"model": info.model},
        "request": {
            "engine_id": run.request_engine_id,
            "params": dict(run.params),
            **{name: getattr(info, name) for name in _Request.model_fields if name not in ("engine_id", "params")},
        },
        "start": {
            "cached": id_runs(recording.start.cached),
            "requests": [list(one) for one in recording.start.requests],
        },
        "steps": told["s"],
        "changes": told["c"],
        "blocks": told["b"],
        "samples": told["m"],
        "loads": told["g"],
        "order": "".join(order),
        "tokens": [list(one) for one in recording.tokens if everyone or one.request == run.request_engine_id],
        "tour": None if tour is None else tour.model_dump(),
    }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(text.encode())


def unpack(data: bytes) -> tuple[RecordedRun, Tour | None]:
    """The run in a file. Raises `RunFileError`, one sentence, where it is none or cannot be played."""
    content = _parsed(_decompressed(data))
    recording = _recording(content)
    try:
        replay_frames(recording, max_frames=64)
    except _UNPLAYABLE:
        raise RunFileError(
            "This file cannot be played: its events do not fit together. Export the run again."
        ) from None
    request = content.request
    known = {name: getattr(request, name) for name in _Request.model_fields if name not in ("engine_id", "params")}
    info = RequestInfo(
        id=0,
        origin="imported",
        chat_id=None,
        chat_title=None,
        question=None,
        message_id=None,
        config_id="",
        has_recording=True,
        **known,
    )
    run = RecordedRun(info, request.engine_id, recording, content.config, content.environment, request.params)
    return run, content.tour


def _decompressed(data: bytes) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise RunFileError(
            f"This file has {len(data) / 2**20:.0f} MiB; a run has at most {MAX_FILE_BYTES // 2**20} MiB."
        )
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(io.BytesIO(data)) as reader:
            text = reader.read(MAX_JSON_BYTES + 1)
    except zstandard.ZstdError:
        raise RunFileError(f"This file is not a run: choose one that was exported here ({SUFFIX}).") from None
    if len(text) > MAX_JSON_BYTES:
        raise RunFileError(f"This file unpacks to more than {MAX_JSON_BYTES // 2**20} MiB: it is not opened.")
    return text


def _parsed(text: bytes) -> RunFile:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise RunFileError(f"This file is not a run: choose one that was exported here ({SUFFIX}).") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise RunFileError(f"This file is not a run: choose one that was exported here ({SUFFIX}).")
    version = values.get("version")
    if version not in range(1, VERSION + 1):
        raise RunFileError(
            f"This file is of format {str(version)[:20]}, and this playground reads {VERSION}: upgrade it."
        )
    try:
        return RunFile.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"][:4]) or "the whole"
        raise RunFileError(f"This file is damaged ({place}: {first['msg'][:120]}): export the run again.") from None


def _recording(content: RunFile) -> Recording:
    """Events and all of the file; the identifiers of JSON arrays become those of the engine's tuples."""
    queues: dict[str, Iterator[LiveEvent]] = {
        "s": iter([_step(values) for values in content.steps]),
        "c": iter([RequestEvent(*values) for values in content.changes]),
        "b": iter([BlockEvent(*values) for values in content.blocks]),
        "m": iter([MemorySample(*values) for values in content.samples]),
        "g": iter([GpuSample(*values) for values in content.loads]),
    }
    events: list[LiveEvent] = [next(queues[letter]) for letter in content.order]
    facts = EngineFacts(**content.facts.model_dump())
    cached = tuple(first + place for first, count in content.start.cached for place in range(count))
    holders = tuple(RequestBlocks(*one) for one in content.start.requests)
    start = KVSnapshot(0, facts.num_blocks, facts.block_size, cached, holders)
    return Recording(facts, start, tuple(events), tuple(RecordedToken(*one) for one in content.tokens))


def _values(event: LiveEvent, only: int | None) -> tuple[str, list[Any]]:
    if isinstance(event, StepEvent):
        slices = [list(one if only in (None, one.request_id) else _nameless(one)) for one in event.requests]
        return "s", [*event[:-1], slices]
    if isinstance(event, RequestEvent):
        return "c", list(event[: len(RequestEvent._fields) - 1])
    if isinstance(event, BlockEvent):
        return "b", list(event)
    return "g" if isinstance(event, GpuSample) else "m", list(event)


def _nameless(one: ScheduledSlice) -> ScheduledSlice:
    """Without the ids of its tokens, which would tell another request's text."""
    return one._replace(draft_ids=(-1,) * len(one.draft_ids), token_ids=())


def _step(values: Any) -> StepEvent:
    return StepEvent(*[*values[:-1], tuple(ScheduledSlice(*one) for one in values[-1])])


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Names instead of places on this machine's disk."""
    return {
        name: value.replace("\\", "/").rsplit("/", 1)[-1]
        if isinstance(value, str) and (value.startswith(("/", "~")) or ":\\" in value)
        else value
        for name, value in config.items()
    }
