"""The simulation with everything that a prefix cache can have: pins, limits, a clock, host memory and files.

Host memory and files hold the same hashes of prefixes as the simulated pool, so that a block that comes back under the
wrong key, too early or too late is found as soon as a request reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from playground.engine.block_pool import BlockKey
from playground.engine.block_tables import BlockTables
from playground.engine.host_tier import HostTier, Transfer
from playground.engine.pins import PinnedPrefixes
from playground.engine.request import Request
from playground.engine.scheduler import SchedulerOutput
from playground.errors import RequestError
from tests.engine.simulation import Arrival, Simulation, check, contents

Content = dict[int, tuple[int, int]]  # offset in the block -> (content, token id)


@dataclass
class PinEvent:
    """Somebody pins a prefix at a step and, maybe, lets it go some steps later."""

    step: int
    prompt: list[int]
    salt: str | None = None
    unpin_after: int | None = None
    ttl: float | None = None


@dataclass
class SimulatedFiles:
    """What lies on disk: survives one simulation and serves the next."""

    blocks: dict[BlockKey, Content] = field(default_factory=dict)
    memory: dict[int, Content] = field(default_factory=dict)  # the slots of the engine that reads
    broken: set[int] = field(default_factory=set)  # hashes of the blocks whose checksum is wrong
    num_loads: int = 0

    def __contains__(self, key: BlockKey) -> bool:
        return key in self.blocks

    def load(self, key: BlockKey, slot: int) -> bool:
        self.num_loads += 1
        if key.hash in self.broken:
            self.discard(key)
            self.memory[slot] = {}
            return False
        self.memory[slot] = dict(self.blocks[key])
        return True

    def discard(self, key: BlockKey) -> None:
        self.blocks.pop(key, None)

    def clear(self) -> None:
        self.blocks.clear()


@dataclass
class CacheSimulation(Simulation):
    """One step lasts one second of the clock."""

    ttl: float | None = None
    max_cached: int | None = None
    host_slots: int = 0
    files: SimulatedFiles | None = None
    max_pinned: float = 1.0
    flush_at: int | None = None
    pin_events: list[PinEvent] = field(default_factory=list)
    num_restored: int = 0
    num_refused_pins: int = 0

    def __post_init__(self) -> None:
        self.host: dict[int, Content] = {}
        self.truth: dict[BlockKey, dict[int, int]] = {}
        self.kept: set[BlockKey] = set()
        self.lasting: set[int] = set()
        self.used_at: dict[BlockKey, int] = {}
        self.ran: list[Request] = []
        """Who took part in the latest step."""
        super().__post_init__()
        self.pins = PinnedPrefixes(self.scheduler, self.max_pinned, clock=lambda: self.steps)
        self.unpin_at: dict[int, int] = {}  # by pin id
        self.expires_at: dict[int, float] = {}
        self.pinned_keys: dict[int, list[BlockKey]] = {}

    def make_tables(self) -> BlockTables:
        tier = None
        if self.host_slots:
            if self.files is not None:
                self.files.memory = self.host
            tier = HostTier(self.host_slots, ttl=self.ttl, clock=lambda: self.steps, files=self.files)
        return BlockTables(
            self.num_blocks,
            self.block_size,
            prefix_caching=self.prefix_caching,
            ttl=self.ttl,
            max_cached=self.max_cached,
            window=self.window,
            clock=lambda: self.steps,
            tier=tier,
        )

    def fits(self, arrival: Arrival) -> bool:
        return True  # asked when it arrives: see `add`

    def add(self, arrival: Arrival) -> list[Request]:
        """Refuse what `Engine.submit` would refuse."""
        request = Request(0, arrival.prompt, self.params_of(arrival), 0, 0)
        try:
            self.pins.check_request(request.prompt_token_ids, request.params, len(arrival.prompt) + arrival.num_output)
        except RequestError:
            return []
        return super().add(arrival)

    def schedule(self, *, may_preempt: bool) -> SchedulerOutput:
        assert self.tables is not None
        self.change_pins()
        if self.steps == self.flush_at:
            self.tables.flush()
        output = super().schedule(may_preempt=may_preempt)
        self.carry_out(output.transfers)
        self.check_cache()
        self.check_ages(output)
        return output

    def change_pins(self) -> None:
        for event in [event for event in self.pin_events if event.step == self.steps]:
            try:
                pin_id = self.pins.add(event.prompt, event.salt, event.ttl)
            except RequestError:
                self.num_refused_pins += 1
                continue
            self.pinned_keys[pin_id] = self.keys_of(event)
            if event.unpin_after is not None:
                self.unpin_at[pin_id] = self.steps + event.unpin_after
            if event.ttl is not None:
                self.expires_at[pin_id] = self.steps + event.ttl
        for pin_id, when in list(self.unpin_at.items()):
            if when <= self.steps:
                del self.unpin_at[pin_id]
                if pin_id in {pinned.pin_id for pinned in self.pins.list()}:
                    self.pins.remove(pin_id)
                    del self.pinned_keys[pin_id]
        self.pins.expire()

    def keys_of(self, event: PinEvent) -> list[BlockKey]:
        """The blocks that the pin keeps: those that a token right after the prefix can see."""
        assert self.tables is not None
        keys = self.tables.prefix_keys(event.prompt, event.salt)
        if self.window is None:
            return keys
        return keys[max(0, len(keys) * self.block_size - self.window + 1) // self.block_size :]

    def carry_out(self, transfers: list[Transfer]) -> None:
        """What `HostMemory` does."""
        for transfer in transfers:
            if transfer.to_host:
                held = {offset: self.memory.get((transfer.block_id, offset)) for offset in range(self.block_size)}
                self.host[transfer.slot] = {offset: one for offset, one in held.items() if one is not None}
            else:
                self.num_restored += 1
                for offset in range(self.block_size):
                    self.memory.pop((transfer.block_id, offset), None)
                for offset, one in self.host.get(transfer.slot, {}).items():
                    self.memory[transfer.block_id, offset] = one

    # Rules

    def check_cache(self) -> None:
        tables = self.tables
        assert tables is not None
        pool = tables.pool
        check(self.max_cached is None or pool.num_evictable <= self.max_cached, "no more stays cached than is allowed")
        if tables.tier is not None:
            check(len(tables.tier) <= self.host_slots, "host memory holds no more than it has room for")
        lasting = {pin_id for pin_id in self.pinned_keys if self.expires_at.get(pin_id, inf) > self.steps}
        check({pinned.pin_id for pinned in self.pins.list()} == lasting, "a pin lasts as long as was asked")
        wanted = {key for pin_id in lasting for key in self.pinned_keys[pin_id]}
        check(len(wanted) <= self.num_blocks * self.max_pinned, "pins keep their limit")
        check(pool.num_pinned <= len(wanted), "nothing is pinned that nobody asked for")
        present = {key for key in wanted if pool.find(key) is not None}
        unbroken = {key for pin_id in lasting & self.lasting for key in self.pinned_keys[pin_id]}
        check(self.kept & unbroken <= present, "what is pinned and there stays there")
        self.kept, self.lasting = present, lasting
        for request in self.requests:
            self.check_counts(request)

    def check_ages(self, output: SchedulerOutput) -> None:
        """With a time to live, nothing is found that nobody has used for longer."""
        assert self.tables is not None
        if self.ttl is None:
            return
        for request in self.ran:  # it has read tokens since, before it ended, and what they completed was its own
            keys = self.tables.prefix_keys(request.token_ids[:-1], request.params.cache_salt)
            self.used_at |= dict.fromkeys(keys, self.steps)
        self.ran = list(self.scheduler.running)
        for request in output.admitted:
            keys = self.tables.prefix_keys(request.token_ids, request.params.cache_salt)
            for key, block_id in zip(keys, request.block_table[: request.num_found_blocks], strict=False):
                fresh = self.steps - self.used_at.get(key, self.steps) <= self.ttl or key in (self.files or ())
                check(fresh or block_id == 0 or key in self.kept, "nothing is found after its time")
        used = {
            key for r in self.scheduler.running for key in self.tables.prefix_keys(r.token_ids, r.params.cache_salt)
        }
        for key in used | self.kept:
            self.used_at[key] = self.steps + 1  # whoever ends before the next step lets go of it then

    def check_counts(self, request: Request) -> None:
        written, found = request.num_cache_write_tokens, request.num_cached_tokens
        check(written >= 0 and found >= 0, "counts are counts")
        check(written + found <= request.num_prompt_tokens, "no token of a prompt is counted twice")
        if request.params.cache_breakpoints is not None:
            last = max(request.params.cache_breakpoints, default=0)
            check(written <= max(0, last - found), "nothing is written beyond the last breakpoint")

    def check_end(self) -> None:
        super().check_end()
        self.check_contents()

    def check_without_pins(self) -> None:
        """Once every pin is gone, too, nothing is left but ordinary cached blocks."""
        assert self.tables is not None
        self.pins.expire()
        for pinned in self.pins.list():
            self.pins.remove(pinned.pin_id)
        pool = self.tables.pool
        check(pool.num_pinned == 0, "nothing is pinned once every pin is gone")
        check(self.max_cached is None or pool.num_evictable <= self.max_cached, "no more stays cached than is allowed")

    def check_contents(self) -> None:
        """Whatever could still be found holds what its key says, read or not."""
        tables = self.tables
        assert tables is not None
        self.carry_out(tables.drain_transfers())
        for request in self.requests:
            own, size = contents(request.token_ids), self.block_size
            for index, key in enumerate(tables.prefix_keys(request.token_ids, request.params.cache_salt)):
                self.truth[key] = dict(enumerate(own[index * size : (index + 1) * size]))
        for block_id, key, _ in tables.pool.contents():
            held = {offset: self.memory[block_id, offset][0] for offset in range(self.block_size)}
            check(held == self.truth.get(key), "a cached block holds what its key says")
        for slot, key, _ in tables.tier.contents() if tables.tier is not None else ():
            check(values(self.host[slot]) == self.truth.get(key), "a block in host memory holds what its key says")

    def write_files(self) -> None:
        """What `LowerTiers.write_to_disk` does when the engine closes."""
        assert self.tables is not None and self.tables.tier is not None and self.files is not None
        self.carry_out(self.tables.drain_transfers())
        for block_id, key, _ in self.tables.pool.contents():
            if not key.salted:
                self.files.blocks[key] = {i: self.memory[block_id, i] for i in range(self.block_size)}
        for slot, key, _ in self.tables.tier.contents():
            if not key.salted:
                self.files.blocks[key] = dict(self.host[slot])


def values(content: Content) -> dict[int, int]:
    return {offset: held[0] for offset, held in content.items()}
