"""Benchmarks from the click to the kept result, with commands that only pretend to measure."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from playground.errors import ConfigError
from playground.ui.host import EngineHost
from playground.ui.lab import catalogue
from playground.ui.lab.catalogue import arguments, describe, form, read_options
from playground.ui.lab.results import ResultFiles
from playground.ui.lab.runner import LabRunner, complaint, progress

PRETEND = """
import json, sys, time
file = sys.argv[sys.argv.index('--json') + 1]
"""
GOOD = PRETEND + "print('1 of 2: a', file=sys.stderr)\njson.dump({'benchmark': 'samples', 'rows': []}, open(file, 'w'))"
SAMPLES = {"benchmark": "samples", "options": {"extent": "quick", "model": "bundled"}}


@pytest.fixture
def empty() -> Iterator[EngineHost]:
    """A host without an engine."""
    with EngineHost() as host:
        yield host


def runner(host: EngineHost, folder: Path, code: str) -> tuple[LabRunner, ResultFiles]:
    results = ResultFiles(folder / "results", shipped=folder / "none")
    return LabRunner(host, results, (sys.executable, "-c", code)), results


def test_a_result_is_kept_with_what_was_asked_for(empty: EngineHost, tmp_path: Path) -> None:
    lab, results = runner(empty, tmp_path, GOOD)
    job = lab.start(SAMPLES)
    assert empty.busy == "A benchmark is running"
    lab.wait()
    assert job.state == "done" and job.error is None and empty.busy is None
    (info,) = results.list()
    assert (info.id, info.kind, info.title, info.what) == (job.result, "samples", "Shared blocks", "quick, bundled")
    assert results.read(info.id)["lab"]["options"] == {"extent": "quick", "model": "bundled"}
    assert job.view()["done"] == 0.0 and job.view()["lines"] == ["1 of 2: a"]
    lab.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (PRETEND + "open(file, 'w').write('{\"rows\": [')", "It ended without a readable result (exit status 0)."),
        (PRETEND + "open(file, 'w').write('[1]')", "It ended without a readable result (exit status 0)."),
        ("import sys; sys.exit('playground: --models x is not known.')", "--models x is not known."),
        ("import sys; sys.exit('killed by something')", "(exit status 1). The last it said: killed by something"),
    ],
)
def test_what_gives_no_result_fails_with_one_sentence(empty: EngineHost, tmp_path: Path, code: str, said: str) -> None:
    lab, results = runner(empty, tmp_path, code)
    job = lab.start(SAMPLES)
    lab.wait()
    assert job.state == "failed" and job.error is not None and said in job.error
    assert results.list() == [] and empty.busy is None
    lab.close()


def test_a_result_with_failed_cases_is_kept_and_says_so(empty: EngineHost, tmp_path: Path) -> None:
    lab, results = runner(empty, tmp_path, GOOD + "\nsys.exit(1)")
    job = lab.start(SAMPLES)
    lab.wait()
    assert job.state == "done" and job.error == "Some of its cases failed; the result says which."
    assert len(results.list()) == 1
    lab.close()


def test_one_at_a_time_and_stop_gives_the_machine_back(empty: EngineHost, tmp_path: Path) -> None:
    lab, results = runner(empty, tmp_path, "import time; time.sleep(60)")
    job = lab.start(SAMPLES)
    with pytest.raises(ConfigError, match="A benchmark is running"):
        lab.start(SAMPLES)
    lab.stop()
    lab.wait(10)
    assert job.state == "stopped" and results.list() == [] and empty.busy is None
    lab.start(SAMPLES)
    lab.close()
    assert empty.busy is None
    with pytest.raises(ConfigError):
        lab.start(SAMPLES)


def test_a_time_limit_is_said(empty: EngineHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "QUICK_SECONDS", 0.2)
    lab, _ = runner(empty, tmp_path, "import time; time.sleep(60)")
    job = lab.start(SAMPLES)
    lab.wait()
    assert job.state == "failed" and job.error is not None and "was ended after" in job.error
    lab.close()


def test_while_the_machine_is_taken_it_is_refused(empty: EngineHost, tmp_path: Path) -> None:
    lab, _ = runner(empty, tmp_path, GOOD)
    with empty.exclusive("A comparison is running"), pytest.raises(ConfigError, match="A comparison is running"):
        lab.start(SAMPLES)
    assert lab.job is None
    lab.close()


def test_the_chats_engine_stands_still_meanwhile(host: EngineHost, tmp_path: Path) -> None:
    lab, _ = runner(host, tmp_path, "import time; time.sleep(60)")
    lab.start(SAMPLES)
    handle = host.require().submit([5, 6, 7])
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.4)
    lab.stop()
    lab.wait()
    handle.cancel()
    assert handle.result(timeout=20).finish_reason == "abort"
    lab.close()


def test_progress_is_read_from_counted_lines_only() -> None:
    assert progress(["3 of 18: story", "loading"]) == pytest.approx(2 / 18)
    assert progress(["pair 3 of 5", "0 of 2: x", "5 of 2: x"]) is None
    assert progress([]) is None


def test_the_commands_own_sentence_comes_before_what_was_said_last() -> None:
    assert complaint(["playground: no such model.", "a warning"], 1) == "no such model."


@pytest.mark.parametrize(
    ("name", "options", "command"),
    [
        ("engine", {"extent": "quick", "model": "a", "dtype": "float32", "repeats": "3"},
         "bench engine --json R --models a --dtypes float32 --repeats 3 --quick"),
        ("speculation", {"extent": "full", "dtype": "float32"}, "bench speculation --json R --dtype float32"),
        ("prompt-cache", {"extent": "full", "model": "a"}, "bench prompt-cache --json R --models a"),
        ("quantization", {"extent": "quick", "repeats": "2"}, "bench quantization --json R --repeats 2 --quick"),
        ("ceilings", {"extent": "quick"}, "bench ceilings --json R --quick"),
        ("compression", {"extent": "full", "text": "t.txt", "model": "m", "repeats": "4"},
         "compress --report --text t.txt --json R m --pairs 4"),
    ],
)  # fmt: skip
def test_options_become_a_command_line(name: str, options: dict[str, str], command: str) -> None:
    assert arguments(catalogue.BY_NAME[name], options, Path("R")) == command.split()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "no such benchmark"),
        ({"benchmark": "rm"}, "no such benchmark"),
        ({"benchmark": "engine", "options": {"extent": "huge"}}, "choose quick or full"),
        ({"benchmark": "engine", "options": {"extent": "quick", "dtype": "int3"}}, "int3"),
        ({"benchmark": "engine", "options": {"extent": "quick", "repeats": "0"}}, "from 1 to 100"),
        ({"benchmark": "engine", "options": {"extent": "quick", "repeats": "²"}}, "from 1 to 100"),
        ({"benchmark": "engine", "options": {"extent": "quick", "model": "--json"}}, "not allowed"),
        ({"benchmark": "compression", "options": {"extent": "quick"}}, "Give a text file"),
        ({"benchmark": "compression", "options": {"extent": "quick", "text": "/no/such"}}, "does not exist"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_sentence(data: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_options(data)


def test_what_needs_a_gpu_says_why_it_cannot_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        read_options({"benchmark": "kernels", "options": {"extent": "full"}})


@pytest.mark.parametrize("name", catalogue.BY_NAME)
def test_every_form_field_is_an_option_that_is_understood(name: str, tmp_path: Path) -> None:
    benchmark = catalogue.BY_NAME[name]
    (group,) = form(benchmark)
    assert [field["name"] for field in group["fields"]] == ["extent", *benchmark.fields]
    options = {field["name"]: field["default"] for field in group["fields"]}
    if "text" in options:
        (tmp_path / "t.txt").write_text("Once upon a time.")
        options["text"] = str(tmp_path / "t.txt")
    if benchmark.unavailable() is None:
        _, read = read_options(json.loads(json.dumps({"benchmark": name, "options": options})))
        assert describe(read).startswith("quick")
