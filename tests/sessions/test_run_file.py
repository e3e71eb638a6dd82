"""A run survives the way through a file unchanged, and a file that is not a run ends as one sentence."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.engine.events import BlockEvent, RequestEvent, ScheduledSlice, StepEvent
from playground.engine.kv_snapshot import KVSnapshot
from playground.sessions import SessionStore
from playground.sessions.run_file import MAX_FILE_BYTES, MAX_JSON_BYTES, Caption, RunFileError, Tour, pack, unpack
from playground.sessions.run_records import RecordedRun, RequestInfo, RunQuery
from playground.sessions.run_store import RunStore
from playground.telemetry.frames import LiveEvent
from playground.telemetry.gpu import GpuSample
from playground.telemetry.memory import MemorySample
from playground.telemetry.recording import RecordedToken, Recording, replay_frames
from playground.telemetry.roofline import Ceilings, ModelWork
from playground.telemetry.rows import EngineFacts

MS = 1_000_000
WORK = ModelWork(2e6, 1e5, 512.0, ((None, 2), (128, 1)), 1_000_000, 1024.0)
CEILINGS = Ceilings(1e11, 2e10, 1e10, "float32", "a processor", undisturbed=False)
FACTS = EngineFacts(
    model="m", num_blocks=8, block_size=4, block_bytes=1024.0, max_num_seqs=4, max_model_len=64, speculation="draft",
    draft_tree=True, draft_kv_bytes_per_token=256, work=WORK, ceilings=CEILINGS,
)  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def run_of(prompt: str, pieces: list[str], drafts: list[int], gap_ms: int = 2) -> RecordedRun:
    """A made-up run of two requests: one decodes `pieces`, beside another whose text is its own."""
    events: list[LiveEvent] = [
        RequestEvent(1, 1, "queued", None, 6),
        RequestEvent(2, 2, "queued", None, 3),
        RequestEvent(3, 1, "running", None, 6),
        RequestEvent(3, 2, "running", None, 3),
        GpuSample(4, 0.5, 310.5, 700.0, 1410, None, None),
        MemorySample(4, "process", 1 << 20, 1 << 30, None),
    ]
    tokens = []
    computed = 0
    for step, text in enumerate(pieces, 1):
        run = 6 if step == 1 else 1 + len(drafts)
        own = ScheduledSlice(1, computed, run, 1, tuple(drafts) if step > 1 else (), (), (40 + step,), False)
        other = ScheduledSlice(2, 0, 3, 1, (), (), (99,), False) if step == 1 else None
        slices = (own, other) if other else (own,)
        num_drafts = len(own.draft_ids)
        times = (step, step * gap_ms * MS, 5, 0, 5, MS, 5, 5)
        events.append(StepEvent(*times, run, 1, num_drafts, 0, len(slices), 2, 0, 0, 2, 0, 6, 7, slices))
        if step == 1:
            events += [BlockEvent(gap_ms * MS + n, "alloc", n, 1, 1, None, n - 1) for n in (1, 2)]
            events.append(BlockEvent(gap_ms * MS + 3, "alloc", 3, 1, 2, None, 0))
        computed += 6 if step == 1 else 1
        tokens.append(RecordedToken(1, step, step - 1, 40 + step, text, -0.25 * step, "target", None))
        tokens += [RecordedToken(1, step, None, one, "", None, "rejected", at) for at, one in enumerate(own.draft_ids)]
    end = (len(pieces) + 1) * gap_ms * MS
    events += [RequestEvent(end, 1, "finished", "length", 6, 0, len(pieces)), BlockEvent(end + 1, "cache", 1, 0, 1)]
    events.append(BlockEvent(end + 2, "free", 2, 0, 1))
    if len(pieces) > 1:
        tokens.append(RecordedToken(2, 1, 0, 99, "SECRET", None, "target", None))
    info = RequestInfo(
        id=0, created_ms=1_700_000_000_000, origin="imported", chat_id=None, chat_title=None, message_id=None,
        model="m", config_id="", prompt=prompt, question=None, finish="length", num_prompt_tokens=6,
        num_output_tokens=len(pieces), num_cached_tokens=0, num_cache_write_tokens=4, num_preemptions=0,
        num_draft_tokens=0, num_accepted_tokens=0, kv_blocks_peak=2, queue_time=0.001, time_to_first_token=0.002,
        time_per_output_token=None, e2e_latency=0.01, has_recording=True,
    )  # fmt: skip
    recording = Recording(FACTS, KVSnapshot(0, 8, 4, (5, 6, 8), ()), tuple(events), tuple(tokens))
    config = {"model": "m", "block_size": 4}
    return RecordedRun(info, 1, recording, config, {"machine": "a test"}, {"temperature": 0.0})


runs = st.builds(
    run_of,
    prompt=texts,
    pieces=st.lists(texts, min_size=1, max_size=6),
    drafts=st.lists(st.integers(0, 99), max_size=4),
    gap_ms=st.integers(2, 9),
)


@settings(max_examples=30, deadline=None)
@given(run=runs)
def test_a_run_comes_out_of_a_file_as_it_went_in(run: RecordedRun) -> None:
    tour = Tour(name="t", title="T", captions=[Caption(time_ms=1.5, text="Look")])
    assert unpack(pack(run, everyone=True, tour=tour)) == (run, tour)


@settings(max_examples=6, deadline=None)
@given(run=runs)
def test_an_imported_run_plays_as_the_exported_one(run: RecordedRun) -> None:
    with SessionStore() as store:
        imported, _ = unpack(pack(run))
        request_id = RunStore(store).add(imported)
        again = RunStore(store).run(request_id)
        assert again.request.origin == "imported" and again.request.prompt == run.request.prompt
        assert (again.config, again.environment, again.params) == (run.config, run.environment, run.params)
        assert [t.text for t in again.recording.tokens] == [t.text for t in run.recording.tokens if t.request == 1]
        played, wanted = replay_frames(again.recording), replay_frames(run.recording)
        assert [frame["blocks"] for frame in played] == [frame["blocks"] for frame in wanted]
        assert [[step[2:] for step in frame["steps"]] for frame in played] == [
            [step[2:] for step in frame["steps"]] for frame in wanted
        ]  # but for when they began: an excerpt has its time 0 with its request
        assert played[-1]["sample"].gpu_power_w == 310.5 and played[0]["facts"]["ceilings"] == asdict(CEILINGS)
        assert played[-1]["steps"] == [] and all(step.flops for frame in played for step in frame["steps"])
        assert RunStore(store).find(RunQuery()).latencies.e2e_latency == []  # another machine's times


def test_texts_of_other_requests_stay_out_of_the_file() -> None:
    run = run_of("mine", ["a", "b"], [])
    assert b"SECRET" in zstandard.decompress(pack(run, everyone=True))
    exported = zstandard.decompress(pack(run))
    assert b"SECRET" not in exported and b"99" not in exported.split(b'"steps"')[1].split(b'"changes"')[0]


def test_a_file_of_the_first_version_is_read() -> None:
    values = json.loads(zstandard.decompress(pack(run_of("p", ["a"], []))))
    values |= {"version": 1, "order": values["order"].replace("g", "")}
    del values["loads"]
    for name in ("draft_tree", "draft_kv_bytes_per_token", "work", "ceilings"):
        del values["facts"][name]
    found, _ = unpack(zstandard.compress(json.dumps(values).encode()))
    assert found.recording.facts.work is None and found.request.prompt == "p"


def test_paths_of_this_machine_stay_out_of_the_file() -> None:
    run = replace(run_of("p", ["a"], []), config={"model": "/home/me/models/llama", "draft_model": None})
    found, _ = unpack(pack(run))
    assert found.config == {"model": "llama", "draft_model": None}


def changed(**changes: Any) -> bytes:
    values = json.loads(zstandard.decompress(pack(run_of("p", ["a", "b", "c"], [7]))))
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = values
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        place[int(last) if last.isdigit() else last] = value
    return zstandard.compress(json.dumps(values).encode())


def bomb() -> bytes:
    return zstandard.compress(b" " * (MAX_JSON_BYTES + 10))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a run"),
        (b"not zstd at all", "not a run"),
        (zstandard.compress(b"[1, 2"), "not a run"),
        (zstandard.compress(b"[" * 100_000), "not a run"),
        (zstandard.compress(b'{"format": "other"}'), "not a run"),
        (pack(run_of("p", ["a"], []))[:-9], "not a run|damaged"),
        (b"x" * (MAX_FILE_BYTES + 1), "at most 16 MiB"),
        (bomb(), "unpacks to more than"),
        (changed(version=9), "format 9"),
        (changed(surprise=1), "damaged"),
        (changed(facts__num_blocks=2**40), "damaged"),
        (changed(facts__num_blocks=1), "damaged"),
        (changed(order="sss"), "damaged"),
        (changed(blocks__0__2=-4), "damaged"),
        (changed(steps__0__20__0__1=10**9), "damaged"),
        (changed(request__prompt="x" * 50_000), "damaged"),
        (changed(blocks__0__4=None), "cannot be played"),
    ],
)
def test_a_file_that_is_not_a_run_ends_as_one_sentence(data: bytes, says: str) -> None:
    with pytest.raises(RunFileError, match=says) as caught:
        unpack(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_refused_file_leaves_nothing_behind(tmp_path: Path) -> None:
    with SessionStore(tmp_path / "runs.db") as store:
        with pytest.raises(RunFileError):
            RunStore(store).add(unpack(changed(order="c"))[0])
        assert RunStore(store).find(RunQuery()).num_found == 0
