"""Everything that speculation adds to a step: how many drafts each request gets, which, and what became of them.

Owns the proposer and the controller that decides when drafting pays. Never decides what stays: `verification` does.
"""

import logging
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from playground.config import SpeculationConfig
from playground.engine.request import Request
from playground.engine.scheduler import ScheduledRequest
from playground.engine.speculation.controller import SpeculationController, SpeculationState, StepCost
from playground.engine.speculation.draft_kv import DraftKV
from playground.engine.speculation.eagle_drafts import EagleProposer
from playground.engine.speculation.lookup import LookupProposer
from playground.engine.speculation.proposal import Outcome, Proposal
from playground.models.kv_cache import KVCache

logger = logging.getLogger(__name__)


class ComputedProposer(Protocol):
    """Makes drafts by running a model, once blocks for them are there."""

    @property
    def draft_kv(self) -> DraftKV | None:
        """How far the KV that it keeps beside the target's reaches."""

    @property
    def own_kv_cache(self) -> KVCache | None: ...

    def why_not(self, request: Request) -> str | None: ...

    def propose(self, scheduled: Sequence[ScheduledRequest]) -> Proposal | None: ...

    def settle(self, request: Request) -> None: ...

    def forget(self, request: Request) -> None: ...


class Speculator:
    """Speculation of one engine."""

    def __init__(
        self,
        config: SpeculationConfig,
        proposer: ComputedProposer | LookupProposer,
        controller: SpeculationController,
        *,
        max_model_len: int,
        device: torch.device,
    ) -> None:
        """A proposer that looks drafts up is asked while a step is planned, one that computes them when it runs."""
        self.config, self.proposer, self.controller = config, proposer, controller
        lookup = config.method in ("ngram", "suffix")
        self._lookup = cast(LookupProposer, proposer) if lookup else None
        self._computed = None if lookup else cast(ComputedProposer, proposer)
        self._max_model_len, self._device = max_model_len, device
        self._found: dict[int, list[int]] = {}  # drafts looked up for the step that is being planned

    @property
    def own_kv_cache(self) -> KVCache | None:
        """The KV that a draft model keeps beside the target's, in the same blocks."""
        return self._computed.own_kv_cache if self._computed is not None else None

    @property
    def _draft_kv(self) -> DraftKV | None:
        return self._computed.draft_kv if self._computed is not None else None

    def matches(self, request: Request) -> bool:
        """Whether the request's drafts are verified by what the target draws, not by rejection."""
        return request.params.greedy or self.config.verification == "coupled"

    def plan(self, running: Sequence[Request]) -> None:
        """Decide for each running request how many drafts the next step may verify."""
        self._found.clear()
        for request in running:
            request.num_planned_drafts = 0
        decoding = [r for r in running if r.num_output_tokens > 0 and r.num_uncomputed_tokens <= 1]
        # A beam has no token to verify drafts by before its siblings are read.
        deciding = [r for r in decoding if r.params.speculate and r.beams is None]
        if not deciding or self.controller.rest([request.request_id for request in deciding]):
            return
        for request in deciding:
            room = min(
                request.max_total_tokens - request.num_tokens_with_pending - 1,
                (self._max_model_len - request.num_tokens_with_pending) // self.config.tree_width,
            )
            wanted = self.controller.plan(request.request_id, batch_size=len(decoding), limit=room) if room > 0 else 0
            request.awaits_drafts = wanted > 0
            if wanted == 0 or request.num_pending_tokens or request.num_uncomputed_tokens != 1:
                continue
            if self._why_not(request) is not None:
                continue
            request.num_planned_drafts = self._look_up(request, wanted) * self.config.tree_width

    def _look_up(self, request: Request, num_tokens: int) -> int:
        if self._lookup is None:
            return num_tokens
        found = self._lookup.propose(request, num_tokens)[:num_tokens]
        if found:
            self._found[request.request_id] = found
        else:
            self.controller.observe_drafts(request.request_id, 0, 0)
        return len(found)

    def propose(self, scheduled: Sequence[ScheduledRequest]) -> Proposal | None:
        """Drafts for slices that have room for some. A proposer that fails is not asked again; the engine goes on."""
        try:
            if self._computed is not None:
                return self._computed.propose(scheduled)
            drafts = {
                one.request.request_id: self._found[one.request.request_id][: one.num_drafts] for one in scheduled
            }
            return Proposal.of_lists(drafts, self._device)
        except Exception as error:
            logger.exception("drafting failed; the engine goes on without")
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self.controller.disable(f"drafting failed: {type(error).__name__}: {reason}")
            return None

    def settle(self, request: Request, outcome: Outcome) -> None:
        """A request has run a step with drafts or without, and its tokens are up to date."""
        if outcome.num_positions:
            # Not `num_accepted`: an accepted draft that ends the text has no token after it, and saved no step.
            self.controller.observe_drafts(request.request_id, outcome.num_positions, len(outcome.tokens) - 1)
        if self._computed is not None:
            self._computed.settle(request)

    def observe_step(self, cost: StepCost) -> None:
        self.controller.observe_step(cost)

    def state(self, request: Request) -> SpeculationState:
        if not request.params.speculate:
            return SpeculationState("off", "the request asks for none", 0)
        state, reason = self.controller.state(request.request_id), self._why_not(request)
        if state.state == "active" and reason is not None:
            return SpeculationState("off", reason, 0)
        return state

    def _why_not(self, request: Request) -> str | None:
        return self._computed.why_not(request) if self._computed is not None else None

    @property
    def wants_features(self) -> bool:
        """Whether drafts come from what the target computed beside its logits."""
        return isinstance(self._computed, EagleProposer)

    def observe_features(self, scheduled: Sequence[ScheduledRequest], hidden: Tensor) -> None:
        """The target's features [T, H] of a step's slices, in their order."""
        if isinstance(self._computed, EagleProposer):
            self._computed.observe(scheduled, hidden)

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self.controller.forget(request.request_id)
        self.proposer.forget(request)

    def move(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Move the draft model's KV of tokens between slots (source, destination)."""
        if self.own_kv_cache is not None:
            self.own_kv_cache.move(pairs)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the draft model's part of KV blocks (source, destination)."""
        if self.own_kv_cache is not None:
            self.own_kv_cache.copy_blocks(pairs)
        if self._draft_kv is not None:
            self._draft_kv.copied(pairs)

    def zero_blocks(self, ids: Sequence[int]) -> None:
        """Overwrite the draft model's part of KV blocks with zeros."""
        if self.own_kv_cache is not None:
            self.own_kv_cache.zero_blocks(ids)
        if self._draft_kv is not None:
            self._draft_kv.lost(ids)
