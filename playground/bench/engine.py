"""`playground bench engine`: this engine and a peer on the same weights in one run, alternating, and where a step goes.

Owns the order of measurements and the shape of the result. A measurement is only worth its conditions, so the result
carries them: definitions, versions, machine, threads, settings.
"""

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from playground import info
from playground.bench.progress import Say, counted
from playground.bench.runners import EngineRunner, Run, Runner, TransformersRunner
from playground.bench.stats import Comparison, compare, decode_rate
from playground.bench.steps import OVERHEAD_TARGET, StepSplit, split
from playground.bench.workload import Batch, Plan, model_folder, random_prompt, read_shape

TTFT_REACH = 1.0

DEFINITIONS = {
    "first token": "One request, one token: from the call to the answer in the caller's hands. Token ids go in: nobody "
    "tokenizes.",
    "decode": "Useful tokens per second from the moment when every request has its first token until the last one.",
    "whole run": "Useful tokens per second from the call to the whole answer, prefill included.",
    "useful token": "A token that a request asked for. The padded batch runs until its longest request has ended; "
    "what it computes for requests that have already ended is not counted.",
    "peer": "transformers.generate, greedy, use_cache, default attention, one left-padded batch with its attention "
    "mask, no end token, exactly as many new tokens as the longest request wants.",
    "ratio": "Ours over peer (times: peer over ours), above 1 is better. Median of the pairs; the two of a pair are "
    "measured one directly after the other, and the order changes from pair to pair.",
    "prefix caching": "Off, and every repeat has fresh prompts: nobody answers from memory.",
    "overhead": "Schedule + prepare + post + the time between two steps, as a share of the time from one step's start "
    "to the next one's, over steps that decode one token for each request and do nothing else.",
}


@dataclass
class Row:
    """One measured quantity: all repeats of both sides, and what follows from them."""

    model: str
    dtype: str
    metric: str
    case: str
    unit: str
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    reach: float | None = None

    @property
    def comparison(self) -> Comparison | None:
        return compare(self.ours, self.peer, smaller_is_better=self.unit == "s") if self.peer else None

    def to_dict(self) -> dict[str, Any]:
        from statistics import median

        comparison = self.comparison
        return {
            **asdict(self),
            "ours_median": median(self.ours),
            "peer_median": median(self.peer) if self.peer else None,
            **({"ratio": None} if comparison is None else asdict(comparison)),
            "reached": None if comparison is None or self.reach is None else comparison.ratio >= self.reach,
        }


@dataclass
class Result:
    """Everything that one run of the benchmark found."""

    plan: Plan
    peer: str
    rows: list[Row] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    agreement: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "benchmark": "engine",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "definitions": DEFINITIONS,
            "versions": info.versions(),
            "machine": info.machine(),
            "peer": self.peer,
            "plan": asdict(self.plan),
            "rows": [row.to_dict() for row in self.rows],
            "steps": self.steps,
            "agreement": self.agreement,
        }


def run_benchmark(plan: Plan, peer: str = "transformers", threads: int | None = None, say: Say = print) -> Result:
    """Measure every model and dtype of the plan; `say` gets one line of progress at a time."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    result = Result(plan, peer)
    cases = len(plan.first_token_prompts) + len(plan.batches)
    say = counted(say, len(plan.models) * len(plan.dtypes) * (2 + cases * (plan.repeats + 1)))
    for model in plan.models:
        with model_folder(model) as folder:
            for dtype in plan.dtypes:
                say(f"{model} {dtype}: loading")
                _measure_model(result, model, folder, dtype, say)
    return result


def _measure_model(result: Result, model: str, folder: Path, dtype: str, say: Say) -> None:
    plan, shape = result.plan, read_shape(folder)
    with _sides(folder, dtype, plan, result.peer, shape["max_len"]) as sides:
        bench = _Bench(result, model, dtype, sides, shape["vocab_size"], shape["max_len"], say)
        bench.first_tokens()
        for batch in plan.batches:
            bench.decode(batch)
        bench.split_of_a_step()


@contextmanager
def _sides(folder: Path, dtype: str, plan: Plan, peer: str, max_len: int) -> Iterator[dict[str, Runner]]:
    sides: dict[str, Runner] = {"ours": EngineRunner(folder, dtype, plan, max_len)}
    try:
        if peer == "transformers":
            sides["peer"] = TransformersRunner(folder, dtype)
        yield sides
    finally:
        for side in sides.values():
            side.close()
        sides.clear()
        gc.collect()


@dataclass
class _Bench:
    """One model in one dtype, both sides loaded."""

    result: Result
    model: str
    dtype: str
    sides: dict[str, Runner]
    vocabulary: int
    max_len: int
    say: Say
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def first_tokens(self) -> None:
        for wanted in self.result.plan.first_token_prompts:
            length = min(wanted, self.max_len - 1)  # the bundled model ends where a long prompt would just fit
            row = self._row("first token", f"{length} in", "s", TTFT_REACH)
            for runs in self._alternate([length], [1], f"first token, {row.case}"):
                for name, run in runs.items():
                    getattr(row, name).append(run.seconds)

    def decode(self, batch: Batch) -> None:
        decode = self._row("decode", batch.name, "tokens/s", batch.reach)
        whole = self._row("whole run", batch.name, "tokens/s", None)
        runs: dict[str, Run] = {}
        for runs in self._alternate(batch.prompt_lens, batch.output_lens, f"decode, {batch.name}"):
            for name, run in runs.items():
                getattr(decode, name).append(decode_rate(run.token_times))
                getattr(whole, name).append(run.num_tokens / run.seconds)
        if "peer" in runs:
            self._agreement(batch.name, runs["ours"].token_ids, runs["peer"].token_ids)

    def split_of_a_step(self) -> None:
        batch, ours = self.result.plan.steps_batch, self.sides["ours"]
        assert isinstance(ours, EngineRunner)
        self.say(f"{self.model} {self.dtype}: time split of a step")
        found: StepSplit = split(ours.steps(self._prompts(batch.prompt_lens), batch.output_lens), batch.size)
        self.result.steps.append(
            {
                "model": self.model,
                "dtype": self.dtype,
                **asdict(found),
                "total_ns": found.total_ns,
                "target": OVERHEAD_TARGET,
                "reached": found.overhead_share < OVERHEAD_TARGET,
            }
        )

    def _row(self, metric: str, case: str, unit: str, reach: float | None) -> Row:
        row = Row(self.model, self.dtype, metric, case, unit, reach=reach)
        self.result.rows.append(row)
        return row

    def _prompts(self, lengths: tuple[int, ...] | list[int]) -> list[list[int]]:
        return [random_prompt(length, self.vocabulary, self.rng) for length in lengths]

    def _alternate(
        self, prompt_lens: tuple[int, ...] | list[int], output_lens: tuple[int, ...] | list[int], what: str
    ) -> Iterator[dict[str, Run]]:
        """A warm-up, then the repeats: both sides on the same fresh prompts, each the first in every other repeat."""
        names = list(self.sides)
        for repeat in range(-1, self.result.plan.repeats):
            self.say(f"{self.model} {self.dtype}: {what}, {'warm-up' if repeat < 0 else f'repeat {repeat + 1}'}")
            prompts = self._prompts(prompt_lens)
            order = names if repeat % 2 else names[::-1]
            runs = {name: self.sides[name].run(prompts, output_lens) for name in order}
            if repeat >= 0:
                yield runs

    def _agreement(self, case: str, ours: list[list[int]], peer: list[list[int]]) -> None:
        """How far the two agree, so that a side that is fast because it is wrong stands out."""
        same = [
            next((i for i, (a, b) in enumerate(zip(o, p, strict=True)) if a != b), len(o))
            for o, p in zip(ours, peer, strict=True)
        ]
        self.result.agreement.append(
            {
                "model": self.model,
                "dtype": self.dtype,
                "case": case,
                "requests": len(ours),
                "identical": sum(n == len(o) for n, o in zip(same, ours, strict=True)),
                "same_tokens_before_first_difference": sum(same),
                "tokens": sum(map(len, ours)),
            }
        )
