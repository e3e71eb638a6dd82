"""The benchmarks' command line: options in, tables and JSON out. Imports nothing heavy before a command runs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from playground.bench.workload import full_plan, quick_plan
from playground.errors import ConfigError
from playground.terminal import progress_line

PEERS = ("transformers", "none")
DTYPES = ("bfloat16", "float32", "float16")
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything here.")]

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
    json_file: JsonFile = None,
) -> None:
    """Measure first-token time and decode speed against transformers on the same weights, and the time of a step."""
    if peer not in PEERS:
        raise ConfigError(f"--peer {peer!r} is not known: give {' or '.join(PEERS)}.")
    for dtype in _listed(dtypes):
        if dtype not in DTYPES:
            raise ConfigError(f"--dtypes {dtype!r} is not known: give some of {', '.join(DTYPES)}.")
    _check_target(json_file)
    plan = (quick_plan if quick else full_plan)(_listed(models), _listed(dtypes), repeats)

    from playground.bench.engine import run_benchmark
    from playground.bench.report import render

    with progress_line("starting") as say:
        data = run_benchmark(plan, peer, threads, say=say).to_dict()
    _write(data, json_file)
    render(data)


@bench_app.command(epilog="Example: playground bench samples --json samples.json")
def samples(
    model: Annotated[str | None, typer.Option(help="dummy-135m, dummy-tiny, bundled or a folder.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny model and few cases: shows only that it runs.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Count the KV blocks that parallel samples and beams share, against a private cache for each."""
    _check_target(json_file)

    from playground.bench.samples import full_plan as full_samples
    from playground.bench.samples import quick_plan as quick_samples
    from playground.bench.samples import render, run_samples

    with progress_line("starting") as say:
        data = run_samples((quick_samples if quick else full_samples)(model), say=say)
    _write(data, json_file)
    render(data)


@bench_app.command(epilog="Example: playground bench speculation --json speculation.json --html speculation.html")
def speculation(
    workloads: Annotated[str, typer.Option(help="Comma-separated: chat, story, story-0.7, story-1.0, copy.")] = "",
    proposers: Annotated[str, typer.Option(help="Comma-separated: draft, ngram, suffix, layer_skip.")] = "",
    k: Annotated[str, typer.Option("--k", help="Comma-separated: drafts at once, auto for adaptive.")] = "",
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated: requests at once.")] = "",
    verification: Annotated[str, typer.Option(help="For sampled text, comma-separated: rejection, coupled.")] = "",
    model: Annotated[str | None, typer.Option(help="Folder or hub id. Default: the bundled model.")] = None,
    draft_model: Annotated[str | None, typer.Option(help="Folder or hub id. Default: the bundled draft.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float32, float16 or float64.")] = "auto",
    repeats: Annotated[int | None, typer.Option(help="Measured pairs of each case; adaptive: 4 times.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. Default: torch's.", min=1)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few cases for seconds: shows only that it runs.")] = False,
    json_file: JsonFile = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with charts.")] = None,
) -> None:
    """Measure acceptance and speed-up of speculative decoding, each case in pairs with none, beside the formula.

    An option for workloads, proposers, K, batch sizes or verification replaces the usual choice of cases.
    """
    from playground.bench.speculation.plan import Choice, make_plan

    _check_target(json_file)
    _check_target(html_file, "--html")
    choice = Choice(
        _listed(workloads),
        _listed(proposers),
        _listed(k),
        _listed(batch_sizes),
        _listed(verification),
        model,
        draft_model,
        device,
        dtype,
        repeats,
        quick,
    )
    plan = make_plan(choice)

    from playground.bench.speculation.page import html
    from playground.bench.speculation.report import render
    from playground.bench.speculation.run import run_benchmark

    with progress_line("starting") as say:
        data = run_benchmark(plan, threads, say=say)
    _write(data, json_file)
    if html_file is not None:
        html_file.write_text(html(data), encoding="utf-8")
    render(data)
    if not data["ok"]:
        raise typer.Exit(1)


@bench_app.command(
    name="prompt-cache", epilog="Example: playground bench prompt-cache --trace azure.csv --json cache.json"
)
def prompt_cache_command(
    models: Annotated[str, typer.Option(help="Comma-separated: dummy-135m, dummy-tiny, bundled or folders.")] = "",
    repeats: Annotated[int | None, typer.Option(help="Measured pairs of each case.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. Default: torch's.", min=1)] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV of TIMESTAMP, ContextTokens, GeneratedTokens to replay.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model for seconds: shows only that it runs.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure the first token with a cold and a warm prefix from every tier, replay a trace, compare the tokens."""
    _check_target(json_file)

    from playground.bench.prompt_cache import full_plan as full
    from playground.bench.prompt_cache import quick_plan as little
    from playground.bench.prompt_cache import run_benchmark
    from playground.bench.prompt_cache_report import render

    plan = (little if quick else full)(_listed(models), repeats)
    with progress_line("starting") as say:
        data = run_benchmark(plan, trace, threads, say=say)
    _write(data, json_file)
    render(data)


@bench_app.command(name="quantization", epilog="Example: playground bench quantization --json quantization.json")
def quantization_command(
    methods: Annotated[str, typer.Option(help="Comma-separated short names. Default: int8,int4,nf4,w8a8.")] = "",
    model: Annotated[str, typer.Option(help="dummy-135m, dummy-tiny, bundled or a folder.")] = "dummy-135m",
    repeats: Annotated[int, typer.Option(help="Measured pairs of each case.", min=1)] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. Default: torch's.", min=1)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model for seconds: shows only that it runs.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure decoding with quantized weights in pairs with unquantized ones, and where packed products stop paying."""
    _check_target(json_file)

    from playground.bench.quantization import NAMES, QuantizationPlan, quick_plan, run_benchmark
    from playground.bench.quantization_report import render

    names = _listed(methods)
    plan = quick_plan(names) if quick else QuantizationPlan(model, names=names or NAMES, repeats=repeats)
    with progress_line("starting") as say:
        data = run_benchmark(plan, threads, say=say)
    _write(data, json_file)
    render(data)


@bench_app.command(name="kernels", epilog="Example: playground bench kernels --only decode --json kernels.json")
def kernels_command(
    only: Annotated[str, typer.Option(help="Only ops whose name contains this.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny shapes: shows only that every case runs.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure the Triton kernels against torch on this GPU; without a GPU, rehearse them in Triton's interpreter."""
    _run_gpu(check=False, measure=True, quick=quick, only=only, json_file=json_file)


@bench_app.command(epilog="Example: playground bench gpu --check --json gpu.json")
def gpu(
    check: Annotated[bool, typer.Option("--check", help="First run the tests that need a GPU.")] = False,
    measure: Annotated[bool, typer.Option(help="Measure the kernels and the engine.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Few tests and tiny shapes: shows only that it runs.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Check and measure everything that needs a GPU, in one go; without a GPU, rehearse it."""
    _run_gpu(check=check, measure=measure, quick=quick, only="", json_file=json_file)


@bench_app.command(name="ceilings", epilog="Example: playground bench ceilings --json ceilings.json")
def ceilings_command(
    quick: Annotated[bool, typer.Option("--quick", help="Small arrays: shows only that it runs.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure what this machine can do at most: bytes copied and operations multiplied per second."""
    _check_target(json_file)

    from playground.bench.ceilings import render, run_ceilings

    with progress_line("starting") as say:
        data = run_ceilings(quick=quick, say=say)
    _write(data, json_file)
    render(data)


def _run_gpu(*, check: bool, measure: bool, quick: bool, only: str, json_file: Path | None) -> None:
    import os

    import torch

    _check_target(json_file)
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton, which decides on import

    from playground.bench.gpu import run_gpu
    from playground.bench.kernel_report import render_checks, render_engine, render_kernels

    with progress_line("starting") as say:
        data = run_gpu(check=check, measure=measure, quick=quick, only=only, say=say)
    _write(data, json_file)
    from rich.console import Console

    console = Console()
    if check:
        render_checks(data["checks"], console)
    if measure:
        render_kernels(data["kernels"], console)
        render_engine(data.get("engine", []), console)
    if not data["ok"]:
        raise typer.Exit(1)


def _check_target(file: Path | None, option: str = "--json") -> None:
    if file is not None and not file.resolve().parent.is_dir():
        raise ConfigError(f"{option} {file}: the folder {file.resolve().parent} does not exist; make it first.")


def _write(data: dict[str, Any], json_file: Path | None) -> None:
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
