"""Random arrivals, budgets, pools and aborts: the rules of the step loop hold after every step."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.engine.block_tables import BlockTables
from playground.engine.scheduler import SchedulerConfig
from tests.engine.simulation import VOCABULARY, Arrival, Simulation

prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=14)


@st.composite
def arrival_lists(draw: st.DrawFn, widths: Sequence[int] = (1, 1, 1, 2, 3, 4)) -> list[Arrival]:
    stems = draw(st.lists(prompts, min_size=1, max_size=3))  # few stems: duplicate prefixes are the rule
    return [
        Arrival(
            step=draw(st.integers(0, 12)),
            prompt=draw(st.sampled_from(stems)) + draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=4)),
            num_output=draw(st.integers(1, 10)),
            abort_after=draw(st.none() | st.integers(0, 12)),
            salt=draw(st.sampled_from([None, None, "a"])),
            n=draw(st.sampled_from([1, 1, 1, 2, 3])),
            stop_after=draw(st.none() | st.integers(1, 6)),
            num_drafts=draw(st.sampled_from([0, 0, 1, 2, 5])),
            drafts_every=draw(st.sampled_from([1, 1, 3])),
            beam_width=draw(st.sampled_from(widths)),
            ending=draw(st.sampled_from([frozenset(), frozenset({1})])),
        )
        for _ in range(draw(st.integers(1, 8)))
    ]


pools = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(4, 24),
        "block_size": st.sampled_from([1, 2, 3, 4]),
        "prefix_caching": st.booleans(),
        "window": st.none() | st.integers(1, 9),
        "overlap": st.booleans(),
    }
)


@settings(max_examples=1500, deadline=None)
@given(arrival_lists(), pools, st.integers(1, 24), st.integers(1, 6))
def test_every_rule_holds_with_chunked_prefill_and_continuous_batching(arrivals, pool, budget, max_num_seqs):
    Simulation(SchedulerConfig(max_num_seqs, budget), **pool).run(arrivals)


@settings(max_examples=250, deadline=None)
@given(arrival_lists(widths=[1, 2, 3, 3]), pools, st.integers(0, 2), st.integers(2, 24), st.integers(3, 20))
def test_every_rule_holds_for_beams_in_a_pool_that_is_barely_large_enough(arrivals, pool, spare, budget, max_num_seqs):
    arrivals = [arrival.growing() for arrival in arrivals * 2]
    config = SchedulerConfig(max_num_seqs, budget)
    needs = Simulation(config, **{**pool, "num_blocks": 1000}).blocks_needed
    simulation = Simulation(config, **{**pool, "num_blocks": max(map(needs, arrivals)) + spare})
    simulation.run(arrivals)


@settings(max_examples=200, deadline=None)
@given(arrival_lists(), pools, st.integers(1, 6))
def test_every_rule_holds_with_whole_prompt_prefill(arrivals, pool, max_num_seqs):
    longest = 14 + 4 + 10
    config = SchedulerConfig(max_num_seqs, longest + max_num_seqs, chunked_prefill=False)
    Simulation(config, **pool).run(arrivals)


@settings(max_examples=200, deadline=None)
@given(arrival_lists(), pools, st.integers(1, 24), st.integers(1, 6))
def test_every_rule_holds_with_static_batching(arrivals, pool, budget, max_num_seqs):
    Simulation(SchedulerConfig(max_num_seqs, budget, static_batching=True), **pool).run(arrivals)


@settings(max_examples=150, deadline=None)
@given(arrival_lists(), st.integers(28, 80), st.integers(1, 6), st.booleans(), st.booleans())
def test_every_rule_holds_without_a_kv_cache(arrivals, budget, max_num_seqs, static, overlap):
    config = SchedulerConfig(max_num_seqs, budget, static_batching=static, recompute=True)
    Simulation(config, overlap=overlap).run(arrivals)


@settings(max_examples=150, deadline=None)
@given(arrival_lists(), st.integers(1, 4), st.integers(1, 24), st.integers(1, 6), st.booleans())
def test_a_contiguous_cache_is_one_block_a_sequence(arrivals, reservations, budget, max_num_seqs, overlap):
    config = SchedulerConfig(max_num_seqs, budget)
    Simulation(config, num_blocks=reservations, block_size=28, prefix_caching=False, overlap=overlap).run(arrivals)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_pool_may_be_barely_large_enough_for_the_largest_request(overlap):
    arrivals = [Arrival(0, [0, 1, 2, 0, 1], 6), Arrival(0, [0, 1, 2, 0, 2], 6), Arrival(1, [0, 1], 9)]
    simulation = Simulation(SchedulerConfig(4, 3), num_blocks=5, block_size=2, overlap=overlap)
    simulation.run(arrivals)
    assert simulation.scheduler.num_preemptions > 0, "the case is meant to preempt"


def test_with_overlap_a_step_is_scheduled_before_the_token_it_starts_from_is_read():
    simulation = Simulation(SchedulerConfig(4, 16), num_blocks=40, overlap=True)
    simulation.add(Arrival(0, [0, 1, 2], 5))
    (request,) = simulation.requests
    read = []
    while not request.finished:
        simulation.step()
        read.append((request.num_output_tokens, request.num_pending_tokens))
    assert read == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 0)]
    assert simulation.num_surplus == 0, "the last token is known to be the last before it is read"


def test_with_overlap_a_stop_costs_one_step_whose_outcome_is_thrown_away():
    simulation = Simulation(SchedulerConfig(4, 16), num_blocks=40, overlap=True)
    simulation.run([Arrival(0, [0, 1, 2], 9, stop_after=3), Arrival(0, [1, 1], 6)])
    stopped, other = simulation.requests
    assert (stopped.num_output_tokens, stopped.finish_reason) == (3, "stop")
    assert other.num_output_tokens == 6 and simulation.num_surplus == 1


def test_long_prompts_do_not_evict_each_other_for_ever():
    prompt = [0, 1, 2] * 10
    arrivals = [Arrival(0, [i % 3, *prompt], 2) for i in range(6)]
    simulation = Simulation(SchedulerConfig(8, 4), num_blocks=20, block_size=2, prefix_caching=False)
    simulation.run(arrivals)
    assert simulation.scheduler.num_preemptions == 0, "admission counts what admitted prompts still have coming"


def test_running_requests_are_served_before_waiting_ones():
    simulation = Simulation(SchedulerConfig(4, 4), num_blocks=40)
    simulation.add(Arrival(0, [0, 1], 20))
    simulation.step()
    simulation.add(Arrival(0, [1] * 14, 2))
    running = simulation.requests[0]
    for _ in range(4):
        before = running.num_tokens
        simulation.step()
        assert running.num_tokens == before + 1, "a long prompt never stalls a decode"


def test_a_static_batch_admits_nobody_until_it_has_ended():
    simulation = Simulation(SchedulerConfig(2, 8, static_batching=True), num_blocks=40)
    for arrival in (Arrival(0, [0, 1], 2), Arrival(0, [1, 1], 6), Arrival(0, [2, 1], 2)):
        simulation.add(arrival)
    late = simulation.requests[2]
    while not (simulation.requests[0].finished and simulation.requests[1].finished):
        assert late.num_computed_tokens == 0
        simulation.step()
    simulation.run([])
    assert late.finished


@pytest.mark.parametrize("prompt_length", [3, 4, 5])
def test_parallel_samples_share_the_prompt_and_copy_only_a_part_filled_tail(prompt_length):
    simulation = Simulation(SchedulerConfig(8, 32), num_blocks=40, block_size=4, prefix_caching=False)
    simulation.add(Arrival(0, [0, 1, 2, 0, 1][:prompt_length], 6, n=3))
    simulation.step()
    simulation.step()  # both forks are admitted and write their first token here
    first, *forks = simulation.requests
    recomputed_block = (prompt_length - 1) // 4
    for fork in forks:
        assert fork.block_table[:recomputed_block] == first.block_table[:recomputed_block]
    partial = (prompt_length - 1) % 4 != 0
    assert simulation.num_copies == (2 if partial else 0)
    simulation.run([])


def test_a_prefix_hit_skips_what_is_cached_and_always_leaves_one_token():
    simulation = Simulation(SchedulerConfig(4, 64), num_blocks=40, block_size=2)
    prompt = [0, 1, 2, 0, 1, 2]
    simulation.run([Arrival(0, prompt, 1)])
    (again,) = simulation.add(Arrival(0, prompt, 1))
    simulation.run([])
    assert again.num_cached_tokens == 4, "three blocks are cached, but the last token must run to give logits"


def test_a_salt_separates_equal_prompts():
    simulation = Simulation(SchedulerConfig(4, 64), num_blocks=40, block_size=2)
    simulation.run([Arrival(0, [0, 1, 2, 0, 1], 1, salt="a")])
    (other,) = simulation.add(Arrival(0, [0, 1, 2, 0, 1], 1, salt="b"))
    (same,) = simulation.add(Arrival(0, [0, 1, 2, 0, 1], 1, salt="a"))
    simulation.run([])
    assert (other.num_cached_tokens, same.num_cached_tokens) == (0, 4)


def test_a_windowed_request_never_holds_more_blocks_than_its_window_needs():
    simulation = Simulation(SchedulerConfig(4, 2), num_blocks=6, block_size=2, window=4)
    arrival = Arrival(0, [0, 1, 2] * 10, 20)
    assert simulation.fits(arrival), "fifty tokens pass through six blocks of two"
    simulation.run([arrival])
    assert simulation.requests[0].holdings.peak <= 4


@pytest.mark.parametrize("window", [None, 1, 2, 4])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_a_search_may_lose_its_blocks_after_any_step(window, prefix_caching, monkeypatch):
    apart = []
    take = BlockTables.take

    def watched(self, request, hit):
        apart.append(request is not request.unit[0])
        return take(self, request, hit)

    monkeypatch.setattr(BlockTables, "take", watched)
    for prompt, budget, when in itertools.product(([0, 1, 2, 0, 1], [1, 0, 0, 2, 1, 1]), (1, 2, 3, 16), range(1, 30)):
        shape = {"block_size": 2, "window": window, "prefix_caching": prefix_caching}
        simulation = Simulation(SchedulerConfig(3, budget), num_blocks=40, **shape)
        beams = simulation.add(Arrival(0, prompt, 8, beam_width=3))
        while simulation.steps < when and not beams[0].finished:
            simulation.step()
        if not beams[0].finished:
            simulation.scheduler._preempt(beams[0].unit)
        simulation.run([])
        assert beams[0].num_preemptions == (when < simulation.steps)
    assert any(apart) == (window is not None), (
        "only where a window lets go of blocks does a beam start without a sibling"
    )


def test_a_resumed_search_computes_what_its_beams_have_in_common_once():
    simulation = Simulation(SchedulerConfig(4, 64), num_blocks=60, block_size=2, prefix_caching=False)
    beams = simulation.add(Arrival(0, [0, 1, 2, 0, 1, 1, 2], 9, beam_width=3))
    for _ in range(6):
        simulation.step()
    before = beams[0].holdings.num_distinct
    simulation.scheduler._preempt(beams[0].unit)
    num_run = 0
    while any(request.num_computed_tokens < request.num_tokens for request in beams):
        output = simulation.scheduler.schedule()
        num_run += output.num_tokens
        simulation.run_on_device(output)
        simulation.scheduler.advance(output)
        simulation.scheduler.update(output, {})
    distinct = {tuple(request.token_ids[: i + 1]) for request in beams for i in range(request.num_tokens)}
    assert num_run == len(distinct), "each token once, wherever beams have it in common"
    assert beams[0].holdings.num_distinct <= before + len(beams), "and in as many blocks as before, a copy each apart"
