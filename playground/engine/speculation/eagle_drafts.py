"""Drafts from an EAGLE head, which goes on from what the target itself computed: its features, one a token.

The head's KV at position i is of the target's feature of token i and of token i + 1. Features are kept from the
target's forward until the head has run on them; what it ran on features of its own guessing is run again.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from playground.engine.batches import BatchSlice, build_batch
from playground.engine.block_pool import BlockPool
from playground.engine.request import Request
from playground.engine.scheduler import ScheduledRequest
from playground.engine.speculation.chain_drafts import draft_row, draw_chains, prepare_steps
from playground.engine.speculation.draft_kv import DraftKV
from playground.engine.speculation.proposal import Proposal
from playground.models.eagle import EagleHead
from playground.models.kv_cache import KVCache


class EagleProposer:
    """Chains of drafts from the target's features."""

    def __init__(
        self,
        head: EagleHead,
        kv_cache: KVCache,
        pool: BlockPool,
        *,
        eos_token_ids: frozenset[int],
        max_num_tokens: int,
        keeps_probabilities: bool,
    ) -> None:
        """`kv_cache` is the head's own. For the others see `ModelProposer`."""
        self.head, self.own_kv_cache = head, kv_cache
        self._eos_token_ids, self._max_num_tokens = eos_token_ids, max_num_tokens
        self._keeps_probabilities = keeps_probabilities
        self.draft_kv = DraftKV(pool, kv_cache.block_size)
        self._features: dict[int, tuple[int, Tensor]] = {}  # by request id: first token and [tokens, H]

    def observe(self, scheduled: Sequence[ScheduledRequest], hidden: Tensor) -> None:
        """Keep what the target computed for the slices of a step, `hidden` [T, H] in their order."""
        for one, rows in zip(scheduled, hidden.split([one.num_tokens for one in scheduled]), strict=True):
            if not one.request.params.speculate:
                continue
            first, held = self._features.get(one.request.request_id, (one.start, rows[:0]))
            if not first <= one.start <= first + len(held):  # preempted in between
                first, held = one.start, rows[:0]
            self._features[one.request.request_id] = first, torch.cat((held[: one.start - first], rows))

    def why_not(self, request: Request) -> str | None:
        """The reason why this request cannot be drafted for; None where it can."""
        if self._features.get(request.request_id, (0, None))[0] <= self.draft_kv.num_computed(request):
            return None
        return "its prompt came from the prefix cache, without what the draft head needs to know of it"

    def settle(self, request: Request) -> None:
        """The target has looked at the drafts of a request: those that stay are among its tokens now."""
        self.draft_kv.keep(request, request.num_tokens - 1)
        if request.request_id in self._features:
            first, held = self._features[request.request_id]
            self._features[request.request_id] = first, held[: request.num_tokens - 1 - first]

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self.draft_kv.forget(request.request_id)
        self._features.pop(request.request_id, None)

    def propose(self, scheduled: Sequence[ScheduledRequest]) -> Proposal | None:
        """Drafts for slices that were planned with some; None if nobody's head has caught up yet."""
        in_order = sorted(scheduled, key=lambda one: -one.num_drafts)
        slices, features, active = self._catch_up(in_order)
        kv_cache = self.own_kv_cache
        batch = build_batch(slices, kv_cache.block_size, self.head.device)
        logits, ahead = self.head.forward(batch, features, kv_cache)
        if not active:
            return None
        expected = ahead.index_select(0, batch.logits_rows)
        steps = prepare_steps(self.head, kv_cache, active, offset=-1)

        def run_on(ids: Tensor) -> Tensor:
            nonlocal expected
            going, step = ids.shape
            steps[step - 1].token_ids = F.pad(ids[:, -1], (0, len(active) - going))
            logits, expected = self.head.forward(steps[step - 1], expected, kv_cache)
            return logits[:going]

        rows = [draft_row(one, self._eos_token_ids) for one in active]
        proposal = draw_chains(logits, active, rows, run_on, self._keeps_probabilities)
        return replace(proposal, longest_catch_up=max(len(one.token_ids) for one in slices))

    def _catch_up(
        self, scheduled: Sequence[ScheduledRequest]
    ) -> tuple[list[BatchSlice], Tensor, list[ScheduledRequest]]:
        """What the head has not run yet, with its features, as far as one forward may go; and who can draft then."""
        slices: list[BatchSlice] = []
        features: list[Tensor] = []
        active: list[ScheduledRequest] = []
        spare = max(0, self._max_num_tokens - len(scheduled))  # beyond one token each
        for one in scheduled:
            request, start = one.request, self.draft_kv.num_computed(one.request)
            end = min(one.num_drawn - 1, start + 1 + spare)
            spare -= end - start - 1
            reaches = end == one.num_drawn - 1
            first, held = self._features[request.request_id]
            features.append(held[start - first : end - first])
            self._features[request.request_id] = end, held[end - first :]
            token_ids = request.token_ids[start + 1 : end + 1]
            slices.append(BatchSlice(token_ids, start, request.block_table, int(reaches)))
            if reaches:
                active.append(one)
            self.draft_kv.wrote(request, end, one.num_drafts - 1 if reaches else 0)
        return slices, torch.cat(features), active
