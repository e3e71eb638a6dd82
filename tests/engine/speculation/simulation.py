"""A synthetic machine and synthetic texts for the controller: what it sees is noisy, what it is judged by is not.

Times are in units of about a plain step. The controller gets them in nanoseconds with log-normal noise and outliers of
up to ten times; the account is kept in true times.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from playground.engine.speculation.controller import SpeculationController
from playground.engine.speculation.formula import expected_tokens_by_position
from playground.engine.speculation.step_costs import StepCost

NS_PER_UNIT = 5_000_000


@dataclass(frozen=True)
class Machine:
    """True times by sequences, query tokens and rounds of drafting, and what is seen of them."""

    target: Callable[[int, int], float]
    draft_round: Callable[[int], float] | None
    """None: drafts are looked up, at no cost."""
    noise: float = 0.1
    outlier_share: float = 0.03
    warm_up_steps: int = 0
    """First steps that take thirty times as long."""

    def time(self, num_seqs: int, num_drafts: int, num_rounds: int) -> tuple[float, float]:
        """(drafting, target) of one step with `num_drafts` drafts over all sequences."""
        draft = num_rounds * self.draft_round(num_seqs) if self.draft_round else 0.0
        return draft, self.target(num_seqs, num_seqs + num_drafts)

    def controller(self, num_tokens: int | str = "auto") -> SpeculationController:
        return SpeculationController(num_tokens, max_batch_size=None, drafts_cost_model_time=bool(self.draft_round))

    def best_fixed(self, acceptance: Sequence[float]) -> float:
        """Speed-up of the best fixed number of drafts for a single request, exactly."""
        return max(
            expected_tokens_by_position(acceptance[:k]) * self.target(1, 1) / sum(self.time(1, k, k))
            for k in range(len(acceptance) + 1)
        )


def gpu(draft_cost: float | None, **seen: float) -> Machine:
    """Bound by memory up to some 100 query tokens."""
    draft_round = None if draft_cost is None else lambda seqs: draft_cost * (1 + 0.002 * seqs)
    return Machine(lambda seqs, tokens: max(1.0, tokens / 128) + 0.004 * tokens, draft_round, **seen)


def cpu(draft_cost: float | None, **seen: float) -> Machine:
    """Time grows with every query token, with a jump from one to two."""
    draft_round = None if draft_cost is None else lambda seqs: draft_cost * (0.8 + 0.2 * seqs)
    return Machine(lambda seqs, tokens: 0.85 + 0.15 * tokens + 0.1 * (tokens > 1), draft_round, **seen)


@dataclass
class Text:
    """How predictable a text is."""

    acceptance: Callable[[int, int], float]
    """(position in the text, index in the draft) -> probability that a draft is right, once all before it were."""
    found: float = 1.0
    """Share of steps in which there is a draft at all."""


def steady(*acceptance: float) -> Text:
    """Acceptance by index in the draft; the last holds for all that follow."""
    return Text(lambda position, index: acceptance[min(index, len(acceptance) - 1)])


@dataclass
class Outcome:
    time: float = 0.0
    plain_time: float = 0.0
    """What the same tokens take without drafts, in steps of as many sequences."""
    steps: list[tuple[int, int]] = field(default_factory=list)
    """(tokens of the first text before the step, most drafts planned for any)."""

    @property
    def speedup(self) -> float:
        return self.plain_time / self.time


def run(
    controller: SpeculationController,
    machine: Machine,
    texts: Sequence[Text],
    num_tokens: int,
    seed: int,
    *,
    first_id: int = 0,
) -> Outcome:
    """Generate `num_tokens` of the fastest text, all texts in one batch; request ids count from `first_id`."""
    rng, outcome, batch_size = random.Random(seed), Outcome(), len(texts)
    lengths = [0] * batch_size
    while max(lengths) < num_tokens:
        ids = list(range(first_id, first_id + batch_size))
        rests = controller.rest(ids)
        plans = [0 if rests else controller.plan(one, batch_size=batch_size, limit=64) for one in ids]
        outcome.steps.append((lengths[0], max(plans)))
        num_drafted = num_accepted = longest = 0
        for i, text in enumerate(texts):
            drafted = plans[i] if rng.random() < text.found else 0
            accepted = 0
            while accepted < drafted and rng.random() < text.acceptance(lengths[i] + accepted, accepted):
                accepted += 1
            controller.observe_drafts(first_id + i, drafted, accepted)
            lengths[i] += accepted + 1
            num_drafted, num_accepted, longest = num_drafted + drafted, num_accepted + accepted, max(longest, drafted)
        true = machine.time(batch_size, num_drafted, longest)
        outcome.time += sum(true)
        outcome.plain_time += machine.target(batch_size, batch_size) * (1 + num_accepted / batch_size)
        slow = 30 if len(outcome.steps) <= machine.warm_up_steps else 1
        draft_ns, target_ns = (int(slow * _seen(time, machine, rng) * NS_PER_UNIT) for time in true)
        controller.observe_step(StepCost(batch_size, batch_size + num_drafted, num_drafted, draft_ns, target_ns))
    return outcome


def _seen(time: float, machine: Machine, rng: random.Random) -> float:
    outlier = rng.uniform(2, 10) if rng.random() < machine.outlier_share else 1.0
    return time * rng.lognormvariate(0, machine.noise) * outlier
