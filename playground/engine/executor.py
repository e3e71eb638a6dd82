"""Runs what the scheduler decided: one ragged batch through the model, then one draw for each row that needs it.

Owns model, KV cache and sampler; keeps no state of requests between steps. A batch that fails is run again request by
request, so that one bad request cannot take its neighbours with it.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from playground.engine.outputs import TokenLogprob
from playground.engine.request import Request
from playground.engine.sampler import SampledToken, Sampler, SamplingRow
from playground.engine.scheduler import ScheduledRequest, SchedulerOutput
from playground.models.batch import ModelBatch
from playground.models.decode_graphs import DecodeGraphs
from playground.models.decoder import Decoder
from playground.models.kv_cache import KVCache

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StepResult:
    """What a step produced, by request id, and where its time went (nanoseconds)."""

    sampled: dict[int, SampledToken] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    prepare_ns: int = 0
    forward_ns: int = 0
    sample_ns: int = 0


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
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.sampler = sampler
        self.block_size = block_size
        self.eos_token_ids = eos_token_ids

    @torch.inference_mode()
    def execute(self, output: SchedulerOutput) -> StepResult:
        """Run one step. Never raises for what a request caused: see `StepResult.errors`."""
        result = StepResult()
        try:
            if output.copies and self.kv_cache is not None:
                self.kv_cache.copy_blocks(output.copies)
            self._run(output.scheduled, result)
        except Exception as error:
            logger.exception("a step of %d requests failed; running them one by one", len(output.scheduled))
            self._run_one_by_one(output.scheduled, result, error)
        return result

    def _run_one_by_one(self, scheduled: Sequence[ScheduledRequest], result: StepResult, error: Exception) -> None:
        result.sampled.clear()
        result.prompt_logprobs.clear()
        for one in scheduled:
            try:
                if len(scheduled) == 1:
                    raise error
                self._run([one], result)
            except Exception as own_error:
                reason = " ".join(str(own_error).split()) or type(own_error).__name__
                result.errors[one.request.request_id] = f"the step failed: {type(own_error).__name__}: {reason[:300]}"

    def _run(self, scheduled: Sequence[ScheduledRequest], result: StepResult) -> None:
        started = time.perf_counter_ns()
        batch, rows = self._prepare(scheduled)
        prepared = time.perf_counter_ns()
        logits = self.model.forward(batch, self.kv_cache)
        forwarded = time.perf_counter_ns()
        self._sample(scheduled, logits, rows, result)
        result.prepare_ns += prepared - started
        result.forward_ns += forwarded - prepared
        result.sample_ns += time.perf_counter_ns() - forwarded

    # Batch

    def _prepare(self, scheduled: Sequence[ScheduledRequest]) -> tuple[ModelBatch, list[range]]:
        """The ragged batch, and for each request which rows of the logits are its own."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        query_starts = [0]
        logits_rows: list[int] = []
        rows: list[range] = []
        for one in scheduled:
            end = one.start + one.num_tokens
            token_ids += one.request.token_ids[one.start : end]
            positions += range(one.start, end)
            if self.kv_cache is not None:
                slots += self._slots(one.request.block_table, one.start, end)
            first_row = len(logits_rows)
            logits_rows += self._logits_rows(one, query_starts[-1])
            rows.append(range(first_row, len(logits_rows)))
            query_starts.append(len(token_ids))
        kv_lens = [one.start + one.num_tokens for one in scheduled]
        width = max(len(one.request.block_table) for one in scheduled)
        table = [one.request.block_table + [0] * (width - len(one.request.block_table)) for one in scheduled]
        device = self.model.device

        def tensor(values: Sequence[int] | list[list[int]], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

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

    def _sample(
        self, scheduled: Sequence[ScheduledRequest], logits: torch.Tensor, rows: list[range], result: StepResult
    ) -> None:
        drawn: list[ScheduledRequest] = []
        draw_rows: list[int] = []
        for one, own in zip(scheduled, rows, strict=True):
            if _wants_prompt_logprobs(one):
                prompt_rows = min(one.num_tokens, one.request.num_prompt_tokens - 1 - one.start)
                self._prompt_logprobs(one, logits[own.start : own.start + prompt_rows], result)
            if one.produces_token:
                drawn.append(one)
                draw_rows.append(own.stop - 1)
        if not drawn:
            return
        if draw_rows != list(range(logits.shape[0])):
            logits = logits[draw_rows]
        tokens = self.sampler.sample(logits, [self._sampling_row(one.request) for one in drawn])
        for one, token in zip(drawn, tokens, strict=True):
            result.sampled[one.request.request_id] = token

    def _prompt_logprobs(self, one: ScheduledRequest, logits: torch.Tensor, result: StepResult) -> None:
        k = one.request.params.prompt_logprobs
        assert k is not None
        first = one.start + 1
        next_ids = one.request.token_ids[first : first + logits.shape[0]]
        if next_ids:
            result.prompt_logprobs[one.request.request_id] = self.sampler.prompt_logprobs(logits, next_ids, k)

    def _sampling_row(self, request: Request) -> SamplingRow:
        return SamplingRow(
            params=request.params,
            seed=request.seed,
            position=request.num_tokens,
            prompt_token_ids=request.prompt_token_ids,
            output_token_ids=request.output_token_ids,
            eos_token_ids=self.eos_token_ids,
        )


def _wants_prompt_logprobs(one: ScheduledRequest) -> bool:
    wanted = one.request.params.prompt_logprobs is not None
    return wanted and one.request.num_output_tokens == 0 and one.start < one.request.num_prompt_tokens
