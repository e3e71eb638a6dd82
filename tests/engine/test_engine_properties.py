"""Random workloads on a real float64 model: every output equals the isolated run, whatever ran beside it."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground import Engine, EngineConfig, SamplingParams

TEXTS = ["Hello", "Hello there", "Hello there you", "Once upon a time there was", "a"]


@pytest.fixture(scope="module")
def isolated(tiny_model):
    """`isolated(text, params)`: tokens of a request that runs alone, without prefix cache, in a large pool."""
    with Engine(EngineConfig(**fields(tiny_model, max_num_seqs=1, prefix_caching=False, num_kv_blocks=64))) as engine:

        @functools.cache
        def run(text: str, max_tokens: int, temperature: float, seed: int, penalty: float) -> tuple[int, ...]:
            return tuple(engine.generate(text, params_of(max_tokens, temperature, seed, penalty))[0].token_ids)

        yield run


def fields(model, **changes):
    return {"model": str(model), "device": "cpu", "dtype": "float64", "max_model_len": 64, "block_size": 4, **changes}


def params_of(max_tokens: int, temperature: float, seed: int, penalty: float) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens, temperature=temperature, seed=seed, repetition_penalty=penalty, ignore_eos=True
    )


requests = st.tuples(
    st.sampled_from(TEXTS),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.0, 1.0]),
    st.integers(0, 2),
    st.sampled_from([1.0, 1.3]),
)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(requests, st.booleans()), min_size=1, max_size=8),
    st.integers(12, 40),
    st.integers(1, 32),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
)
def test_output_does_not_depend_on_the_company(
    tiny_model, isolated, work, num_blocks, budget, max_num_seqs, caching, overlap
):
    config = EngineConfig(
        **fields(
            tiny_model,
            num_kv_blocks=num_blocks,
            max_num_batched_tokens=budget,
            max_num_seqs=max_num_seqs,
            prefix_caching=caching,
        )
    )
    with Engine(config) as engine:
        engine._core.overlap = overlap
        handles = [engine.submit(request[0], params_of(*request[1:])) for request, _ in work]
        for handle, (_, aborted) in zip(handles, work, strict=True):
            if aborted:
                handle.cancel()
        for handle, (request, aborted) in zip(handles, work, strict=True):
            result = handle.result(timeout=60)
            wanted = isolated(*request)
            assert tuple(result.token_ids) == wanted[: len(result.token_ids)]
            assert result.finish_reason == "length" or (aborted and result.finish_reason == "abort")
            assert aborted or len(result.token_ids) == len(wanted)
        stats = engine.stats()
        assert stats.kv_blocks_in_use == 0 and stats.kv_blocks_cached + stats.kv_blocks_empty == num_blocks
