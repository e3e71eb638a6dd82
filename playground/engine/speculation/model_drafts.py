"""Drafts from a model: a smaller one with KV of its own, or the target with some of its layers left out.

The draft model follows the tokens of a request in chunks, as the target does, then runs ahead one token a forward. All
requests of a step draft together; nothing here waits for the device unless penalties need to know the drafts.
"""

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu_sampling import largest_and_where
from kernels.row_parameters import RowParameters
from kernels.sampling import probabilities, sample
from playground.engine.batches import UNKNOWN, BatchSlice, build_batch, put_tokens
from playground.engine.block_pool import BlockPool
from playground.engine.logit_rules import SamplingRow, apply_token_rules, row_parameters
from playground.engine.request import Request
from playground.engine.scheduler import ScheduledRequest
from playground.engine.speculation.draft_kv import DraftKV
from playground.engine.speculation.proposal import Proposal
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
    ) -> None:
        """`kv_cache` and `pool` None: the engine keeps no KV, so every draft runs the whole sequence. `max_num_tokens`
        bounds one forward. With `shares_target_kv` the cache is the target's own, which holds all that the draft looks
        at; what the draft writes is overwritten when the target runs the same tokens. `vocab_size` is the target's.
        `keeps_probabilities` where verification needs to know what drafts were drawn from."""
        self.model, self.kv_cache = model, kv_cache
        self._vocab_size, self._eos_token_ids, self._max_num_tokens = vocab_size, eos_token_ids, max_num_tokens
        self._keeps_probabilities = keeps_probabilities
        self._block_size = kv_cache.block_size if kv_cache is not None else 0
        self._kv = DraftKV(pool, self._block_size) if pool is not None and not shares_target_kv else None

    @property
    def own_kv_cache(self) -> KVCache | None:
        """The cache that is the draft's alone."""
        return self.kv_cache if self._kv is not None else None

    def settle(self, request: Request) -> None:
        """The target has looked at the drafts of a request: those that stay are among its tokens now."""
        if self._kv is not None:
            self._kv.keep(request, request.num_tokens - 1)

    def forget(self, request: Request) -> None:
        """The request has ended."""
        if self._kv is not None:
            self._kv.forget(request.request_id)

    def propose(self, scheduled: Sequence[ScheduledRequest]) -> Proposal | None:
        """Drafts for slices that were planned with some; None if nobody's draft KV has caught up yet."""
        first, active = self._catch_up(sorted(scheduled, key=lambda one: -one.num_drafts))
        logits = self._forward(first)
        return self._draw_chains(logits, active) if active else None

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
            if self._kv is not None:
                self._kv.wrote(request, end + one.num_drafts - 1 if reaches else end)
        return slices, active

    def _start(self, one: ScheduledRequest) -> int:
        """First token that the draft has to run."""
        if self.kv_cache is None:
            return 0
        if self._kv is None:
            return one.start
        in_window = next(i for i, block_id in enumerate(one.request.block_table) if block_id) * self._block_size
        return max(self._kv.num_computed(one.request), in_window)

    def _forward(self, slices: Sequence[BatchSlice], unknown: Tensor | None = None) -> Tensor:
        """Logits of the target's width; `unknown` holds the tokens that stand as `UNKNOWN` in the slices, in order."""
        batch = build_batch(slices, self._block_size, self.model.device)
        if unknown is not None:
            token_ids = [token_id for one in slices for token_id in one.token_ids]
            put_tokens(batch, [i for i, token_id in enumerate(token_ids) if token_id == UNKNOWN], unknown)
        logits = self.model.forward(batch, self.kv_cache)
        missing = self._vocab_size - logits.shape[1]  # vocabularies may be padded differently
        return logits if missing == 0 else F.pad(logits, (0, missing), value=float("-inf"))

    def _draw_chains(self, logits: Tensor, active: Sequence[ScheduledRequest]) -> Proposal:
        """`active` in the order of their number of drafts, most first: those that go on are always the first few."""
        counts = [one.num_drafts for one in active]
        draws = _Draws([self._sampling_row(one) for one in active], self.model.device, self._keeps_probabilities)
        ids = torch.zeros((len(active), counts[0]), dtype=torch.int64, device=self.model.device)
        drawn_from: list[Tensor] = []
        for step in range(counts[0]):
            going = sum(count > step for count in counts)
            if step > 0:
                whole = self.kv_cache is None
                slices = [_next_slice(one, step, whole) for one in active[:going]]
                logits = self._forward(slices, ids[:going, 0 if whole else step - 1 : step].reshape(-1))
            tokens, weights = draws(logits, ids[:going, :step])
            ids[:going, step] = tokens
            if weights is not None:
                drawn_from.append(F.pad(weights, (0, 0, 0, len(active) - going)))
        request_ids = [one.request.request_id for one in active]
        return Proposal(request_ids, counts, ids, torch.stack(drawn_from, 1) if drawn_from else None)

    def _sampling_row(self, one: ScheduledRequest) -> SamplingRow:
        request = one.request
        return SamplingRow(
            params=request.params,
            seed=request.seed,
            position=one.num_drawn,
            prompt_token_ids=request.prompt_token_ids,
            output_token_ids=request.output_token_ids,
            eos_token_ids=self._eos_token_ids,
        )


def _next_slice(one: ScheduledRequest, step: int, whole: bool) -> BatchSlice:
    """The draft before number `step`, to be run: alone, or after everything before it."""
    end = one.num_drawn + step
    if whole:
        return BatchSlice([*one.request.token_ids, *[UNKNOWN] * step], 0, one.request.block_table, 1)
    return BatchSlice([UNKNOWN], end - 1, one.request.block_table, 1)


class _Draws:
    """Draws the drafts of a step one after the other, as the target's sampler would from these logits."""

    def __init__(self, rows: list[SamplingRow], device: torch.device, keeps_probabilities: bool) -> None:
        self._rows = rows
        self._ruled = any(row.changes_logits for row in rows)
        self._greedy = all(row.params.greedy for row in rows)
        self._keeps_probabilities = keeps_probabilities and not self._greedy
        self._parameters = None if self._greedy else row_parameters(rows, device)

    def __call__(self, logits: Tensor, before: Tensor) -> tuple[Tensor, Tensor | None]:
        """(one token for each row of logits [R, V], the float32 probabilities [R, V] it was drawn with).

        `before` [R, step] holds the drafts so far; R may be fewer than all rows.
        """
        if self._ruled:
            so_far = before.tolist()
            rows = [
                replace(row, position=row.position + len(ids), output_token_ids=[*row.output_token_ids, *ids])
                for row, ids in zip(self._rows, so_far, strict=False)
            ]
            logits = apply_token_rules(logits, rows)
        if self._parameters is None:
            return largest_and_where(logits)[1], None
        parameters = _at(self._parameters, len(logits), before.shape[1])
        tokens = sample(logits, parameters)[0]
        if not self._keeps_probabilities:
            return tokens.clamp_(min=0), None
        weights = probabilities(logits, parameters)
        none = (tokens < 0)[:, None]  # a row without a token: any will do, as long as it is said to be certain
        tokens = tokens.clamp_(min=0)
        return tokens, weights.masked_fill_(none, 0).scatter_add_(1, tokens[:, None], none.float())


def _at(parameters: RowParameters, num_rows: int, step: int) -> RowParameters:
    """Parameters of the first rows, `step` positions further on."""
    values = {field.name: getattr(parameters, field.name)[:num_rows] for field in fields(parameters)[:-1]}
    values["positions"] = values["positions"] + step
    return RowParameters(**values, some_cut=parameters.some_cut)
