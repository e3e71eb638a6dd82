"""One engine step after the other, on one thread: schedule, launch, collect, account, tell.

With overlap the next step is scheduled and launched before the tokens of the last one are read. Knows requests and
their trackers; knows nothing of threads, tokenization or configuration files.
"""

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence

from playground.engine.beam_search import Candidate, Hypothesis
from playground.engine.events import Event, EventStream, RequestEvent, RequestState
from playground.engine.executor import Executor, StepResult
from playground.engine.host_tier import Transfer
from playground.engine.launched_step import LaunchedStep
from playground.engine.outputs import EngineStats, FinishReason
from playground.engine.pins import PinnedPrefixes
from playground.engine.prefix_cache import LowerTiers, prefix_stats
from playground.engine.request import RequestStatus
from playground.engine.scheduler import Scheduler, SchedulerOutput
from playground.engine.speculation.controller import StepCost
from playground.engine.speculation.proposal import Outcome
from playground.engine.step_rates import StepRate, StepRates
from playground.engine.tracker import SampleTracker, SubmissionTracker

logger = logging.getLogger(__name__)

MAX_USUAL_CATCH_UP = 16
"""A step in which a draft model ran more tokens of a request than this before it drafted says nothing of what drafting
costs: it runs the whole prompt once. Costs learned from such a step kept a fresh engine from drafting again."""
MAX_EMPTY_STEPS = 3
"""Steps in a row that run nothing although requests wait, after which the first of them is failed."""


class EngineCore:
    """The step loop's body and the state it works on."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        events: EventStream,
        base_stats: EngineStats,
        *,
        overlap: bool = False,
        pins: PinnedPrefixes | None = None,
    ) -> None:
        """`base_stats` carries the constants (block size and count, memory) that every snapshot repeats.

        `overlap` leaves one step in flight while the next is scheduled: worth it where a launch returns before the
        work is done. Outputs are the same either way.
        """
        self.scheduler = scheduler
        self.pins = pins or PinnedPrefixes(scheduler)
        self.executor = executor
        self.events = events
        self.overlap = overlap
        self._in_flight: deque[LaunchedStep] = deque()  # oldest first; two only between a launch and the read after it
        self._suspects: set[int] = set()  # requests of a step that could not be read: nothing overlaps until they move
        self._last_ended_ns = 0
        self._base_stats = base_stats
        self._samples: dict[int, SampleTracker] = {}
        self._pending: list[Event] = []
        self._num_steps = 0
        self._num_empty_steps = 0
        self._rates = StepRates()
        self._stats = base_stats

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._in_flight)

    def add(self, sample: SampleTracker) -> None:
        self._samples[sample.request.request_id] = sample
        self.scheduler.add(sample.request)
        self._tell(sample, "queued", sample.group.arrival_ns)
        self._publish_stats()

    def abort(self, request_id: int) -> None:
        """End a request now, whatever it is doing; unknown and ended ids are ignored."""
        if request_id in self._samples:
            self._collect_all()  # its blocks go to others only once it is known what is in them; it may end by itself
        sample = self._samples.get(request_id)
        if sample is not None:
            self._end(sample, "abort")
            self._publish_stats()
            self._flush_events()

    def fail_all(self, error: str) -> None:
        """End every request with an error, steps in flight unread; the engine itself goes on."""
        self._in_flight.clear()
        for sample in list(self._samples.values()):
            if sample.request.request_id in self._samples:  # unless it ended with a sibling
                self._end(sample, "error", error)
        self._publish_stats()
        self._flush_events()

    def write_prefix_cache(self, tiers: LowerTiers) -> None:
        """Have what is cached now written to disk, if there is a place for it."""
        tables, kv_cache = self.scheduler.tables, self.executor.kv_cache
        if tables is None or kv_cache is None:
            return
        self._collect_all()
        self._carry_out(tables.drain_transfers())
        tiers.write_to_disk(tables.pool, kv_cache)

    # One step

    def step(self) -> None:
        """Run one engine step for whatever is there to run.

        With overlap, the step before this one is read only once this one is launched, so that the device always has
        work while the host schedules and accounts.
        """
        if self._in_flight and self._needs_ids():
            self._collect_oldest()
        started = time.perf_counter_ns()
        if self.executor.speculator is not None:
            self.executor.speculator.plan(self.scheduler.running)
        planned_at = time.perf_counter_ns()
        tables = self.scheduler.tables
        if tables is not None:
            tables.recording = self.events.active
        self.pins.expire()
        output = self.scheduler.schedule(may_preempt=not self._in_flight)
        self._carry_out(output.transfers)
        scheduled_at = time.perf_counter_ns()
        self._note_admissions(output, scheduled_at)
        if not output.scheduled:
            if self._in_flight:
                self._collect_oldest()
            else:
                self._check_progress(output)
            return
        self._num_empty_steps = 0
        before = self._in_flight[-1].work if self._in_flight else None
        work = self.executor.launch(output, before)
        self.scheduler.advance(output)
        work.draft_ns += planned_at - started  # where drafts are looked up, that is done while planning
        self._in_flight.append(LaunchedStep(output, work, started, scheduled_at - planned_at))
        stays = self.overlap and not (self._suspects or work.errors or output.out_of_blocks)
        while len(self._in_flight) > (1 if stays else 0):
            self._collect_oldest()

    def _carry_out(self, transfers: Sequence[Transfer]) -> None:
        """Copy blocks from and to host memory before anything that is launched later can overwrite them."""
        if not transfers:
            return
        tables, memory, kv_cache = self.scheduler.tables, self.executor.host_memory, self.executor.kv_cache
        assert tables is not None and memory is not None and kv_cache is not None, "only a host tier asks for this"
        try:
            memory.carry_out(transfers, kv_cache)
        except Exception:
            tables.distrust(transfers)
            raise

    def _needs_ids(self) -> bool:
        """Whether a request with a token on its way must know it before its next draw."""
        return any(r.num_pending_tokens and r.draw_needs_ids for r in self.scheduler.running)

    def _collect_oldest(self) -> None:
        """Wait for the oldest step in flight and account for it."""
        step = self._in_flight.popleft()
        try:
            result = self.executor.collect(step.work, may_rerun=not self._in_flight)
        except Exception:
            logger.exception("a step could not be read; everything after it runs again, one step at a time")
            self._rewind(step)
            return
        collected = time.perf_counter_ns()
        emitted = self._account(step.output, result, collected)
        self._num_steps += 1
        ended = time.perf_counter_ns()
        took_ns = ended - max(step.started_ns, self._last_ended_ns)
        self._observe_cost(step.output, result, took_ns)
        num_prompt = step.num_prompt_tokens
        self._publish_stats()
        outcomes = [result.outcomes[request_id] for request_id in emitted]
        self._rates.record(
            StepRate(
                ended,
                took_ns,
                num_prompt,
                sum(emitted.values()),
                sum(len(outcome.draft_ids) for outcome in outcomes),
                sum(outcome.num_accepted for outcome in outcomes),
            )
        )
        self._last_ended_ns = ended
        if self.events.active:
            event = step.event(self._num_steps, result, emitted, num_prompt, ended - collected, self.scheduler)
            self._pending.append(event)
        self._flush_events()

    def _collect_all(self) -> None:
        while self._in_flight:
            self._collect_oldest()

    def _rewind(self, failed: LaunchedStep) -> None:
        """Put the requests of an unreadable step, and of the one launched after it, back to where they compute anew.

        They run one step at a time until each has got a token or failed: then the guilty one fails alone.
        """
        outputs = [failed.output, *(step.output for step in self._in_flight)]
        self._in_flight.clear()
        rewound, freed = self.scheduler.rewind(outputs)
        self.executor.zero_blocks(freed)
        self._suspects |= {request.request_id for request in rewound}
        now_ns = time.perf_counter_ns()
        for request in rewound:
            if request.status is RequestStatus.PREEMPTED:
                self._tell(self._samples[request.request_id], "preempted", now_ns, "a step could not be read")
        self._publish_stats()
        self._flush_events()

    def _note_admissions(self, output: SchedulerOutput, now_ns: int) -> None:
        for request in output.preempted:
            self._tell(self._samples[request.request_id], "preempted", now_ns, "out of KV blocks")
        for request in output.admitted:
            sample = self._samples[request.request_id]
            if sample.scheduled_ns is None:
                sample.scheduled_ns = now_ns
            self._tell(sample, "running", now_ns)

    def _check_progress(self, output: SchedulerOutput) -> None:
        """A request that waits while nothing can ever run would wait for ever: answer it instead."""
        self._num_empty_steps += 1
        if self._num_empty_steps <= MAX_EMPTY_STEPS:
            return
        self._num_empty_steps = 0
        stuck = self.scheduler.waiting[0] if self.scheduler.waiting else self.scheduler.running[0]
        logger.error("request %d cannot make progress", stuck.request_id)
        self._end(
            self._samples[stuck.request_id], "error", "the request could not be scheduled: the KV pool is exhausted"
        )

    def _account(self, output: SchedulerOutput, result: StepResult, now_ns: int) -> dict[int, int]:
        """Record the step's outcome; returns how many tokens each request got, by id.

        A request may have ended while the step was in flight: whatever the step has for it is dropped.
        """
        new_tokens: dict[int, list[int]] = {}
        reports: dict[int, Sequence[Candidate]] = {}
        errors = {request_id: error for request_id, error in result.errors.items() if request_id in self._samples}
        for request_id, outcome in result.outcomes.items():
            if request_id not in self._samples:
                continue
            if outcome.error is not None:
                errors[request_id] = outcome.error
            elif outcome.tokens[0].candidates:
                reports[request_id] = outcome.tokens[0].candidates
            else:
                new_tokens[request_id] = [token.token_id for token in outcome.tokens]
        for request_id, error in errors.items():
            if request_id in self._samples:  # unless it ended with a sibling
                self._end(self._samples[request_id], "error", error)
        for one in output.scheduled:
            entries = result.prompt_logprobs.get(one.request.request_id)
            kept = self._samples.get(one.request.request_id)
            if entries and kept is not None and kept.prompt_logprobs is not None:
                kept.prompt_logprobs[one.start + 1 : one.start + 1 + len(entries)] = entries
        self.scheduler.update(output, new_tokens)
        self._observe_speculation(output, result, new_tokens)
        for request_id in new_tokens:
            self._deliver(self._samples[request_id], result.outcomes[request_id], now_ns)
        for request_id, candidates in reports.items():
            if request_id in self._samples:
                self._report(self._samples[request_id], candidates, now_ns)
        counts = {request_id: len(token_ids) for request_id, token_ids in new_tokens.items()}
        return counts | dict.fromkeys(reports, 1)

    def _observe_speculation(
        self, output: SchedulerOutput, result: StepResult, new_tokens: Mapping[int, Sequence[int]]
    ) -> None:
        speculator = self.executor.speculator
        if speculator is None:
            return
        for request_id in new_tokens:
            sample, outcome = self._samples[request_id], result.outcomes[request_id]
            speculator.settle(sample.request, outcome)
            if outcome.num_positions:
                sample.note_drafts(outcome, result.draft_ns, result.forward_ns)

    def _observe_cost(self, output: SchedulerOutput, result: StepResult, took_ns: int) -> None:
        """Tell the speculator what a step took, if it was one of decodes only."""
        speculator = self.executor.speculator
        if speculator is None or result.longest_catch_up > MAX_USUAL_CATCH_UP:
            return
        if not any(one.request.params.speculate for one in output.scheduled):
            return
        num_seqs, num_drafts = len(output.scheduled), sum(one.num_drafts for one in output.scheduled)
        if output.num_tokens == num_seqs + num_drafts and result.outcomes:
            took_ns -= result.draft_ns
            speculator.observe_step(StepCost(num_seqs, output.num_tokens, num_drafts, result.draft_ns, took_ns))

    def _deliver(self, sample: SampleTracker, outcome: Outcome, now_ns: int) -> None:
        self._suspects.discard(sample.request.request_id)
        is_first = sample.first_token_ns is None
        try:
            reason = sample.add_tokens(outcome.tokens, now_ns)
        except Exception as error:  # a tokenizer that cannot decode its own ids must not take the others along
            logger.exception("request %d could not be decoded", sample.request.request_id)
            self._end(sample, "error", _undecodable(error))
            return
        if is_first:
            self._tell(sample, "first_token", now_ns)
        if reason is not None:
            self._leave(sample, reason)

    def _report(self, sample: SampleTracker, candidates: Sequence[Candidate], now_ns: int) -> None:
        """Note what a beam may go on with; the last one to report lets the search go on."""
        request = sample.request
        self._suspects.discard(request.request_id)
        beams = request.beams
        assert beams is not None
        if not beams.report(request, candidates):
            return
        beams.advance(self.scheduler.tables)
        first = sample.group.samples[0]
        if first.first_token_ns is None:
            self._tell(first, "first_token", now_ns)
        first.note_time(now_ns)
        if beams.search.done:
            self._end_search(sample.group, beams.search.hypotheses)

    # Ends

    def _end(self, sample: SampleTracker, reason: FinishReason, error: str | None = None) -> None:
        if sample.request.beams is not None:
            self._end_search(sample.group, sample.request.beams.search.interrupted(reason), error)
            return
        sample.end_early(reason, error)
        self._leave(sample, reason)

    def _end_search(self, group: SubmissionTracker, found: Sequence[Hypothesis], error: str | None = None) -> None:
        """End all beams of a search; what it found becomes the samples, in order."""
        reason = found[0].finish_reason
        try:
            for sample, hypothesis in zip(group.samples[: group.num_outputs], found, strict=False):
                sample.take_hypothesis(hypothesis, error)
        except Exception as failure:  # as in `_deliver`
            logger.exception("request %d could not be decoded", group.handle.request_id)
            reason, group.samples[0].error = "error", _undecodable(failure)
        for sample in group.samples:
            kept = sample.hypothesis
            self._leave(sample, kept.finish_reason if kept is not None and reason != "error" else reason)

    def _leave(self, sample: SampleTracker, reason: FinishReason) -> None:
        overran = sample.request.num_pending_tokens > 0
        freed = self.scheduler.finish(sample.request, reason)
        # NaN in a stale slot would survive masking (0 * NaN), so what a failed request wrote is wiped. So is the
        # last block of one that had its next step launched already: nobody will look at that step's logits.
        self.executor.zero_blocks(freed if reason == "error" else freed[:overran])
        if self.executor.speculator is not None:
            sample.speculation = self.executor.speculator.state(sample.request)
            self.executor.speculator.forget(sample.request)
        del self._samples[sample.request.request_id]
        self._suspects.discard(sample.request.request_id)
        now_ns = time.perf_counter_ns()
        self._tell(sample, "finished", now_ns, reason)
        self._publish_stats()
        sample.group.finish_if_complete(now_ns)

    # Telling

    def _tell(self, sample: SampleTracker, state: RequestState, now_ns: int, reason: str | None = None) -> None:
        if not self.events.active:
            return
        request = sample.request
        event = RequestEvent(
            now_ns,
            request.request_id,
            state,
            reason,
            request.num_prompt_tokens,
            request.num_cached_tokens,
            request.num_output_tokens,
            request.num_cache_write_tokens,
            tuple(request.prompt_token_ids) if state == "queued" else (),
        )
        self._pending.append(event)

    def _flush_events(self) -> None:
        tables = self.scheduler.tables
        if tables is not None:
            self._pending += tables.drain_events()
        if self._pending:
            self.events.emit(self._pending)
            self._pending = []

    # Snapshot

    def _publish_stats(self) -> None:
        scheduler, base = self.scheduler, self._base_stats
        pool = scheduler.tables.pool if scheduler.tables is not None else None
        queried = scheduler.prefix_tokens_queried
        self._stats = EngineStats(
            kv_blocks_total=base.kv_blocks_total,
            kv_blocks_in_use=pool.num_in_use if pool else 0,
            kv_blocks_cached=pool.num_cached if pool else 0,
            kv_blocks_empty=pool.num_empty if pool else 0,
            kv_block_size=base.kv_block_size,
            num_running=len(scheduler.running),
            num_waiting=scheduler.num_waiting,
            num_preemptions=scheduler.num_preemptions,
            prefix_cache_hit_rate=scheduler.prefix_tokens_hit / queried if queried else None,
            memory_weights_bytes=base.memory_weights_bytes,
            memory_kv_bytes=base.memory_kv_bytes,
            step_weights_bytes=base.step_weights_bytes,
            steps=self._num_steps,
            **prefix_stats(scheduler),
        )

    def stats(self) -> EngineStats:
        """The latest snapshot with current rates: tokens per second of engine time over the window. Any thread."""
        return self._rates.into(self._stats)


def _undecodable(error: Exception) -> str:
    return f"the tokens could not be decoded: {type(error).__name__}: {error}"
