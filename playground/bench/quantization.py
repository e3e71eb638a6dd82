"""`playground bench quantization`: decoding with quantized weights against the unquantized ones, in pairs in one run.

Beside every ratio stands what memory allows: the bytes of weights that a step reads, over the rate at which this
machine reads so many. Owns the order of measurements and the shape of the result; speed and memory only, what a method
costs in quality is `playground compress --report`'s to say. Random weights take the same time as trained ones.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any

from playground import info
from playground.bench.progress import Say, counted
from playground.bench.runners import EngineRunner, Run
from playground.bench.stats import compare, decode_rate, ratio_interval
from playground.bench.workload import Batch, Plan, model_folder, random_prompt, read_shape
from playground.config import QUANTIZATION_SHORT_NAMES
from playground.engine.outputs import EngineStats
from playground.errors import ConfigError
from playground.telemetry.ceilings import MachineRates, measure

REACH = {("int8", 1): 1.5, ("int4", 1): 2.0}
REACH_MODEL = "dummy-135m"
NAMES = ("int8", "int4", "nf4", "w8a8")
BASE = "unquantized"

DEFINITIONS = {
    "decode": "Tokens per second of all requests together, from the moment when each has its first token to the last.",
    "ratio": "Quantized over unquantized, above 1 is faster. Median of the pairs with its 95 % bootstrap interval; the "
    "two of a pair are measured one directly after the other, and the order changes from pair to pair.",
    "weights": "Bytes of all weights in memory, as the engine counts them: packed codes, scales and zeros, embedding.",
    "read": "Bytes of the weights that every step reads: all but the tables that are only looked up in.",
    "floor": "Milliseconds that reading them takes at the rate at which this machine reads as many bytes, measured in "
    "the same run. No step is shorter.",
    "bound": "Unquantized over quantized floor: the ratio of two engines that did nothing but read their weights.",
    "bytes alone": "The unquantized step as measured, over the same with its floor exchanged for the quantized one: "
    "what fewer bytes give where all else takes as long as before. More than that comes of quicker products.",
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
    """One method at one batch size: tokens per second of every pair, and what a step has to read."""

    method: str
    batch: str
    requests: int
    """At once."""
    weights_bytes: int
    unquantized_bytes: int
    read_bytes: int
    unquantized_read_bytes: int
    floor_seconds: float
    unquantized_floor_seconds: float
    quantized: list[float] = field(default_factory=list)
    unquantized: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, method: str, batch: Batch, stats: EngineStats, unquantized: EngineStats, rates: MachineRates) -> "Row":
        """A row without measurements; `stats` are those of engines that hold the weights."""
        read, unquantized_read = stats.step_weights_bytes, unquantized.step_weights_bytes
        floor, unquantized_floor = (size / rates.ceilings(size).bytes_per_second for size in (read, unquantized_read))
        return cls(
            method, batch.name, batch.size, stats.memory_weights_bytes, unquantized.memory_weights_bytes,
            read, unquantized_read, floor, unquantized_floor,
        )  # fmt: skip

    def to_dict(self, model: str) -> dict[str, Any]:
        comparison = compare(self.quantized, self.unquantized, smaller_is_better=False)
        interval = ratio_interval(self.quantized, self.unquantized)
        assert interval is not None
        reach = REACH.get((self.method, self.requests)) if model == REACH_MODEL else None
        rates = median(self.quantized), median(self.unquantized)
        step, unquantized_step = (self.requests / rate for rate in rates)
        return {
            **asdict(self),
            **asdict(comparison),
            "ratio_low": interval.low,
            "ratio_high": interval.high,
            "quantized_median": rates[0],
            "unquantized_median": rates[1],
            "step_seconds": step,
            "unquantized_step_seconds": unquantized_step,
            "bound": self.unquantized_floor_seconds / self.floor_seconds,
            "bytes_alone": unquantized_step / (unquantized_step - self.unquantized_floor_seconds + self.floor_seconds),
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
        say("how fast this machine reads memory")
        rates = measure("cpu", plan.dtype)
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
                row = Row.of(name, batch, runners[name].engine.stats(), runners[BASE].engine.stats(), rates)
                _measure(runners, row, batch, plan.repeats, shape["vocab_size"], rng, say)
                rows.append(row)
    return {
        "benchmark": "quantization",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "definitions": DEFINITIONS,
        "versions": info.versions(),
        "machine": info.machine(),
        "plan": asdict(plan),
        "reading": [{"bytes": size, "bytes_per_second": rate} for size, rate in rates.reads],
        "rows": [row.to_dict(plan.model) for row in rows],
        "crossovers": [asdict(crossover) for crossover in known_crossovers()],
    }


def _limits(plan: QuantizationPlan) -> Plan:
    """What `EngineRunner` needs to know about sizes."""
    return Plan((plan.model,), (plan.dtype,), plan.repeats, (), plan.batches, plan.batches[-1])


def _measure(
    runners: dict[str, EngineRunner],
    row: Row,
    batch: Batch,
    repeats: int,
    vocabulary: int,
    rng: random.Random,
    say: Say,
) -> None:
    for repeat in range(repeats):
        say(f"{row.method}, batch {batch.name}: pair {repeat + 1} of {repeats}")
        for which in _turns(row.method, repeat):
            rates = row.unquantized if which == BASE else row.quantized
            rates.append(decode_rate(_run(runners[which], batch, vocabulary, rng).token_times))


def _turns(name: str, repeat: int) -> Iterator[str]:
    yield from (BASE, name) if repeat % 2 == 0 else (name, BASE)


def _run(runner: EngineRunner, batch: Batch, vocabulary: int, rng: random.Random) -> Run:
    prompts = [random_prompt(length, vocabulary, rng) for length in batch.prompt_lens]
    return runner.run(prompts, batch.output_lens)
