"""What an engine told is in the database, plays again as it was seen live, and survives what happens to it."""

import sqlite3
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event

from playground import Engine, EngineConfig, SamplingParams
from playground.engine.events import StepEvent
from playground.sessions import SessionStore, StorageError
from playground.sessions.recorder import RunRecorder, _BatchWriter
from playground.sessions.run_records import RunQuery
from playground.sessions.run_store import RunStore
from playground.sessions.transcriber import Note, Transcriber
from playground.telemetry import LiveState, TelemetryHub
from playground.telemetry.ceilings import MachineRates
from playground.telemetry.feed import facts_of
from playground.telemetry.gpu import GpuSample
from playground.telemetry.recording import Recording, excerpt, replay_frames

PROMPTS = ["a fox", "a longer prompt about an owl and a mouse", "x"]
PARAMS = SamplingParams(max_tokens=24, ignore_eos=True, temperature=0.0)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    config = EngineConfig(model=str(tiny_model), device="cpu", num_kv_blocks=24, block_size=4, max_model_len=96)
    with Engine(config) as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore(tmp_path / "runs.db") as opened:
        yield opened


def recorder(store: SessionStore) -> RunRecorder:
    return RunRecorder(RunStore(store), lambda config: {"device": "test"}, lambda model: "tiny")


def record(store: SessionStore, engine: Engine, prompts: list[str], params: SamplingParams = PARAMS) -> list[Any]:
    """Generate, with a recorder that is ended afterwards."""
    with TelemetryHub(engine) as hub:
        watching = recorder(store)
        watching.watch(engine, hub)
        watching.flush()
        generations = engine.generate(prompts, params)
        watching.flush()
        watching.close()
        assert watching.num_lost == 0
    return generations


def test_every_request_is_listed_with_what_the_engine_measured(store: SessionStore, engine: Engine) -> None:
    generations = record(store, engine, PROMPTS)
    page = RunStore(store).find(RunQuery(sort="num_prompt_tokens", descending=False))
    assert page.num_found == 3
    for info in page.requests:
        (own,) = [one for one in generations if len(one.prompt_token_ids) == info.num_prompt_tokens]
        metrics = own.metrics
        assert info.prompt == engine.tokenizer.decode(own.prompt_token_ids, skip_special_tokens=True)
        assert (info.num_output_tokens, info.finish, info.has_recording) == (24, "length", True)
        assert (info.num_cached_tokens, info.kv_blocks_peak) == (metrics.num_cached_tokens, metrics.kv_blocks_peak)
        assert info.num_cache_write_tokens == metrics.num_cache_write_tokens
        assert info.time_to_first_token == pytest.approx(metrics.time_to_first_token, abs=1e-6)
        assert info.time_per_output_token == pytest.approx(metrics.time_per_output_token, rel=0.3)
        assert info.e2e_latency == pytest.approx(metrics.e2e_latency, rel=0.3)
    assert len(page.latencies.inter_token_latency) == 23 * 3


def test_the_stored_tokens_are_those_of_the_reply(store: SessionStore, engine: Engine) -> None:
    (generation,) = record(store, engine, ["a fox"])
    (info,) = RunStore(store).find(RunQuery()).requests
    tokens = RunStore(store).run(info.id).recording.tokens
    assert [token.token_id for token in tokens] == generation.token_ids
    assert "".join(token.text for token in tokens).rstrip("�") == generation.text.rstrip("�")
    assert [token.position for token in tokens] == list(range(24))


def test_frames_of_what_was_stored_are_the_frames_of_the_live_state(store: SessionStore, engine: Engine) -> None:
    with TelemetryHub(engine) as hub:
        watching = recorder(store)
        watching.watch(engine, hub)
        watching.flush()
        live = hub.subscribe()
        start = engine.kv_snapshot()
        engine.generate(PROMPTS, PARAMS)
        watching.flush()
        watching.close()
    told = Recording(facts_of(engine), start, live.drain(), ())
    for info in RunStore(store).find(RunQuery()).requests:
        run = RunStore(store).run(info.id)
        wanted = replay_frames(excerpt(told, [run.request_engine_id]))
        got = replay_frames(run.recording)
        for one in (*wanted, *got):
            one.pop("sample")  # readings of the memory are in the stored one only
            one.get("facts", {}).pop("model", None)
        assert got == wanted
        assert any(frame["blocks"] for frame in got)


def test_a_replay_goes_through_the_states_that_the_live_state_went_through(engine: Engine) -> None:
    with TelemetryHub(engine) as hub:
        live = hub.subscribe()
        start = engine.kv_snapshot()
        engine.generate(PROMPTS, PARAMS)
        engine.kv_snapshot()  # between two steps: the last one has been told, too
    events = live.drain()
    frames = replay_frames(Recording(facts_of(engine), start, events, ()))
    state = LiveState(facts_of(engine), start.time_ns)
    state.resync(start)
    for event in events:
        state.apply(event)
    last = frames[-1]
    blocks = {first + i: (fill, ids) for first, n, fill, ids in last["blocks"] for i in range(n)}
    assert last["full"] and blocks == state.blocks()
    num_steps = sum(isinstance(event, StepEvent) for event in events)
    assert sum(len(frame["steps"]) for frame in frames) == num_steps == len(frames) - 2
    assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))


def test_the_load_of_a_gpu_and_the_ceilings_of_the_machine_are_recorded(
    store: SessionStore, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = GpuSample(0, 0.75, 420.0, 700.0, 1755, 1980, False)
    monkeypatch.setattr(TelemetryHub, "gpu", lambda hub: load._replace(time_ns=time.perf_counter_ns()))
    known: list[MachineRates] = []
    with TelemetryHub(engine) as hub:
        watching = RunRecorder(
            RunStore(store), lambda config: {}, lambda model: "tiny", lambda engine: known[0] if known else None
        )
        watching.watch(engine, hub)
        watching.flush()
        engine.generate(["a fox"], PARAMS)
        watching.flush()
        known.append(MachineRates("a processor", "float32", 1e11, ((1 << 22, 2e10),)))  # measured once it rests
        watching.flush()
        watching.close()
    (info,) = RunStore(store).find(RunQuery()).requests
    recording = RunStore(store).run(info.id).recording
    assert recording.facts.ceilings is not None and recording.facts.ceilings.flops_per_second == 1e11
    sample = replay_frames(recording)[-1]["sample"]
    assert (sample.gpu_busy, sample.gpu_power_w, sample.gpu_clock_mhz, sample.gpu_slowed) == (0.75, 420.0, 1755, False)


def test_a_note_links_the_reply_and_a_deleted_chat_takes_all_text_with_it(store: SessionStore, engine: Engine) -> None:
    runs = RunStore(store)
    chat = store.create_chat()
    with TelemetryHub(engine) as hub:
        watching = recorder(store)
        watching.watch(engine, hub)
        watching.flush()
        (generation,) = engine.generate(["a fox"], PARAMS)
        reply = store.append_turn(
            chat.id, parent_id=None, user_text="a fox", reply_text="b", status="done", metrics={}, config={}, params={}
        )
        logprobs = [-0.5 * place for place in range(24)]
        watching.note(engine, generation, Note(chat.id, reply.id, {"temperature": 0}, {}, logprobs))
        watching.flush()
        watching.flush()
        info = runs.request(runs.of_message(reply.id) or 0)
        assert (info.chat_id, info.chat_title) == (chat.id, "a fox")
        assert [token.logprob for token in runs.run(info.id).recording.tokens] == logprobs
        store.delete_chat(chat.id)
        watching.close()
    assert runs.find(RunQuery()).num_found == 0
    with closing(sqlite3.connect(store.path)) as connection:
        for name in ("token", "step", "block_event", "request_event", "segment", "config"):
            wanted = 1 if name == "config" else 0  # the recording's own
            assert connection.execute(f"SELECT count(*) FROM {name}").fetchone() == (wanted,), name


def test_clearing_raw_events_keeps_the_figures_and_shrinks_the_file(store: SessionStore, engine: Engine) -> None:
    record(store, engine, PROMPTS)
    runs = RunStore(store)
    before = runs.storage()
    assert before.num_playable == before.num_requests == 3 and before.raw_bytes > 1000
    runs.clear_raw()
    after = runs.storage()
    assert (after.num_requests, after.num_playable, after.raw_bytes) == (3, 0, 0)
    assert after.file_bytes < before.file_bytes
    with pytest.raises(StorageError, match="raw events of this run are not saved"):
        runs.run(runs.find(RunQuery()).requests[0].id)


def test_a_limit_deletes_the_oldest_runs_first(
    store: SessionStore, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = RunStore(store)
    for prompt in ("first", "second", "third"):
        record(store, engine, [prompt])
    monkeypatch.setattr("playground.sessions.run_store.LIMITS", (runs.storage().raw_bytes - 1,))
    runs.set_limit(runs.storage().raw_bytes - 1)
    kept = {info.prompt: info.has_recording for info in runs.find(RunQuery()).requests}
    assert [kept[name] for name in sorted(kept)] == [False, True, True]
    with pytest.raises(StorageError, match="limit=7 is not allowed"):
        runs.set_limit(7)


def test_a_locked_database_makes_events_wait_and_not_vanish(tmp_path: Path, engine: Engine) -> None:
    with SessionStore(tmp_path / "runs.db", lock_wait=0.1) as store, TelemetryHub(engine) as hub:
        watching = recorder(store)
        watching.watch(engine, hub)
        watching.flush()
        with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            engine.generate(["a fox"], PARAMS)
            threading.Event().wait(0.8)
            other.execute("COMMIT")
        watching.flush(20)
        watching.close()
        (info,) = RunStore(store).find(RunQuery()).requests
        assert info.has_recording and watching.num_lost == 0
        assert len(RunStore(store).run(info.id).recording.tokens) == 24


def test_what_cannot_be_stored_for_long_is_counted_and_never_shown_as_complete(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("playground.sessions.recorder.MAX_PENDING_ROWS", 20)
    with SessionStore(tmp_path / "runs.db") as store, TelemetryHub(engine) as hub:
        live, start = hub.subscribe(), engine.kv_snapshot()
        generations = engine.generate(PROMPTS, PARAMS.model_copy(update={"max_tokens": 60}))  # more than fits a page
        threading.Event().wait(0.2)
        runs = RunStore(store)
        recording_id, config_id = runs.begin(created_ms=0, config={}, model="m", environment={}, facts=facts_of(engine))
        script = Transcriber(
            facts_of(engine), start, created_ms=0, config_id=config_id, model="m", tokenizer=engine.tokenizer
        )
        writer = _BatchWriter(runs, recording_id, script, facts_of(engine))
        limit = 1  # pages: SQLite then answers as on a full disk

        @sqlalchemy_event.listens_for(store._engine, "checkout")
        def _limit(connection: Any, _record: Any, _proxy: Any) -> None:
            connection.execute(f"PRAGMA max_page_count={limit}")

        script.take(live.drain())
        lost = writer.write(last=True)
        limit = 1_000_000
        assert lost > 20
        writer.write(last=True)
        found = runs.find(RunQuery()).requests  # the requests are there, their recording is not
        assert sorted(info.num_output_tokens for info in found) == sorted(len(one.token_ids) for one in generations)
        assert not any(info.has_recording for info in found)


def test_rows_of_gaps_are_seconds_as_float32(store: SessionStore, engine: Engine) -> None:
    record(store, engine, ["a fox"])
    with closing(sqlite3.connect(store.path)) as connection:
        (packed,) = connection.execute("SELECT gaps FROM request").fetchone()
    assert array("f", packed).tolist() == RunStore(store).find(RunQuery()).latencies.inter_token_latency


def test_pages_are_sorted_filtered_and_searched(store: SessionStore, engine: Engine) -> None:
    record(store, engine, ["alpha", "Beta two", "gamma three four"])
    runs = RunStore(store)
    by_prompt = runs.find(RunQuery(sort="prompt", descending=False, limit=2))
    assert [info.prompt for info in by_prompt.requests] == ["alpha", "Beta two"] and by_prompt.num_found == 3
    second = runs.find(RunQuery(sort="prompt", descending=False, limit=2, offset=2))
    assert [info.prompt for info in second.requests] == ["gamma three four"]
    assert [info.prompt for info in runs.find(RunQuery(search="BETA")).requests] == ["Beta two"]
    assert runs.find(RunQuery(finish="stop")).num_found == 0
    assert runs.find(RunQuery(finish="length")).num_found == 3
    (config,) = runs.configs()
    assert config.num_requests == 3 and runs.find(RunQuery(config_id=config.id)).num_found == 3
    with pytest.raises(StorageError, match="not a column"):
        runs.find(replace(RunQuery(), sort="id; drop table request"))
