"""What the Requests page shows, as JSON values: rows, percentiles, one run with its waterfall. Pure.

Numbers go as they are, in ms and bytes; the browser writes them (`static/core/format.js`). None is "not measured".
"""

from collections.abc import Sequence
from typing import Any

from playground.sessions.run_file import Tour
from playground.sessions.run_records import Latencies, RecordedRun, RequestInfo, RunConfigInfo, RunPage, StorageInfo
from playground.sessions.run_store import LIMITS
from playground.telemetry.definitions import define
from playground.telemetry.percentiles import SHARES, distribution
from playground.telemetry.recording import replay_frames
from playground.telemetry.waterfall import waterfall

PROMPT_SHOWN = 160
ENDS = {"stop": "stopped by itself", "length": "length", "abort": "stopped", "error": "error"}
ORIGINS = {
    "here": "this playground",
    "comparison": "a comparison",
    "imported": "an imported file",
    "tour": "a guided tour",
}
QUANTITIES = (
    ("Time to first token", "time_to_first_token"),
    ("Time per output token", "time_per_output_token"),
    ("Between tokens", "inter_token_latency"),
    ("Whole request", "e2e_latency"),
)


def row(info: RequestInfo) -> dict[str, Any]:
    """One line of the table."""
    per_token = info.time_per_output_token
    return {
        "id": info.id,
        "time_ms": info.created_ms,
        "origin": info.origin,
        "chat": info.chat_id,
        "title": info.chat_title,
        "prompt": " ".join((info.question or info.prompt)[: 4 * PROMPT_SHOWN].split())[:PROMPT_SHOWN],
        "model": info.model,
        "config": info.config_id[:6],
        "prompt_tokens": info.num_prompt_tokens,
        "output_tokens": info.num_output_tokens,
        "first_token_ms": _ms(info.time_to_first_token),
        "per_token_ms": _ms(per_token),
        "rate": 1 / per_token if per_token else None,
        "drafts": info.num_draft_tokens,
        "accepted": info.num_accepted_tokens,
        "cached_tokens": info.num_cached_tokens,
        "blocks": info.kv_blocks_peak,
        "preemptions": info.num_preemptions,
        "queue_ms": _ms(info.queue_time),
        "whole_ms": _ms(info.e2e_latency),
        "finish": ENDS.get(info.finish or "", "not ended"),
        "playable": info.has_recording,
    }


def percentiles(latencies: Latencies) -> list[dict[str, Any]]:
    """A line for each quantity; each value with why it says little, where it does."""
    table = []
    for label, name in QUANTITIES:
        found = distribution(getattr(latencies, name))
        cells = [{"ms": _ms(found.percentiles[share]), "doubt": found.doubtful(share)} for share in SHARES]
        cells.append({"ms": _ms(found.largest), "doubt": None})
        table.append({"label": label, "tip": define(name).hover, "cells": cells, "n": found.n})
    return table


def page(found: RunPage, configs: Sequence[RunConfigInfo], storage: StorageInfo, num_lost: int) -> dict[str, Any]:
    return {
        "rows": [row(info) for info in found.requests],
        "found": found.num_found,
        "percentiles": percentiles(found.latencies),
        "configs": [{"id": one.id, "text": f"{one.model} · {one.id[:6]}", "n": one.num_requests} for one in configs],
        "storage": {
            "file_bytes": storage.file_bytes,
            "raw_bytes": storage.raw_bytes,
            "limit_bytes": storage.limit_bytes,
            "limits": LIMITS,
            "requests": storage.num_requests,
            "playable": storage.num_playable,
            "lost": num_lost,
        },
    }


def replay(run: RecordedRun, tour: Tour | None = None) -> dict[str, Any]:
    """A run with all frames of its recording."""
    frames = replay_frames(run.recording)
    own = run.request_engine_id
    everyone = sorted({token.request for token in run.recording.tokens} | {own})
    return {
        "run": row(run.request),
        "prompt": run.request.prompt,
        "request": own,
        "label": _label(run),
        "settings": _settings(run),
        "frames": frames,
        "waterfall": waterfall(frames, own),
        "tokens": {str(request): _tokens(run, request, frames) for request in everyone},
        "tour": None
        if tour is None
        else {"title": tour.title, "captions": [one.model_dump() for one in tour.captions]},
    }


def plain(info: RequestInfo, *, writing: bool = False) -> dict[str, Any]:
    """A run of which only the figures are saved; `writing`: until now."""
    return {"run": row(info), "prompt": info.prompt, "frames": None, "writing": writing}


def _tokens(run: RecordedRun, request: int, frames: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """[time it was there in ms, text, origin, log-probability, step] of each token and rejected draft, in order."""
    ends: dict[int, float] = {}
    for frame in frames:
        for step in frame["steps"]:
            ends[step.step] = frame["t"]
    own = [token for token in run.recording.tokens if token.request == request]
    told = [[ends[one.step], one.text, one.origin, one.logprob, one.step] for one in own if one.step in ends]
    begun = bool(told) and own[0].step not in ends  # before the recording's part that is this run's
    return [[0.0, "… ", "target", None, told[0][4]], *told] if begun else told


def _label(run: RecordedRun) -> dict[str, Any]:
    """Where, when and on what it was recorded."""
    environment = run.environment
    return {
        "where": ORIGINS[run.request.origin],
        "time_ms": run.request.created_ms,
        "machine": str(environment.get("machine") or "an unknown machine")[:200],
        "versions": str(environment.get("summary") or "")[:200],
    }


def _settings(run: RecordedRun) -> list[list[str]]:
    """What can be said of the configuration in a few words: [name, value]."""
    config = run.config
    speculation = config.get("speculation")
    method = speculation.get("method") if isinstance(speculation, dict) else None
    known = (
        ("device", config.get("device")),
        ("dtype", config.get("dtype")),
        ("KV cache", config.get("kv_cache")),
        ("block size", config.get("block_size")),
        ("blocks", run.recording.facts.num_blocks or None),
        ("batching", config.get("batching")),
        ("prefix caching", _switch(config.get("prefix_caching"))),
        ("chunked prefill", _switch(config.get("chunked_prefill"))),
        ("speculation", method or "off"),
    )
    return [[name, str(value)[:60]] for name, value in known if value is not None]


def _switch(value: Any) -> str | None:
    return None if value is None else "on" if value else "off"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
