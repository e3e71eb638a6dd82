"""The way onto a Hugging Face Space: the README's front matter, and one self-contained run for ZeroGPU."""

import base64
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio
import pytest
import yaml

from playground.sessions import SessionStore
from playground.sessions.run_file import unpack
from playground.sessions.run_store import RunStore
from playground.ui import live_runs
from playground.ui.app import build_ui
from playground.ui.host import EngineHost
from playground.ui.launch import ServeOptions
from playground.ui.live_runs import LiveRuns
from playground.ui.space import answer_once, for_gpu, on_zero_gpu
from tests.ui.conftest import event

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_begins_with_what_a_space_reads() -> None:
    found = re.match(r"---\n(.*?)\n---\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    front = yaml.safe_load(found[1])
    assert front["sdk"] == "gradio" and (ROOT / front["app_file"]).is_file()
    assert gradio.__version__.split(".")[0] == front["sdk_version"].split(".")[0]
    assert len(front["short_description"]) <= 60 and front["python_version"] == "3.12"


def test_a_run_is_a_sync_generator_that_leaves_nothing_behind() -> None:
    assert inspect.isgeneratorfunction(answer_once) and inspect.isgeneratorfunction(for_gpu(answer_once))
    before = set(threading.enumerate())
    frames = list(answer_once("Hello", 12, 0.0, 0))
    assert frames[0] == ("", {"phase": "loading"})
    text, figures = frames[-1]
    assert text and figures["phase"] == "ended" and 0 < figures["tokens"] <= 12
    assert figures["time_to_first_token"] > 0
    run, _ = unpack(base64.b64decode(figures["run"]))
    assert run.request.num_output_tokens == figures["tokens"] and run.params["max_tokens"] == 12
    assert "".join(token.text for token in run.recording.tokens).strip() == text.strip()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "engine-loop"]


def test_a_run_that_is_left_ends_its_engine() -> None:
    before = set(threading.enumerate())
    run = answer_once("Tell me a story.", 400, 0.0, 0)
    while next(run)[1]["phase"] == "loading":
        pass
    run.close()  # type: ignore[attr-defined]
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "engine-loop"]


def test_run_live_streams_the_call_and_keeps_its_run_for_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_runs, "MAX_TOKENS", 12)
    with SessionStore() as store:
        live = LiveRuns(RunStore(store))
        assert inspect.isgeneratorfunction(live.run)
        frames = list(live.run(event(message="Hello")))
        assert [frame["phase"] for frame in frames[:1]] == ["loading"] and frames[-1]["error"] is None
        kept = RunStore(store).run(frames[-1]["run"])
        assert kept.request.origin == "imported" and "Hello" in kept.request.prompt
        assert [frame["rev"] for frame in frames] == sorted({frame["rev"] for frame in frames})
        assert "write something" in list(live.run(event(message=" ")))[-1]["error"]


def test_what_fails_on_a_lent_gpu_is_said_in_place() -> None:
    def refused(*arguments: Any) -> Iterator[Any]:
        yield "", {"phase": "ended", "error": "temperature=-1 is not allowed."}

    def broken(*arguments: Any) -> Iterator[Any]:
        yield "Once", {"phase": "writing", "tokens": 1, "device": "cuda"}
        raise RuntimeError("out of luck")

    def unrecorded(*arguments: Any) -> Iterator[Any]:
        yield "Once.", {"phase": "ended", "run": None}

    with SessionStore() as store:
        for answer, said in (
            (refused, "temperature=-1"),
            (broken, "its log says more"),
            (unrecorded, "could not be recorded"),
        ):
            last = list(LiveRuns(RunStore(store), answer).run(event(message="Hello")))[-1]
            assert said in last["error"] and last["run"] is None and last["phase"] == "ended"


@pytest.mark.parametrize("zero", [True, False])
def test_a_space_with_a_lent_gpu_opens_on_the_replays(
    zero: bool, monkeypatch: pytest.MonkeyPatch, host: EngineHost, store: SessionStore
) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", str(zero).lower())
    monkeypatch.setitem(sys.modules, "spaces", None)  # the real one would look for a lender
    app = build_ui(host, store)
    try:
        code = {block.elem_id: str(getattr(block, "js_on_load", "")) for block in app.demo.blocks.values()}
        assert f'"home": "{"requests" if zero else "chat"}"' in code["topbar"]
        assert ("run-live" in code) == zero
    finally:
        app.close()


def test_what_is_refused_is_said_in_a_sentence() -> None:
    assert "temperature" in list(answer_once("Hello", 12, -1.0, 0))[-1][1]["error"]


def test_it_is_decorated_where_the_package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def decorator(duration: int) -> Callable[[Any], Any]:
        asked.append(duration)
        return lambda function: function

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=decorator))
    assert for_gpu(answer_once, 20) is answer_once and asked == [20]
    monkeypatch.setitem(sys.modules, "spaces", None)
    assert for_gpu(answer_once) is answer_once


def test_the_packages_own_decorator_does_nothing_off_zero_gpu() -> None:
    pytest.importorskip("spaces")
    assert for_gpu(answer_once) is answer_once


def test_on_zero_gpu_the_page_is_served_from_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not on_zero_gpu() and ServeOptions().engine_config().device == "auto"
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert on_zero_gpu() and ServeOptions().engine_config().device == "cpu"
    assert ServeOptions(device="cuda").engine_config().device == "cuda", "who asks for something else gets it"
