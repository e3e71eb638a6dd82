"""Drafts from a model: a smaller one with KV of its own, or the target with some of its layers left out.

The draft model follows the tokens of a request in chunks, as the target does, then runs ahead one token a forward. All
requests of a step draft together; nothing here waits for the device unless penalties need to know the drafts.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from playground.engine.batches import UNKNOWN, BatchSlice, build_batch, put_tokens
from playground.engine.block_pool import BlockPool
from playground.engine.logit_rules import SamplingRow
from playground.engine.request import Request
from playground.engine.scheduler import ScheduledRequest
from playground.engine.speculation.chain_drafts import draft_row, draw_chains, prepare_steps
from playground.engine.speculation.draft_kv import DraftKV
from playground.engine.speculation.proposal import Proposal
from playground.engine.speculation.tree_drafts import grow_trees
from playground.models.decoder import Decoder
from playground.models.kv_cache import KVCache


class ModelProposer:
    """Chains of drafts, drawn with each request's own sampling parameters."""

    def __init__(
        self,
        model: Decoder,
        kv_cache: KVCache | None,
        pool: BlockPool | None,
        *,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        max_num_tokens: int,
        shares_target_kv: bool = False,
        keeps_probabilities: bool = True,
        tree_width: int = 1,
    ) -> None:
        """`kv_cache` and `pool` None: the engine keeps no KV, so every draft runs the whole sequence. `max_num_tokens`
        bounds one forward. With `shares_target_kv` the cache is the target's own, which holds all that the draft looks
        at; what the draft writes is overwritten when the target runs the same tokens. `vocab_size` is the target's.
        `keeps_probabilities` where verification needs to know what drafts were drawn from. With `tree_width` above 1
        the drafts of a request are a tree of so many branches a level, its most probable ones (see `tree_drafts`)."""
        self.model, self.kv_cache = model, kv_cache
        self._vocab_size, self._eos_token_ids, self._max_num_tokens = vocab_size, eos_token_ids, max_num_tokens
        self._keeps_probabilities, self._tree_width = keeps_probabilities, tree_width
        self._block_size = kv_cache.block_size if kv_cache is not None else 0
        self.draft_kv = DraftKV(pool, self._block_size) if pool is not None and not shares_target_kv else None

    @property
    def own_kv_cache(self) -> KVCache | None:
        """The cache that is the draft's alone."""
        return self.kv_cache if self.draft_kv is not None else None

    def why_not(self, request: Request) -> str | None:
        """The reason why this request cannot be drafted for: there is none."""
        return None

    def settle(self, request: Request) -> None:
        """The target has looked at the drafts of a request: those that stay are among its tokens now."""
        if self.draft_kv is not None:
            self.draft_kv.keep(request, request.num_tokens - 1)

    def forget(self, request: Request) -> None:
        """The request has ended."""
        if self.draft_kv is not None:
            self.draft_kv.forget(request.request_id)

    def propose(self, scheduled: Sequence[ScheduledRequest]) -> Proposal | None:
        """Drafts for slices that were planned with some; None if nobody's draft KV has caught up yet."""
        first, active = self._catch_up(sorted(scheduled, key=lambda one: -one.num_drafts))
        logits = self._forward(first)
        if not active:
            return None
        rows = [draft_row(one, self._eos_token_ids) for one in active]
        if self._tree_width == 1:
            proposal: Proposal | None = self._chains(logits, active, rows)
        else:
            proposal = grow_trees(logits, active, rows, self._tree_width, self._forward, whole=self.kv_cache is None)
        if proposal is None or self.draft_kv is None:
            return proposal
        return replace(proposal, longest_catch_up=max(len(one.token_ids) for one in first))

    def _catch_up(self, scheduled: Sequence[ScheduledRequest]) -> tuple[list[BatchSlice], list[ScheduledRequest]]:
        """What each draft has not seen yet, as far as one forward may run, and the requests that can draft after it."""
        slices: list[BatchSlice] = []
        active: list[ScheduledRequest] = []
        spare = max(0, self._max_num_tokens - len(scheduled))  # beyond one token each
        for one in scheduled:
            request, start = one.request, self._start(one)
            end = min(one.num_drawn, start + 1 + spare)
            spare -= end - start - 1
            reaches = end == one.num_drawn
            slices.append(BatchSlice(request.token_ids[start:end], start, request.block_table, int(reaches)))
            if reaches:
                active.append(one)
            if self.draft_kv is not None:
                levels = one.num_drafts // self._tree_width
                num_run = max(levels - 1, 0) if reaches else 0  # the last drafts are made and not run
                self.draft_kv.wrote(request, end + num_run, num_run * (self._tree_width - 1))
        return slices, active

    def _start(self, one: ScheduledRequest) -> int:
        """First token that the draft has to run."""
        if self.kv_cache is None:
            return 0
        if self.draft_kv is None:
            return one.start
        in_window = next(i for i, block_id in enumerate(one.request.block_table) if block_id) * self._block_size
        return max(self.draft_kv.num_computed(one.request), in_window)

    def _forward(self, slices: Sequence[BatchSlice], unknown: Tensor | None = None) -> Tensor:
        """Logits of the target's width; `unknown` holds the tokens that stand as `UNKNOWN` in the slices, in order."""
        batch = build_batch(slices, self._block_size, self.model.device)
        if unknown is not None:
            token_ids = [token_id for one in slices for token_id in one.token_ids]
            put_tokens(batch, [i for i, token_id in enumerate(token_ids) if token_id == UNKNOWN], unknown)
        return self._of_target_width(self.model.forward(batch, self.kv_cache))

    def _of_target_width(self, logits: Tensor) -> Tensor:
        missing = self._vocab_size - logits.shape[1]  # vocabularies may be padded differently
        return logits if missing == 0 else F.pad(logits, (0, missing), value=float("-inf"))

    def _chains(self, logits: Tensor, active: Sequence[ScheduledRequest], rows: list[SamplingRow]) -> Proposal:
        kv_cache = self.kv_cache
        if kv_cache is None:

            def run_all(ids: Tensor) -> Tensor:
                unknown = [UNKNOWN] * ids.shape[1]
                slices = [BatchSlice([*one.request.token_ids, *unknown], 0, [], 1) for one in active[: len(ids)]]
                return self._forward(slices, ids.reshape(-1))

            return draw_chains(logits, active, rows, run_all, self._keeps_probabilities)

        steps = prepare_steps(self.model, kv_cache, active)

        def run_on(ids: Tensor) -> Tensor:
            going, step = ids.shape
            batch = steps[step - 1]
            batch.token_ids = F.pad(ids[:, -1], (0, len(active) - going))
            return self._of_target_width(self.model.forward(batch, kv_cache)[:going])

        return draw_chains(logits, active, rows, run_on, self._keeps_probabilities)
