"""The app's engine is replaced while it is used: swaps, failures, cancelling, lending; nothing is left behind."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from playground import Engine, EngineConfig, SamplingParams
from playground.errors import ConfigError, ModelLoadError, RequestError
from playground.sessions import SessionStore
from playground.ui.handlers import MODEL_CHANGED, ChatHandlers
from playground.ui.host import EngineHost, LoadCancelled, Serving
from playground.ui.host_view import host_view
from playground.ui.turns import Wish
from tests.tiny import write_tiny_model
from tests.ui.conftest import TAB
from tests.ui.endless import ENDLESS, SHORT, write_endless_model

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An endless model, and a smaller one."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "endless").mkdir()
    (folder / "small").mkdir()
    return write_endless_model(folder / "endless"), write_tiny_model(folder / "small", seed=1)


def config(model: Path, **fields: object) -> EngineConfig:
    return EngineConfig(model=str(model), device="cpu", dtype="float32", num_kv_blocks=600, **fields)  # type: ignore[arg-type]


@pytest.fixture
def own_host(models: tuple[Path, Path]) -> Iterator[EngineHost]:
    """A host that this test may change, with the endless model loaded."""
    with EngineHost() as host:
        host.load(config(models[0])).result(60)
        yield host


def test_an_empty_host_refuses_requests_in_one_sentence_and_draws_nothing() -> None:
    with EngineHost() as host:
        assert host.engine is None and host.serving is None
        with pytest.raises(RequestError, match="No model is loaded: load one on the Models page"):
            host.require()
        assert not host_view(host)["loaded"]
        reader = host.feed.read()
        deadline = time.monotonic() + 20
        while (frame := reader.take()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert '"num_blocks":0' in frame


def test_a_swap_replaces_engine_hub_and_frames_and_tells_who_listens(
    own_host: EngineHost, models: tuple[Path, Path]
) -> None:
    told: list[tuple[str, str]] = []
    own_host.follow(
        lambda serving: told.append(("arrives", serving.config.model or "")),
        lambda serving: told.append(("leaves", serving.config.model or "")),
    )
    old, hub = own_host.require(), own_host.hub
    before = host_view(own_host)
    revision = own_host.revision
    own_host.load(config(models[1])).result(60)
    assert own_host.require() is not old and own_host.hub is not hub and own_host.revision > revision
    endless, small = str(models[0]), str(models[1])
    assert told == [("arrives", endless), ("arrives", small), ("leaves", endless)]
    after = host_view(own_host)
    assert before["context"] == 8192 and after["context"] == 256
    assert "endless" in before["chips"][0]["text"] and "small" in after["chips"][0]["text"]
    assert own_host.require().generate("hello", GREEDY)[0].finish_reason == "length"
    with pytest.raises(RequestError, match="closed"):
        old.submit("hello", GREEDY)


def test_a_reply_being_written_ends_as_stopped_because_the_model_was_changed(
    own_host: EngineHost, models: tuple[Path, Path]
) -> None:
    with SessionStore() as store:
        handlers = ChatHandlers(own_host, store)
        run = handlers._turns.ask(None, "hello", Wish(ENDLESS, ""), TAB)
        while run.progress().num_tokens < 5:
            assert not run.ended
        own_host.load(config(models[1])).result(60)
        assert run.ended
        reply = store.messages(run.chat_id)[1]
        assert reply.run is not None and reply.run.status == "stopped" and len(reply.content) >= 5
        assert reply.run.metrics["error"] == MODEL_CHANGED
        again = handlers._turns.ask(run.chat_id, "and now?", Wish(SHORT, ""), TAB)
        assert again.wait(30)
        answered = store.messages(run.chat_id)[3]
        assert answered.run is not None and answered.run.config["model"] == str(models[1])


def test_a_load_that_fails_leaves_the_old_model_serving(own_host: EngineHost, tmp_path: Path) -> None:
    old = own_host.require()
    running = old.submit("hello", SamplingParams(temperature=0, max_tokens=300))
    broken = write_tiny_model(tmp_path)
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelLoadError):
        own_host.load(config(broken)).result(60)
    with pytest.raises(ModelLoadError, match="no such folder"):
        own_host.load(config(tmp_path / "nowhere")).result(60)
    assert own_host.require() is old and own_host.task is not None
    assert own_host.task.progress.phase == "failed" and "no such folder" in str(own_host.task.progress.error)
    assert running.result().finish_reason == "length"
    assert own_host.busy is None


def test_one_load_at_a_time_and_it_can_be_cancelled(
    own_host: EngineHost, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = own_host.require()
    reading, go_on = threading.Event(), threading.Event()

    def arrive() -> None:
        if own_host.task is not None and own_host.task.progress.phase == "reading":
            reading.set()
            go_on.wait(30)

    stop = own_host.on_change(arrive)
    task = own_host.load(config(models[0], seed=3))
    assert reading.wait(30)
    with pytest.raises(ConfigError, match="A model is being loaded: wait for its end, or stop it"):
        own_host.load(config(models[1]))
    with pytest.raises(ConfigError, match="A model is being loaded"):
        own_host.unload()
    task.cancel()
    go_on.set()
    with pytest.raises(LoadCancelled):
        task.result(30)
    stop()
    assert task.progress.phase == "cancelled" and task.progress.error is None
    assert own_host.require() is old and old.generate("hi", GREEDY)[0].finish_reason == "length"


def test_unloading_frees_the_engine_and_loading_brings_another(own_host: EngineHost, models: tuple[Path, Path]) -> None:
    own_host.unload()
    assert own_host.engine is None and not host_view(own_host)["loaded"]
    own_host.load(config(models[1])).result(60)
    assert own_host.require().generate("hello", GREEDY)[0].finish_reason == "length"


def test_while_it_is_lent_requests_wait_and_go_on_afterwards(own_host: EngineHost, models: tuple[Path, Path]) -> None:
    engine = own_host.require()
    expected = engine.generate("hello", GREEDY)[0].token_ids
    running = engine.submit("hello", SamplingParams(temperature=0, max_tokens=300))
    with own_host.exclusive("A comparison is running"):
        steps = engine.stats().steps
        waiting = engine.submit("hello", GREEDY)
        dropped = engine.submit("hello", GREEDY)
        dropped.cancel()
        assert engine.kv_snapshot().num_blocks == 600  # state can be read all the same
        with Engine(config(models[1])) as other:
            assert other.generate("hello", GREEDY)[0].finish_reason == "length"
        assert engine.stats().steps == steps and host_view(own_host)["busy"] == "A comparison is running"
        assert dropped.result().finish_reason == "abort"
        with pytest.raises(ConfigError, match="A comparison is running: wait for its end"):
            own_host.load(config(models[1]))
    assert waiting.result().token_ids == expected
    assert len(running.result().token_ids) == 300
    assert own_host.busy is None


def test_lent_with_its_memory_the_model_is_unloaded_and_comes_back(own_host: EngineHost) -> None:
    model = own_host.require().config.model
    with own_host.exclusive("A benchmark is running", free_memory=True):
        assert own_host.engine is None
        with pytest.raises(RequestError, match="A benchmark is running: try again when that has ended"):
            own_host.require()
    assert own_host.require().config.model == model


def test_a_lent_engine_can_be_closed(models: tuple[Path, Path]) -> None:
    with Engine(config(models[1])) as engine:
        engine.pause()
        waiting = engine.submit("hello", GREEDY)
    assert waiting.result().finish_reason == "error"


def test_twenty_swaps_under_load_leave_no_thread_and_no_memory(own_host: EngineHost, models: tuple[Path, Path]) -> None:
    process = psutil.Process()
    configs = config(models[1]), config(models[1], seed=1)

    def swap(number: int) -> None:
        handle = own_host.require().submit("hello", SamplingParams(temperature=0, max_tokens=200))
        own_host.load(configs[number % 2]).result(60)
        assert handle.result().finish_reason in ("error", "length", "stop")

    for number in range(4):
        swap(number)
    threads, resident = len(os.listdir("/proc/self/task")), process.memory_info().rss
    names = sorted(thread.name for thread in threading.enumerate())
    for number in range(20):
        swap(number)
    assert own_host.require().stats().kv_blocks_in_use == 0
    assert sorted(thread.name for thread in threading.enumerate()) == names
    until = time.monotonic() + 10  # OpenMP's workers end a moment after the engine that they worked for
    while len(os.listdir("/proc/self/task")) > threads and time.monotonic() < until:
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/task")) <= threads
    assert process.memory_info().rss - resident < 24 * 2**20


def test_a_follower_that_fails_does_not_stop_a_swap(own_host: EngineHost, models: tuple[Path, Path]) -> None:
    def fail(serving: Serving) -> None:
        raise RuntimeError("a fault of its own")

    with pytest.raises(RuntimeError):
        own_host.follow(fail)
    own_host.follow(leaves=fail)
    own_host.load(config(models[1])).result(60)
    assert own_host.require().config.model == str(models[1])
