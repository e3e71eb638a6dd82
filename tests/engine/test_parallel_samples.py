"""Parallel samples share the prompt's blocks: counted block by block and copy by copy, with hits and with logprobs."""

import pytest

from playground import Engine, EngineConfig, SamplingParams
from playground.engine.events import BlockEvent
from tests.engine.conftest import with_given_fields
from tests.engine.told import told

BLOCK = 4
PARAMS = SamplingParams(max_tokens=10, seed=5, ignore_eos=True)


@pytest.fixture(scope="module")
def forgetful(tiny_model, pytestconfig):
    """An engine without a prefix cache, so that a prompt is new every time."""
    defaults = {"device": "cpu", "dtype": "float64", "num_kv_blocks": 64, "block_size": BLOCK, "prefix_caching": False}
    with Engine(EngineConfig(model=str(tiny_model), **with_given_fields(defaults, {}, pytestconfig))) as engine:
        yield engine


def prompt_of(length: int) -> list[int]:
    return [(7 * i) % 200 + 20 for i in range(length)]


def watched(engine, prompt, params):
    """The result, and the block events of the run."""
    events = engine.events.subscribe()
    result = engine.generate(prompt, params)[0]
    drained = [event for event in told(engine, events) if isinstance(event, BlockEvent)]
    engine.events.unsubscribe(events)
    return result, drained


def blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK)


def count(events, action) -> int:
    return sum(event.action == action for event in events)


@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("length", [12, 13, 14, 16, 17, 1])
def test_the_prompt_is_held_once_and_its_part_filled_block_is_copied_once_for_each_further_sample(forgetful, length, n):
    """The last prompt token runs again in every sample, so that a block which it completes is no longer shared."""
    engine = forgetful
    max_tokens = 9 + -(length + 8) % BLOCK  # fills the last block: all samples hold theirs together for some steps
    result, events = watched(engine, prompt_of(length), PARAMS.replace(n=n, max_tokens=max_tokens))
    shared, has_partial = (length - 1) // BLOCK, (length - 1) % BLOCK != 0
    total = blocks(length + max_tokens - 1)
    copies = [event for event in events if event.action == "copy"]
    assert len(copies) == (n - 1 if has_partial else 0)
    assert len({event.source_block_id for event in copies}) == (1 if has_partial else 0), "all of the first's block"
    assert len({event.block_id for event in copies}) == len(copies) and {e.ref_count for e in copies} <= {1}
    assert len({event.request_id for event in copies}) == len(copies)
    assert count(events, "share") == (n - 1) * (shared + has_partial)
    assert count(events, "alloc") == shared + n * (total - shared)
    assert result.metrics.kv_blocks_peak == shared + n * (total - shared)
    assert result.metrics.kv_blocks_private == n * total
    assert count(events, "free") == count(events, "alloc") and engine.stats().kv_blocks_in_use == 0


def test_one_sample_holds_what_a_private_cache_would(engine):
    metrics = engine.generate(prompt_of(13), PARAMS)[0].metrics
    assert metrics.kv_blocks_peak == metrics.kv_blocks_private == blocks(13 + 9)


def test_samples_of_different_length_are_counted_at_the_moment_of_the_most_blocks(forgetful):
    engine = forgetful
    params = PARAMS.replace(n=6, max_tokens=40, ignore_eos=False, stop_token_ids=tuple(range(0, 250, 9)))
    result, events = watched(engine, prompt_of(9), params)
    lengths = sorted(len(sample.token_ids) for sample in result.outputs)
    assert lengths[0] < lengths[-1], "the case is meant to end them at different times"
    held: dict[int, int] = {}
    most = 0
    for event in events:
        held[event.block_id] = event.ref_count
        most = max(most, sum(number > 0 for number in held.values()))
    assert result.metrics.kv_blocks_peak in (most, most - 1), "while a block is copied there is one more for a moment"
    assert result.metrics.kv_blocks_peak < result.metrics.kv_blocks_private


def test_private_caches_would_have_been_as_many_blocks_in_a_contiguous_cache(make_engine):
    engine = make_engine(kv_cache="contiguous", num_kv_blocks=256)
    metrics = engine.generate(prompt_of(9), PARAMS.replace(n=3))[0].metrics
    assert (metrics.kv_blocks_peak, metrics.kv_blocks_private) == (3, 3), "a sequence cannot share its only block"


def test_a_cached_prompt_is_shared_by_all_samples_and_computed_by_none(engine):
    prompt, params = prompt_of(22), PARAMS.replace(n=4)
    first, _ = watched(engine, prompt, params)
    again, events = watched(engine, prompt, params)
    assert [s.token_ids for s in again.outputs] == [s.token_ids for s in first.outputs]
    assert (first.metrics.num_cached_tokens, again.metrics.num_cached_tokens) == (0, 20)
    assert again.metrics.kv_blocks_peak == first.metrics.kv_blocks_peak == 5 + 4 * (blocks(31) - 5)
    assert count(events, "copy") == 3 and count(events, "share") == 5 + 3 * 6, "the hit, then three forks of six blocks"


FIELDS = {
    "plain": {},
    "chunks of 3": {"max_num_batched_tokens": 3},
    "preempted": {"num_kv_blocks": 11, "prefix_caching": False},
    "preempted, with prefix cache": {"num_kv_blocks": 11},
    "one at a time": {"max_num_seqs": 1},
    "window": {"sliding_window": 6},
    "no cache": {"kv_cache": "none"},
    "static": {"batching": "static", "max_num_seqs": 3},
    "lookups": {"speculation": {"method": "ngram", "verification": "coupled"}},
    "layers skipped": {"speculation": {"method": "layer_skip", "verification": "coupled", "skip_layers": (1,)}},
}


@pytest.mark.parametrize("fields", FIELDS)
def test_samples_with_logprobs_are_those_of_single_requests(make_engine, fields):
    engine = make_engine(**FIELDS[fields])
    params = PARAMS.replace(n=4, logprobs=2, prompt_logprobs=1)
    for _ in range(2):  # the second time from cached prefixes
        together = engine.generate(prompt_of(14), params)[0]
        single = [engine.generate(prompt_of(14), params.replace(n=1, seed=5 + i))[0] for i in range(4)]
        for sample, one in zip(together.outputs, single, strict=True):
            assert (sample.token_ids, sample.text) == (one.token_ids, one.text)
            assert [e.logprob for e in sample.logprobs] == pytest.approx([e.logprob for e in one.logprobs], abs=1e-9)
            assert [(e.token_id, e.rank) for e in sample.logprobs] == [(e.token_id, e.rank) for e in one.logprobs]
            assert sample.cumulative_logprob == pytest.approx(sum(e.logprob for e in one.logprobs), abs=1e-9)
            assert sample.score is None
        assert len(together.prompt_logprobs) == 14 and None not in together.prompt_logprobs[1:]
    if "preempted" in fields:
        assert engine.stats().num_preemptions > 0, "the case is meant to preempt"
    assert engine.stats().kv_blocks_in_use == 0
