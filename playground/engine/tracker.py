"""What a caller will see of one sample of a request: its text so far, when its tokens came, how it ended.

The scheduler's `Request` holds what must be computed; this holds what must be told. Engine thread only.
"""

import time
from collections.abc import Sequence

from playground.engine.beam_search import Hypothesis
from playground.engine.detokenizer import Detokenizer
from playground.engine.handle import GenerationHandle
from playground.engine.outputs import Delta, FinishReason, Generation, RequestMetrics, Sample, TokenLogprob
from playground.engine.request import Request
from playground.engine.sampler import SampledToken
from playground.engine.speculation.controller import SpeculationState
from playground.engine.speculation.proposal import Outcome

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
        self.num_tokens_after_first = 0
        """Tokens of all steps but the first that gave any."""
        self._num_sent = 0
        self.num_draft_tokens = 0
        self.num_bonus_tokens = 0
        self.drafts_reached: list[int] = []
        self.drafts_accepted: list[int] = []
        self.draft_ns = 0
        self.verify_ns = 0
        self.speculation: SpeculationState | None = None
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        self.error: str | None = None
        self.hypothesis: Hypothesis | None = None
        if request.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None] * request.num_prompt_tokens

    def add_tokens(self, tokens: Sequence[SampledToken], now_ns: int) -> FinishReason | None:
        """Take the tokens of one step, send what may be shown of them, and say whether they end the sample."""
        self.note_time(now_ns, len(tokens))
        logprobs = [token.logprob for token in tokens if token.logprob is not None]
        text = self.detokenizer.append([token.token_id for token in tokens], logprobs)
        if self.detokenizer.stopped:  # before the length: a stop that comes with the last token is still a stop
            reason: FinishReason | None = "stop"
        else:
            reason = "length" if self.request.num_tokens >= self.request.max_total_tokens else None
        if reason is not None:
            text += self.detokenizer.finish()
        self._send(text, reason)
        return reason

    def note_drafts(self, outcome: Outcome, draft_ns: int, verify_ns: int) -> None:
        """Count what became of a step's drafts; times are those of the whole step."""
        self.num_draft_tokens += len(outcome.draft_ids)
        self.draft_ns += draft_ns
        self.verify_ns += verify_ns
        self.num_bonus_tokens += outcome.has_bonus
        missing = outcome.num_positions - len(self.drafts_reached)
        self.drafts_reached += [0] * missing
        self.drafts_accepted += [0] * missing
        for position in range(outcome.num_reached):
            self.drafts_reached[position] += 1
            self.drafts_accepted[position] += position < outcome.num_accepted

    def note_time(self, now_ns: int, num_tokens: int = 1) -> None:
        """So many tokens came now."""
        if self.first_token_ns is None:
            self.first_token_ns = now_ns
        elif self.last_token_ns is not None:
            self.inter_token_ns.append(now_ns - self.last_token_ns)
            self.num_tokens_after_first += num_tokens
        self.last_token_ns = now_ns

    def take_hypothesis(self, hypothesis: Hypothesis, error: str | None = None) -> None:
        """Be told as this sequence, which a beam search found: all of it in one delta."""
        self.hypothesis, self.error = hypothesis, error
        beam = hypothesis.beam
        text = self.detokenizer.append(beam.token_ids, beam.entries) + self.detokenizer.finish()
        self._send(text, hypothesis.finish_reason, error)

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
        score = None
        if self.hypothesis is not None:
            cumulative, score = self.hypothesis.beam.cumulative_logprob, self.hypothesis.score
        return Sample(self.detokenizer.text, list(self.detokenizer.token_ids), reason, cumulative, logprobs, score)

    def metrics(self, end_ns: int) -> RequestMetrics:
        arrival = self.group.arrival_ns
        gaps = tuple(gap * SECONDS_PER_NS for gap in self.inter_token_ns)
        return RequestMetrics(
            num_prompt_tokens=self.request.num_prompt_tokens,
            num_output_tokens=len(self.detokenizer.token_ids),
            num_cached_tokens=self.request.num_cached_tokens,
            num_cache_write_tokens=self.request.num_cache_write_tokens,
            num_preemptions=self.request.num_preemptions,
            num_draft_tokens=self.num_draft_tokens,
            num_accepted_tokens=sum(self.drafts_accepted),
            num_bonus_tokens=self.num_bonus_tokens,
            acceptance_rate=sum(self.drafts_accepted) / self.num_draft_tokens if self.num_draft_tokens else None,
            drafts_reached=tuple(self.drafts_reached),
            drafts_accepted=tuple(self.drafts_accepted),
            draft_time=self.draft_ns * SECONDS_PER_NS if self.num_draft_tokens else None,
            verify_time=self.verify_ns * SECONDS_PER_NS if self.num_draft_tokens else None,
            speculation=self.speculation,
            kv_blocks_peak=self.request.holdings.peak,
            kv_blocks_private=self.request.holdings.private_at_peak,
            queue_time=_since(arrival, self.scheduled_ns),
            time_to_first_token=_since(arrival, self.first_token_ns),
            time_per_output_token=sum(gaps) / self.num_tokens_after_first if gaps else None,
            inter_token_latencies=gaps,
            e2e_latency=_since(arrival, end_ns),
        )


def _since(start_ns: int, end_ns: int | None) -> float | None:
    return None if end_ns is None else (end_ns - start_ns) * SECONDS_PER_NS


class SubmissionTracker:
    """All samples of one `submit`, and the handle that hears of them. With beams there is one sample a beam, and those
    that have taken a hypothesis in the end are the result."""

    def __init__(self, handle: GenerationHandle, eos_token_ids: frozenset[int]) -> None:
        self.handle = handle
        self.eos_token_ids = eos_token_ids
        self.arrival_ns = time.perf_counter_ns()
        self.samples: list[SampleTracker] = []

    @property
    def num_outputs(self) -> int:
        """Sequences that the caller gets, of all that run."""
        return self.samples[0].request.params.num_outputs

    def finish_if_complete(self, now_ns: int) -> None:
        """Give the handle its result once every sample has ended."""
        if not all(sample.request.finished for sample in self.samples):
            return
        first = self.samples[0]  # leads the others, so that what there is one of is its own
        with_beams = first.request.beams is not None
        outputs = [sample.sample() for sample in self.samples if not with_beams or sample.hypothesis is not None]
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
                outputs=outputs if len(self.samples) > 1 else [],
                error=next((sample.error for sample in self.samples if sample.error), None),
            )
        )
