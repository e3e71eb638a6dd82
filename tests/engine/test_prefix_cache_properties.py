"""Random arrivals over a cache with pins, limits, a time to live, host memory and files: the rules hold every step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.engine.scheduler import SchedulerConfig
from tests.engine.cache_simulation import CacheSimulation, PinEvent, SimulatedFiles
from tests.engine.simulation import VOCABULARY, Arrival

tokens = st.integers(0, VOCABULARY - 1)
prompts = st.lists(tokens, min_size=1, max_size=14)


@st.composite
def workloads(draw: st.DrawFn) -> tuple[list[Arrival], list[PinEvent]]:
    stems = draw(st.lists(prompts, min_size=1, max_size=2))
    salts = st.sampled_from([None, None, None, "a"])
    arrivals = []
    for _ in range(draw(st.integers(1, 8))):
        prompt = draw(st.sampled_from(stems)) + draw(st.lists(tokens, max_size=4))
        breakpoints = draw(st.none() | st.lists(st.integers(1, len(prompt)), max_size=2).map(tuple))
        arrivals.append(
            Arrival(
                step=draw(st.integers(0, 20)),
                prompt=prompt,
                num_output=draw(st.integers(1, 8)),
                abort_after=draw(st.none() | st.integers(0, 12)),
                salt=draw(salts),
                n=draw(st.sampled_from([1, 1, 2])),
                breakpoints=breakpoints,
            )
        )
    pins = st.builds(
        PinEvent,
        step=st.integers(0, 20),
        prompt=st.sampled_from(stems),
        salt=salts,
        unpin_after=st.none() | st.integers(1, 15),
        ttl=st.none() | st.integers(1, 15),
    )
    return arrivals, draw(st.lists(pins, max_size=3))


caches = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(4, 20),
        "block_size": st.sampled_from([1, 2, 3]),
        "window": st.none() | st.none() | st.integers(2, 9),
        "overlap": st.booleans(),
        "ttl": st.none() | st.integers(1, 12),
        "max_cached": st.none() | st.integers(0, 6),
        "host_slots": st.sampled_from([0, 1, 4, 30]),
        "max_pinned": st.sampled_from([0.25, 0.5, 1.0]),
        "flush_at": st.none() | st.integers(1, 20),
    }
)


@settings(max_examples=300)
@given(workloads(), caches, st.integers(1, 24), st.integers(1, 6))
def test_every_rule_holds_with_pins_limits_and_host_memory(workload, cache, budget, max_num_seqs):
    arrivals, pins = workload
    simulation = CacheSimulation(SchedulerConfig(max_num_seqs, budget), pin_events=pins, **cache)
    simulation.run(arrivals)
    simulation.check_without_pins()


@settings(max_examples=100)
@given(workloads(), caches, st.integers(1, 24), st.sets(st.integers(0, 20), max_size=4))
def test_every_rule_holds_after_a_restart_with_files_some_of_which_are_broken(workload, cache, budget, broken):
    arrivals, pins = workload
    config = SchedulerConfig(4, budget)
    files = SimulatedFiles()
    cache = {**cache, "host_slots": max(cache["host_slots"], 2)}
    first = CacheSimulation(config, pin_events=pins, files=files, **cache)
    first.run(arrivals)
    first.write_files()
    assert not any(key.salted for key in files.blocks), "salted prefixes stay in the process"
    files.broken = {key.hash for number, key in enumerate(files.blocks) if number in broken}
    second = CacheSimulation(config, pin_events=pins, files=files, **cache)
    second.truth = first.truth
    second.run(arrivals)


@settings(max_examples=100)
@given(workloads(), st.sampled_from([1, 2, 3]), st.integers(1, 24), st.booleans())
def test_every_token_that_is_cached_was_written_by_one_request(workload, block_size, budget, overlap):
    """Where nothing is ever lost, what requests say they wrote is what there is."""
    arrivals, _ = workload
    arrivals = [Arrival(a.step, a.prompt, a.num_output, salt=a.salt, n=a.n) for a in arrivals]
    simulation = CacheSimulation(SchedulerConfig(4, budget), num_blocks=300, block_size=block_size, overlap=overlap)
    simulation.run(arrivals)
    tables, prompts, replies = simulation.tables, set(), set()
    for request in simulation.requests:
        keys = tables.prefix_keys(request.token_ids, request.params.cache_salt)
        prompts.update(keys[: request.num_prompt_tokens // block_size])
        replies.update(keys[request.num_prompt_tokens // block_size :])
    assert len(prompts - replies) * block_size <= tables.tokens_written <= len(prompts) * block_size
    assert sum(request.num_cache_write_tokens for request in simulation.requests) == tables.tokens_written


def caching(**fields) -> CacheSimulation:
    return CacheSimulation(SchedulerConfig(4, 64), **{"num_blocks": 40, "block_size": 2, **fields})


PROMPT = [0, 1, 2, 0, 1, 2, 0]  # three full blocks of two and one token


def one_more(simulation: CacheSimulation, prompt: list[int] = PROMPT, **fields):
    (request,) = simulation.add(Arrival(0, prompt, 1, **fields))
    simulation.run([])
    return request


def test_reads_writes_and_the_rest_add_up_to_the_prompt():
    simulation = caching()
    first, second = one_more(simulation), one_more(simulation)
    longer = one_more(simulation, [*PROMPT, 1, 1])
    assert (first.num_cached_tokens, first.num_cache_write_tokens) == (0, 6)
    assert (second.num_cached_tokens, second.num_cache_write_tokens) == (6, 0)
    assert (longer.num_cached_tokens, longer.num_cache_write_tokens) == (6, 2)


def test_a_last_block_that_is_computed_again_is_neither_read_nor_written():
    simulation = caching()
    first, second = one_more(simulation, PROMPT[:6]), one_more(simulation, PROMPT[:6])
    assert (first.num_cached_tokens, first.num_cache_write_tokens) == (0, 6)
    assert (second.num_cached_tokens, second.num_cache_write_tokens) == (4, 0)


def test_writes_are_counted_once_whatever_preemption_computes_again():
    simulation = CacheSimulation(SchedulerConfig(2, 64), num_blocks=9, block_size=2)
    simulation.run([Arrival(0, [0] * 7, 8), Arrival(0, [1] * 7, 8)])
    assert simulation.scheduler.num_preemptions > 0, "the case is meant to preempt"
    assert [request.num_cache_write_tokens for request in simulation.requests] == [6, 6]


@pytest.mark.parametrize(
    ("breakpoints", "written"), [(None, 6), ((), 0), ((1,), 0), ((2,), 2), ((3, 2), 2), ((1, 5), 4), ((7,), 6)]
)
def test_only_what_lies_before_the_last_breakpoint_is_written(breakpoints, written):
    simulation = caching()
    first = one_more(simulation, breakpoints=breakpoints)
    assert first.num_cache_write_tokens == written
    assert one_more(simulation).num_cached_tokens == written
    reader = one_more(simulation, breakpoints=())
    assert reader.num_cached_tokens == 6, "breakpoints are about writing"


def test_a_pinned_prefix_outlives_what_evicts_everything_else():
    simulation = caching(num_blocks=12)
    pin_id = simulation.pins.add(PROMPT, None)
    simulation.pinned_keys[pin_id] = simulation.tables.prefix_keys(PROMPT, None)
    one_more(simulation)
    for stem in range(8):
        one_more(simulation, [stem % 3, 2, 2, stem // 3, *([stem % 2] * 8)])
    assert simulation.tables.pool.num_pinned == 3
    assert one_more(simulation).num_cached_tokens == 6
    simulation.check_without_pins()


def test_a_pin_that_leaves_too_little_for_a_request_in_progress_is_refused():
    simulation = caching(num_blocks=10, pin_events=[PinEvent(1, PROMPT)])
    simulation.run([Arrival(0, [2] * 10, 8)])  # needs nine of the ten blocks
    assert simulation.num_refused_pins == 1


def test_a_request_that_never_fits_beside_the_pins_is_refused_unless_it_shares_them():
    simulation = caching(num_blocks=10, pin_events=[PinEvent(0, PROMPT)])
    simulation.step()
    assert simulation.add(Arrival(0, [2] * 10, 8)) == []
    assert len(simulation.add(Arrival(0, [*PROMPT, 2, 2, 2], 8))) == 1
    simulation.run([])


def test_evicted_blocks_come_back_from_host_memory():
    simulation = caching(max_cached=0, host_slots=20)
    one_more(simulation)
    assert simulation.tables.pool.num_cached == 0
    again = one_more(simulation)
    assert again.num_cached_tokens == 6 and simulation.num_restored == 3
    assert simulation.scheduler.prefix_tokens_restored == {"host": 6}


def test_host_memory_keeps_salts_apart():
    simulation = caching(max_cached=0, host_slots=20)
    one_more(simulation, salt="a")
    assert one_more(simulation, salt="b").num_cached_tokens == 0
    assert one_more(simulation).num_cached_tokens == 0
    assert one_more(simulation, salt="a").num_cached_tokens == 6


def test_host_memory_gives_up_what_was_used_longest_ago():
    simulation = caching(max_cached=0, host_slots=4)
    one_more(simulation)
    one_more(simulation, [2] * 5)  # two blocks more than there is room for; the tail goes first
    assert one_more(simulation).num_cached_tokens == 4


def test_a_time_to_live_counts_in_host_memory_from_the_last_use():
    simulation = caching(max_cached=0, host_slots=20, ttl=10)
    one_more(simulation)
    simulation.steps += 9
    assert one_more(simulation).num_cached_tokens == 6
    simulation.steps += 9
    assert one_more(simulation).num_cached_tokens == 6, "reading renews it"
    simulation.steps += 11
    assert one_more(simulation).num_cached_tokens == 0


def test_a_file_is_read_once_and_a_broken_one_is_a_miss():
    files = SimulatedFiles()
    first = caching(host_slots=20, files=files)
    one_more(first)
    first.write_files()
    second = caching(host_slots=20, files=files)
    second.truth = first.truth
    assert [one_more(second).num_cached_tokens for _ in range(2)] == [6, 6]
    assert files.num_loads == 3
    assert second.scheduler.prefix_tokens_restored == {"disk": 6}
    third = caching(host_slots=20, files=files)
    third.truth = first.truth
    files.broken = {third.tables.prefix_keys(PROMPT, None)[1].hash}
    assert one_more(third).num_cached_tokens == 2
    assert third.tables.pool.num_in_use == 0


def test_a_flush_empties_every_tier():
    simulation = caching(max_cached=2, host_slots=20, files=SimulatedFiles())
    one_more(simulation)
    simulation.write_files()
    simulation.tables.flush()
    assert one_more(simulation).num_cached_tokens == 0
    assert not simulation.files.blocks
