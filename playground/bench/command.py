"""The benchmarks' command line: options in, tables and JSON out. Imports nothing heavy before a command runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from playground.bench.workload import full_plan, quick_plan
from playground.errors import ConfigError

PEERS = ("transformers", "none")
DTYPES = ("bfloat16", "float32", "float16")

bench_app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Measure this engine, always with its rival in the same run.",
)


@bench_app.callback()
def _bench() -> None:
    """Measure this engine, always with its rival in the same run."""


@bench_app.command(epilog="Example: playground bench engine --peer transformers --json engine.json")
def engine(
    peer: Annotated[str, typer.Option(help='What to measure against: "transformers", or "none".')] = "transformers",
    models: Annotated[str, typer.Option(help="Comma-separated: dummy-135m, dummy-tiny, bundled or folders.")] = "",
    dtypes: Annotated[str, typer.Option(help="Comma-separated: bfloat16, float32.")] = "",
    repeats: Annotated[int | None, typer.Option(help="Measured pairs of each case.", min=1)] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch for both sides. Default: torch's.", min=1)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model for seconds: shows only that it runs.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything here.")] = None,
) -> None:
    """Measure first-token time and decode speed against transformers on the same weights, and the time of a step."""
    if peer not in PEERS:
        raise ConfigError(f"--peer {peer!r} is not known: give {' or '.join(PEERS)}.")
    for dtype in _listed(dtypes):
        if dtype not in DTYPES:
            raise ConfigError(f"--dtypes {dtype!r} is not known: give some of {', '.join(DTYPES)}.")
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json {json_file}: the folder {json_file.resolve().parent} does not exist; make it first.")
    plan = (quick_plan if quick else full_plan)(_listed(models), _listed(dtypes), repeats)

    from rich.console import Console

    from playground.bench.engine import run_benchmark
    from playground.bench.report import render

    progress = Console(stderr=True)
    with progress.status("starting") as status:
        data = run_benchmark(plan, peer, threads, say=status.update).to_dict()
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")
    render(data)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
