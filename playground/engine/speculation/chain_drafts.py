"""Chains of drafts: each drawn from the draft model's logits with the request's own sampling parameters.

Whoever drafts says how to get from drafts to the next logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu_sampling import largest_and_where
from kernels.host import to_device
from kernels.row_parameters import RowParameters
from kernels.sampling import probabilities, sample
from playground.engine.batches import NOWHERE, UNKNOWN, BatchSlice, build_batch, slot_mapping
from playground.engine.logit_rules import SamplingRow, apply_token_rules, row_parameters
from playground.engine.scheduler import ScheduledRequest
from playground.engine.speculation.proposal import Proposal
from playground.models.batch import ModelBatch
from playground.models.kv_cache import KVCache

RunOn = Callable[[Tensor], Tensor]
"""Drafts so far int64 [R, step] of the first R requests -> logits [R, V] after the last of each."""


def draft_row(one: ScheduledRequest, eos_token_ids: frozenset[int]) -> SamplingRow:
    """How the first draft of a request is drawn."""
    request = one.request
    return SamplingRow(
        params=request.params,
        seed=request.seed,
        position=one.num_drawn,
        prompt_token_ids=request.prompt_token_ids,
        output_token_ids=request.output_token_ids,
        eos_token_ids=eos_token_ids,
    )


def draw_chains(
    logits: Tensor,
    active: Sequence[ScheduledRequest],
    rows: list[SamplingRow],
    run_on: RunOn,
    keeps_probabilities: bool,
) -> Proposal:
    """`num_drafts` drafts for each request; `logits` [S, V] follow the requests' last tokens.

    `active` and `rows` come in the order of their number of drafts, most first: those that go on are always the first
    few. Nothing here waits for the device, unless penalties or masks need to know the drafts.
    """
    counts = [one.num_drafts for one in active]
    draws = _Draws(rows, logits.device, keeps_probabilities)
    ids = torch.zeros((len(active), counts[0]), dtype=torch.int64, device=logits.device)
    drawn_from: list[Tensor] = []
    for step in range(counts[0]):
        going = sum(count > step for count in counts)
        so_far = ids[:going, :step]
        if step > 0:
            logits = run_on(so_far)
        tokens, weights = draws(logits, so_far)
        ids[:going, step] = tokens
        if weights is not None:
            drawn_from.append(F.pad(weights, (0, 0, 0, len(active) - going)))
    request_ids = [one.request.request_id for one in active]
    return Proposal(request_ids, counts, ids, torch.stack(drawn_from, 1) if drawn_from else None)


class DraftModel(Protocol):
    """What prepares forwards: a `Decoder` or an `EagleHead`."""

    @property
    def device(self) -> torch.device: ...

    def steps_ahead(self, batch: ModelBatch, slots: Tensor, kv_cache: KVCache) -> list[ModelBatch]: ...


def prepare_steps(
    model: DraftModel, kv_cache: KVCache, active: Sequence[ScheduledRequest], offset: int = 0
) -> list[ModelBatch]:
    """The forwards of all drafts but the last, one token a request; who wants fewer runs along, writing nowhere.

    `active` in the order of their number of drafts, most first. Draft i stands at position `num_drawn` + i + `offset`.
    """
    size, count = kv_cache.block_size, active[0].num_drafts - 1
    if count == 0:
        return []
    slices, slots = [], []
    for one in active:
        table, first = one.request.block_table, one.num_drawn + offset
        width = -(-(first + count) // size)
        slices.append(BatchSlice([UNKNOWN], first, [*table, *[0] * (width - len(table))], 1))
        own = slot_mapping(table, first, first + one.num_drafts - 1, size) if one.num_drafts > 1 else []
        slots.append(own + [NOWHERE] * (count - len(own)))
    by_step = to_device(torch.tensor(slots, dtype=torch.int64), model.device).t()
    return model.steps_ahead(build_batch(slices, size, model.device), by_step, kv_cache)


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
