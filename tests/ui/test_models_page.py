"""The Models page's handlers, list and calculator, without a browser."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from playground import EngineConfig
from playground.errors import ConfigError, ModelLoadError, PlaygroundError
from playground.models.bundled import BUNDLED_MODEL
from playground.models.hub import NotDownloaded, resolve_model_path
from playground.ui import calculator
from playground.ui.host import EngineHost, LoadCancelled
from playground.ui.host_view import host_view
from playground.ui.model_list import ModelFolders, known_models
from playground.ui.models_handlers import ModelsHandlers
from tests.gguf_files import tiny_model as gguf_model
from tests.gguf_files import write_gguf
from tests.tiny import write_tiny_model
from tests.ui.conftest import event

# The list


def test_bundled_models_added_folders_and_gguf_files_are_listed_with_what_they_are(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    inside = tmp_path / "more"
    inside.mkdir()
    file = write_gguf(gguf_model(), inside / "small.gguf")
    folders = ModelFolders(tmp_path / "list" / "folders.json")
    folders.add(str(tmp_path))
    folders.add(str(inside))
    folders.add(str(inside))  # once is enough
    models = known_models(ModelFolders(tmp_path / "list" / "folders.json").list())  # as after a restart
    named = {model.name: model for model in models}
    assert models[0].source == "bundled" and models[0].value == "" and models[0].parameters == 6_560_000
    assert named[tmp_path.name].value == str(tmp_path) and named[tmp_path.name].dtype == "float32"
    assert named["small.gguf"].value == str(file) and named["small.gguf"].dtype == "GGUF"
    assert sum(model.source == "folder" for model in models) == 2
    folders.remove(str(inside))
    assert folders.list() == [str(tmp_path)]


def test_a_model_that_cannot_be_loaded_is_listed_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OtherModel"]}))
    folders = ModelFolders(None)
    folders.add(str(tmp_path))
    problem = known_models(folders.list())[-1].problem
    assert problem is not None and "OtherModel" in problem and "not supported" in problem
    (tmp_path / "config.json").unlink()
    gone = known_models(folders.list())[-1]
    assert gone.problem is not None and "any more" in gone.problem


def test_what_the_hubs_cache_holds_is_listed_by_its_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    write_tiny_model(snapshot)
    from huggingface_hub import scan_cache_dir

    monkeypatch.setattr("huggingface_hub.scan_cache_dir", lambda: scan_cache_dir(tmp_path))
    found = known_models([])[-1]
    assert (found.name, found.value, found.source) == ("owner/name", "owner/name", "hub cache")
    assert found.parameters and found.problem is None


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("", "Give the path"),
        ("/no/such/folder", "there is no such folder or file"),
        (__file__, "neither a folder nor a .gguf file"),
        (str(Path(__file__).parent), "holds no model"),
        ("a\0b", "no such folder or file"),
    ],
)
def test_a_path_that_is_no_model_is_refused_in_one_sentence(typed: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ModelFolders(None).add(typed)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


# Loading


def on_page(host: EngineHost) -> ModelsHandlers:
    return ModelsHandlers(host, ModelFolders(None))


def ask(handler: Callable[..., Any], **data: Any) -> dict[str, Any]:
    return asyncio.run(handler(event(**data)))


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def own_host(tmp_path_factory: pytest.TempPathFactory):
    with EngineHost() as host:
        host.load(EngineConfig(model=str(write_tiny_model(tmp_path_factory.mktemp("small"))), device="cpu")).result()
        yield host


def test_a_check_says_what_a_model_takes_and_is_confirmed_by_loading_it(own_host: EngineHost) -> None:
    page = on_page(own_host)
    values = {"device": "cpu", "dtype": "float32", "num_kv_blocks": "64", "model": str(BUNDLED_MODEL)}
    checked = ask(page.check, values=values)
    rows = {row["label"]: row["value"] for row in checked["rows"]}
    assert checked["error"] is None and checked["name"] == "storyteller" and not checked["blocked"]
    assert rows["Weights"] == ["25.0", "MiB"] and rows["KV capacity"] == ["1,024", "tokens"]
    assert ask(page.load, values=values)["started"] and own_host.task is not None
    own_host.task.result(60)
    details = host_view(own_host)["details"]
    measured = {row["label"]: (row["predicted"], row["measured"], row["error"]) for row in details["rows"]}
    assert measured["Weights"] == (["25.0", "MiB"], ["25.0", "MiB"], ["0", "%"])
    assert measured["KV capacity"][1] == ["1,024", "tokens"]
    assert details["values"]["num_kv_blocks"] == "64"


@pytest.mark.parametrize(
    ("values", "field", "sentence"),
    [
        ({"block_size": "0"}, "block_size", "block_size=0 is not allowed"),
        ({"model": "/no/such/folder"}, None, "no such folder"),
        ({"num_kv_blocks": "90000000"}, None, "are free: choose a smaller model"),
        ({"device": "cuda:7"}, None, "CUDA devices"),
    ],
)
def test_what_cannot_be_loaded_is_said_before_it_is_tried(
    own_host: EngineHost, values: dict[str, str], field: str | None, sentence: str
) -> None:
    checked = ask(on_page(own_host).check, values={"device": "cpu", **values})
    assert checked["blocked"] and checked["field"] == field and sentence in checked["error"]


def test_malformed_requests_are_answered(own_host: EngineHost) -> None:
    page = on_page(own_host)
    for values in (None, 3, {"seed": {"a": 1}}, {"model": "<img src=x onerror=alert(1)>"}):
        assert "rows" in ask(page.check, values=values)
    assert ask(page.add, folder=3)["error"] is not None


def test_a_hub_model_without_a_network_fails_with_one_sentence_and_the_old_one_serves(own_host: EngineHost) -> None:
    page, old = on_page(own_host), own_host.require()
    values = {"model": "some-owner/some-model", "device": "cpu"}
    assert "downloaded first" in ask(page.check, values=values)["note"]
    ask(page.load, values=values)
    assert own_host.task is not None
    with pytest.raises(ModelLoadError, match="the hub cannot be reached"):
        own_host.task.result(60)
    said = host_view(own_host)["loading"]
    assert said["phase"] == "failed" and "\n" not in said["error"] and own_host.require() is old


def fake_downloader(folder: Path, arrived: threading.Event, go_on: threading.Event) -> Callable[..., str]:
    """In place of the hub's client: tells its progress bar of ten pieces, and waits after the fourth."""

    def download(name: str, *, tqdm_class: Any, local_files_only: bool, **_: Any) -> str:
        assert not local_files_only
        files, transfer = tqdm_class(range(1), total=1), tqdm_class(total=0, unit="B", unit_scale=True)
        transfer.total += 1000
        for piece in range(10):
            transfer.update(100)
            if piece == 3:
                arrived.set()
                assert go_on.wait(30)
        files.update(1)
        return str(folder)

    return download


def test_a_download_tells_its_progress(own_host: EngineHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", fake_downloader(write_tiny_model(tmp_path), arrived, go_on)
    )
    task = own_host.load(EngineConfig(model="some-owner/some-model", device="cpu"))
    assert arrived.wait(30)
    view = host_view(own_host)["loading"]
    assert (view["model"], view["phase"], view["done"]) == ("some-model", "downloading", 0.4)
    go_on.set()
    task.result(60)
    assert own_host.require().config.model == str(tmp_path)


def test_a_download_can_be_cancelled(own_host: EngineHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake_downloader(tmp_path, arrived, go_on))
    old = own_host.require()
    task = own_host.load(EngineConfig(model="some-owner/some-model", device="cpu"))
    assert arrived.wait(30)
    asyncio.run(on_page(own_host).cancel())
    go_on.set()
    with pytest.raises(LoadCancelled):
        task.result(30)
    assert own_host.require() is old


def test_a_hub_id_that_is_not_cached_is_told_apart_from_one_that_is_nothing() -> None:
    with pytest.raises(NotDownloaded, match="has to be downloaded first"):
        resolve_model_path("some-owner/some-model", local_only=True)
    with pytest.raises(PlaygroundError, match="not a hub id"):
        resolve_model_path("no hub id at all", local_only=True)


def test_a_load_that_has_no_room_beside_the_old_model_unloads_it_and_puts_it_back_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    good, bad = write_tiny_model(tmp_path / "good"), write_tiny_model(tmp_path / "bad")
    (bad / "model.safetensors").write_bytes(b"no weights")
    with EngineHost() as host:
        monkeypatch.setattr("playground.engine.resolve.free_memory", lambda device: 2**25)
        config = EngineConfig(model=str(good), device="cpu", dtype="float32", kv_cache_memory=0.5)
        host.load(config).result(60)
        taken = host.require().stats().memory_kv_bytes
        monkeypatch.setattr("playground.ui.fit.free_memory", lambda device: taken // 4)
        phases: list[str] = []
        host.on_change(lambda: phases.append(host.task.progress.phase if host.task else ""))
        with pytest.raises(ModelLoadError):
            host.load(config.replace(model=str(bad))).result(60)
        assert "unloading" in phases
        assert host.require().config.model == str(good)
        assert host.task is not None and "has been loaded again" in host.task.progress.note


# The calculator


def test_the_published_examples_are_presets() -> None:
    def figures(preset: str) -> dict[str, str]:
        view = calculator.calculate(calculator.PRESETS[preset])
        assert view["error"] is None
        return {row["label"]: " ".join(filter(None, row["value"])) for row in view["rows"]}

    published = figures("13 B on a 40 GB A100, 1 MB a token as published")
    assert published["Tokens that fit"] == "14,000" and published["Sequences that fit"] == "6.84"
    assert figures("13 B on a 40 GB A100, exact (OPT-13B)")["KV a token"] == "800 KiB"
    sizes = {"7B, 2k": "1.00 GiB", "7B, 32k": "16.0 GiB", "7B, 128k": "64.0 GiB"}
    sizes |= {"70B, 2k": "640 MiB", "70B, 32k": "10.0 GiB", "70B, 128k": "40.0 GiB"}
    for name, size in sizes.items():
        assert figures(f"Llama 2 {name}")["KV a sequence"] == size


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"parameters": "many"}, "parameters"),
        ({"layers": "0"}, "layers"),
        ({"kv_heads": "7"}, "kv_heads"),
        ({"memory": "40 lightyears"}, "memory"),
        ({"context": ""}, "context"),
        ({"weight_bits": "nan"}, "weight_bits"),
        ({"window": "-1"}, "window"),
    ],
)
def test_the_calculator_names_the_field_that_is_wrong(changed: dict[str, str], field: str) -> None:
    first = next(iter(calculator.PRESETS.values()))
    view = calculator.calculate(first | changed)
    assert (view["field"] == field and "not allowed" in view["error"]) or "cannot share" in view["error"]


def test_a_calculation_that_does_not_fit_says_so() -> None:
    first = calculator.PRESETS["Llama 2 7B, 128k"]
    assert "do not fit beside" in calculator.calculate(first)["too_large"]
    assert "weights alone" in calculator.calculate(first | {"memory": "8 GiB"})["too_large"]
    assert calculator.calculate(first | {"memory": ""})["too_large"] is None
