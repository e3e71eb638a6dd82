"""How many tokens to draft for each request, decided step by step from what drafts and steps turn out to cost.

Each request drafts as many tokens as promise the most tokens per time: the acceptance of its recent drafts, position by
position, starting from what recent requests met, against the measured time of the steps that verify them. A request
whose drafts do not pay, or are found too seldom to matter, goes without, and now and then tries one. A ledger keeps
what all trying loses against plain decoding near one per cent: a conservative bandit (Wu et al., arXiv 1602.04282)
whose default arm is to draft nothing.
"""

import math
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import Literal

from playground.engine.speculation.acceptance import Acceptance
from playground.engine.speculation.formula import BestSpeculation, best_num_tokens
from playground.engine.speculation.step_costs import StepCost, StepCosts

# Speed-ups over plain decoding
MIN_GAIN = 1.02
"""Drafting stops where the gain was below this for `PATIENCE` decisions in a row."""
PATIENCE = 3
START_GAIN = 1.05
"""Drafting starts again from here on."""
DEBT_GAIN = 1.10
"""Takes the place of both while the ledger is in debt: so far the estimates promised too much."""
SURE_GAIN = 2.0
"""No error in the time of a plain step makes drafting at this gain wrong."""
DOUBT = 0.5
"""A gain below 1 + this / √n may be an error in the time of n plain steps: more of them cost little then."""
SELDOM = 0.5
"""A share of steps with drafts below which it is told beside their acceptance."""
STAY_GAIN = 1.02
"""Another number of drafts must be this much better to be taken: steps of one shape are cheaper to launch."""

# Acceptance; memory is the number of verifications after which what was known has faded to a third
REQUEST_MEMORY = 10
TRY_MEMORY = 3
"""For accepted drafts of a request that went without: something has changed."""
SURPRISE = 1e-3
"""Probability of a row of misses below which it is taken for a change of the text."""
ENGINE_MEMORY = 200
PRIOR_WEIGHT = 2.0
"""Verifications that the experience of all recent requests counts for in the estimate for one."""
FIRST_ACCEPTANCE = 0.8
"""Expected before any draft was verified: trying is how to find out."""
LOOK_MEMORY = 32
"""Looks for drafts after which what was known of how often some are found has faded to a third."""

# The ledger, in plain steps
INCOME = 0.01
"""Earned by every step for trying."""
FIRST_BALANCE = 2.0
"""What a new engine may lose to find out whether drafts pay at all."""
MAX_BALANCE = 25.0
MAX_DEBT = 4.0
"""Bounds the time without tries after a stretch of bad luck: 4 plain steps are earned back in 400."""
TRY_SHARE = 0.006
"""Share of the time that goes to tries at their longest distance."""

REST, LONGEST_REST = 8, 64
"""Steps that verify nothing for which prices and decisions stand, twice as many each time that nothing was verified
since: planning every one took 3 % of a step of 4 ms."""
LOOK_AGAIN = 4
"""Steps until drafts are looked for again where a try found none."""
MIN_PLAIN_STEPS = 2
"""Timings of steps without drafts that a decision needs to compare with."""

StepKind = Literal["as planned", "plain", "longer"]
"""What a step is for: the best known plan; no drafts, to have something to compare with; twice as many drafts, to learn
what lies beyond."""


class _Spacing:
    """Steps from one experiment to the next: twice as many after each that changed nothing."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._distance = first
        self._num_steps = 0

    def tick(self) -> bool:
        """Count a step; whether the next experiment is due."""
        self._num_steps += 1
        return self._num_steps >= self._distance

    def widen(self, last: float) -> None:
        """Start over with twice the distance, but no more than `last`."""
        self._num_steps = 0
        self._distance = max(self._first, round(min(2 * self._distance, last, self._last)))

    def again(self) -> None:
        """Start over with the same distance."""
        self._num_steps = 0

    def restart(self) -> None:
        self._num_steps = 0
        self._distance = self._first

    def postpone(self, num_steps: int) -> None:
        """Have the next one due so many steps later."""
        self._num_steps = self._distance - num_steps

    @property
    def num_left(self) -> int:
        """Steps before the one in which the next experiment is due."""
        return max(0, self._distance - self._num_steps - 1)


@dataclass(slots=True)
class _Request:
    acceptance: Acceptance
    drafts: bool | None = None
    """Whether its drafts are worth their time; None before the first decision."""
    wish: int = 0
    """Drafts that would be best if every request of the batch were like this one."""
    gain: float = 1.0
    reached: list[float] = field(default_factory=list)
    """Chance of each draft position to be reached and accepted."""
    looks: Acceptance = field(default_factory=lambda: Acceptance(1))
    """How often there are drafts where some are looked for."""
    found: float = 1.0
    """The share of steps for which drafts are expected to be found."""
    num_doubts: int = 0
    """Decisions in a row that found too little gain."""
    num_misses: int = 0
    """Verifications in a row that accepted nothing."""
    usual_acceptance: float = 0.0
    """Acceptance of the first draft before them."""
    keen: bool = False
    """Its last try was accepted: the next step tries again."""
    decide_at: int = 0
    """Step before which it is not decided anew, in large batches and while it does not draft: planning is not free."""
    decided_at: int = -1
    """Step of the last decision."""
    reason: str = ""


class AdaptivePlanner:
    """The number of drafts of every request in every step; called in the order that `SpeculationController` names."""

    def __init__(self, max_num_tokens: int, *, drafts_cost_model_time: bool) -> None:
        self.costs = StepCosts()
        self.balance = FIRST_BALANCE
        """Plain steps that may still be lost to drafts that do not pay."""
        self._max_num_tokens = max_num_tokens
        self._rounds_per_token = 1 if drafts_cost_model_time else 0
        self._engine = Acceptance(max_num_tokens)
        self._looks = Acceptance(1)
        self._requests: dict[int, _Request] = {}
        self._tries = _Spacing(4, 64)
        self._surveys = _Spacing(16, 128)
        self._survey_queue: list[StepKind] = []
        # The step that is being planned or run
        self._step = 0
        self._is_open = False
        self._batch_size = 1
        self._planned: dict[int, int] = {}
        self._longest = 0
        """Most drafts planned for a request of the step, ended or not."""
        self._kind: StepKind = "as planned"
        self._trying = False
        self._may_follow_up = False
        """Whether a try that was accepted is worth another: were all accepted, drafting would pay."""
        self._step_costs = [1.0]
        """Time of a step in which every request has 0, 1, 2, ... drafts, in plain steps; as far as it is known."""
        self._prior = [FIRST_ACCEPTANCE] * max_num_tokens
        self._best_gain = 1.0
        """Speed-up if every draft were accepted."""
        self._priced_size = 0
        """Batch size that these are of."""
        self._priced_at = -1
        """The step in which they were worked out last: decisions that are older may change."""
        self._rest = REST
        """Steps for which they stand."""
        self._verified_at = -1
        """The last step that verified drafts: since then, acceptance and costs are others."""
        self._cap = max_num_tokens
        """Most drafts that pay for the batch as it is mixed; 0: none do."""
        self._batch_gain = 1.0
        self._num_accepted = 0
        self._num_tried = 0
        self._num_hit = 0
        self._num_vain = 0
        """Tries for which nothing was found."""
        self._resting: tuple[list[int], int] | None = None
        """Requests none of which drafts, and the last step that is known to be like the one before."""

    def rest(self, request_ids: list[int]) -> bool:
        """Whether the next step is known to draft nothing for just these requests; it is planned then.

        Nothing was verified since they were planned last, and no decision or experiment is due: most steps, where
        drafts do not pay, and planning each request of a large batch costs more than all tries do.
        """
        if self._is_open:
            return False
        if self._resting is None:
            self._resting = request_ids, self._rests_until()
        resting, until = self._resting
        if self._step >= until or request_ids != resting:
            return False
        self._step += 1
        self._is_open = True
        self._tries.tick()
        return True

    def _rests_until(self) -> int:
        """The last step of which it is known that the requests planned last draft nothing."""
        members = [self._requests[request_id] for request_id in self._planned if request_id in self._requests]
        if not members or self._kind != "as planned" or self._verified_at >= self._priced_at:
            return self._step
        if any(one.drafts is not False for one in members):
            return self._step
        until = min(self._priced_at + self._rest, *(one.decide_at for one in members)) - 1
        if self._best_gain >= START_GAIN and any(one.keen for one in members):
            until = min(until, self._step + self._steps_in_debt())
        unaffordable = int((self._step_costs[1] - 1 - self.balance) / INCOME)  # steps until a try is paid for
        return min(until, self._step + max(self._tries.num_left, unaffordable))

    def _steps_in_debt(self) -> int:
        """Further plain steps for which nothing follows an accepted try."""
        return max(0, int(-self.balance / INCOME))

    def plan(self, request_id: int, batch_size: int, limit: int) -> int:
        """Drafts of a request in this step. A new step starts after `observe_step`, or with a request planned again."""
        if not self._is_open or request_id in self._planned:
            self._start_step(batch_size)
        if request_id not in self._requests:
            self._requests[request_id] = _Request(Acceptance(self._max_num_tokens))
        num_tokens = self._planned[request_id] = min(limit, self._choose(self._requests[request_id]))
        self._longest = max(self._longest, num_tokens)
        return num_tokens

    def observe_drafts(self, request_id: int, num_drafted: int, num_accepted: int) -> None:
        request = self._requests.get(request_id)
        if request is None:
            return
        drafting = bool(request.drafts) and self._cap > 0
        memory = TRY_MEMORY if num_accepted and not drafting else REQUEST_MEMORY
        if self._planned.get(request_id, 0) > 0:
            request.looks.observe(1, num_drafted > 0, LOOK_MEMORY if memory == REQUEST_MEMORY else memory)
            self._looks.observe(1, num_drafted > 0, ENGINE_MEMORY)
        if not num_drafted:
            self._num_vain += not drafting and self._planned.get(request_id, 0) > 0
            request.keen = False
            return
        self._num_accepted += num_accepted
        self._engine.observe(num_drafted, num_accepted, ENGINE_MEMORY)
        self._note_misses(request, num_accepted)
        request.acceptance.observe(num_drafted, num_accepted, memory)
        if not drafting:
            request.keen = num_accepted > 0
            request.decide_at = 0
            self._num_tried += 1
            self._num_hit += request.keen

    def _note_misses(self, request: _Request, num_accepted: int) -> None:
        """Where nothing was accepted so often in a row that the text must have changed, only that still counts."""
        if num_accepted:
            request.num_misses = 0
            return
        if not request.num_misses:
            request.usual_acceptance = request.reached[0]
        request.num_misses += 1
        if (1.0 - request.usual_acceptance) ** request.num_misses < SURPRISE:
            request.acceptance = Acceptance(self._max_num_tokens)
            for _ in range(request.num_misses - 1):
                request.acceptance.observe(1, 0, REQUEST_MEMORY)
            request.num_misses = 0

    def observe_step(self, cost: StepCost) -> None:
        num_rounds = self._longest * self._rounds_per_token if cost.num_draft_tokens else 0
        self.costs.observe(cost, num_rounds)
        self.balance += INCOME
        if cost.num_target_tokens > cost.num_seqs and self.costs.num_plain_steps(cost.num_seqs):
            num_drafts = cost.num_target_tokens / cost.num_seqs - 1
            lost = self.costs.relative_cost(cost.num_seqs, num_drafts, num_rounds) - 1
            self.balance -= lost - self._num_accepted / cost.num_seqs
        self.balance = max(-MAX_DEBT, min(MAX_BALANCE, self.balance))
        if cost.num_target_tokens > cost.num_seqs:
            self._verified_at = self._step
        self._is_open = False

    def forget(self, request_id: int) -> None:
        self._requests.pop(request_id, None)
        self._planned.pop(request_id, None)

    def reason_against(self, request_id: int) -> str | None:
        """Why the request goes without drafts, for people; None if it does not, or is not known."""
        request = self._requests.get(request_id)
        if request is None or request.drafts is None:
            return None
        if not request.drafts:
            return request.reason
        if not self._cap:
            return f"expected speed-up {self._batch_gain:.2f} in a batch of {self._batch_size}: no faster than without"
        return None

    # The step

    def _start_step(self, batch_size: int) -> None:
        members = [self._requests[request_id] for request_id in self._planned]
        self._space_tries()
        self._step += 1
        self._is_open = True
        self._resting = None
        self._batch_size = batch_size
        self._planned = {}
        self._longest = 0
        self._num_accepted = self._num_tried = self._num_hit = self._num_vain = 0
        if self.costs.num_plain_steps(batch_size) < MIN_PLAIN_STEPS:
            self._kind = "plain"
            return
        is_new = self._verified_at >= self._priced_at or batch_size != self._priced_size
        if is_new or self._step >= self._priced_at + self._rest:
            self._rest = REST if is_new else min(2 * self._rest, LONGEST_REST)
            self._price(batch_size)
        self._cap = self._common_cap(members)
        drafting = [member.gain for member in members if member.drafts and self._cap]
        try_is_due = len(drafting) < len(members) and self._tries.tick()
        self._trying = try_is_due and self.balance >= self._step_costs[1] - 1
        self._may_follow_up = self.balance > 0 and self._best_gain >= START_GAIN
        self._kind = self._next_kind(drafting)

    def _price(self, batch_size: int) -> None:
        """Work out what drafts cost and promise; not for every step, if nothing was verified."""
        self._priced_size, self._priced_at = batch_size, self._step
        longest = min(self._max_num_tokens, max(1, 2 * self.costs.longest_draft(batch_size)))
        self._step_costs = [self._cost(k, k) for k in range(longest + 1)]
        self._prior = self._engine.estimates([FIRST_ACCEPTANCE] * self._max_num_tokens, PRIOR_WEIGHT)
        self._best_gain = best_num_tokens([1.0] * longest, self._step_costs).speedup

    def _space_tries(self) -> None:
        """Where a try was accepted the next comes no later; else later, the later the more it costs."""
        if self._num_hit and self._may_follow_up:
            self._tries.again()
        elif self._num_tried:
            self._tries.widen((self._step_costs[1] - 1) / TRY_SHARE)
        elif self._num_vain:
            self._tries.postpone(LOOK_AGAIN)

    def _next_kind(self, drafting: list[float]) -> StepKind:
        """What the step is for, given the gains of the requests that draft."""
        if not drafting:
            return "as planned"
        if self._surveys.tick():
            self._surveys.widen(math.inf)
            self._survey_queue = ["longer"] if min(drafting) >= SURE_GAIN else ["plain", "longer"]
        if self._survey_queue:
            return self._survey_queue.pop(0)
        gain = self._batch_gain if self._batch_size > 1 else drafting[0]
        is_sure = gain >= 1 + DOUBT / math.sqrt(self.costs.num_plain_steps(self._batch_size))
        return "as planned" if is_sure or self._kind == "plain" else "plain"

    def _cost(self, num_drafts: float, longest: int) -> float:
        return self.costs.relative_cost(self._batch_size, num_drafts, longest * self._rounds_per_token)

    def _common_cap(self, members: list[_Request]) -> int:
        """The depth up to which drafting pays for all together: a round of drafting takes its time from everybody,
        however few it is for."""
        drafting = [member for member in members if member.drafts]
        if self._batch_size == 1 or not drafting:
            return self._max_num_tokens
        num_drafts, num_tokens, cap = 0.0, float(self._batch_size), 0
        self._batch_gain = 0.0
        for depth in range(1, max(member.wish for member in drafting) + 1):
            deep = [member for member in drafting if member.wish >= depth]
            num_drafts += sum(member.found for member in deep)
            num_tokens += sum(member.found * member.reached[depth - 1] for member in deep)
            gain = num_tokens / self._batch_size / self._cost(num_drafts / self._batch_size, depth)
            if gain > self._batch_gain:
                self._batch_gain, cap = gain, depth
        return cap if self._batch_gain >= self._needed_gain(self._cap > 0) else 0

    # The request

    def _choose(self, request: _Request) -> int:
        if self._kind == "plain":
            return 0
        if request.decided_at < self._priced_at and self._step >= request.decide_at:
            self._decide(request)
            request.decided_at = self._step
            request.decide_at = self._step + (1 + self._batch_size // 4 if request.drafts else self._rest)
        if not (request.drafts and self._cap):
            return int(self._trying or (request.keen and not request.drafts and self._may_follow_up))
        num_tokens = min(max(1, request.wish), self._cap)
        return min(2 * num_tokens, self._max_num_tokens) if self._kind == "longer" else num_tokens

    def _decide(self, request: _Request) -> None:
        acceptance = request.acceptance.estimates(self._prior, PRIOR_WEIGHT)
        request.reached = list(accumulate(acceptance, mul))
        best = best_num_tokens(acceptance, self._step_costs)
        request.gain = best.speedup
        (request.found,) = request.looks.estimates(self._looks.estimates([1.0], PRIOR_WEIGHT), PRIOR_WEIGHT)
        if best.speedup > STAY_GAIN * self._gain(request):
            request.wish = best.num_tokens
        overall = self._overall(request.found, best)
        enough = overall >= self._needed_gain(request.drafts is True)
        if request.drafts:
            request.num_doubts = 0 if enough else request.num_doubts + 1
            request.drafts = request.num_doubts < PATIENCE
        else:
            if enough and request.drafts is False:
                self._tries.restart()
                self._surveys.restart()  # was it better drafts, or plain steps mistaken for slower ones?
            request.drafts, request.num_doubts = enough, 0
        if not request.drafts:
            seldom = f"drafts found for {100 * request.found:.0f} % of the steps, " if request.found < SELDOM else ""
            request.reason = (
                f"{seldom}expected acceptance {100 * acceptance[0]:.0f} % at a draft cost of "
                f"{max(0.0, self._step_costs[1] - 1):.2f} steps: no faster than without"
            )

    def _overall(self, found: float, best: BestSpeculation) -> float:
        """Speed-up over all steps where only this share of them has drafts, each step being as many tokens."""
        cost = self._step_costs[best.num_tokens]
        return (1.0 + found * (best.speedup * cost - 1.0)) / (1.0 + found * (cost - 1.0))

    def _gain(self, request: _Request) -> float:
        """Speed-up of what the request drafts now; 0 where it drafts nothing, or more than is known of this batch."""
        if not 0 < request.wish < len(self._step_costs):
            return 0.0
        return (1.0 + sum(request.reached[: request.wish])) / self._step_costs[request.wish]

    def _needed_gain(self, drafting: bool) -> float:
        if self.balance < 0:
            return DEBT_GAIN
        return MIN_GAIN if drafting else START_GAIN
