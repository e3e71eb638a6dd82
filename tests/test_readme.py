"""The README's Python examples run as they stand, against the bundled model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)


def test_the_readme_has_python_examples() -> None:
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_of_the_readme_runs(example: str) -> None:
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_cancelling_leaves_no_block_in_use() -> None:
    """The last line of the example about threads says 0; it has to be true."""
    (example,) = [text for text in EXAMPLES if "kv_blocks_in_use" in text]
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=120)
    reasons, in_use = done.stdout.strip().splitlines()[-2:]
    assert "'abort'" in reasons and in_use == "0", done.stderr[-2000:]


@pytest.mark.parametrize(
    "command",
    re.findall(r"^playground (\S+)(?: engine)? ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE),
)
def test_a_command_that_the_readme_shows_exists(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "playground", command, "--help"], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
