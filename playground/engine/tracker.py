"""What a caller will see of one sample of a request: its text so far, when its tokens came, how it ended.

The scheduler's `Request` holds what must be computed; this holds what must be told. Engine thread only.
"""

import time

from playground.engine.detokenizer import Detokenizer
from playground.engine.handle import GenerationHandle
from playground.engine.outputs import Delta, FinishReason, Generation, RequestMetrics, Sample, TokenLogprob
from playground.engine.request import Request
from playground.engine.sampler import SampledToken

SECONDS_PER_NS = 1e-9


class SampleTracker:
    """One of the `n` samples of a submission."""

    def __init__(self, request: Request, index: int, detokenizer: Detokenizer, group: "SubmissionTracker") -> None:
        self.request = request
        self.index = index
        self.group = group
        self.detokenizer = detokenizer
        self.scheduled_ns: int | None = None
        self.first_token_ns: int | None = None
        self.last_token_ns: int | None = None
        self.inter_token_ns: list[int] = []
        self._num_sent = 0
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        self.error: str | None = None
        if request.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None] * request.num_prompt_tokens

    def add_token(self, token: SampledToken, now_ns: int) -> FinishReason | None:
        """Take one new token, send what may be shown of it, and say whether it ends the sample."""
        if self.first_token_ns is None:
            self.first_token_ns = now_ns
        elif self.last_token_ns is not None:
            self.inter_token_ns.append(now_ns - self.last_token_ns)
        self.last_token_ns = now_ns
        text = self.detokenizer.append([token.token_id], [token.logprob] if token.logprob is not None else [])
        if self.detokenizer.stopped:  # before the length: a stop that comes with the last token is still a stop
            reason: FinishReason | None = "stop"
        else:
            reason = "length" if self.request.num_tokens >= self.request.max_total_tokens else None
        if reason is not None:
            text += self.detokenizer.finish()
        self._send(text, reason)
        return reason

    def _send(self, text: str, reason: FinishReason | None, error: str | None = None) -> None:
        """Tell the caller; tokens that a stop string could still take away are told later."""
        start, self._num_sent = self._num_sent, self.detokenizer.num_released_tokens
        tokens = tuple(self.detokenizer.token_ids[start : self._num_sent])
        logprobs = tuple(self.detokenizer.logprobs[start : self._num_sent])
        if text or tokens or reason is not None:
            self.group.handle._put(Delta(text, tokens, self.index, logprobs, reason, error))

    def end_early(self, reason: FinishReason, error: str | None = None) -> None:
        """Send the last delta of a sample that no token ended: an abort or an error."""
        self.error = error
        self._send(self.detokenizer.finish(), reason, error)

    def sample(self) -> Sample:
        reason = self.request.finish_reason
        assert reason is not None
        logprobs = self.detokenizer.logprobs if self.request.params.logprobs is not None else None
        cumulative = sum(entry.logprob for entry in logprobs) if logprobs is not None else None
        return Sample(self.detokenizer.text, list(self.detokenizer.token_ids), reason, cumulative, logprobs)

    def metrics(self, end_ns: int) -> RequestMetrics:
        arrival = self.group.arrival_ns
        gaps = tuple(gap * SECONDS_PER_NS for gap in self.inter_token_ns)
        return RequestMetrics(
            num_prompt_tokens=self.request.num_prompt_tokens,
            num_output_tokens=len(self.detokenizer.token_ids),
            num_cached_tokens=self.request.num_cached_tokens,
            num_cache_write_tokens=self.request.num_cache_write_tokens,
            num_preemptions=self.request.num_preemptions,
            kv_blocks_peak=self.request.kv_blocks_peak,
            queue_time=_since(arrival, self.scheduled_ns),
            time_to_first_token=_since(arrival, self.first_token_ns),
            time_per_output_token=sum(gaps) / len(gaps) if gaps else None,
            inter_token_latencies=gaps,
            e2e_latency=_since(arrival, end_ns),
        )


def _since(start_ns: int, end_ns: int | None) -> float | None:
    return None if end_ns is None else (end_ns - start_ns) * SECONDS_PER_NS


class SubmissionTracker:
    """All samples of one `submit`, and the handle that hears of them."""

    def __init__(self, handle: GenerationHandle, eos_token_ids: frozenset[int]) -> None:
        self.handle = handle
        self.eos_token_ids = eos_token_ids
        self.arrival_ns = time.perf_counter_ns()
        self.samples: list[SampleTracker] = []

    def finish_if_complete(self, now_ns: int) -> None:
        """Give the handle its result once every sample has ended."""
        if not all(sample.request.finished for sample in self.samples):
            return
        first = self.samples[0]
        outputs = [sample.sample() for sample in self.samples]
        self.handle._finish(
            Generation(
                request_id=self.handle.request_id,
                text=outputs[0].text,
                token_ids=outputs[0].token_ids,
                finish_reason=outputs[0].finish_reason,
                metrics=first.metrics(now_ns),
                prompt_token_ids=list(first.request.prompt_token_ids),
                logprobs=outputs[0].logprobs,
                prompt_logprobs=first.prompt_logprobs,
                outputs=outputs if len(outputs) > 1 else [],
                error=next((sample.error for sample in self.samples if sample.error), None),
            )
        )
