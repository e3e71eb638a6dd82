"""What every test shares: no network, one thread for torch, a tiny checkpoint, and reasons for what cannot run here."""

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: a test that needs the hub is a bug
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start, too: tiny tensors gain nothing from more threads

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton, which decides on import

import hypothesis
import pytest

from tests.tiny import write_tiny_model

hypothesis.settings.register_profile(
    "playground",
    deadline=None,  # a busy machine is not a failure
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("playground")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="build the engines of tests/engine with this EngineConfig field (repeatable), as in attention=triton",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a browser are spread over the run: two browsers at once are more than two cores can draw.

    Tests marked `gpu` are skipped with the reason where torch finds no NVIDIA GPU.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    browser = [path for path, tests in files.items() if any(one.get_closest_marker("browser") for one in tests)]
    others = [path for path in files if path not in browser]
    every = len(others) // max(1, len(browser)) + 1
    parts = [[*browser[n : n + 1], *others[n * every : (n + 1) * every]] for n in range(max(1, len(browser)))]
    items[:] = [item for part in parts for path in part for item in files[path]]
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="torch finds no NVIDIA GPU here"))


def pytest_collection_finish() -> None:
    """Every engine that is closed collects garbage: 0.4 s over all that torch, transformers and gradio hold, 0.01 s
    without what is there now."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama with a byte-level tokenizer and a chat template."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))
