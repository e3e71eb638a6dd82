"""Quantized KV in the whole engine: what is said depends on the type of the cache, and on nothing else about it."""

import functools

import pytest
import torch

from playground import ConfigError, Engine, EngineConfig, SamplingParams
from playground.models.bundled import BUNDLED_MODEL
from playground.models.config import DecoderConfig
from playground.models.kv_cache import KVCache

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SAMPLED = GREEDY.replace(temperature=1.0, seed=5)
SYSTEM = "You are a fox. Be brief and kind. "
PROMPTS = [SYSTEM + "Who are you?", "a", SYSTEM + "Tell me a story", SYSTEM, "Once upon a time", SYSTEM + "Who"]
PARAMS = [GREEDY, SAMPLED, GREEDY.replace(logprobs=2), SAMPLED.replace(n=3), GREEDY.replace(beam_width=3), GREEDY]
DTYPES = ["int8", "fp8"]
EXECUTIONS = {
    "chunks of 5": {"max_num_batched_tokens": 5, "max_num_seqs": 5},
    "whole prompts": {"chunked_prefill": False, "max_num_batched_tokens": 300},
    "one at a time": {"max_num_seqs": 3},
    "contiguous": {"kv_cache": "contiguous", "num_kv_blocks": 256},
    "preempted": {"num_kv_blocks": 24, "max_num_batched_tokens": 16},
    "large blocks": {"block_size": 48},
    "naive attention": {"attention": "naive"},
    "host memory": {"prefix_cache_max_blocks": 0, "prefix_cache_host_memory": 1 << 20},
    "window": {"sliding_window": 9},
    "window, contiguous": {"sliding_window": 9, "kv_cache": "contiguous", "num_kv_blocks": 256},
}


def said(engine: Engine) -> list[list[tuple[tuple[int, ...], list[float] | None]]]:
    """Tokens of every sample of every prompt, and log-probabilities to nine digits where they were asked for."""
    results = engine.generate(PROMPTS, PARAMS)
    assert engine.stats().kv_blocks_in_use == 0
    return [
        [
            (tuple(one.token_ids), one.logprobs and [round(entry.logprob, 9) for entry in one.logprobs])
            for one in result.outputs or [result]
        ]
        for result in results
    ]


@pytest.fixture(scope="module")
def alone(tiny_model):
    """`alone(dtype, window)`: what is said without a prefix cache, with memory for everything."""

    @functools.cache
    def run(dtype: str, window: int | None):
        fields = {"model": str(tiny_model), "device": "cpu", "dtype": "float64", "max_model_len": 128}
        config = EngineConfig(
            **fields, num_kv_blocks=64, prefix_caching=False, kv_cache_dtype=dtype, sliding_window=window
        )
        with Engine(config) as engine:
            return said(engine)

    return run


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_said_does_not_depend_on_how_it_runs(make_engine, alone, dtype, execution):
    fields = EXECUTIONS[execution]
    engine = make_engine(kv_cache_dtype=dtype, **fields)
    wanted = alone(dtype, fields.get("sliding_window"))
    assert said(engine) == wanted
    assert said(engine) == wanted, "a second time, from the prefix cache"
    stats = engine.stats()
    if execution == "preempted":
        assert stats.num_preemptions > 0
    if execution == "host memory":
        assert stats.prefix_cache_host_tokens > 0


def test_the_types_say_different_things(alone):
    assert len({str(alone(dtype, None)) for dtype in ("auto", *DTYPES)}) == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_prefixes_on_disk_come_back_for_the_same_type_only(make_engine, alone, tmp_path, caplog, dtype):
    fields = {"kv_cache_dtype": dtype, "prefix_cache_dir": str(tmp_path)}
    with make_engine(**fields) as engine:
        assert said(engine) == alone(dtype, None)
    with make_engine(**fields) as engine:
        assert said(engine) == alone(dtype, None)
        assert engine.stats().prefix_cache_disk_tokens > 0
    other = "fp8" if dtype == "int8" else "int8"
    for changed in (other, "auto"):
        with make_engine(kv_cache_dtype=changed, prefix_cache_dir=str(tmp_path)) as engine:
            assert engine.generate(PROMPTS[0], GREEDY)[0].metrics.num_cached_tokens == 0
    assert "of another KV dtype" in caplog.text


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_is_what_was_given_and_holds_nearly_twice_as_much(dtype):
    given, held = 3_000_000, {}
    model = DecoderConfig.from_folder(BUNDLED_MODEL)
    for name in ("bfloat16", dtype):
        fields = {"device": "cpu", "dtype": "bfloat16", "kv_cache_dtype": name, "load_format": "dummy"}
        with Engine(EngineConfig(kv_cache_memory=given, **fields)) as engine:
            stats, cache = engine.stats(), engine._core.executor.kv_cache
            held[name] = stats.kv_blocks_total
            assert engine.config.kv_cache_dtype == name
            block_bytes = KVCache.bytes_per_block(model, stats.kv_block_size, cache.dtype)
            assert held[name] == given // block_bytes
            assert stats.memory_kv_bytes == cache._storage.untyped_storage().nbytes()
            assert stats.memory_kv_bytes < given + 2 * block_bytes, "the null block and room for padding"
    assert held[dtype] >= 1.9 * held["bfloat16"]


def test_poison_in_a_block_is_gone_when_the_block_is_used_again(make_engine, alone):
    engine = make_engine(kv_cache_dtype="int8", num_kv_blocks=24, prefix_caching=False)
    engine._core.executor.kv_cache._storage[:] = -1  # scales that are NaN
    engine._core.executor.zero_blocks(range(25))
    assert said(engine) == alone("int8", None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_to_quantize_is_refused(dtype):
    with pytest.raises(ConfigError, match=f"kv_cache_dtype='{dtype}' has nothing to quantize with kv_cache='none'"):
        EngineConfig(kv_cache="none", kv_cache_dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_failed_request_read_is_forgotten(make_engine, alone, dtype):
    engine = make_engine(kv_cache_dtype=dtype, prefix_cache_max_blocks=0, prefix_cache_host_memory=1 << 20)
    said(engine)
    engine.generate("a", GREEDY)  # the last evictions are carried out before it runs
    memory = engine._core.executor.host_memory
    assert memory.dtype == torch.int8 and memory.block_bytes == engine._core.executor.kv_cache.block_bytes
    for slot in range(len(engine._core.scheduler.tables.tier)):
        memory.slot(slot).fill_(-1)  # scales that are NaN
    assert "NaN" in engine.generate(PROMPTS[0], GREEDY)[0].error
    again = engine.generate(PROMPTS[0], GREEDY)[0]
    assert again.error is None and tuple(again.token_ids) == alone(dtype, None)[0][0][0]
