"""Writes stored results into a page of Markdown, between marks that name their files: what a page says was measured.

`python -m playground.bench.figures README.md` renews it; a test holds the README to it. A mark whose file is not there
keeps an empty place.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playground.bench import quantization_report, report
from playground.compression.report import page as compression_report

RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "engine-cpu.json": report.markdown,
    "quantization-cpu.json": quantization_report.markdown,
    "compression-cpu.json": compression_report.markdown,
}
"""Files of `assets/benchmarks` that a page may show."""
_MARKED = re.compile(
    r"(<!-- figures of assets/benchmarks/(?P<name>[\w.-]+): begin -->\n).*?(<!-- figures of .*?: end -->)", re.DOTALL
)


def filled(text: str, folder: Path) -> str:
    """The page with every marked place as `folder`/assets/benchmarks has it. KeyError for a file without renderer."""

    def place(found: re.Match[str]) -> str:
        render, file = RENDERERS[found["name"]], folder / "assets" / "benchmarks" / found["name"]
        if not file.is_file():
            return found[1] + found[3]
        return f"{found[1]}\n{render(json.loads(file.read_text(encoding='utf-8')))}\n\n{found[3]}"

    return _MARKED.sub(place, text)


def main(path: Path) -> None:
    """Renew a page in place; the stored results lie in the folder that holds it."""
    path.write_text(filled(path.read_text(encoding="utf-8"), path.resolve().parent), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
