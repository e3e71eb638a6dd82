"""`playground bench speculation`: every case paired with no speculation on the same prompts and seeds, in one engine.

Owns the order of measurements and the shape of the result. What is asked of the bundled pair is in `reaches`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from playground import SamplingParams, info
from playground.bench.speculation.figures import agreement, figures
from playground.bench.speculation.plan import Case, Plan
from playground.bench.speculation.published import published
from playground.bench.speculation.reaches import reaches
from playground.bench.speculation.runner import Answers, Side
from playground.bench.speculation.workloads import BEGUN_TOKENS, Workload, questions
from playground.config import SpeculationConfig
from playground.errors import PlaygroundError

logger = logging.getLogger(__name__)

FIRST_ANSWER_TOKENS = 192
"""A whole story of the bundled model."""

Say = Callable[[str], None]

DEFINITIONS = {
    "speed-up": "Measured: decode tokens per second with speculation over without, the median of the pairs and their "
    "range. Tokens per second count from the moment when every request of a batch has its first token until "
    "its last token, summed over the batches of a pass. A pair answers the same prompts with the same seeds, "
    "each batch on one side directly after the other, in the same engine, whose requests ask for no drafts "
    "on the plain side: two engines of one configuration differ by up to 8 %, for the places in memory that "
    "they got. The order changes from batch to batch, the prompts from pair to pair. One pair goes before, "
    "unmeasured; what the adaptive length learns in it, it keeps.",
    "acceptance": "By position: drafts accepted of those reached, a draft being reached when all before it were "
    "accepted. α is the same over all positions together: one number for the formula, which takes every draft to be "
    "accepted with equal chance. Accepted of all drafted is another number, which falls with K.",
    "tokens per step": "Tokens that a request got from a decode step, with drafts or without. By position: 1 + the sum "
    "of products of the acceptance by position. One α: (1 - α^(K+1)) / (1 - α). Both are means over the steps with the "
    "number of drafts that each really had, which is not always K, less those for which the text that was left had no "
    "room: what is drafted beyond the end of a reply is dropped, and in short replies that is a good part.",
    "c and v": "Times in plain steps, the steps of the other side of the pair: c is one draft token, v everything else "
    "in a step that verifies drafts. On a GPU "
    "the host runs ahead of the device: there only K c + v means something, not what is whose.",
    "expected speed-up": "E / (K c + v) with E of one α and the costs as measured. It predicts nothing that was not "
    "measured; it tells where the time of a slow case goes.",
    "same text": "Greedy and coupled text must be the same with speculation and without; differences are counted. In "
    "bfloat16 a near-tie can fall either way when more tokens are computed at once. Rejection has the same "
    "distribution, not the same text.",
    "adaptive": "K = auto: the engine chooses K for each request and step, none included. Measured in four times as "
    "many pairs. State and reason are those at the end of the last request.",
    "prompts": "No prompt is given twice to an engine that drafts, and prefix caching is off: nobody answers, and "
    "nothing is drafted, from memory of the same request.",
}


@dataclass(frozen=True)
class _Prompt:
    token_ids: list[int]
    seed: int


def run_benchmark(plan: Plan, threads: int | None = None, say: Say = print) -> dict[str, Any]:
    """Measure every case of the plan; `say` gets one line of progress at a time. A case that fails is named in its
    row, and the others go on."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    say("loading")
    with closing(_side(plan, None, plan.max_batch)) as plain:
        config = plain.engine.config
        rows = [
            _row(plan, case, prompts, f"{number} of {len(plan.cases)}", say)
            for number, (case, prompts) in enumerate(_with_prompts(plan, plain, say), 1)
        ]
    return {
        "benchmark": "speculation",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "definitions": DEFINITIONS,
        "versions": info.versions(),
        "machine": info.machine(),
        "plan": asdict(plan),
        "model": {"name": plan.model or "bundled", "device": config.device, "dtype": config.dtype},
        "rows": rows,
        "published": published(rows),
        "reaches": reaches(rows),
        "ok": all(row["error"] is None for row in rows),
    }


def _side(plan: Plan, speculation: SpeculationConfig | None, max_batch: int) -> Side:
    return Side(
        model=plan.model,
        draft_model=plan.draft_model,
        device=plan.device,
        dtype=plan.dtype,
        max_batch=max_batch,
        speculation=speculation,
    )


def _with_prompts(plan: Plan, plain: Side, say: Say) -> Iterator[tuple[Case, list[_Prompt]]]:
    for workload in plan.workloads:
        say(f"{workload.name}: making prompts")
        prompts = _prompts(workload, plan.num_prompts(workload.name), plain)
        yield from ((case, prompts) for case in plan.cases if case.workload == workload.name)


def _prompts(workload: Workload, count: int, plain: Side) -> list[_Prompt]:
    """Conversations up to the answer that is measured."""
    chats: list[list[dict[str, str]]] = [
        [{"role": "user", "content": asked}] for asked in questions(workload.kind, count)
    ]
    prompts = [plain.engine.chat_prompt(chat) for chat in chats]
    if workload.kind == "again":
        params = SamplingParams(max_tokens=FIRST_ANSWER_TOKENS, temperature=0)
        told = plain.engine.generate(prompts, params)
        prompts = [
            plain.engine.chat_prompt([*chat, {"role": "assistant", "content": one.text}, *chat])
            + one.token_ids[:BEGUN_TOKENS]
            for chat, one in zip(chats, told, strict=True)
        ]
    return [_Prompt(token_ids, seed) for seed, token_ids in enumerate(prompts)]


def _row(plan: Plan, case: Case, prompts: Sequence[_Prompt], progress: str, say: Say) -> dict[str, Any]:
    workload = plan.workload(case)
    row: dict[str, Any] = {**asdict(case), "temperature": workload.temperature, "error": None}
    name = f"{progress}: {workload.name}, {case.proposer}, K {case.num_tokens}, batch {case.batch_size}"
    say(name)
    try:
        with closing(_side(plan, case.speculation, case.batch_size)) as side:
            pairs = list(_pairs(plan, case, prompts, side))
        found = figures([ours.counts for ours, _ in pairs], [without.counts for _, without in pairs])
    except PlaygroundError as error:
        return row | {"error": str(error)}
    except Exception as error:
        logger.exception("%s failed", name)
        return row | {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    exact = workload.greedy or case.verification == "coupled"
    return row | {
        **asdict(found),
        "same_text": _agreement(pairs) if exact else None,
        "speculation": pairs[-1][0].speculation,
        "passes": [{"with": asdict(ours.counts), "without": asdict(without.counts)} for ours, without in pairs],
    }


def _pairs(plan: Plan, case: Case, prompts: Sequence[_Prompt], side: Side) -> Iterator[tuple[Answers, Answers]]:
    """(with, without) of every measured pair: each the first in every other one."""
    size, workload = plan.requests_per_pass(case), plan.workload(case)
    for pair in range(-1, plan.num_pairs(case)):
        mine = prompts[(pair + 1) * size : (pair + 2) * size]
        token_ids = [one.token_ids for one in mine]
        params = [
            SamplingParams(max_tokens=workload.max_tokens, temperature=workload.temperature, seed=one.seed)
            for one in mine
        ]
        plain = [one.replace(speculate=False) for one in params]
        answers: dict[bool, list[Answers]] = {True: [], False: []}
        for number, first in enumerate(range(0, size, case.batch_size)):
            batch = slice(first, first + case.batch_size)
            for drafts in (True, False) if (pair + number) % 2 else (False, True):
                answers[drafts].append(side.run(token_ids[batch], (params if drafts else plain)[batch]))
        if pair >= 0:
            yield Answers.together(answers[True]), Answers.together(answers[False])


def _agreement(pairs: Sequence[tuple[Answers, Answers]]) -> dict[str, int]:
    ours = [ids for one, _ in pairs for ids in one.token_ids]
    return agreement(ours, [ids for _, without in pairs for ids in without.token_ids])
