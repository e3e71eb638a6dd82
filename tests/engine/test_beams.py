"""Beam search through the whole engine, against `transformers.generate` in float64: same sequences, same scores."""

import functools
import gc
import itertools
import time

import pytest
import torch

from playground import Engine, EngineConfig, SamplingParams
from tests.checkpoints import VARIANTS, checkpoint, reference_model
from tests.engine.conftest import with_given_fields
from tests.engine.told import told
from tests.engine.transformers_beams import STOP_IDS, beam_search

PROMPTS = [(7, 30, 99, 12, 5), (11,), tuple(range(20, 51)), (250, 3, 3, 3, 17, 80, 41, 200, 6)]
EOS = 2
BEAMS = SamplingParams(beam_width=3, max_tokens=10, stop_token_ids=STOP_IDS, ignore_eos=True)


def closeness(variant: str) -> float:
    """transformers computes rotary angles in float32 whatever the model's type; learned positions are exact."""
    return 1e-12 if variant == "gpt2" else 1e-6


def check(generation, expected, variant: str) -> None:
    assert generation.error is None
    assert [sample.token_ids for sample in generation.outputs] == [ids for ids, _ in expected]
    scores = [score for _, score in expected]
    assert [sample.score for sample in generation.outputs] == pytest.approx(scores, rel=closeness(variant))


@pytest.fixture(scope="module")
def engine_of(pytestconfig):
    """`engine_of(variant, **fields)`: an engine over that checkpoint, closed with the module."""
    engines = []

    @functools.cache
    def make(variant: str, **fields) -> Engine:
        defaults = {"device": "cpu", "dtype": "float64", "block_size": 4, "max_model_len": 128}
        if fields.get("kv_cache") != "none":
            defaults["num_kv_blocks"] = 256
        given = with_given_fields(defaults, fields, pytestconfig)
        engines.append(Engine(EngineConfig(model=str(checkpoint(variant)), **given)))
        return engines[-1]

    yield make
    gc.freeze()  # closing collects garbage: what all the libraries made is none
    for engine in engines:
        engine.close()
    gc.unfreeze()


# The oracle


@pytest.mark.parametrize("width", [2, 3, 4, 5])
def test_every_length_penalty_and_stopping_rule_gives_what_transformers_finds(engine_of, width):
    rules = list(itertools.product((0.0, 1.0, 2.0, -1.0), (False, True, "never")))
    params = [BEAMS.replace(beam_width=width, length_penalty=p, early_stopping=stop) for p, stop in rules]
    results = engine_of("gpt2").generate([list(PROMPTS[0])] * len(rules), params)
    found = {}
    for (penalty, stop), result in zip(rules, results, strict=True):
        expected = beam_search("gpt2", PROMPTS[0], width, 10, STOP_IDS, length_penalty=penalty, early_stopping=stop)
        check(result, expected, "gpt2")
        found[penalty, stop] = [(sample.token_ids, sample.finish_reason) for sample in result.outputs]
    assert any(reason == "stop" for one in found.values() for _, reason in one), "the case is meant to end beams"
    assert len({str(one) for one in found.values()}) > 1, "and the rules to matter"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_finds_what_transformers_finds_and_stops_when_it_does(engine_of, variant):
    rules = [{"early_stopping": stop, "length_penalty": penalty} for stop in (True, False) for penalty in (1.0, -1.0)]
    results = engine_of(variant).generate([list(PROMPTS[0])] * 4, [BEAMS.replace(beam_width=4, **r) for r in rules])
    for rule, result in zip(rules, results, strict=True):
        check(result, beam_search(variant, PROMPTS[0], 4, 10, STOP_IDS, **rule), variant)


EXECUTIONS = {
    "whole prompts, one search at a time": {"max_num_seqs": 3, "chunked_prefill": False},
    "chunks of 5": {"max_num_batched_tokens": 5},
    "one token a step": {"max_num_batched_tokens": 1},
    "one ragged batch": {"max_num_seqs": 32},
    "preempted and resumed": {"num_kv_blocks": 28, "max_num_batched_tokens": 24, "prefix_caching": False},
    "preempted, resumed from cached prefixes": {"num_kv_blocks": 28, "max_num_batched_tokens": 24},
    "contiguous cache": {"kv_cache": "contiguous"},
    "contiguous cache, preempted": {"kv_cache": "contiguous", "num_kv_blocks": 128},
    "no cache": {"kv_cache": "none"},
    "static batching": {"batching": "static", "max_num_seqs": 7},
    "blocks of one token": {"block_size": 1, "num_kv_blocks": 512},
    "naive attention": {"attention": "naive"},
}


@pytest.mark.parametrize("overlap", [False, True], ids=["one by one", "overlapped"])
@pytest.mark.parametrize(
    ("variant", "execution"),
    [("gpt2", execution) for execution in EXECUTIONS]
    + [("mistral", execution) for execution in EXECUTIONS if "preempted" in execution or "chunks" in execution],
)
def test_however_it_runs_a_search_finds_what_transformers_finds(engine_of, variant, execution, overlap):
    engine = engine_of(variant, **EXECUTIONS[execution])
    engine._core.overlap = overlap
    preemptions = engine.stats().num_preemptions
    beside = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    handles, others = [], []
    for prompt in PROMPTS:
        handles.append(engine.submit(list(prompt), BEAMS))
        others.append(engine.submit(list(prompt), beside))
    for prompt, handle in zip(PROMPTS, handles, strict=True):
        check(handle.result(timeout=60), beam_search(variant, prompt, 3, 10, STOP_IDS), variant)
    alone = engine_of(variant).generate([list(prompt) for prompt in PROMPTS], beside)
    assert [other.result(timeout=60).token_ids for other in others] == [one.token_ids for one in alone]
    if "preempted" in execution and variant == "gpt2":
        assert engine.stats().num_preemptions > preemptions, "the case is meant to preempt"
    assert engine.stats().kv_blocks_in_use == 0


@pytest.mark.parametrize("variant", ["gpt2", "qwen3"])
def test_a_search_from_a_cached_prefix_finds_the_same(engine_of, variant):
    engine = engine_of(variant)
    engine.flush_prefix_cache()
    first, again = (engine.generate(list(PROMPTS[2]), BEAMS)[0] for _ in range(2))
    assert (first.metrics.num_cached_tokens, again.metrics.num_cached_tokens) == (0, 28)
    check(again, beam_search(variant, PROMPTS[2], 3, 10, STOP_IDS), variant)
    best = first.outputs[0].token_ids
    longer = engine.generate([*PROMPTS[2], *best], BEAMS)[0]
    assert longer.metrics.num_cached_tokens > 28, "what beams computed may be hit, if by their own tokens alone"
    check(longer, beam_search(variant, (*PROMPTS[2], *best), 3, 10, STOP_IDS), variant)


def allowed_only(batch_id, input_ids):
    return ALLOWED


ALLOWED = list(range(2, 60))
RULES = {
    "eos": ({"logit_bias": {EOS: 2.5}}, {"sequence_bias": {(EOS,): 2.5}}),
    "min_tokens": (
        {"logit_bias": {EOS: 6.0}, "min_tokens": 4},
        {"sequence_bias": {(EOS,): 6.0}, "min_new_tokens": 4},
    ),
    "repetition penalty": (
        {"logit_bias": {EOS: 2.5}, "repetition_penalty": 1.4},
        {"sequence_bias": {(EOS,): 2.5}, "repetition_penalty": 1.4},
    ),
    "allowed tokens": ({"allowed_token_ids": ALLOWED}, {"prefix_allowed_tokens_fn": allowed_only}),
    "all": (
        {"allowed_token_ids": ALLOWED, "repetition_penalty": 1.4, "min_tokens": 3, "logit_bias": {9: 1.5, EOS: 3.0}},
        {
            "prefix_allowed_tokens_fn": allowed_only,
            "repetition_penalty": 1.4,
            "min_new_tokens": 3,
            "sequence_bias": {(9,): 1.5, (EOS,): 3.0},
        },
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("variant", ["gpt2", "llama-3"])
def test_token_rules_act_on_log_probabilities_as_processors_of_transformers_do(engine_of, variant, rule):
    ours, theirs = RULES[rule]
    params = SamplingParams(beam_width=4, max_tokens=9, **ours)
    results = engine_of(variant).generate([list(prompt) for prompt in PROMPTS[:2]], params)
    for prompt, result in zip(PROMPTS[:2], results, strict=True):
        check(result, beam_search.__wrapped__(variant, prompt, 4, 9, (EOS,), **theirs), variant)
    reasons = [sample.finish_reason for result in results for sample in result.outputs]
    assert rule == "allowed tokens" or "stop" in reasons
    if "min_tokens" in ours:
        assert min(len(sample.token_ids) for result in results for sample in result.outputs) > ours["min_tokens"]


def test_the_models_own_length_is_a_limit_too(engine_of):
    engine = engine_of("gpt2", max_model_len=40, num_kv_blocks=128)
    result = engine.generate(
        list(PROMPTS[2]), BEAMS.replace(max_tokens=100, early_stopping="never", length_penalty=2.0)
    )
    expected = beam_search("gpt2", PROMPTS[2], 3, 9, STOP_IDS, early_stopping="never", length_penalty=2.0)
    check(result[0], expected, "gpt2")


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_the_shortest_searches(engine_of, max_tokens):
    result = engine_of("gpt2").generate(list(PROMPTS[1]), BEAMS.replace(max_tokens=max_tokens))[0]
    check(result, beam_search("gpt2", PROMPTS[1], 3, max_tokens, STOP_IDS), "gpt2")


# What the caller gets


def test_outputs_are_the_best_sequences_with_their_probabilities(engine_of):
    engine = engine_of("gpt2")
    params = BEAMS.replace(
        beam_width=4, logprobs=3, prompt_logprobs=2, length_penalty=2.0, logit_bias={9: 3.0}, repetition_penalty=1.3
    )
    result = engine.generate(list(PROMPTS[0]), params)[0]
    assert len(result.outputs) == 4
    best = result.outputs[0]
    assert (result.text, result.token_ids, result.finish_reason) == (best.text, best.token_ids, best.finish_reason)
    assert result.logprobs == best.logprobs and result.metrics.num_output_tokens == len(best.token_ids)
    scores = [sample.score for sample in result.outputs]
    assert scores == sorted(scores, reverse=True)
    for sample in result.outputs:
        logprobs = own_logprobs([*PROMPTS[0], *sample.token_ids])[len(PROMPTS[0]) - 1 :]
        own = logprobs.gather(1, torch.tensor(sample.token_ids)[:, None]).squeeze(1)
        assert sample.cumulative_logprob == pytest.approx(own.sum().item(), abs=1e-9), "unpenalised, unbiased"
        assert [entry.token_id for entry in sample.logprobs] == sample.token_ids
        assert [entry.logprob for entry in sample.logprobs] == pytest.approx(own.tolist(), abs=1e-9)
        ranks = 1 + (logprobs[: len(own)] > own[:, None]).sum(-1)
        assert [entry.rank for entry in sample.logprobs] == ranks.tolist()
        assert [[t for t, _ in e.top] for e in sample.logprobs] == logprobs.topk(3).indices[: len(own)].tolist()
        assert engine.tokenizer.decode(sample.token_ids, skip_special_tokens=True) == sample.text or sample.text
        plain = sample.cumulative_logprob / len(sample.token_ids) ** 2
        assert sample.score != pytest.approx(plain), "the score is of what the rules made of the log-probabilities"
    entries = result.prompt_logprobs
    assert entries[0] is None and [entry.token_id for entry in entries[1:]] == list(PROMPTS[0])[1:]


@functools.cache
def double_model(variant):
    import copy

    return copy.deepcopy(reference_model(variant)).double()


def own_logprobs(token_ids):
    with torch.no_grad():
        return double_model("gpt2")(torch.tensor([token_ids])).logits[0].log_softmax(-1)


def test_without_rules_the_score_is_the_penalised_sum_and_stays_the_same_with_logprobs(engine_of):
    engine = engine_of("gpt2")
    plain = engine.generate(list(PROMPTS[0]), BEAMS.replace(length_penalty=0.7))[0]
    told = engine.generate(list(PROMPTS[0]), BEAMS.replace(length_penalty=0.7, logprobs=0))[0]
    for sample, with_logprobs in zip(plain.outputs, told.outputs, strict=True):
        assert sample.score == pytest.approx(sample.cumulative_logprob / len(sample.token_ids) ** 0.7, abs=1e-12)
        assert sample.logprobs is None and len(with_logprobs.logprobs) == len(sample.token_ids)
        assert sample.cumulative_logprob == pytest.approx(sum(e.logprob for e in with_logprobs.logprobs), abs=1e-12)
        assert (sample.token_ids, sample.score) == (with_logprobs.token_ids, with_logprobs.score)


def test_n_asks_for_fewer_sequences_than_beams(engine_of):
    engine = engine_of("gpt2")
    whole, two = (engine.generate(list(PROMPTS[3]), BEAMS.replace(beam_width=4, n=n))[0] for n in (1, 2))
    assert (len(whole.outputs), len(two.outputs)) == (4, 2)
    assert [s.token_ids for s in two.outputs] == [s.token_ids for s in whole.outputs[:2]]


def test_the_handle_hears_of_all_sequences_at_the_end_by_rank(engine_of):
    handle = engine_of("gpt2").submit(list(PROMPTS[0]), BEAMS)
    deltas = list(handle)
    result = handle.result(timeout=10)
    assert [(d.index, list(d.token_ids), d.text, d.finish_reason) for d in deltas] == [
        (rank, s.token_ids, s.text, s.finish_reason) for rank, s in enumerate(result.outputs)
    ]


def test_where_few_tokens_are_left_there_are_as_many_beams_as_there_can_be(engine_of):
    engine = engine_of("gpt2")
    params = SamplingParams(beam_width=5, max_tokens=3, allowed_token_ids=[50, 60], ignore_eos=True)
    result = engine.generate(list(PROMPTS[0]), params)[0]
    assert len(result.outputs) == 5 and len({tuple(s.token_ids) for s in result.outputs}) == 5, "of eight there are"
    one = engine.generate(list(PROMPTS[0]), params.replace(allowed_token_ids=[50]))[0]
    assert [s.token_ids for s in one.outputs] == [[50, 50, 50]]
    ended = engine.generate(list(PROMPTS[0]), params.replace(allowed_token_ids=[50], stop_token_ids=[50]))[0]
    assert [(s.token_ids, s.finish_reason) for s in ended.outputs] == [([50], "stop")]
    assert engine.stats().kv_blocks_in_use == 0


# Ends


def test_a_cancelled_search_returns_what_it_has_and_frees_everything(engine_of):
    engine = engine_of("gpt2", max_num_batched_tokens=5)
    engine._core.overlap = False
    for delay in (0, 0.002, 0.01, 0.03):
        handles = [engine.submit(list(PROMPTS[2]), BEAMS.replace(max_tokens=90, early_stopping="never")) for _ in "abc"]
        time.sleep(delay)
        for handle in handles:
            handle.cancel()
        for handle in handles:
            result = handle.result(timeout=20)
            assert result.finish_reason in ("abort", "stop", "length")
            if result.finish_reason == "abort":
                assert {sample.finish_reason for sample in result.outputs} == {"abort"}
                scores = [sample.score for sample in result.outputs]
                assert scores == sorted(scores, reverse=True)
    stats = engine.stats()
    assert (stats.kv_blocks_in_use, stats.num_waiting, stats.num_running) == (0, 0, 0)


def tokens_of(result):
    return {*result.prompt_token_ids, *(token for sample in result.outputs for token in sample.token_ids)}


def test_a_beam_that_fails_ends_its_search_and_nobody_elses(engine_of):
    engine = engine_of("llama-2")
    weights = engine._core.executor.model.weights
    clean = engine.generate([list(PROMPTS[0]), list(PROMPTS[3])], BEAMS)
    poisoned = next(t for s in clean[0].outputs for t in s.token_ids[1:-1] if t not in tokens_of(clean[1]))
    kept = weights.embed[poisoned].clone()
    weights.embed[poisoned] = float("nan")
    bad, good = engine.generate([list(PROMPTS[0]), list(PROMPTS[3])], BEAMS)
    assert bad.finish_reason == "error" and "NaN" in bad.error
    assert [s.token_ids for s in good.outputs] == [s.token_ids for s in clean[1].outputs]
    weights.embed[poisoned] = kept
    again = engine.generate([list(PROMPTS[0]), list(PROMPTS[3])], BEAMS)
    assert [[s.token_ids for s in one.outputs] for one in again] == [
        [s.token_ids for s in one.outputs] for one in clean
    ]
    assert engine.stats().kv_blocks_in_use == 0


def test_rules_that_leave_no_token_fail_the_search_with_the_reason(engine_of):
    engine = engine_of("gpt2")
    result = engine.generate([5, 6], SamplingParams(beam_width=2, allowed_token_ids=[EOS], min_tokens=2))[0]
    assert result.finish_reason == "error" and "leave no token" in result.error
    assert engine.stats().kv_blocks_in_use == 0


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_that_cannot_be_read_costs_a_search_nothing(engine_of, overlap, monkeypatch, caplog):
    engine = engine_of("gpt2", max_num_batched_tokens=5)
    engine._core.overlap = overlap
    collect, calls = engine._core.executor.collect, []

    def failing(step, *, may_rerun=True):
        calls.append(1)
        if len(calls) in (3, 6):
            raise RuntimeError("injected")
        return collect(step, may_rerun=may_rerun)

    monkeypatch.setattr(engine._core.executor, "collect", failing)
    results = engine.generate([list(prompt) for prompt in PROMPTS], BEAMS)
    for prompt, result in zip(PROMPTS, results, strict=True):
        check(result, beam_search("gpt2", prompt, 3, 10, STOP_IDS), "gpt2")
    assert engine.stats().kv_blocks_in_use == 0 and not engine._core._suspects


def test_closing_the_engine_answers_a_search(pytestconfig):
    fields = with_given_fields({"device": "cpu", "dtype": "float64", "num_kv_blocks": 128}, {}, pytestconfig)
    engine = Engine(EngineConfig(model=str(checkpoint("gpt2")), **fields))
    handles = [engine.submit(list(prompt), BEAMS.replace(max_tokens=100)) for prompt in PROMPTS]
    engine.close()
    assert all(handle.result(timeout=10).finish_reason in ("error", "stop", "length") for handle in handles)
    assert engine.stats().kv_blocks_in_use == 0


# Blocks


def test_beams_share_blocks_and_copy_only_part_filled_ones(engine_of):
    engine = engine_of("gpt2")
    events = engine.events.subscribe()
    result = engine.generate(list(PROMPTS[2]), BEAMS.replace(max_tokens=12, stop_token_ids=()))[0]
    drained = told(engine, events)
    engine.events.unsubscribe(events)
    blocks = [event for event in drained if type(event).__name__ == "BlockEvent"]
    copies = [event for event in blocks if event.action == "copy"]
    assert copies and all(event.source_block_id not in (None, event.block_id) for event in copies)
    assert all(event.ref_count == 1 for event in copies)
    held: dict[int, int] = {}
    most = 0
    for event in blocks:
        held[event.block_id] = event.ref_count
        most = max(most, sum(count > 0 for count in held.values()))
    assert not any(held.values()), "the block events alone tell that nothing is in use at the end"
    metrics = result.metrics
    assert metrics.kv_blocks_peak <= most < metrics.kv_blocks_private
    assert metrics.kv_blocks_private == 3 * -(-(31 + 11) // 4), "three beams, each as long as the longest"
    steps = [event for event in drained if type(event).__name__ == "StepEvent"]
    assert all(0 <= step.kv_slots_in_use <= step.kv_blocks_in_use * 4 for step in steps)
    assert [step.num_emitted_tokens for step in steps] == [1] + [3] * 11


def test_a_search_that_fits_only_because_its_beams_share_the_prompt_is_served(engine_of):
    """31 prompt tokens fill 7 blocks of 4; each of 3 beams may need 4 more for its last 11 tokens but one."""
    params = BEAMS.replace(max_tokens=12, stop_token_ids=())
    exact = engine_of("gpt2", num_kv_blocks=19)
    for _ in range(2):
        check(exact.generate(list(PROMPTS[2]), params)[0], beam_search("gpt2", PROMPTS[2], 3, 12), "gpt2")
    assert exact.stats().kv_blocks_in_use == 0
