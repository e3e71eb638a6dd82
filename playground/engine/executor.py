"""Runs what the scheduler decided: one ragged batch through the model, then one draw for each row that needs it.

Owns model, KV cache and sampler; keeps no state of requests between steps. A step is launched and collected: between
the two the next one may be launched, whose inputs then come from the tokens of the first while they are still on the
device. A batch that fails is run again request by request, so that one bad request cannot take its neighbours with it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from kernels.host import to_device
from playground.engine.batches import UNKNOWN, BatchSlice, build_batch, put_tokens, slot_mapping
from playground.engine.candidates import draw_candidates
from playground.engine.host_memory import HostMemory
from playground.engine.outputs import TokenLogprob
from playground.engine.sampler import DrawnTokens, Sampler, SamplingRow
from playground.engine.scheduler import ScheduledRequest, SchedulerOutput
from playground.engine.speculation.proposal import Outcome, Proposal
from playground.engine.speculation.speculator import Speculator
from playground.engine.speculation.verification import DraftedRow, match_drafts, reject_drafts
from playground.models.batch import ModelBatch
from playground.models.decode_graphs import DecodeGraphs
from playground.models.decoder import Decoder
from playground.models.kv_cache import KVCache

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StepResult:
    """What a step produced, by request id, and where its time went (nanoseconds)."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    longest_catch_up: int = 0
    """See `Proposal`."""
    draft_ns: int = 0
    prepare_ns: int = 0
    forward_ns: int = 0
    sample_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Draw:
    """Tokens of one launched batch, and whose they are."""

    request_ids: list[int]
    resolve: Callable[[], list[Outcome]]
    """Waits for the tokens."""
    token_ids: torch.Tensor | None = None
    """int64 [len(request_ids)] on the device, still unread; None where requests may have got several."""


@dataclass(slots=True)
class InFlightStep:
    """A step that the device has been sent. Its tokens are not known before `Executor.collect`."""

    scheduled: list[ScheduledRequest]
    before: "InFlightStep | None" = None
    """The step whose tokens this one runs on, while it is being launched."""
    proposal: Proposal | None = None
    """The drafts that it verifies."""
    draws: list[_Draw] = field(default_factory=list)
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    """Requests that failed at launch; they have no token."""
    draft_ns: int = 0
    prepare_ns: int = 0
    forward_ns: int = 0
    sample_ns: int = 0

    def tokens_of(self, request_ids: Sequence[int]) -> torch.Tensor:
        """The tokens drawn for these requests, int64 on the device and still unread."""
        known = [(one.request_ids, one.token_ids) for one in self.draws if one.token_ids is not None]
        row_of = {request_id: row for row, request_id in enumerate(i for ids, _ in known for i in ids)}
        drawn = [tokens for _, tokens in known]
        token_ids = drawn[0] if len(drawn) == 1 else torch.cat(drawn)
        rows = [row_of[request_id] for request_id in request_ids]
        if rows == list(range(len(row_of))):
            return token_ids
        return token_ids.index_select(0, to_device(torch.tensor(rows), token_ids.device))

    def drop(self, one: ScheduledRequest) -> None:
        """Forget what was drawn for a request on its own."""
        self.draws = [drawn for drawn in self.draws if drawn.request_ids != [one.request.request_id]]


def _read(step: InFlightStep) -> dict[int, Outcome]:
    return {
        request_id: outcome
        for one in step.draws
        for request_id, outcome in zip(one.request_ids, one.resolve(), strict=True)
    }


class Executor:
    """Turns a `SchedulerOutput` into tokens."""

    def __init__(
        self,
        model: Decoder | DecodeGraphs,
        kv_cache: KVCache | None,
        sampler: Sampler,
        *,
        block_size: int,
        eos_token_ids: frozenset[int],
        speculator: Speculator | None = None,
        host_memory: HostMemory | None = None,
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.host_memory = host_memory
        self.sampler = sampler
        self.block_size = block_size
        self.eos_token_ids = eos_token_ids
        self.speculator = speculator

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Run one step and wait for it. Never raises for what a request caused: see `StepResult.errors`."""
        return self.collect(self.launch(output))

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput, before: InFlightStep | None = None) -> InFlightStep:
        """Send a step to the device without waiting for its tokens; only prompt logprobs are read here.

        Tokens that the host does not know yet are taken on the device from `before`, the step that draws them. Slices
        of `output` that were planned with more drafts than could be made are shortened. Never raises for what a
        request caused: see `InFlightStep.errors`.
        """
        step = InFlightStep(output.scheduled, before)
        try:
            if output.copies and self.kv_cache is not None:
                self.copy_blocks(output.copies)
            proposal = self._propose(step)
            self._launch(output.scheduled, step, proposal)
        except Exception as error:
            logger.exception("a step of %d requests failed; running them one by one", len(output.scheduled))
            self._run_one_by_one(step, error)
        step.before = None
        return step

    @torch.inference_mode()
    def collect(self, step: InFlightStep, *, may_rerun: bool = True) -> StepResult:
        """Wait for a launched step and read its tokens: the only read of a step.

        A read that fails for the batch is tried again request by request. That is possible only while nothing has been
        launched since; with `may_rerun=False` the exception is passed on.
        """
        started = time.perf_counter_ns()
        try:
            outcomes = _read(step)
        except Exception as error:
            if not may_rerun:
                raise
            logger.exception("reading a step of %d requests failed; running them one by one", len(step.scheduled))
            self._run_one_by_one(step, error)
            outcomes = _read(step)
        self._straighten(step, outcomes)
        waited = time.perf_counter_ns() - started
        return StepResult(
            outcomes,
            step.prompt_logprobs,
            step.errors,
            0 if step.proposal is None else step.proposal.longest_catch_up,
            step.draft_ns,
            step.prepare_ns,
            step.forward_ns + waited,
            step.sample_ns,
        )

    def _straighten(self, step: InFlightStep, outcomes: Mapping[int, Outcome]) -> None:
        """Move the KV of accepted drafts of trees to where their tokens stand in the sequence."""
        if self.kv_cache is None or step.proposal is None or step.proposal.parents is None:
            return
        pairs: list[tuple[int, int]] = []
        for one in step.scheduled:
            path = outcomes[one.request.request_id].path if one.num_drafts else ()
            slots = slot_mapping(one.request.block_table, one.num_drawn, one.end, self.block_size)
            pairs += [(slots[draft], slots[place]) for place, draft in enumerate(path) if draft != place]
        if pairs:
            self.kv_cache.move(pairs)
            assert self.speculator is not None
            self.speculator.move(pairs)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy KV blocks (source, destination), a draft model's too."""
        assert self.kv_cache is not None
        self.kv_cache.copy_blocks(pairs)
        if self.speculator is not None:
            self.speculator.copy_blocks(pairs)

    def zero_blocks(self, ids: Sequence[int]) -> None:
        """Overwrite KV blocks with zeros, a draft model's too."""
        if self.kv_cache is not None:
            self.kv_cache.zero_blocks(ids)
        if self.speculator is not None:
            self.speculator.zero_blocks(ids)

    def _run_one_by_one(self, step: InFlightStep, error: Exception) -> None:
        step.draws.clear()
        step.prompt_logprobs.clear()
        step.errors.clear()
        step.scheduled[:] = [one.with_drafts(0) for one in step.scheduled]  # drafts may be what it failed of
        for one in step.scheduled:
            try:
                if len(step.scheduled) == 1:
                    raise error
                self._launch([one], step, None)
                if one.produces_token:
                    step.draws[-1].resolve()
            except Exception as own_error:
                reason = " ".join(str(own_error).split()) or type(own_error).__name__
                step.errors[one.request.request_id] = f"the step failed: {type(own_error).__name__}: {reason[:300]}"
                step.drop(one)

    def _propose(self, step: InFlightStep) -> Proposal | None:
        if not any(one.num_drafts for one in step.scheduled):
            return None
        assert self.speculator is not None
        started = time.perf_counter_ns()
        proposal = self.speculator.propose([one for one in step.scheduled if one.num_drafts])
        made = {} if proposal is None else dict(zip(proposal.request_ids, proposal.counts, strict=True))
        step.scheduled[:] = [one.with_drafts(made.get(one.request.request_id, 0)) for one in step.scheduled]
        step.draft_ns = time.perf_counter_ns() - started
        step.proposal = proposal
        return proposal

    def _launch(self, scheduled: Sequence[ScheduledRequest], step: InFlightStep, proposal: Proposal | None) -> None:
        started = time.perf_counter_ns()
        batch = self._prepare(scheduled, step.before, proposal)
        prepared = time.perf_counter_ns()
        logits = self._forward(batch, scheduled)
        forwarded = time.perf_counter_ns()
        self._draw(scheduled, logits, step, proposal)
        step.prepare_ns += prepared - started
        step.forward_ns += forwarded - prepared
        step.sample_ns += time.perf_counter_ns() - forwarded

    def _forward(self, batch: ModelBatch, scheduled: Sequence[ScheduledRequest]) -> torch.Tensor:
        if self.speculator is None or not self.speculator.wants_features:
            return self.model.forward(batch, self.kv_cache)
        assert isinstance(self.model, Decoder), "recorded steps keep no features: refused together with such a draft"
        logits, hidden = self.model.forward_with_hidden(batch, self.kv_cache)
        self.speculator.observe_features(scheduled, hidden)
        return logits

    # Batch

    def _prepare(
        self, scheduled: Sequence[ScheduledRequest], before: InFlightStep | None, proposal: Proposal | None
    ) -> ModelBatch:
        slices: list[BatchSlice] = []
        pending: dict[int, int] = {}  # place in the batch -> request whose unread token belongs there
        draft_places: dict[int, range] = {}
        place = 0
        for one in scheduled:
            token_ids = one.request.token_ids[one.start : one.num_drawn]
            missing = one.num_tokens - one.num_drafts - len(token_ids)
            if missing:
                pending[place + len(token_ids)] = one.request.request_id
            if one.num_drafts:
                draft_places[one.request.request_id] = range(
                    place + one.num_tokens - one.num_drafts, place + one.num_tokens
                )
            token_ids += [UNKNOWN] * (missing + one.num_drafts)
            parents = None
            if one.num_drafts and proposal is not None and proposal.parents is not None:
                parents = proposal.parents[proposal.row_of[one.request.request_id]]
            slices.append(BatchSlice(token_ids, one.start, one.request.block_table, _num_logits(one), parents))
            place += one.num_tokens
        batch = build_batch(slices, self.block_size if self.kv_cache is not None else 0, self.model.device)
        if pending:
            assert before is not None, "a token is pending only while the step that draws it is in flight"
            # -1 is a failed row: its result is dropped
            put_tokens(batch, list(pending), before.tokens_of(list(pending.values())).clamp(min=0))
        if proposal is not None:
            places = [place for request_id in proposal.request_ids for place in draft_places[request_id]]
            put_tokens(batch, places, _in_one_row(proposal))
        return batch

    # Draw

    def _draw(
        self,
        scheduled: Sequence[ScheduledRequest],
        logits: torch.Tensor,
        step: InFlightStep,
        proposal: Proposal | None,
    ) -> None:
        drawn: list[tuple[ScheduledRequest, int]] = []
        beams: list[tuple[ScheduledRequest, int]] = []
        speculative: list[tuple[ScheduledRequest, int]] = []
        row = 0
        for one in scheduled:
            first, row = row, row + _num_logits(one)
            if _wants_prompt_logprobs(one):
                prompt_rows = min(one.num_tokens, one.request.num_prompt_tokens - 1 - one.start)
                self._prompt_logprobs(one, logits[first : first + prompt_rows], step)
            if one.num_drafts:
                speculative.append((one, row - one.num_drafts - 1))
            elif one.produces_token:
                (drawn if one.request.beams is None else beams).append((one, row - 1))
        for own_rows, draw in ((drawn, self.sampler.draw), (beams, draw_candidates)):
            if own_rows:
                own_logits = _select(logits, [row for _, row in own_rows])
                tokens = draw(own_logits, [self._sampling_row(one) for one, _ in own_rows])
                ids = [one.request.request_id for one, _ in own_rows]
                step.draws.append(_Draw(ids, partial(_single_tokens, tokens), tokens.token_ids))
        if speculative:
            assert proposal is not None and self.speculator is not None
            self._verify(speculative, logits, step, proposal, self.speculator)

    def _verify(
        self,
        speculative: Sequence[tuple[ScheduledRequest, int]],
        logits: torch.Tensor,
        step: InFlightStep,
        proposal: Proposal,
        speculator: Speculator,
    ) -> None:
        matched: list[tuple[int, DraftedRow]] = []
        rejected: list[tuple[int, DraftedRow]] = []
        for one, first in speculative:
            place = proposal.row_of[one.request.request_id]
            row = DraftedRow(self._sampling_row(one), place, first, proposal.paths(place))
            (matched if speculator.matches(one.request) else rejected).append((one.request.request_id, row))
        for own_rows, verify in ((matched, match_drafts), (rejected, reject_drafts)):
            if own_rows:
                ids, rows = [request_id for request_id, _ in own_rows], [row for _, row in own_rows]
                step.draws.append(_Draw(ids, verify(self.sampler, logits, rows, proposal)))

    def _prompt_logprobs(self, one: ScheduledRequest, logits: torch.Tensor, step: InFlightStep) -> None:
        k = one.request.params.prompt_logprobs
        assert k is not None
        first = one.start + 1
        next_ids = one.request.token_ids[first : first + logits.shape[0]]
        if next_ids:
            step.prompt_logprobs[one.request.request_id] = self.sampler.prompt_logprobs(logits, next_ids, k)

    def _sampling_row(self, one: ScheduledRequest) -> SamplingRow:
        request = one.request
        output_token_ids = request.token_ids[request.num_prompt_tokens : one.num_drawn]
        num_unknown = one.num_drawn - request.num_prompt_tokens - len(output_token_ids)  # yet how many is known
        return SamplingRow(
            params=request.params,
            seed=request.seed,
            position=one.num_drawn,
            prompt_token_ids=request.prompt_token_ids,
            output_token_ids=output_token_ids + [UNKNOWN] * num_unknown,
            eos_token_ids=self.eos_token_ids,
        )


def _single_tokens(tokens: DrawnTokens) -> list[Outcome]:
    return [Outcome([token]) for token in tokens.resolve()]


def _num_logits(one: ScheduledRequest) -> int:
    """How many of the last rows of a slice need logits: drafts and what precedes them, or a prompt's logprobs."""
    if _wants_prompt_logprobs(one):
        return one.num_tokens
    return one.num_drafts + 1 if one.produces_token else 0


def _select(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    if rows == list(range(logits.shape[0])):
        return logits
    return logits.index_select(0, to_device(torch.tensor(rows), logits.device))


def _wants_prompt_logprobs(one: ScheduledRequest) -> bool:
    wanted = one.request.params.prompt_logprobs is not None
    return wanted and one.request.num_output_tokens == 0 and one.start < one.request.num_prompt_tokens


def _in_one_row(proposal: Proposal) -> torch.Tensor:
    """The drafts of all requests one after the other, without the padding."""
    counts, width = proposal.counts, proposal.token_ids.shape[1]
    if all(count == width for count in counts):
        return proposal.token_ids.reshape(-1)
    places = [row * width + i for row, count in enumerate(counts) for i in range(count)]
    flat = proposal.token_ids.reshape(-1)
    return flat.index_select(0, to_device(torch.tensor(places), flat.device))
