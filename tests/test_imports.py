"""Imports only point down, the scheduler's side needs no torch, and importing the library has no side effects."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.import_rules import LAYERS, TORCH_FREE, read_tree, violations

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, timeout: float = 120) -> str:
    """Run `code` in a fresh interpreter from the repository's root and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked by this test")
sys.meta_path.insert(0, Blocker())
"""


def test_every_import_in_the_tree_points_down() -> None:
    tree = read_tree(ROOT)
    assert {"playground.config", "playground.engine.events", "playground.cli"} <= set(tree)
    assert violations(tree) == []


@pytest.mark.parametrize(
    ("module", "source", "why"),
    [
        ("playground.engine.core", "from playground.ui import app", "not below"),
        ("playground.engine.core", "def f():\n    import playground.sessions.repository", "not below"),
        ("playground.engine.core", "from ..telemetry import hub", "not below"),
        ("playground.engine.core", "import importlib\nimportlib.import_module('playground.ui.app')", "not below"),
        ("playground.engine.core", "from playground.training import trainer", "not below"),
        ("playground.models.loader", "from playground.engine import sampler", "not below"),
        ("playground.models.loader", "from playground import Engine", "not below"),
        ("playground.errors", "from playground.config import EngineConfig", "not below"),
        ("playground.sessions.writer", "from playground.bench import engine", "not below"),
        ("kernels.cpu", "from playground.errors import ConfigError", "has to work alone"),
        ("playground.engine.scheduler", "def f():\n    from torch import Tensor", "imports torch"),
        ("playground.engine.core", "import gradio as gr", "imports gradio"),
        ("playground.telemetry.hub", "from sqlmodel import Field", "imports sqlmodel"),
        ("playground.novelty.thing", "import os", "has no layer"),
    ],
)
def test_the_checker_catches_a_planted_violation(module: str, source: str, why: str) -> None:
    tree = {
        "playground": "",
        "playground.ui.app": "",
        "playground.sessions.repository": "",
        "playground.telemetry.hub": "",
        "playground.training.trainer": "",
        "playground.engine.sampler": "",
    }
    found = violations({**tree, module: source})
    assert len(found) == 1
    assert why in found[0]
    assert found[0].startswith(module)


def test_the_checker_allows_what_points_down() -> None:
    tree = {
        "playground": "from playground.engine.core import Engine",
        "playground.errors": "",
        "playground.engine": "from . import core",
        "playground.engine.core": "import torch\nfrom ..errors import ConfigError\nimport kernels",
        "playground.ui.app": "import gradio\nfrom playground import Engine\nfrom playground.engine.core import Engine",
        "app": "from playground.ui.app import build",
        "kernels": "import torch",
    }
    assert violations(tree) == []


def test_no_part_stands_in_two_layers() -> None:
    parts = [part for layer in LAYERS for part in layer]
    assert len(parts) == len(set(parts))


def test_scheduler_and_block_pool_import_where_torch_is_missing() -> None:
    code = f"BLOCKED = {{'torch', 'numpy', 'transformers'}}\n{BLOCK}"
    code += "\n".join(f"import {name}" for name in TORCH_FREE) + "\nprint('torch' in sys.modules)"
    assert run_python(code).strip() == "False"


def test_the_engine_answers_where_gradio_and_the_database_are_missing(tiny_model: Path) -> None:
    code = f"BLOCKED = {{'gradio', 'gradio_client', 'sqlmodel', 'sqlalchemy', 'alembic', 'typer'}}\n{BLOCK}"
    code += f"""
from playground import Engine, EngineConfig, SamplingParams
with Engine(EngineConfig(model={str(tiny_model)!r}, device="cpu", num_kv_blocks=32)) as engine:
    out = engine.generate(["one two"], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))[0]
print(out.finish_reason, len(out.token_ids))
"""
    assert run_python(code).strip() == "length 4"


def test_importing_every_module_opens_no_connection_and_asks_no_gpu() -> None:
    modules = sorted(m for m in read_tree(ROOT) if not m.endswith("__main__") and m != "app" and ".migrations" not in m)
    code = f"""
import importlib, sys, traceback
events = []
def audit(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        events.append((event, args))
sys.addaudithook(audit)
import torch

def watch(owner, name):
    original = getattr(owner, name)
    def watched(*args, **kwargs):
        if any({str(ROOT / "playground")!r} in f.filename or {str(ROOT / "kernels")!r} in f.filename
               for f in traceback.extract_stack()):
            events.append((name, [f.name for f in traceback.extract_stack()[-4:]]))
        return original(*args, **kwargs)
    setattr(owner, name, watched)

for name in ("is_available", "device_count", "get_device_capability", "get_device_properties", "init"):
    watch(torch.cuda, name)
for module in {modules!r}:
    importlib.import_module(module)
nvml = getattr(sys.modules.get("pynvml"), "nvmlLib", None)
print(events, torch.cuda.is_initialized(), nvml)
"""
    assert run_python(code).strip() == "[] False None"


def test_kernels_import_alone() -> None:
    code = f"BLOCKED = {{'playground'}}\n{BLOCK}\nimport kernels\nprint('ok')"
    assert run_python(code).strip() == "ok"
