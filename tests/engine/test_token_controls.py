"""Logprobs and the rules about tokens, each against transformers' log-softmax in float64, however the request runs.

`ENGINES` are the ways to run; a further switch of the engine that must not change results is one more line there.
"""

import copy
import functools

import pytest
import torch

from playground import Engine, EngineConfig, SamplingParams
from tests.checkpoints import checkpoint, reference_model
from tests.engine.conftest import with_given_fields

EOS = 2
PROMPTS = [[7, 30, 99, 12, 5, 40, 41, 3, 77, 130], [11], list(range(20, 53)), [250, 3, 3, 3, 17, 80, 41, 200, 6]]
ENGINES = {
    "plain": {},
    "chunks of 3": {"max_num_batched_tokens": 3},
    "whole prompts": {"chunked_prefill": False},
    "preempted": {"num_kv_blocks": 17, "prefix_caching": False},
    "preempted, with prefix cache": {"num_kv_blocks": 17, "max_num_batched_tokens": 16},
    "contiguous cache": {"kv_cache": "contiguous", "num_kv_blocks": 128},
    "no cache": {"kv_cache": "none"},
    "static": {"batching": "static", "max_num_seqs": 3},
    "lookups": {"speculation": {"method": "ngram", "verification": "coupled", "ngram_min": 1}},
    "layers skipped": {"speculation": {"method": "layer_skip", "verification": "coupled"}, "num_kv_blocks": 24},
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, pytestconfig):
    """Every test runs its requests twice: the second time their prefixes are cached, where there is a cache."""
    defaults = {"device": "cpu", "dtype": "float64", "num_kv_blocks": 128, "block_size": 4, "max_model_len": 64}
    fields = with_given_fields(defaults, ENGINES[request.param], pytestconfig)
    if fields.get("kv_cache") == "none":
        del fields["num_kv_blocks"]
    with Engine(EngineConfig(model=str(checkpoint("gpt2")), **fields)) as engine:
        yield engine
        if "preempted" in request.param:
            assert engine.stats().num_preemptions > 0, "the case is meant to preempt"
        if engine.config.prefix_caching:
            assert engine.stats().prefix_cache_hit_rate > 0.1, "the second runs are meant to hit"
        assert engine.stats().kv_blocks_in_use == 0


@functools.cache
def double_model():
    return copy.deepcopy(reference_model("gpt2")).double()


def log_softmax(token_ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary] of transformers: row i is about the token after token i."""
    return _log_softmax(tuple(token_ids))


@functools.cache
def _log_softmax(token_ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return double_model()(torch.tensor([token_ids])).logits[0].log_softmax(-1)


def check_entries(entries, rows: torch.Tensor, token_ids: list[int], k: int) -> None:
    """The whole of each `TokenLogprob` follows from the model's own distribution."""
    assert [entry.token_id for entry in entries] == token_ids
    own = rows.gather(1, torch.tensor(token_ids)[:, None])
    assert [entry.logprob for entry in entries] == pytest.approx(own.flatten().tolist(), abs=1e-9)
    assert [entry.rank for entry in entries] == (1 + (rows > own).sum(-1)).tolist()
    best = rows.topk(max(k, 1))
    assert [[t for t, _ in entry.top] for entry in entries] == best.indices[:, :k].tolist()
    for entry, values in zip(entries, best.values[:, :k].tolist(), strict=True):
        assert [value for _, value in entry.top] == pytest.approx(values, abs=1e-9)


def twice(engine, params):
    """Results of all prompts together, and again from cached prefixes."""
    for _ in range(2):
        yield from zip(PROMPTS, engine.generate(PROMPTS, params), strict=True)


RULES = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 1.3, "seed": 4, "top_p": 0.95},
    "rules": {
        "temperature": 0.8, "seed": 2, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2,
        "logit_bias": {9: 4.0, 30: -5.0}, "allowed_token_ids": list(range(3, 120)),
    },
}  # fmt: skip


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("k", [0, 5])
def test_logprobs_are_the_models_own_whatever_the_draw_was_made_with(engine, k, rules):
    params = SamplingParams(max_tokens=12, logprobs=k, ignore_eos=True, **RULES[rules])
    for prompt, result in twice(engine, params):
        rows = log_softmax(prompt + result.token_ids)[len(prompt) - 1 : -1]
        check_entries(result.logprobs, rows, result.token_ids, k)


@pytest.mark.parametrize("k", [0, 3])
def test_prompt_logprobs_are_complete_and_the_models_own(engine, k):
    params = SamplingParams(temperature=0, max_tokens=8, prompt_logprobs=k, ignore_eos=True)
    plain = engine.generate(PROMPTS, params.replace(prompt_logprobs=None))
    for (prompt, result), without in zip(twice(engine, params), plain * 2, strict=True):
        assert result.prompt_logprobs[0] is None and len(result.prompt_logprobs) == len(prompt)
        check_entries(result.prompt_logprobs[1:], log_softmax(prompt)[:-1], prompt[1:], k)
        assert result.token_ids == without.token_ids and result.logprobs is None
        assert result.metrics.num_cached_tokens == 0, "every prompt row has to be computed"


def test_prompt_logprobs_of_a_prompt_of_one_token_are_one_none(engine):
    result = engine.generate([11], SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=2))[0]
    assert result.prompt_logprobs == [None]


def test_both_kinds_of_logprobs_with_parallel_samples(engine):
    params = SamplingParams(max_tokens=7, n=3, seed=8, logprobs=2, prompt_logprobs=2, ignore_eos=True)
    for prompt, result in twice(engine, params):
        check_entries(result.prompt_logprobs[1:], log_softmax(prompt)[:-1], prompt[1:], 2)
        assert len({tuple(sample.token_ids) for sample in result.outputs}) > 1
        for sample in result.outputs:
            rows = log_softmax(prompt + sample.token_ids)[len(prompt) - 1 : -1]
            check_entries(sample.logprobs, rows, sample.token_ids, 2)
            assert sample.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in sample.logprobs))


def greedy_by_hand(prompt: list[int], max_tokens: int, forbidden) -> list[int]:
    """Greedy tokens where `forbidden(number of tokens so far)` may not be drawn."""
    token_ids = list(prompt)
    for count in range(max_tokens):
        row = log_softmax(token_ids)[-1].clone()
        row[list(forbidden(count))] = -torch.inf
        token_ids.append(int(row.argmax()))
    return token_ids[len(prompt) :]


def test_allowed_token_ids_are_the_only_ones_drawn(engine):
    allowed = [3, 50, 51, 52, 120, 200]
    params = SamplingParams(temperature=0, max_tokens=9, allowed_token_ids=allowed, ignore_eos=True)
    others = set(range(259)) - set(allowed)
    for prompt, result in twice(engine, params):
        assert result.token_ids == greedy_by_hand(prompt, 9, lambda _: others)
    for _, result in twice(engine, params.replace(temperature=1.5, seed=3, n=2)):
        assert all(set(sample.token_ids) <= set(allowed) for sample in result.outputs)


@pytest.mark.parametrize("ending", ["eos", "stop token"])
def test_min_tokens_forbids_every_end_until_then(engine, ending):
    """The ending token is by far the most probable: without the rule nothing else is drawn."""
    token = EOS if ending == "eos" else 90
    params = SamplingParams(
        temperature=0,
        max_tokens=12,
        min_tokens=5,
        logit_bias={token: 500.0},
        stop_token_ids=() if ending == "eos" else (token,),
        ignore_eos=ending != "eos",
    )
    for prompt, result in twice(engine, params):
        assert result.token_ids == [*greedy_by_hand(prompt, 5, lambda _: [token]), token]
        assert result.finish_reason == "stop"
    assert [r.token_ids for _, r in twice(engine, params.replace(min_tokens=0))] == [[token]] * 2 * len(PROMPTS)


def test_min_tokens_and_parallel_samples(engine):
    params = SamplingParams(max_tokens=12, min_tokens=4, n=3, seed=1, logit_bias={EOS: 500.0}, logprobs=0)
    for _, result in twice(engine, params):
        for sample in result.outputs:
            assert len(sample.token_ids) == 5 == len(sample.logprobs)
            assert sample.token_ids[-1] == EOS and EOS not in sample.token_ids[:-1]


def test_ignore_eos_goes_on_and_keeps_stop_tokens(engine):
    params = SamplingParams(temperature=0, max_tokens=8, logit_bias={EOS: 500.0}, ignore_eos=True, logprobs=1)
    for prompt, result in twice(engine, params):
        assert (result.token_ids, result.finish_reason, result.text) == ([EOS] * 8, "length", "")
        check_entries(result.logprobs, log_softmax(prompt + [EOS] * 8)[len(prompt) - 1 : -1], [EOS] * 8, 1)
    for _, result in twice(engine, params.replace(stop_token_ids=(EOS,))):
        assert (result.token_ids, result.finish_reason) == ([EOS], "stop"), "asked for by id, it still ends the reply"
