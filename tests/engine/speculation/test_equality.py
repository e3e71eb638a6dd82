"""What is said does not change: greedy and coupled text is, token for token, that of an engine without drafts."""

import random

import pytest

from playground import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SAMPLED = GREEDY.replace(temperature=1.0, seed=3)
METHODS = {
    "draft": {"method": "draft"},
    "draft of one": {"method": "draft", "num_tokens": 1},
    "long draft": {"method": "draft", "num_tokens": 9},
    "adaptive draft": {"method": "draft", "num_tokens": "auto"},
    "ngram": {"method": "ngram"},
    "adaptive ngram": {"method": "ngram", "num_tokens": "auto"},
    "suffix": {"method": "suffix"},
    "layer_skip": {"method": "layer_skip", "skip_layers": (1,)},
    "eagle": {"method": "eagle"},
    "tree": {"method": "draft", "num_tokens": 3, "tree_width": 3},
    "narrow tree": {"method": "draft", "num_tokens": 6, "tree_width": 2},
    "wide tree": {"method": "draft", "num_tokens": 1, "tree_width": 12},
}
EXECUTIONS = {
    "as configured": {},
    "whole prompts": {"chunked_prefill": False, "max_num_batched_tokens": 300},
    "chunks of 5": {"max_num_batched_tokens": 5, "max_num_seqs": 3},
    "one at a time": {"max_num_seqs": 1},
    "static batches": {"batching": "static"},
    "preempted": {"num_kv_blocks": 30},
    "no prefix cache": {"prefix_caching": False},
    "contiguous cache": {"kv_cache": "contiguous"},
    "no cache": {"kv_cache": "none", "max_model_len": 64},
    "naive attention": {"attention": "naive"},
    "window": {"sliding_window": 9},
    "wide window": {"sliding_window": 64},
    "int8 cache": {"kv_cache_dtype": "int8"},
    "fp8 cache": {"kv_cache_dtype": "fp8", "max_num_batched_tokens": 7, "num_kv_blocks": 40},
}
CHANGES_TEXT = ("sliding_window", "kv_cache_dtype")
"""Fields that may change what is said; no other may."""
KINDS = {
    "greedy": GREEDY,
    "greedy with penalties": GREEDY.replace(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3),
    "sampled": SAMPLED,
    "filtered": SAMPLED.replace(top_p=0.9, top_k=20, min_p=0.02),
    "penalised": SAMPLED.replace(repetition_penalty=1.3, frequency_penalty=0.7),
    "biased": SAMPLED.replace(logit_bias={40: 4.0, 41: -5.0}, allowed_token_ids=tuple(range(30, 90))),
    "min_tokens": SAMPLED.replace(min_tokens=15, ignore_eos=False, stop_token_ids=tuple(range(0, 200, 3))),
    "stop tokens": SAMPLED.replace(ignore_eos=False, stop_token_ids=tuple(range(0, 200, 9))),
    "stop strings": SAMPLED.replace(stop=("a", "e", "zz")),
    "logprobs": GREEDY.replace(logprobs=3, prompt_logprobs=2),
    "sampled logprobs": SAMPLED.replace(logprobs=2),
    "parallel samples": SAMPLED.replace(n=3),
    "two tokens": SAMPLED.replace(max_tokens=2),
}


def some_prompts(count: int) -> list[list[int]]:
    """Random ids; some repeat themselves, so that lookups find something, some share their beginning."""
    rng = random.Random(count)
    stem = [rng.randrange(3, 250) for _ in range(9)]
    prompts = []
    for number in range(count):
        own = [rng.randrange(3, 250) for _ in range(rng.randint(1, 12))]
        prompts.append((own * 3, stem + own, own)[number % 3])
    return prompts


def outcomes(engine, params, prompts):
    results = engine.generate(prompts, params)
    assert engine.stats().kv_blocks_in_use == 0
    return [
        [(s.token_ids, s.text, s.finish_reason, rounded(s.logprobs)) for s in result.outputs or [result]]
        + [rounded(result.prompt_logprobs)]
        for result in results
    ]


def rounded(logprobs):
    """To nine digits: a batch of another shape rounds differently."""
    if logprobs is None:
        return None
    return [entry and (entry.token_id, round(entry.logprob, 9), [t for t, _ in entry.top]) for entry in logprobs]


@pytest.fixture(scope="module")
def plain():
    """Outcomes without speculation, each computed once."""
    return {}


def expected(plain, make_speculative, name, params, prompts, **fields):
    if name not in plain:
        plain[name] = outcomes(make_speculative(None, **fields), params, prompts)
    return plain[name]


@pytest.mark.parametrize("method", METHODS)
def test_hundreds_of_greedy_texts_are_the_same(plain, make_speculative, method):
    prompts, params = some_prompts(210), GREEDY.replace(max_tokens=12)
    wanted = expected(plain, make_speculative, "hundreds", params, prompts)
    assert outcomes(make_speculative(METHODS[method]), params, prompts) == wanted


@pytest.mark.parametrize("method", METHODS)
def test_requests_that_ask_for_no_drafts_get_none_beside_others_that_do(plain, make_speculative, method):
    prompts = some_prompts(12)
    wanted = expected(plain, make_speculative, "some draft", SAMPLED, prompts)
    engine = make_speculative({**METHODS[method], "verification": "coupled"})
    mixed = [SAMPLED.replace(speculate=number % 2 == 0) for number in range(len(prompts))]
    assert outcomes(engine, mixed, prompts) == wanted
    others = engine.generate(prompts, mixed)
    if not method.startswith("adaptive"):  # which may find that no draft pays
        assert sum(one.metrics.num_draft_tokens for one in others[::2]) > 0
    assert all(one.metrics.num_draft_tokens == 0 for one in others[1::2])
    assert {one.metrics.speculation.state for one in others[1::2]} == {"off"}
    assert others[1].metrics.speculation.reason == "the request asks for none"


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("method", ["draft", "ngram", "layer_skip", "adaptive draft", "eagle", "tree"])
def test_greedy_and_coupled_text_is_the_same_however_it_runs(plain, make_speculative, method, execution):
    if method == "tree" and execution == "window":
        pytest.skip("a tree may be deeper than this window, which is refused: see test_bad_input")
    if method == "eagle" and execution == "no cache":
        pytest.skip("refused: see test_bad_input")
    prompts, fields = some_prompts(14), EXECUTIONS[execution]
    params = [(GREEDY, SAMPLED)[number % 2] for number in range(len(prompts))]
    engine = make_speculative(METHODS[method] | {"verification": "coupled"}, **fields)
    other = {name: value for name, value in fields.items() if name in CHANGES_TEXT}
    wanted = expected(plain, make_speculative, execution if other else "any", params, prompts, **other)
    assert outcomes(engine, params, prompts) == wanted
    assert outcomes(engine, params, prompts) == wanted, "a second time, from the prefix cache"
    if execution == "preempted":
        assert engine.stats().num_preemptions > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["draft", "ngram", "suffix", "layer_skip", "eagle", "tree"])
def test_coupled_results_are_the_same_with_every_setting(plain, make_speculative, method, kind):
    prompts = some_prompts(9)
    engine = make_speculative(METHODS[method] | {"verification": "coupled"})
    wanted = expected(plain, make_speculative, f"kind {kind}", KINDS[kind], prompts)
    assert outcomes(engine, KINDS[kind], prompts) == wanted


def test_requests_of_every_kind_share_a_batch_with_each_other(plain, make_speculative):
    kinds = [params.replace(n=1) for params in KINDS.values()]
    prompts = some_prompts(len(kinds))
    wanted = expected(plain, make_speculative, "mixed", kinds, prompts)
    for method in ("draft", "ngram"):
        engine = make_speculative(METHODS[method] | {"verification": "coupled", "num_tokens": 3})
        assert outcomes(engine, kinds, prompts) == wanted


def test_drafts_are_really_made_and_some_are_rejected(make_speculative):
    few = GREEDY.replace(allowed_token_ids=(40, 50, 60))  # so that a random head is right now and then
    for method in METHODS:
        engine = make_speculative(METHODS[method])
        results = engine.generate(some_prompts(12), few if method == "eagle" else GREEDY)
        metrics = [result.metrics for result in results]
        accepted, drafted = sum(m.num_accepted_tokens for m in metrics), sum(m.num_draft_tokens for m in metrics)
        assert 0 < accepted < drafted, method
        for one in metrics:
            assert sum(one.drafts_accepted) == one.num_accepted_tokens <= sum(one.drafts_reached)
            for position in range(1, len(one.drafts_reached)):
                assert one.drafts_reached[position] <= one.drafts_accepted[position - 1]


def test_the_target_as_its_own_draft_is_always_right(make_speculative, tiny_model):
    for params in (GREEDY, SAMPLED):
        for verification in ("rejection", "coupled"):
            speculation = {"method": "draft", "num_tokens": 3, "verification": verification}
            engine = make_speculative(speculation, draft_model=str(tiny_model))
            for result in engine.generate(some_prompts(8), params.replace(max_tokens=21)):
                # one token from the prompt, then five times three drafts and a bonus
                assert result.metrics.drafts_reached == result.metrics.drafts_accepted == (5, 5, 5)
                assert result.metrics.num_bonus_tokens == 5


def test_one_step_ahead_changes_nothing(plain, make_speculative):
    prompts = some_prompts(14)
    params = [(GREEDY, SAMPLED)[number % 2] for number in range(len(prompts))]
    wanted = expected(plain, make_speculative, "any", params, prompts)
    for method in ("draft", "ngram"):
        engine = make_speculative(METHODS[method] | {"verification": "coupled", "max_batch_size": 4})
        engine._core.overlap = True
        assert outcomes(engine, params, prompts) == wanted
