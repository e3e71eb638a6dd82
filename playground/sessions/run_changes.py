"""What changes recorded requests and their raw events: each function runs inside a transaction it is given.

User text only ever travels as a bound value. Nothing here opens, commits or waits.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, literal, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from playground.sessions.codec import NS_PER_S, canonical_json, clean_text, config_id
from playground.sessions.rows import event_row, row_bytes, snapshot_json
from playground.sessions.run_queries import (
    LIMIT_NAME,
    RAW,
    chats,
    configs,
    limit_bytes,
    recordings,
    requests,
    runs,
    segments,
    settings,
    tokens,
)
from playground.sessions.run_records import RecordedRun, RequestInfo
from playground.sessions.transcriber import Batch
from playground.telemetry.rows import EngineFacts


def add_config(connection: Connection, config: Mapping[str, Any]) -> str:
    """The id of a configuration, stored once however many use it."""
    json_text = canonical_json(config)
    row = {"id": config_id(json_text), "json": json_text}
    connection.execute(upsert(configs).values(row).on_conflict_do_nothing())
    return row["id"]


def add_recording(
    connection: Connection,
    *,
    origin: str,
    created_ms: int,
    config: Mapping[str, Any],
    model: str,
    environment: Mapping[str, Any],
    facts: EngineFacts,
) -> tuple[int, str]:
    """The new recording's id, and its configuration's."""
    used = add_config(connection, config)
    values = {
        "origin": origin,
        "created_ms": created_ms,
        "config_id": used,
        "model": clean_text(model),
        "environment": canonical_json(environment),
        "facts": canonical_json(asdict(facts)),
    }
    query = insert(recordings).values(**values).returning(recordings.c.id)
    return int(connection.execute(query).scalar_one()), used


def set_facts(connection: Connection, recording_id: int, facts: EngineFacts) -> None:
    """What is known of the recorded engine now."""
    values = {"facts": canonical_json(asdict(facts))}
    connection.execute(update(recordings).where(recordings.c.id == recording_id).values(**values))


def store_batch(connection: Connection, recording_id: int, batch: Batch) -> set[int]:
    """Store what a `Transcriber` has; returns the segments that do not exist any more, whose events were left out."""
    own = segments.c.recording_id == recording_id
    if batch.broken:
        connection.execute(delete(segments).where(own, segments.c.number.in_(batch.broken)))
    for row in batch.segments:
        if row["number"] not in batch.broken:
            connection.execute(insert(segments).values(recording_id=recording_id, **row))
    named = {row["segment"] for rows in batch.events.values() for row in rows} - batch.broken
    alive = set(connection.scalars(select(segments.c.number).where(own, segments.c.number.in_(named))))
    stored = _store_requests(connection, recording_id, batch)
    for name, rows in batch.events.items():
        kept = [{"recording_id": recording_id, **row} for row in rows if row["segment"] in alive]
        if name == "token":
            kept = [row for row in kept if row["request"] in stored]
        if kept:
            connection.execute(insert(RAW[name]), kept)
            _count_bytes(connection, recording_id, name, kept, batch)
    for request_id, position, logprob in batch.logprobs:
        where = and_(tokens.c.recording_id == recording_id, tokens.c.request == request_id)
        connection.execute(update(tokens).where(where, tokens.c.position == position).values(logprob=logprob))
    if batch.segments:
        delete_beyond_limit(connection)
    return named - alive


def _store_requests(connection: Connection, recording_id: int, batch: Batch) -> set[int]:
    """Insert or replace the batch's requests; returns which of those that the batch names exist now.

    One whose chat has been deleted meanwhile is deleted with it.
    """
    for row in batch.requests.values():
        chat_id = row["chat_id"]
        if chat_id is not None and connection.scalar(select(chats.c.id).where(chats.c.id == chat_id)) is None:
            gone = and_(requests.c.recording_id == recording_id, requests.c.engine_id == row["engine_id"])
            connection.execute(delete(requests).where(gone))
            continue
        values = {"recording_id": recording_id, **row}
        changes = {name: value for name, value in values.items() if name not in ("recording_id", "engine_id")}
        query = upsert(requests).values(values)
        connection.execute(query.on_conflict_do_update(index_elements=["recording_id", "engine_id"], set_=changes))
    named = {row["request"] for row in batch.events.get("token", ())}
    own = and_(requests.c.recording_id == recording_id, requests.c.engine_id.in_(named))
    return set(connection.scalars(select(requests.c.engine_id).where(own)))


def _count_bytes(
    connection: Connection, recording_id: int, name: str, rows: list[dict[str, Any]], batch: Batch
) -> None:
    """Segments that began in an earlier batch have grown; those of this one know their size."""
    fresh = {row["number"] for row in batch.segments}
    sizes: dict[int, int] = {}
    for row in rows:
        if row["segment"] not in fresh:
            sizes[row["segment"]] = sizes.get(row["segment"], 0) + row_bytes(name, row)
    for number, size in sizes.items():
        where = and_(segments.c.recording_id == recording_id, segments.c.number == number)
        connection.execute(update(segments).where(where).values(num_bytes=segments.c.num_bytes + size))


def delete_beyond_limit(connection: Connection) -> None:
    """Delete the oldest segments until raw events keep to their limit; the newest one stays in any case."""
    sizes = connection.execute(
        select(
            segments.c.recording_id, segments.c.number, segments.c.num_bytes, func.length(segments.c.keyframe)
        ).order_by(segments.c.created_ms.desc(), segments.c.recording_id.desc(), segments.c.number.desc())
    ).all()
    room = limit_bytes(connection)
    for place, (recording_id, number, num_bytes, keyframe) in enumerate(sizes):
        room -= num_bytes + keyframe
        if room < 0 and place:
            where = and_(segments.c.recording_id == recording_id, segments.c.number == number)
            connection.execute(delete(segments).where(where))


def delete_raw(connection: Connection) -> None:
    """All raw events; the table of requests stays."""
    connection.execute(delete(segments))


def delete_request(connection: Connection, request_id: int) -> None:
    connection.execute(delete(requests).where(requests.c.id == request_id))
    delete_unused(connection)


def delete_unused(connection: Connection) -> None:
    """Segments in which no known request ran, imported files without their request, and configurations of nothing."""
    inside = and_(
        requests.c.recording_id == segments.c.recording_id,
        requests.c.first_segment <= segments.c.number,
        or_(requests.c.last_segment.is_(None), requests.c.last_segment >= segments.c.number),
    )
    connection.execute(delete(segments).where(~select(literal(1)).where(inside).exists()))
    imported = and_(
        recordings.c.origin == "imported",
        recordings.c.id.not_in(select(requests.c.recording_id).where(requests.c.recording_id.is_not(None))),
    )
    connection.execute(delete(recordings).where(imported))
    users = [select(literal(1)).where(one.c.config_id == configs.c.id).exists() for one in (runs, recordings, requests)]
    connection.execute(delete(configs).where(~or_(*users)))


def set_limit(connection: Connection, num_bytes: int) -> None:
    query = upsert(settings).values(name=LIMIT_NAME, value=json.dumps(num_bytes))
    connection.execute(query.on_conflict_do_update(index_elements=["name"], set_={"value": json.dumps(num_bytes)}))
    delete_beyond_limit(connection)


def add_run(connection: Connection, run: RecordedRun) -> int:
    """Store a run that another installation recorded; returns its new id."""
    info, recording = run.request, run.recording
    recording_id, used = add_recording(
        connection,
        origin="imported",
        created_ms=info.created_ms,
        config=run.config,
        model=info.model,
        environment=run.environment,
        facts=recording.facts,
    )
    batch = Batch()
    num_bytes = 0
    for seq, event in enumerate(recording.events):
        name, row = event_row(event)
        num_bytes += row_bytes(name, row)
        batch.events.setdefault(name, []).append(row | {"segment": 1, "seq": seq})
    for seq, token in enumerate(recording.tokens):
        row = token._asdict()
        num_bytes += row_bytes("token", row)
        batch.events.setdefault("token", []).append(row | {"segment": 1, "seq": seq})
    batch.segments.append(
        {
            "number": 1,
            "created_ms": info.created_ms,
            "keyframe": snapshot_json(replace(recording.start, time_ns=0)),
            "num_bytes": num_bytes,
        }
    )
    values = {name: getattr(info, name) for name in RequestInfo.__dataclass_fields__ if name in requests.c}
    del values["id"]
    values |= {"engine_id": run.request_engine_id, "first_segment": 1, "last_segment": 1}
    values |= {"chat_id": None, "message_id": None, "config_id": used, "params": canonical_json(run.params)}
    for name, column in (("queue_time", "queue_ns"), ("e2e_latency", "e2e_latency_ns")):
        values[column] = _ns(getattr(info, name))
    values["time_to_first_token_ns"] = _ns(info.time_to_first_token)
    values["time_per_output_token_ns"] = _ns(info.time_per_output_token)
    batch.requests[run.request_engine_id] = values
    store_batch(connection, recording_id, batch)
    return int(connection.execute(select(requests.c.id).where(requests.c.recording_id == recording_id)).scalar_one())


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * NS_PER_S)
