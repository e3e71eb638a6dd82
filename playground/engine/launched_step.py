"""`LaunchedStep`: a step on its way through the device, and the event that tells of it once it has been read."""

from collections.abc import Mapping
from dataclasses import dataclass

from playground.engine.events import ScheduledSlice, StepEvent
from playground.engine.executor import InFlightStep, StepResult
from playground.engine.scheduler import ScheduledRequest, Scheduler, SchedulerOutput


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """Times in nanoseconds."""

    output: SchedulerOutput
    work: InFlightStep
    started_ns: int
    schedule_ns: int

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of prompts that it runs."""
        slices = self.output.scheduled
        return sum(max(0, min(one.num_tokens, one.request.num_prompt_tokens - one.start)) for one in slices)

    def event(
        self,
        number: int,
        result: StepResult,
        emitted: Mapping[int, int],
        num_prompt: int,
        post_ns: int,
        scheduler: Scheduler,
    ) -> StepEvent:
        """What is told of it after its accounting, which took `post_ns`.

        `emitted` are the tokens that each request got, by id; `num_prompt` is its `num_prompt_tokens`.
        """
        slices = tuple(_slice(one, result, emitted) for one in self.output.scheduled)
        pool = scheduler.tables.pool if scheduler.tables is not None else None
        return StepEvent(
            step=number,
            time_ns=self.started_ns,
            schedule_ns=self.schedule_ns,
            draft_ns=result.draft_ns,
            prepare_ns=result.prepare_ns,
            forward_ns=result.forward_ns,
            sample_ns=result.sample_ns,
            post_ns=post_ns,
            num_prefill_tokens=num_prompt,
            num_decode_tokens=self.output.num_tokens - num_prompt,
            num_draft_tokens=sum(len(one.draft_ids) for one in slices),
            num_accepted_tokens=sum(len(one.accepted_drafts) for one in slices),
            num_emitted_tokens=sum(one.num_emitted for one in slices),
            num_running=len(scheduler.running),
            num_waiting=scheduler.num_waiting,
            num_preempted=len(self.output.preempted),
            kv_blocks_in_use=pool.num_in_use if pool else 0,
            kv_blocks_cached=pool.num_cached if pool else 0,
            kv_blocks_empty=pool.num_empty if pool else 0,
            kv_slots_in_use=_slots_in_use(scheduler),
            requests=slices,
        )


def _slice(one: ScheduledRequest, result: StepResult, emitted: Mapping[int, int]) -> ScheduledSlice:
    request_id = one.request.request_id
    if request_id not in emitted:
        return ScheduledSlice(request_id, one.start, one.num_tokens, 0)
    outcome = result.outcomes[request_id]
    return ScheduledSlice(
        request_id,
        one.start,
        one.num_tokens,
        emitted[request_id],
        outcome.draft_ids,
        outcome.path,
        tuple(token.token_id for token in outcome.tokens),
        outcome.has_bonus,
    )


def _slots_in_use(scheduler: Scheduler) -> int:
    """In-use blocks are full except at the tail of each running request; beams may share a tail."""
    tables = scheduler.tables
    if tables is None:
        return 0
    size = tables.block_size
    running = [request for request in scheduler.running if request.block_table]
    unused = {one.block_table[-1]: len(one.block_table) * size - one.num_computed_tokens for one in running}
    return tables.pool.num_in_use * size - sum(unused.values())
