"""Random workloads on a real float64 model: every output equals the isolated run, whatever ran beside it."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground import Engine, EngineConfig, SamplingParams

TEXTS = ["Hello", "Hello there", "Hello there you", "Once upon a time there was", "a"]


@pytest.fixture(scope="module")
def isolated(tiny_model):
    """`isolated(request)`: tokens of a request that runs alone, without prefix cache, in a large pool."""
    with Engine(EngineConfig(**fields(tiny_model, prefix_caching=False, num_kv_blocks=64))) as engine:

        @functools.cache
        def run(text: str, *values) -> list[list[int]]:
            return sequences(engine.generate(text, params_of(*values))[0])

        yield run


def fields(model, **changes):
    return {"model": str(model), "device": "cpu", "dtype": "float64", "max_model_len": 64, "block_size": 4, **changes}


def params_of(max_tokens: int, temperature: float, seed: int, penalty: float, width: int) -> SamplingParams:
    drawn = {"temperature": temperature, "seed": seed} if width == 1 else {"beam_width": width}
    return SamplingParams(max_tokens=max_tokens, repetition_penalty=penalty, ignore_eos=True, **drawn)


def sequences(generation) -> list[list[int]]:
    return [sample.token_ids for sample in generation.outputs] or [generation.token_ids]


requests = st.tuples(
    st.sampled_from(TEXTS),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.0, 1.0]),
    st.integers(0, 2),
    st.sampled_from([1.0, 1.3]),
    st.sampled_from([1, 1, 1, 2, 3]),
)


def fits(engine, request) -> bool:
    """Whether the engine takes the request: the number of blocks or sequences may be too small for its beams."""
    text, max_tokens, *_, width = request
    config, num_prompt = engine.config, len(engine.tokenizer(text).input_ids)
    shared, each = num_prompt // config.block_size, -(-(num_prompt + max_tokens - 1) // config.block_size)
    return width == 1 or (width <= config.max_num_seqs and shared + width * (each - shared) <= config.num_kv_blocks)


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
        work = [(request, aborted) for request, aborted in work if fits(engine, request)]
        handles = [engine.submit(request[0], params_of(*request[1:])) for request, _ in work]
        for handle, (_, aborted) in zip(handles, work, strict=True):
            if aborted:
                handle.cancel()
        for handle, (request, aborted) in zip(handles, work, strict=True):
            result = handle.result(timeout=60)
            assert result.finish_reason == "length" or (aborted and result.finish_reason == "abort")
            wanted, found = isolated(*request), sequences(result)
            if result.finish_reason == "length":
                assert found == wanted
            elif len(wanted) == 1:  # what the best beam was on the way is not the beginning of the best in the end
                assert found[0] == wanted[0][: len(found[0])]
        stats = engine.stats()
        assert stats.kv_blocks_in_use == 0 and stats.kv_blocks_cached + stats.kv_blocks_empty == num_blocks
