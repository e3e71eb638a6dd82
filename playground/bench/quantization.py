"""`playground bench quantization`: decoding with quantized weights against the unquantized ones, in pairs in one run.

Owns the order of measurements and the shape of the result; speed and memory only, what a method costs in quality is
`playground compress --report`'s to say. Random weights take the same time as trained ones.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from playground import info
from playground.bench.progress import Say, counted
from playground.bench.runners import EngineRunner, Run
from playground.bench.stats import compare, decode_rate
from playground.bench.workload import Batch, Plan, model_folder, random_prompt, read_shape
from playground.config import QUANTIZATION_SHORT_NAMES
from playground.errors import ConfigError

REACH = {("int8", 1): 1.5, ("int4", 1): 2.0}
REACH_MODEL = "dummy-135m"
NAMES = ("int8", "int4", "nf4", "w8a8")
BASE = "unquantized"

DEFINITIONS = {
    "decode": "Tokens per second of all requests together, from the moment when each has its first token to the last.",
    "ratio": "Quantized over unquantized, above 1 is faster. Median of the pairs; the two of a pair are measured one "
    "directly after the other, and the order changes from pair to pair.",
    "weights": "Bytes of all weights in memory, as the engine counts them: packed codes, scales and zeros, embedding.",
    "bound": "Unquantized over quantized bytes of weights: the ratio of an engine that did nothing but read them.",
    "crossover": "Up to how many rows (tokens in a step) the packed product of a layer beats writing the matrix out in "
    "bfloat16, as measured by this process for each class of shapes; with more rows it is written out.",
}


@dataclass(frozen=True)
class QuantizationPlan:
    """One run of the benchmark."""

    model: str = "dummy-135m"
    dtype: str = "bfloat16"
    names: tuple[str, ...] = NAMES
    batches: tuple[Batch, ...] = (Batch("1", (64,), (64,)), Batch("16", (64,) * 16, (32,) * 16))
    repeats: int = 5

    def __post_init__(self) -> None:
        wrong = [name for name in self.names if name not in QUANTIZATION_SHORT_NAMES]
        if wrong:
            known = ", ".join(QUANTIZATION_SHORT_NAMES)
            raise ConfigError(f"--methods {','.join(wrong)} is not known: give some of {known}.")


def quick_plan(names: tuple[str, ...]) -> QuantizationPlan:
    """Seconds instead of minutes: shows that everything runs. Its numbers mean nothing."""
    batches = (Batch("1", (8,), (6,)), Batch("3", (8,) * 3, (6,) * 3))
    return QuantizationPlan("dummy-tiny", names=names or ("int8", "w8a8"), batches=batches, repeats=2)


@dataclass
class Row:
    """One method at one batch size: tokens per second of every pair."""

    method: str
    batch: str
    weights_bytes: int
    unquantized_bytes: int
    quantized: list[float] = field(default_factory=list)
    unquantized: list[float] = field(default_factory=list)

    def to_dict(self, model: str) -> dict[str, Any]:
        comparison = compare(self.quantized, self.unquantized, smaller_is_better=False)
        reach = REACH.get((self.method, int(self.batch))) if model == REACH_MODEL else None
        return {
            **asdict(self),
            **asdict(comparison),
            "quantized_median": median(self.quantized),
            "unquantized_median": median(self.unquantized),
            "bound": self.unquantized_bytes / self.weights_bytes,
            "reach": reach,
            "reached": None if reach is None else comparison.ratio >= reach,
        }


def run_benchmark(plan: QuantizationPlan, threads: int | None = None, say: Say = print) -> dict[str, Any]:
    """Measure every method of the plan; `say` gets one line of progress at a time."""
    import torch

    from playground.quantization.crossover import known_crossovers

    if threads is not None:
        torch.set_num_threads(threads)
    rows = []
    say = counted(say, 1 + len(plan.names) * (1 + len(plan.batches) * plan.repeats))
    with model_folder(plan.model) as folder, ExitStack() as stack:
        shape, limits = read_shape(folder), _limits(plan)
        runners: dict[str, EngineRunner] = {}
        for name in (BASE, *plan.names):
            say(f"{plan.model} {name}: loading")
            quantization = None if name == BASE else name
            runner = EngineRunner(folder, plan.dtype, limits, shape["max_len"], quantization=quantization)
            stack.callback(runner.close)
            runners[name] = runner
        rng = random.Random(0)
        for batch in plan.batches:
            for name in runners:  # what is measured or laid out on first use is no part of a pair
                _run(runners[name], batch, shape["vocab_size"], rng)
            for name in plan.names:
                rows.append(_measure(runners, name, batch, plan.repeats, shape["vocab_size"], rng, say))
    return {
        "benchmark": "quantization",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "definitions": DEFINITIONS,
        "versions": info.versions(),
        "machine": info.machine(),
        "plan": asdict(plan),
        "rows": [row.to_dict(plan.model) for row in rows],
        "crossovers": [asdict(crossover) for crossover in known_crossovers()],
    }


def _limits(plan: QuantizationPlan) -> Plan:
    """What `EngineRunner` needs to know about sizes."""
    return Plan((plan.model,), (plan.dtype,), plan.repeats, (), plan.batches, plan.batches[-1])


def _measure(
    runners: dict[str, EngineRunner],
    name: str,
    batch: Batch,
    repeats: int,
    vocabulary: int,
    rng: random.Random,
    say: Say,
) -> Row:
    sizes = [runners[which].engine.stats().memory_weights_bytes for which in (name, BASE)]
    row = Row(name, batch.name, sizes[0], sizes[1])
    for repeat in range(repeats):
        say(f"{name}, batch {batch.name}: pair {repeat + 1} of {repeats}")
        for which in _turns(name, repeat):
            rates = row.unquantized if which == BASE else row.quantized
            rates.append(decode_rate(_run(runners[which], batch, vocabulary, rng).token_times))
    return row


def _turns(name: str, repeat: int) -> Iterator[str]:
    yield from (BASE, name) if repeat % 2 == 0 else (name, BASE)


def _run(runner: EngineRunner, batch: Batch, vocabulary: int, rng: random.Random) -> Run:
    prompts = [random_prompt(length, vocabulary, rng) for length in batch.prompt_lens]
    return runner.run(prompts, batch.output_lens)


def render(data: dict[str, Any], console: Console | None = None) -> None:
    """Print the result of `run_benchmark`."""
    console = console or Console()
    here = data["machine"]
    for name, text in data["definitions"].items():
        console.print(f"[bold]{name}[/bold]: {text}", highlight=False)
    console.print(
        f"\n{here['processor']}, {here['torch_threads']} threads, {data['plan']['repeats']} pairs; torch "
        f"{data['versions']['torch']}, commit {data['versions']['commit'] or '—'}\n",
        highlight=False,
    )
    title = f"Decoding, {data['plan']['model']}, {data['plan']['dtype']}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("batch", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("tok/s", "unquantized", "ratio", "range", "weights", "bound", "reach"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in data["rows"]:
        verdict = {None: "", True: " yes", False: " no"}[row["reached"]]
        table.add_row(
            row["batch"],
            row["method"],
            f"{row['quantized_median']:.1f}",
            f"{row['unquantized_median']:.1f}",
            f"{row['ratio']:.2f}x",
            f"{row['ratio_min']:.2f}–{row['ratio_max']:.2f}",
            f"{row['weights_bytes'] / 1e6:.1f} MB",
            f"{row['bound']:.2f}x",
            "—" if row["reach"] is None else f"{row['reach']:.1f}x{verdict}",
        )
    console.print(table)
    table = Table(title="Crossover", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("layout", "shape", "packed up to", "us packed / written out, by rows"):
        table.add_column(name)
    for one in data["crossovers"]:
        times = ", ".join(
            f"{rows}: {one['packed_us'][rows]:.0f}/{one['written_us'][rows]:.0f}" for rows in one["packed_us"]
        )
        table.add_row(one["layout"], f"{one['outputs']} x {one['inputs']}", f"{one['rows']} rows", times)
    if data["crossovers"]:
        console.print(table)
