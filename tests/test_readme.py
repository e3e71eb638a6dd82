"""The README's Python examples run as they stand, against the bundled model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from playground.bench.figures import RENDERERS, filled
from playground.bench.report import markdown

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_readme_has_python_examples() -> None:
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_of_the_readme_runs(example: str) -> None:
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()
    if "kv_blocks_in_use" in example:  # its comments promise what it prints
        reasons, in_use = done.stdout.strip().splitlines()
        assert "'abort'" in reasons and in_use == "0"


@pytest.mark.parametrize(
    "command",
    re.findall(r"^playground (\S+)(?: engine)? ", README, re.MULTILINE),
)
def test_a_command_that_the_readme_shows_exists(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "playground", command, "--help"], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()


def test_every_picture_and_file_that_the_readme_names_is_there() -> None:
    named = re.findall(r"\]\(((?:assets|playground|kernels|tests)/[^)#]+)\)", README)
    assert len(named) > 12
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_figures_of_the_readme_are_those_of_the_stored_benchmark_run() -> None:
    data = json.loads((ROOT / "assets" / "benchmarks" / "engine-cpu.json").read_text(encoding="utf-8"))
    assert data["peer"] == "transformers" and data["plan"]["repeats"] >= 3
    assert markdown(data) in README
    assert filled(README, ROOT) == README, "python -m playground.bench.figures README.md"
    assert all(f"<!-- figures of assets/benchmarks/{name}: begin -->" in README for name in RENDERERS)


def test_a_marked_place_is_filled_from_its_file_and_empty_without(tmp_path: Path) -> None:
    page = "a\n<!-- figures of assets/benchmarks/engine-cpu.json: begin -->\nold\n<!-- figures of x: end -->\nb\n"
    begin, end = page.split("old\n")
    assert filled(page, tmp_path) == begin + end
    assert filled(page, ROOT).startswith(begin + "\nMeasured ") and filled(page, ROOT).endswith("\n\n" + end)
    assert filled(filled(page, ROOT), ROOT) == filled(page, ROOT)
