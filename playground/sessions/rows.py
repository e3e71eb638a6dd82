"""How recorded events become rows of the tables of raw events, and rows events again. Pure; times stay as they are.

Ids of tokens go into rows of their own (`RecordedToken`), so that all text of a request can be deleted with it; a
step's slices keep only how many there were.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from playground.engine.events import BlockEvent, RequestEvent, ScheduledSlice, StepEvent
from playground.engine.kv_snapshot import KVSnapshot, RequestBlocks
from playground.telemetry.frames import LiveEvent
from playground.telemetry.gpu import GpuSample
from playground.telemetry.memory import MemorySample
from playground.telemetry.recording import RecordedToken

Row = dict[str, Any]

FORGOTTEN = -1
"""In place of the ids of tokens whose text was deleted."""

ROW_BYTES = {"step": 150, "request_event": 50, "block_event": 45, "sample": 45, "gpu_sample": 60, "token": 55}
"""Roughly what a row takes beside its texts."""

_SAMPLE_FIELDS = ("time_ns", "source", "used_bytes", "total_bytes", "reserved_bytes")


def event_row(event: LiveEvent) -> tuple[str, Row]:
    """The table of an event, and its values."""
    if isinstance(event, StepEvent):
        row = event._asdict()
        row["slices"] = json.dumps([_slice_values(one) for one in row.pop("requests")], separators=(",", ":"))
        return "step", row
    if isinstance(event, RequestEvent):
        row = event._asdict()
        del row["prompt_token_ids"]
        return "request_event", row
    if isinstance(event, BlockEvent):
        return "block_event", event._asdict()
    if isinstance(event, GpuSample):
        return "gpu_sample", event._asdict()
    return "sample", {name: getattr(event, name) for name in _SAMPLE_FIELDS}


def row_event(table: str, row: Mapping[str, Any], ids: "TokenIds | None" = None) -> LiveEvent:
    """The event that a row of a table was made of; `ids` knows the tokens, where they are still there."""
    if table == "step":
        values = {name: row[name] for name in StepEvent._fields if name != "requests"}
        slices = tuple(_slice(one, row["step"], ids or TokenIds(())) for one in json.loads(row["slices"]))
        return StepEvent(**values, requests=slices)
    if table == "request_event":
        return RequestEvent(**{name: row[name] for name in RequestEvent._fields if name != "prompt_token_ids"})
    if table == "block_event":
        return BlockEvent(**{name: row[name] for name in BlockEvent._fields})
    if table == "gpu_sample":
        return GpuSample(**{name: row[name] for name in GpuSample._fields})
    return MemorySample(**{name: row[name] for name in _SAMPLE_FIELDS})


def row_bytes(table: str, row: Mapping[str, Any]) -> int:
    return ROW_BYTES[table] + sum(len(value) for value in row.values() if isinstance(value, str))


class TokenIds:
    """Which tokens a step gave a request and which drafts it had, from the rows of tokens."""

    def __init__(self, tokens: Iterable[RecordedToken]) -> None:
        self._emitted: dict[tuple[int, int], list[int]] = {}
        self._drafts: dict[tuple[int, int], dict[int, int]] = {}
        for token in tokens:
            key = (token.request, token.step)
            if token.position is not None:
                self._emitted.setdefault(key, []).append(token.token_id)
            if token.draft_position is not None:
                self._drafts.setdefault(key, {})[token.draft_position] = token.token_id

    def emitted(self, request_id: int, step: int) -> tuple[int, ...]:
        return tuple(self._emitted.get((request_id, step), ()))

    def drafts(self, request_id: int, step: int, count: int) -> tuple[int, ...]:
        known = self._drafts.get((request_id, step), {})
        return tuple(known.get(position, FORGOTTEN) for position in range(count))


def step_tokens(event: StepEvent) -> Iterator[tuple[ScheduledSlice, int, int | None, str, int | None]]:
    """The tokens of a step as (slice, token id, place among the slice's emitted ones, origin, place in the draft)."""
    for one in event.requests:
        kept = set(one.accepted_drafts)
        last = len(one.token_ids) - 1
        for place, token_id in enumerate(one.token_ids):
            if place < len(one.accepted_drafts):
                yield one, token_id, place, "accepted", one.accepted_drafts[place]
            else:
                yield one, token_id, place, "bonus" if one.has_bonus and place == last else "target", None
        for draft_position, token_id in enumerate(one.draft_ids):
            if draft_position not in kept:
                yield one, token_id, None, "rejected", draft_position


def _slice_values(one: ScheduledSlice) -> list[Any]:
    return [
        one.request_id,
        one.num_computed_tokens,
        one.num_tokens,
        one.num_emitted,
        len(one.draft_ids),
        list(one.accepted_drafts),
        int(one.has_bonus),
    ]


def _slice(values: Sequence[Any], step: int, ids: TokenIds) -> ScheduledSlice:
    request_id, computed, tokens, emitted, num_drafts, accepted, has_bonus = values
    drafts = ids.drafts(request_id, step, num_drafts)
    token_ids = ids.emitted(request_id, step)
    return ScheduledSlice(request_id, computed, tokens, emitted, drafts, tuple(accepted), token_ids, bool(has_bonus))


def id_runs(ids: Iterable[int]) -> list[list[int]]:
    """Ascending ids as runs of neighbours: [the first, how many]."""
    runs: list[list[int]] = []
    for block_id in ids:
        if runs and sum(runs[-1]) == block_id:
            runs[-1][1] += 1
        else:
            runs.append([block_id, 1])
    return runs


def snapshot_json(snapshot: KVSnapshot) -> str:
    """A keyframe as JSON; cached blocks as runs of neighbours."""
    return json.dumps(
        {
            "time_ns": snapshot.time_ns,
            "num_blocks": snapshot.num_blocks,
            "block_size": snapshot.block_size,
            "cached": id_runs(snapshot.cached),
            "requests": [list(one) for one in snapshot.requests],
        },
        separators=(",", ":"),
    )


def read_snapshot(text: str) -> KVSnapshot:
    values = json.loads(text)
    cached = tuple(block_id for first, count in values["cached"] for block_id in range(first, first + count))
    requests = tuple(RequestBlocks(*[*one[:-1], tuple(one[-1])]) for one in values["requests"])
    return KVSnapshot(values["time_ns"], values["num_blocks"], values["block_size"], cached, requests)
