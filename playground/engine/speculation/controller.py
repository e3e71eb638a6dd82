from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class StepCost:
    num_seqs: int
    num_target_tokens: int
    num_draft_tokens: int
    draft_ns: int
    target_ns: int


@dataclass(frozen=True, slots=True)
class SpeculationState:
    state: Literal["active", "off", "disabled"]
    reason: str | None
    num_tokens: int


class SpeculationController:
    def __init__(self, num_tokens, *, max_batch_size=None, max_num_tokens=8, drafts_cost_model_time=True):
        self._k = 4 if num_tokens == "auto" else num_tokens
        self._max = max_batch_size
        self._reason = None

    def plan(self, request_id, *, batch_size, limit):
        if self._reason or (self._max and batch_size > self._max):
            return 0
        return max(0, min(self._k, limit))

    def observe_drafts(self, request_id, num_drafted, num_accepted): ...
    def observe_step(self, cost): ...
    def disable(self, reason):
        self._reason = reason

    def state(self, request_id):
        return SpeculationState("disabled" if self._reason else "active", self._reason, self._k)

    def forget(self, request_id): ...
