"""Which cases one run of the speculation benchmark measures. Plain data; imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from playground.bench.speculation.workloads import PLAIN_WORKLOADS, WORKLOADS, Workload, questions
from playground.config import MAX_DRAFTS, SpeculationConfig
from playground.errors import ConfigError

NumTokens = int | Literal["auto"]
Proposer = Literal["draft", "ngram", "suffix", "layer_skip"]
Verification = Literal["rejection", "coupled"]

PROPOSERS: tuple[Proposer, ...] = ("draft", "ngram", "suffix", "layer_skip")
VERIFICATIONS: tuple[Verification, ...] = ("rejection", "coupled")
DTYPES = ("auto", "bfloat16", "float32", "float16", "float64")
MAX_BATCH = 64
ADAPTIVE_FACTOR = 4
"""Adaptive cases get this many times the pairs: that they never lose is asked of every single one."""


@dataclass(frozen=True)
class Case:
    """One way to speculate on one workload, to be paired with no speculation on the same prompts and seeds."""

    workload: str
    proposer: Proposer
    num_tokens: NumTokens
    verification: Verification = "rejection"
    batch_size: int = 1

    @property
    def adaptive(self) -> bool:
        return self.num_tokens == "auto"

    @property
    def speculation(self) -> SpeculationConfig:
        return SpeculationConfig(method=self.proposer, num_tokens=self.num_tokens, verification=self.verification)


@dataclass(frozen=True)
class Plan:
    """One run of the benchmark."""

    model: str | None
    """None for the bundled pair."""
    draft_model: str | None
    device: str
    dtype: str
    repeats: int
    workloads: tuple[Workload, ...]
    cases: tuple[Case, ...]

    def workload(self, case: Case) -> Workload:
        return next(one for one in self.workloads if one.name == case.workload)

    def num_pairs(self, case: Case) -> int:
        return self.repeats * (ADAPTIVE_FACTOR if case.adaptive else 1)

    def requests_per_pass(self, case: Case) -> int:
        """Whole batches, and at least as many requests as the workload wants."""
        return case.batch_size * max(1, self.workload(case).requests // case.batch_size)

    def num_prompts(self, workload: str) -> int:
        """Prompts that the hungriest case of a workload needs: a warm-up and its pairs, none of them twice."""
        mine = [case for case in self.cases if case.workload == workload]
        return max((1 + self.num_pairs(case)) * self.requests_per_pass(case) for case in mine)

    @property
    def max_batch(self) -> int:
        return max(case.batch_size for case in self.cases)


@dataclass(frozen=True)
class Choice:
    """What the user narrowed or widened the benchmark to; an empty part means its default."""

    workloads: tuple[str, ...] = ()
    proposers: tuple[str, ...] = ()
    num_tokens: tuple[str, ...] = ()
    batch_sizes: tuple[str, ...] = ()
    verifications: tuple[str, ...] = ()
    model: str | None = None
    draft_model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    repeats: int | None = None
    quick: bool = False


def make_plan(choice: Choice) -> Plan:
    """Raises ConfigError, one sentence, for a choice that does not exist."""
    names = [workload.name for workload in WORKLOADS]
    _check("--workloads", choice.workloads, names)
    _check("--proposers", choice.proposers, PROPOSERS)
    _check("--verification", choice.verifications, VERIFICATIONS)
    _check("--dtype", (choice.dtype,), DTYPES)
    batch_sizes = tuple(_whole("--batch-sizes", text, MAX_BATCH) for text in choice.batch_sizes)
    num_tokens = tuple(text if text == "auto" else _whole("--k", text, MAX_DRAFTS) for text in choice.num_tokens)
    wanted = _Wanted(
        cast(tuple[Proposer, ...], choice.proposers),
        cast(tuple[NumTokens, ...], num_tokens),
        batch_sizes,
        cast(tuple[Verification, ...], choice.verifications),
        choice.quick,
    )
    usual = ("story", "copy") if choice.quick else names
    workloads = tuple(one for one in WORKLOADS if one.name in (choice.workloads or usual))
    if choice.quick:
        workloads = tuple(replace(one, max_tokens=12, requests=1) for one in workloads)
    plan = Plan(
        choice.model,
        choice.draft_model,
        choice.device,
        choice.dtype,
        choice.repeats or (1 if choice.quick else 3),
        workloads,
        tuple(case for workload in workloads for case in wanted.cases(workload)),
    )
    for workload in workloads:
        try:
            questions(workload.kind, plan.num_prompts(workload.name))
        except ValueError as error:
            raise ConfigError(f"--repeats {plan.repeats} is too many: {error}; lower it or the batch size.") from None
    return plan


@dataclass(frozen=True)
class _Wanted:
    """A choice, checked. What is empty gets the usual cases."""

    proposers: tuple[Proposer, ...]
    num_tokens: tuple[NumTokens, ...]
    batch_sizes: tuple[int, ...]
    verifications: tuple[Verification, ...]
    quick: bool

    def cases(self, workload: Workload) -> list[Case]:
        batch_sizes = self.batch_sizes or ((1, 4, 16) if workload.name == "story" and not self.quick else (1,))
        return [
            Case(workload.name, proposer, k, verification, batch_size)
            for batch_size in batch_sizes
            for proposer in self.proposers or _proposers(batch_size, self.quick)
            for k in self.num_tokens or self._num_tokens(workload, proposer, batch_size)
            for verification in self._verifications(workload, proposer, k)
        ]

    def _verifications(self, workload: Workload, proposer: Proposer, k: NumTokens) -> tuple[Verification, ...]:
        """Greedy text is verified in one way only; sampled text by rejection, a few cases coupled for comparison."""
        if workload.greedy:
            return ("rejection",)
        compared = proposer == "draft" and k in (4, "auto")
        return self.verifications or (VERIFICATIONS if compared else ("rejection",))

    def _num_tokens(self, workload: Workload, proposer: Proposer, batch_size: int) -> tuple[NumTokens, ...]:
        """Every K from 1 to 8 for the draft model on plain greedy text; elsewhere a few."""
        if self.quick:
            return (2, "auto") if proposer == "draft" else ("auto",)
        if proposer != "draft":
            return ("auto",) if batch_size > 1 else (4, "auto") if proposer == "layer_skip" else (4, 8, "auto")
        if batch_size > 1:
            return (2, 4, 8, "auto")
        return (1, 2, 3, 4, 5, 6, 7, 8, "auto") if workload.name in PLAIN_WORKLOADS else (1, 2, 4, 8, "auto")


def _proposers(batch_size: int, quick: bool) -> tuple[Proposer, ...]:
    return PROPOSERS[:2] if quick or batch_size > 1 else PROPOSERS


def _check(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{option} {name!r} is not known: give some of {', '.join(known)}.")


def _whole(option: str, text: str, most: int) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= most:
        return int(text)
    also = ", or auto" if option == "--k" else ""
    raise ConfigError(f"{option} {text!r} is not allowed: give whole numbers from 1 to {most}{also}.")
