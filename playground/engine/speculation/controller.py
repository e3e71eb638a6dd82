"""How many draft tokens a request gets in a step, and why it gets none: what the engine asks before it drafts.

A fixed number is only clipped; "auto" is decided by `AdaptivePlanner`. Knows request ids, counts and times, nothing of
tokens or models.
"""

from dataclasses import dataclass
from typing import Literal

from playground.engine.speculation.adaptive import AdaptivePlanner
from playground.engine.speculation.step_costs import StepCost


@dataclass(frozen=True, slots=True)
class SpeculationState:
    """How speculation stands for one request."""

    state: Literal["active", "off", "disabled"]
    """"off" may change from step to step; "disabled" is for good, and for the whole engine."""
    reason: str | None
    """One short sentence for people; None when active."""
    num_tokens: int
    """Draft tokens planned last."""


class SpeculationController:
    """Decides the number of drafts per request and step.

    For every step: `plan` for each request of the batch; after verification `observe_drafts` for each request that was
    planned any; then `observe_step`, if the step ran nothing but decodes. One thread only; deterministic.
    """

    def __init__(
        self,
        num_tokens: int | Literal["auto"],
        *,
        max_batch_size: int | None = None,
        max_num_tokens: int = 8,
        drafts_cost_model_time: bool,
    ) -> None:
        """`max_num_tokens` bounds what "auto" chooses. `drafts_cost_model_time`: whether every draft token takes a run
        of a draft model over the batch (False for drafts that are looked up)."""
        self._num_tokens = num_tokens
        self._max_batch_size = max_batch_size
        self._adaptive = AdaptivePlanner(max_num_tokens, drafts_cost_model_time=drafts_cost_model_time)
        self._disabled: str | None = None
        self._batch_size = 0
        self._last_planned: dict[int, int] = {}

    def rest(self, request_ids: list[int]) -> bool:
        """Whether the next step, of these requests, is known to draft nothing: then it need not be planned."""
        return self._num_tokens == "auto" and self._disabled is None and self._adaptive.rest(request_ids)

    def plan(self, request_id: int, *, batch_size: int, limit: int) -> int:
        """Draft tokens for this request in this step, at most `limit` (the room that is left); 0: do not speculate.

        `batch_size` is the number of sequences in the step, the same for all its requests.
        """
        self._batch_size = batch_size
        limit = max(0, limit)
        if self._disabled is not None or self._batch_is_too_large:
            num_tokens = 0
        elif self._num_tokens == "auto":
            num_tokens = self._adaptive.plan(request_id, batch_size, limit)
        else:
            num_tokens = min(self._num_tokens, limit)
        self._last_planned[request_id] = num_tokens
        return num_tokens

    def observe_drafts(self, request_id: int, num_drafted: int, num_accepted: int) -> None:
        """What became of a request's drafts: `num_accepted` of them each saved a step. `num_drafted` may be less than
        planned; 0: nothing was found."""
        if self._num_tokens == "auto":
            self._adaptive.observe_drafts(request_id, num_drafted, num_accepted)

    def observe_step(self, cost: StepCost) -> None:
        """What a pure decode step took, with drafts or without."""
        if self._num_tokens == "auto":
            self._adaptive.observe_step(cost)

    def disable(self, reason: str) -> None:
        """No drafts any more, for any request: the draft failed. The first reason stays."""
        if self._disabled is None:
            self._disabled = reason

    def state(self, request_id: int) -> SpeculationState:
        num_tokens = self._last_planned.get(request_id, 0)
        if self._disabled is not None:
            return SpeculationState("disabled", self._disabled, num_tokens)
        if self._batch_is_too_large:
            reason = f"{self._batch_size} requests run at once, more than max_batch_size={self._max_batch_size}"
            return SpeculationState("off", reason, num_tokens)
        reason_against = self._adaptive.reason_against(request_id)  # None where the number is fixed: it plans nothing
        return SpeculationState("active" if reason_against is None else "off", reason_against, num_tokens)

    def forget(self, request_id: int) -> None:
        """The request has ended; unknown ones are ignored."""
        self._last_planned.pop(request_id, None)
        self._adaptive.forget(request_id)

    @property
    def _batch_is_too_large(self) -> bool:
        return self._max_batch_size is not None and self._batch_size > self._max_batch_size
