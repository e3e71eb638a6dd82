"""What is asked of the recorded requests: each function runs inside a transaction it is given.

User text only ever travels as a bound value. Nothing here opens, waits or changes anything.
"""

import json
from array import array
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, and_, case, func, or_, select

from playground.sessions.codec import NS_PER_S, clean_text
from playground.sessions.errors import StorageError
from playground.sessions.rows import TokenIds, read_snapshot, row_event
from playground.sessions.run_records import (
    COMPARISON,
    FINISHES,
    ORIGINS,
    PURPOSE,
    SORTS,
    Latencies,
    RecordedRun,
    RequestInfo,
    RunConfigInfo,
    RunPage,
    RunQuery,
    StorageInfo,
)
from playground.sessions.tables import (
    Chat,
    EngineRecording,
    Message,
    RecordedBlock,
    RecordedChange,
    RecordedGpuSample,
    RecordedRequest,
    RecordedSample,
    RecordedStep,
    Run,
    RunConfig,
    Segment,
    Setting,
    Token,
    table,
)
from playground.telemetry.recording import RecordedToken, Recording, excerpt
from playground.telemetry.rows import EngineFacts

recordings, segments, requests = table(EngineRecording), table(Segment), table(RecordedRequest)
chats, messages, runs, configs, settings = table(Chat), table(Message), table(Run), table(RunConfig), table(Setting)
tokens = table(Token)
questions = messages.alias("question")
RAW = {
    "step": table(RecordedStep),
    "request_event": table(RecordedChange),
    "block_event": table(RecordedBlock),
    "sample": table(RecordedSample),
    "gpu_sample": table(RecordedGpuSample),
    "token": tokens,
}

DEFAULT_LIMIT = 256 * 2**20
LIMIT_NAME = "raw_events_bytes"
LATEST = 20_000
"""Percentiles are of so many of the latest requests at most."""


def limit_bytes(connection: Connection) -> int:
    found = connection.scalar(select(settings.c.value).where(settings.c.name == LIMIT_NAME))
    return DEFAULT_LIMIT if found is None else int(json.loads(found))


def _playable() -> Any:
    """Whether all segments of a request are there."""
    inside = and_(
        segments.c.recording_id == requests.c.recording_id,
        segments.c.number >= requests.c.first_segment,
        segments.c.number <= requests.c.last_segment,
    )
    count = select(func.count()).select_from(segments).where(inside).scalar_subquery()
    return and_(requests.c.last_segment.is_not(None), count == requests.c.last_segment - requests.c.first_segment + 1)


def _origin() -> Any:
    """Where a request ran: its recording's origin, and of those made here, what for where it was not for a chat."""
    purpose = func.json_extract(recordings.c.environment, f"$.{PURPOSE}")
    here = case((purpose == COMPARISON, COMPARISON), else_="here")
    return case((recordings.c.origin == "imported", "imported"), else_=here)


def _listed() -> Select[Any]:
    return (
        select(
            *[column for column in requests.c if column.name != "gaps"],
            chats.c.title.label("chat_title"),
            questions.c.content.label("question"),
            _origin().label("origin"),
            _playable().label("has_recording"),
        )
        .select_from(requests)
        .outerjoin(chats, chats.c.id == requests.c.chat_id)
        .outerjoin(recordings, recordings.c.id == requests.c.recording_id)
        .outerjoin(messages, messages.c.id == requests.c.message_id)
        .outerjoin(questions, questions.c.id == messages.c.parent_id)
    )


def _info(row: RowMapping) -> RequestInfo:
    values = dict(row) | {"has_recording": bool(row["has_recording"])}
    for name, column in (
        ("queue_time", "queue_ns"),
        ("time_to_first_token", "time_to_first_token_ns"),
        ("time_per_output_token", "time_per_output_token_ns"),
        ("e2e_latency", "e2e_latency_ns"),
    ):
        values[name] = None if row[column] is None else row[column] / NS_PER_S
    return RequestInfo(**{name: values[name] for name in RequestInfo.__dataclass_fields__})


def _filtered(query: Select[Any], wish: RunQuery) -> Select[Any]:
    needle = clean_text(wish.search).strip().casefold()
    if needle:
        texts = (requests.c.prompt, chats.c.title, requests.c.model)
        query = query.where(or_(*[func.contains_folded(text, needle) for text in texts]))
    if wish.finish == "unfinished":
        query = query.where(requests.c.finish.is_(None))
    elif wish.finish in FINISHES:
        query = query.where(requests.c.finish == wish.finish)
    if wish.origin in ORIGINS:
        query = query.where(_origin() == wish.origin)
    if wish.config_id:
        query = query.where(requests.c.config_id == wish.config_id)
    return query


def find_page(connection: Connection, wish: RunQuery) -> RunPage:
    listed = _filtered(_listed(), wish)
    if wish.sort not in SORTS:
        raise StorageError(
            f"sort={wish.sort!r} is not a column of the table of requests: give one of {', '.join(SORTS)}."
        )
    keys: dict[str, Any] = {
        "chat": func.lower(chats.c.title),
        "prompt": func.lower(func.coalesce(questions.c.content, requests.c.prompt)),
        "time_to_first_token": requests.c.time_to_first_token_ns,
        "time_per_output_token": requests.c.time_per_output_token_ns,
        "acceptance": case(
            (requests.c.num_draft_tokens > 0, requests.c.num_accepted_tokens * 1.0 / requests.c.num_draft_tokens)
        ),
    }
    key = keys.get(wish.sort)
    key = requests.c[wish.sort] if key is None else key
    order = (key.desc() if wish.descending else key.asc()).nulls_last()
    page = listed.order_by(order, requests.c.id.desc()).limit(max(1, wish.limit)).offset(max(0, wish.offset))
    num_found = connection.scalar(select(func.count()).select_from(listed.subquery()))
    found = [_info(row) for row in connection.execute(page).mappings()]
    return RunPage(found, num_found or 0, _latencies(connection, wish))


def _latencies(connection: Connection, wish: RunQuery) -> Latencies:
    columns = (
        requests.c.time_to_first_token_ns,
        requests.c.time_per_output_token_ns,
        requests.c.e2e_latency_ns,
        requests.c.gaps,
    )
    query = select(*columns).select_from(requests).outerjoin(chats, chats.c.id == requests.c.chat_id)
    query = query.outerjoin(recordings, recordings.c.id == requests.c.recording_id)
    # Another machine's times are others, and those of a comparison are in its own table, taken with more care.
    query = query.where(_origin() == "here")
    query = _filtered(query, wish).order_by(requests.c.created_ms.desc()).limit(LATEST)
    found = Latencies([], [], [], [])
    row: Any
    for row in connection.execute(query):
        first, per_token, whole, gaps = row
        for values, value in (
            (found.time_to_first_token, first),
            (found.time_per_output_token, per_token),
            (found.e2e_latency, whole),
        ):
            if value is not None:
                values.append(value / NS_PER_S)
        if gaps:
            found.inter_token_latency.extend(read_gaps(gaps))
    return found


def read_gaps(packed: bytes) -> "array[float]":
    gaps = array("f")
    gaps.frombytes(packed[: len(packed) // 4 * 4])
    return gaps


def find_configs(connection: Connection) -> list[RunConfigInfo]:
    count = func.count().label("n")
    query = select(requests.c.config_id, requests.c.model, count).group_by(requests.c.config_id, requests.c.model)
    return [RunConfigInfo(*row) for row in connection.execute(query.order_by(count.desc()))]


def require_request(connection: Connection, request_id: int) -> RequestInfo:
    row = connection.execute(_listed().where(requests.c.id == request_id)).mappings().first()
    if row is None:
        raise StorageError("This run is not saved any more: go back to the list of requests.")
    return _info(row)


def run_of_message(connection: Connection, message_id: int) -> int | None:
    return connection.scalar(select(requests.c.id).where(requests.c.message_id == message_id))


def runs_of_engine(connection: Connection, recording_id: int) -> dict[int, int]:
    """The ids of a recording's requests, by the engine's numbers for them."""
    query = select(requests.c.engine_id, requests.c.id).where(requests.c.recording_id == recording_id)
    return {int(engine_id): int(request_id) for engine_id, request_id in connection.execute(query)}


def load_run(connection: Connection, request_id: int) -> RecordedRun:
    """The request and its excerpt of the recording. Raises `StorageError` where its raw events are gone."""
    info = require_request(connection, request_id)
    if not info.has_recording:
        raise StorageError("The raw events of this run are not saved (any more): only its figures are.")
    row = (
        connection.execute(
            select(requests, recordings.c.facts, recordings.c.environment, configs.c.json.label("config"))
            .join(recordings, recordings.c.id == requests.c.recording_id)
            .join(configs, configs.c.id == recordings.c.config_id)
            .where(requests.c.id == request_id)
        )
        .mappings()
        .one()
    )
    whole = _recording(connection, row)
    return RecordedRun(
        request=info,
        request_engine_id=row["engine_id"],
        recording=excerpt(whole, [row["engine_id"]]),
        config=json.loads(row["config"]),
        environment=json.loads(row["environment"]),
        params=json.loads(row["params"]),
    )


def _recording(connection: Connection, row: RowMapping) -> Recording:
    """The segments in which a request ran, one after another."""
    first, last, recording_id = row["first_segment"], row["last_segment"], row["recording_id"]
    keyframe = connection.scalar(
        select(segments.c.keyframe).where(segments.c.recording_id == recording_id, segments.c.number == first)
    )
    raw: dict[str, list[RowMapping]] = {}
    for name, raw_table in RAW.items():
        own = and_(raw_table.c.recording_id == recording_id, raw_table.c.segment.between(first, last))
        query = select(raw_table).where(own).order_by(raw_table.c.segment, raw_table.c.seq)
        raw[name] = list(connection.execute(query).mappings())
    told = [RecordedToken(**{name: one[name] for name in RecordedToken._fields}) for one in raw.pop("token")]
    ids = TokenIds(told)
    ordered = sorted(
        (one["segment"], one["seq"], name, place) for name, rows in raw.items() for place, one in enumerate(rows)
    )
    events = [row_event(name, dict(raw[name][place]), ids) for _, _, name, place in ordered]
    facts = EngineFacts(**json.loads(row["facts"]))
    return Recording(facts, read_snapshot(str(keyframe)), events, told)


def measure(connection: Connection, file_bytes: int) -> StorageInfo:
    size = func.coalesce(func.sum(segments.c.num_bytes + func.length(segments.c.keyframe)), 0)
    return StorageInfo(
        file_bytes=file_bytes,
        raw_bytes=int(connection.scalar(select(size)) or 0),
        limit_bytes=limit_bytes(connection),
        num_requests=int(connection.scalar(select(func.count()).select_from(requests)) or 0),
        num_playable=int(connection.scalar(select(func.count()).select_from(requests).where(_playable())) or 0),
    )
