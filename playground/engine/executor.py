"""Runs what the scheduler decided: one ragged batch through the model, then one draw for each row that needs it.

Owns model, KV cache and sampler; keeps no state of requests between steps. A step is launched and collected: between
the two the next one may be launched, whose inputs then come from the tokens of the first while they are still on the
device. A batch that fails is run again request by request, so that one bad request cannot take its neighbours with it.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kernels.host import to_device
from playground.engine.host_memory import HostMemory
from playground.engine.outputs import TokenLogprob
from playground.engine.sampler import DrawnTokens, SampledToken, Sampler, SamplingRow
from playground.engine.scheduler import ScheduledRequest, SchedulerOutput
from playground.models.batch import ModelBatch
from playground.models.decode_graphs import DecodeGraphs
from playground.models.decoder import Decoder
from playground.models.kv_cache import KVCache

logger = logging.getLogger(__name__)

PENDING = -1
"""Stands on the host for a token that only the device knows; no embedding has it, so a missed one cannot pass."""


@dataclass(slots=True)
class StepResult:
    """What a step produced, by request id, and where its time went (nanoseconds)."""

    sampled: dict[int, SampledToken] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    prepare_ns: int = 0
    forward_ns: int = 0
    sample_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Draw:
    """Tokens of one launched batch, and whose they are."""

    request_ids: list[int]
    tokens: DrawnTokens


@dataclass(slots=True)
class InFlightStep:
    """A step that the device has been sent. Its tokens are not known before `Executor.collect`."""

    scheduled: list[ScheduledRequest]
    before: "InFlightStep | None" = None
    """The step whose tokens this one runs on, while it is being launched."""
    draws: list[_Draw] = field(default_factory=list)
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    """Requests that failed at launch; they have no token."""
    prepare_ns: int = 0
    forward_ns: int = 0
    sample_ns: int = 0

    def tokens_of(self, request_ids: Sequence[int]) -> torch.Tensor:
        """The tokens drawn for these requests, int64 on the device and still unread."""
        row_of = {request_id: row for row, request_id in enumerate(i for d in self.draws for i in d.request_ids)}
        drawn = [one.tokens.token_ids for one in self.draws]
        token_ids = drawn[0] if len(drawn) == 1 else torch.cat(drawn)
        rows = [row_of[request_id] for request_id in request_ids]
        if rows == list(range(len(row_of))):
            return token_ids
        return token_ids.index_select(0, to_device(torch.tensor(rows), token_ids.device))

    def drop(self, one: ScheduledRequest) -> None:
        """Forget what was drawn for a request on its own."""
        self.draws = [drawn for drawn in self.draws if drawn.request_ids != [one.request.request_id]]


def _read(step: InFlightStep) -> dict[int, SampledToken]:
    return {
        request_id: token
        for one in step.draws
        for request_id, token in zip(one.request_ids, one.tokens.resolve(), strict=True)
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
        host_memory: HostMemory | None = None,
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.host_memory = host_memory
        self.sampler = sampler
        self.block_size = block_size
        self.eos_token_ids = eos_token_ids

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Run one step and wait for it. Never raises for what a request caused: see `StepResult.errors`."""
        return self.collect(self.launch(output))

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput, before: InFlightStep | None = None) -> InFlightStep:
        """Send a step to the device without waiting for its tokens; only prompt logprobs are read here.

        Tokens that the host does not know yet are taken on the device from `before`, the step that draws them. Never
        raises for what a request caused: see `InFlightStep.errors`.
        """
        step = InFlightStep(output.scheduled, before)
        try:
            if output.copies and self.kv_cache is not None:
                self.kv_cache.copy_blocks(output.copies)
            self._launch(output.scheduled, step)
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
            sampled = _read(step)
        except Exception as error:
            if not may_rerun:
                raise
            logger.exception("reading a step of %d requests failed; running them one by one", len(step.scheduled))
            self._run_one_by_one(step, error)
            sampled = _read(step)
        waited = time.perf_counter_ns() - started
        return StepResult(
            sampled, step.prompt_logprobs, step.errors, step.prepare_ns, step.forward_ns + waited, step.sample_ns
        )

    def _run_one_by_one(self, step: InFlightStep, error: Exception) -> None:
        step.draws.clear()
        step.prompt_logprobs.clear()
        step.errors.clear()
        for one in step.scheduled:
            try:
                if len(step.scheduled) == 1:
                    raise error
                self._launch([one], step)
                if one.produces_token:
                    step.draws[-1].tokens.resolve()
            except Exception as own_error:
                reason = " ".join(str(own_error).split()) or type(own_error).__name__
                step.errors[one.request.request_id] = f"the step failed: {type(own_error).__name__}: {reason[:300]}"
                step.drop(one)

    def _launch(self, scheduled: Sequence[ScheduledRequest], step: InFlightStep) -> None:
        started = time.perf_counter_ns()
        batch, rows = self._prepare(scheduled, step.before)
        prepared = time.perf_counter_ns()
        logits = self.model.forward(batch, self.kv_cache)
        forwarded = time.perf_counter_ns()
        self._draw(scheduled, logits, rows, step)
        step.prepare_ns += prepared - started
        step.forward_ns += forwarded - prepared
        step.sample_ns += time.perf_counter_ns() - forwarded

    # Batch

    def _prepare(
        self, scheduled: Sequence[ScheduledRequest], before: InFlightStep | None
    ) -> tuple[ModelBatch, list[range]]:
        """The ragged batch, and for each request which rows of the logits are its own."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        query_starts = [0]
        logits_rows: list[int] = []
        rows: list[range] = []
        pending: dict[int, int] = {}  # place in the batch -> request whose unread token belongs there
        for one in scheduled:
            token_ids += one.request.token_ids[one.start : one.end]
            positions += range(one.start, one.end)
            if len(token_ids) < len(positions):
                pending[len(token_ids)] = one.request.request_id
                token_ids.append(PENDING)
            if self.kv_cache is not None:
                slots += self._slots(one.request.block_table, one.start, one.end)
            first_row = len(logits_rows)
            logits_rows += self._logits_rows(one, query_starts[-1])
            rows.append(range(first_row, len(logits_rows)))
            query_starts.append(len(token_ids))
        kv_lens = [one.end for one in scheduled]
        width = max(len(one.request.block_table) for one in scheduled)
        table = [one.request.block_table + [0] * (width - len(one.request.block_table)) for one in scheduled]
        device = self.model.device

        def tensor(values: Sequence[int] | list[list[int]], dtype: torch.dtype) -> torch.Tensor:
            return to_device(torch.tensor(values, dtype=dtype), device)

        batch = ModelBatch(
            token_ids=tensor(token_ids, torch.int64),
            positions=tensor(positions, torch.int64),
            cu_seqlens_q=tensor(query_starts, torch.int32),
            kv_lens=tensor(kv_lens, torch.int32),
            block_table=tensor(table, torch.int32),
            slot_mapping=tensor(slots, torch.int64),
            logits_rows=tensor(logits_rows, torch.int64),
            query_lens=[one.num_tokens for one in scheduled],
            kv_lens_list=kv_lens,
        )
        if pending:
            assert before is not None, "a token is pending only while the step that draws it is in flight"
            drawn = before.tokens_of(list(pending.values())).clamp(min=0)  # -1 is a failed row: its result is dropped
            if len(pending) == len(token_ids):
                batch.token_ids.copy_(drawn)
            else:
                batch.token_ids.index_copy_(0, tensor(list(pending), torch.int64), drawn)
        return batch, rows

    def _slots(self, block_table: list[int], start: int, end: int) -> list[int]:
        size = self.block_size
        if end - start == 1:
            return [block_table[start // size] * size + start % size]
        slots: list[int] = []
        for index in range(start // size, (end - 1) // size + 1):
            base = (block_table[index] - index) * size
            slots += range(base + max(start, index * size), base + min(end, (index + 1) * size))
        return slots

    def _logits_rows(self, one: ScheduledRequest, offset: int) -> range | list[int]:
        """Rows of the batch whose logits are needed: the last one, or all of a prompt whose logprobs were asked."""
        last = offset + one.num_tokens - 1
        if _wants_prompt_logprobs(one):
            return range(offset, last + 1)
        return [last] if one.produces_token else []

    # Draw

    def _draw(
        self, scheduled: Sequence[ScheduledRequest], logits: torch.Tensor, rows: list[range], step: InFlightStep
    ) -> None:
        drawn: list[ScheduledRequest] = []
        draw_rows: list[int] = []
        for one, own in zip(scheduled, rows, strict=True):
            if _wants_prompt_logprobs(one):
                prompt_rows = min(one.num_tokens, one.request.num_prompt_tokens - 1 - one.start)
                self._prompt_logprobs(one, logits[own.start : own.start + prompt_rows], step)
            if one.produces_token:
                drawn.append(one)
                draw_rows.append(own.stop - 1)
        if not drawn:
            return
        if draw_rows != list(range(logits.shape[0])):
            logits = logits.index_select(0, to_device(torch.tensor(draw_rows), logits.device))
        tokens = self.sampler.draw(logits, [self._sampling_row(one) for one in drawn])
        step.draws.append(_Draw([one.request.request_id for one in drawn], tokens))

    def _prompt_logprobs(self, one: ScheduledRequest, logits: torch.Tensor, step: InFlightStep) -> None:
        k = one.request.params.prompt_logprobs
        assert k is not None
        first = one.start + 1
        next_ids = one.request.token_ids[first : first + logits.shape[0]]
        if next_ids:
            step.prompt_logprobs[one.request.request_id] = self.sampler.prompt_logprobs(logits, next_ids, k)

    def _sampling_row(self, one: ScheduledRequest) -> SamplingRow:
        request = one.request
        output_token_ids = request.token_ids[request.num_prompt_tokens : one.end]
        num_unknown = one.end - request.num_prompt_tokens - len(output_token_ids)  # their number is known all the same
        return SamplingRow(
            params=request.params,
            seed=request.seed,
            position=one.end,
            prompt_token_ids=request.prompt_token_ids,
            output_token_ids=output_token_ids + [PENDING] * num_unknown,
            eos_token_ids=self.eos_token_ids,
        )


def _wants_prompt_logprobs(one: ScheduledRequest) -> bool:
    wanted = one.request.params.prompt_logprobs is not None
    return wanted and one.request.num_output_tokens == 0 and one.start < one.request.num_prompt_tokens
