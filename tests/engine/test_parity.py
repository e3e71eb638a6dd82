"""Sixty-four greedy tokens of every family through the whole engine, against `transformers.generate`."""

import functools

import pytest
import torch

from playground import Engine, EngineConfig, SamplingParams
from tests.checkpoints import VARIANTS, checkpoint, reference_model
from tests.engine.conftest import with_given_fields

PROMPTS = [[7, 30, 99, 12, 5], [11], list(range(20, 90)), [250, 3, 3, 3, 17, 80, 41, 200, 6, 1, 9]]
GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
EXECUTIONS = {
    "whole prompts, one at a time": {"max_num_seqs": 1, "chunked_prefill": False},
    "chunks of 5": {"max_num_seqs": 1, "max_num_batched_tokens": 5},
    "one ragged batch": {"max_num_seqs": 8},
    "preempted and resumed": {"num_kv_blocks": 36, "max_num_batched_tokens": 24, "prefix_caching": False},
}


@functools.cache
def greedy_tokens_of_transformers(variant: str) -> list[list[int]]:
    model = reference_model(variant)
    results = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=64,
            min_new_tokens=64,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        results.append(out[0, len(prompt) :].tolist())
    return results


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sixty_four_greedy_tokens_equal_transformers(variant, execution, pytestconfig):
    defaults = {"device": "cpu", "dtype": "float32", "num_kv_blocks": 200, "block_size": 4}
    fields = with_given_fields(defaults, EXECUTIONS[execution], pytestconfig)
    config = EngineConfig(model=str(checkpoint(variant)), **fields)
    with Engine(config) as engine:
        outputs = engine.generate(PROMPTS, GREEDY)
        assert [out.token_ids for out in outputs] == greedy_tokens_of_transformers(variant)
        windowed = engine.config.sliding_window is not None
        if execution == "preempted and resumed" and not windowed:
            assert engine.stats().num_preemptions > 0, "the case is meant to preempt"
        assert engine.stats().kv_blocks_in_use == 0


def test_a_sliding_window_frees_the_blocks_behind_it():
    small = {"num_kv_blocks": 8, "block_size": 4, "max_num_batched_tokens": 8}
    config = EngineConfig(model=str(checkpoint("mistral")), device="cpu", dtype="float32", **small)
    with Engine(config) as engine:
        out = engine.generate(PROMPTS[2], GREEDY.replace(max_tokens=100))[0]
        assert len(out.token_ids) == 100 and out.metrics.kv_blocks_peak <= 8, "170 tokens pass through 8 blocks of 4"
        assert engine.stats().kv_blocks_in_use == 0
        assert out.token_ids[:64] == greedy_tokens_of_transformers("mistral")[2]
