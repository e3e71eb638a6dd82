"""`LiveSequence`: one request as the engine's events tell of it. Its row's values, and its block table."""

from playground.engine.block_pool import NULL_BLOCK
from playground.engine.events import RequestEvent, ScheduledSlice
from playground.engine.kv_snapshot import RequestBlocks
from playground.telemetry.roofline import ModelWork, Work
from playground.telemetry.rows import DECODE, PREFILL, RECOMPUTE, RequestRow, as_ms


class LiveSequence:
    """A request, and its block table with the way back from a block to its place."""

    def __init__(self, request_id: int, queued_ns: int) -> None:
        self.id = request_id
        self.state = "queued"
        self.queued_ns = queued_ns
        self.started_ns: int | None = None
        self.first_token_ns: int | None = None
        self.preempted_ns: int | None = None
        self.ended_ns: int | None = None
        self.last_emitted_ns: int | None = None
        self.num_prompt = self.num_cached = self.num_output = self.num_computed = self.num_preemptions = 0
        self.num_found = 0
        """Tokens in blocks that others computed, which stand in for `num_computed` before the first step."""
        self.furthest = 0
        """Most tokens ever computed: what is computed again is below."""
        self.reason: str | None = None
        self.table: dict[int, int] = {}
        self.place_of: dict[int, int] = {}
        self.changed_from: int | None = None
        """First logical block that the readers' tables do not have yet."""

    # Its values

    def apply(self, event: RequestEvent) -> None:
        """Take a change of its state."""
        self.num_prompt, self.num_cached = event.num_prompt_tokens, event.num_cached_tokens
        self.num_output = event.num_output_tokens
        if event.state == "running":
            self.state = "running"
            if self.started_ns is None:
                self.started_ns = event.time_ns
        elif event.state == "first_token":
            self.first_token_ns = event.time_ns
        elif event.state == "preempted":
            self.state, self.reason, self.preempted_ns = "preempted", event.reason, event.time_ns
            self.num_preemptions += 1
            self.num_computed = self.num_found = 0
        elif event.state == "finished":
            self.state, self.reason, self.ended_ns = "finished", event.reason, event.time_ns

    def resync(self, one: RequestBlocks) -> None:
        """Begin anew from here; the block table is empty until its blocks are placed."""
        self.state = "running" if one.running else "preempted" if one.num_preemptions else "queued"
        self.num_prompt, self.num_cached = one.num_prompt_tokens, one.num_cached_tokens
        self.num_output, self.num_preemptions = one.num_output_tokens, one.num_preemptions
        self.table, self.place_of = {}, {}
        self.compute(one.num_computed_tokens)

    def compute(self, num_tokens: int) -> None:
        """So many tokens are in the cache now."""
        self.num_computed = num_tokens
        self.furthest = max(self.furthest, num_tokens)

    @property
    def num_in_cache(self) -> int:
        return self.num_computed or self.num_found

    def kind_of(self, one: ScheduledSlice) -> int:
        """What its share of a step, not yet computed here, is."""
        if self.furthest <= one.num_computed_tokens < self.num_prompt:
            return PREFILL
        if one.num_tokens - len(one.draft_ids) > 1 or one.num_computed_tokens < self.furthest:
            return RECOMPUTE if self.num_preemptions else PREFILL
        return DECODE

    def emit(self, time_ns: int) -> int | None:
        """It got tokens: the time since it last did, in ns."""
        before, self.last_emitted_ns = self.last_emitted_ns, time_ns
        return None if before is None else time_ns - before

    # Its block table

    def place(self, index: int, block_id: int) -> None:
        displaced = self.table.get(index)
        if displaced is not None and self.place_of.get(displaced) == index:
            del self.place_of[displaced]
        self.table[index] = block_id
        self.place_of[block_id] = index
        self._changed(index)

    def remove(self, block_id: int) -> None:
        index = self.place_of.pop(block_id, None)
        if index is not None:
            del self.table[index]
            self._changed(index)

    def _changed(self, index: int) -> None:
        self.changed_from = index if self.changed_from is None else min(self.changed_from, index)

    def listed(self, start: int = 0) -> list[int]:
        """The block table from `start` on."""
        return [self.table.get(index, NULL_BLOCK) for index in range(start, self._table_end)]

    @property
    def _table_end(self) -> int:
        return max(self.table, default=-1) + 1

    def changes(self) -> tuple[int, list[int]]:
        """Up to where the readers' tables are right, and what follows."""
        start = min(self.changed_from or 0, self._table_end)
        return start, self.listed(start)

    # What is told of it

    def blocks(self) -> RequestBlocks:
        """From which another one can go on: see `resync`."""
        return RequestBlocks(
            self.id,
            self.state == "running",
            self.num_prompt,
            self.num_cached,
            self.num_output,
            self.num_in_cache,
            self.num_preemptions,
            tuple(self.listed()),
        )

    def row(self, epoch_ns: int, model: ModelWork | None) -> RequestRow:
        """`epoch_ns` is time 0 of the row; `model` what its prompt's work is counted with."""

        def ms(time_ns: int | None) -> float | None:
            return None if time_ns is None else as_ms(time_ns - epoch_ns)

        work = self._prompt_work(model)
        return RequestRow(
            self.id,
            self.state,
            as_ms(self.queued_ns - epoch_ns),
            ms(self.started_ns),
            ms(self.first_token_ns),
            ms(self.preempted_ns),
            ms(self.ended_ns),
            self.num_prompt,
            self.num_cached,
            self.num_output,
            self.num_computed,
            self.num_preemptions,
            self.reason,
            work and work.flops,
            work and work.moved_bytes,
        )

    def _prompt_work(self, model: ModelWork | None) -> Work | None:
        tokens = self.num_prompt - self.num_cached
        return None if model is None or tokens < 1 else model.prompt(self.num_cached, tokens)
