"""The way onto a Hugging Face Space: the README's front matter, and one self-contained run for ZeroGPU."""

import inspect
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio
import pytest
import yaml

from playground.ui.launch import ServeOptions
from playground.ui.space import answer_once, for_gpu, on_zero_gpu

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
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "engine-loop"]


def test_a_run_that_is_left_ends_its_engine() -> None:
    before = set(threading.enumerate())
    run = answer_once("Tell me a story.", 400, 0.0, 0)
    while next(run)[1]["phase"] == "loading":
        pass
    run.close()  # type: ignore[attr-defined]
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "engine-loop"]


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
