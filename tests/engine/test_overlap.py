"""One step ahead: what is scheduled before the last tokens are read gives the tokens that it would have given after.

A CPU runs a launch at once, but what the host may know is the same as on a GPU: ids that were not collected stand in no
list, and only the tensor of the step in flight has them.
"""

import pytest
import torch

from playground import SamplingParams
from playground.engine.core import EngineCore
from playground.engine.executor import Executor, InFlightStep
from playground.engine.request import Request
from playground.engine.sampler import DrawnTokens
from tests.engine.told import told

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
TEXTS = ["Once upon a time", "Hello", "The fox could not sleep", "a"]
KINDS = {
    "greedy": GREEDY,
    "sampled": GREEDY.replace(temperature=1.0, seed=3, top_p=0.9),
    "repetition penalty": GREEDY.replace(repetition_penalty=1.5),
    "presence penalty": GREEDY.replace(presence_penalty=1.5),
    "frequency penalty": GREEDY.replace(temperature=1.0, seed=1, frequency_penalty=1.5),
    "min_tokens": GREEDY.replace(min_tokens=12, ignore_eos=False, stop_token_ids=tuple(range(0, 200, 2))),
    "stop tokens": GREEDY.replace(ignore_eos=False, stop_token_ids=tuple(range(0, 200, 7)), temperature=1.0, seed=5),
    "bias": GREEDY.replace(logit_bias={5: 3.0}, allowed_token_ids=tuple(range(60))),
    "logprobs": GREEDY.replace(logprobs=3, prompt_logprobs=2),
    "one token": GREEDY.replace(max_tokens=1),
    "parallel samples": GREEDY.replace(temperature=1.0, seed=9, n=3),
    "beams": GREEDY.replace(beam_width=3, ignore_eos=False, stop_token_ids=tuple(range(0, 200, 7)), logprobs=1),
}


def one_ahead(engine):
    engine._core.overlap = True
    return engine


def outcome(generation):
    """All that a caller gets; logprobs to nine digits, since a batch of another size rounds differently."""
    samples = generation.outputs or [generation]
    tokens = [(s.text, s.token_ids, s.finish_reason, rounded(s.logprobs)) for s in samples]
    return tokens, rounded(generation.prompt_logprobs)


def rounded(logprobs):
    if logprobs is None:
        return None
    return [entry and (entry.token_id, round(entry.logprob, 9), [t for t, _ in entry.top]) for entry in logprobs]


def outcomes(engine, params):
    results = engine.generate(TEXTS * len(params), [one for one in params for _ in TEXTS])
    assert engine.stats().kv_blocks_in_use == 0
    return [outcome(result) for result in results]


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_one_step_at_a_time(make_engine, kind):
    assert outcomes(one_ahead(make_engine()), [KINDS[kind]]) == outcomes(make_engine(), [KINDS[kind]])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_kv_blocks": 20, "max_num_batched_tokens": 8},
        {"kv_cache": "none"},
        {"batching": "static", "max_num_seqs": 3},
        {"sliding_window": 6, "max_num_batched_tokens": 5},
        {"prefix_caching": False, "block_size": 1, "num_kv_blocks": 80},
    ],
    ids=str,
)
def test_every_kind_of_request_may_run_beside_every_other(make_engine, fields):
    params = list(KINDS.values())
    assert outcomes(one_ahead(make_engine(**fields)), params) == outcomes(make_engine(**fields), params)


def test_a_stop_string_may_come_while_the_next_step_is_in_flight(make_engine):
    plain, engine = make_engine(), one_ahead(make_engine())
    text = plain.generate("Hello there", KINDS["sampled"])[0].text
    stop = next(text[i : i + 2] for i in range(3, len(text)) if text[i : i + 2].isascii())
    params = KINDS["sampled"].replace(stop=(stop,))
    expected = [outcome(result) for result in plain.generate(["Hello there", "Hello"], params)]
    assert expected[0][0][0][2] == "stop"
    for _ in range(2):  # the second time from a prefix cache that the surplus step must not have filled
        assert [outcome(result) for result in engine.generate(["Hello there", "Hello"], params)] == expected


class Watch:
    """Counts, for every launch, how many of its tokens the host did not know."""

    def __init__(self, engine, monkeypatch):
        self.num_pending: list[int] = []
        launch = engine._core.executor.launch

        def watched(output, before=None):
            self.num_pending.append(sum(one.end > one.request.num_tokens for one in output.scheduled))
            return launch(output, before)

        monkeypatch.setattr(engine._core.executor, "launch", watched)


def test_every_decode_is_launched_before_its_token_is_read(make_engine, monkeypatch):
    engine = one_ahead(make_engine())
    watch = Watch(engine, monkeypatch)
    engine.generate("Hello", GREEDY)
    assert watch.num_pending == [0] + [1] * (GREEDY.max_tokens - 1), "and nothing is launched for the last token"


@pytest.mark.parametrize("kind", ["repetition penalty", "presence penalty", "frequency penalty", "beams"])
def test_a_request_whose_draw_depends_on_its_tokens_waits_for_them(make_engine, monkeypatch, kind):
    engine = one_ahead(make_engine())
    watch = Watch(engine, monkeypatch)
    engine.generate("Hello", KINDS[kind].replace(stop_token_ids=()))
    assert watch.num_pending == [0] * GREEDY.max_tokens


def test_without_overlap_nothing_is_left_in_flight(make_engine, monkeypatch):
    engine = make_engine()
    engine._core.overlap = False
    watch = Watch(engine, monkeypatch)
    engine.generate(["Hello", "Once"], GREEDY)
    assert set(watch.num_pending) == {0}


def test_a_token_counts_as_received_when_it_is_read(make_engine):
    engine = one_ahead(make_engine())
    events = engine.events.subscribe()
    result = engine.generate("Hello", GREEDY)[0]
    steps = [event for event in told(engine, events) if type(event).__name__ == "StepEvent"]
    assert len(result.metrics.inter_token_latencies) == GREEDY.max_tokens - 1
    assert all(gap > 0 for gap in result.metrics.inter_token_latencies)
    assert [step.step for step in steps] == list(range(1, GREEDY.max_tokens + 1))
    assert [step.num_emitted_tokens for step in steps] == [1] * GREEDY.max_tokens
    assert all(step.forward_ns > 0 and step.post_ns >= 0 for step in steps)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["greedy", "sampled", "min_tokens", "bias", "beams"])
def test_on_a_gpu_a_launch_waits_for_nothing(make_engine, monkeypatch, kind):
    engine = make_engine(device="cuda", dtype="float32")
    engine.generate(TEXTS, KINDS[kind])  # compiles and records what there is to compile and record
    launch = engine._core.executor.launch

    def watched(output, before=None):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(output, before)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(engine._core.executor, "launch", watched)
    results = engine.generate(TEXTS, KINDS[kind])
    assert [result.error for result in results] == [None] * len(TEXTS)


# Failures


def drawing_lazily(engine, is_guilty, monkeypatch) -> None:
    """Give the engine a sampler that fails when the tokens of a guilty row are read, not when they are drawn."""
    sampler = engine._core.executor.sampler
    draw_really = sampler.draw

    def draw(logits, rows):
        tokens = draw_really(logits, rows).resolve()

        def resolve():
            if any(is_guilty(row) for row in rows):
                raise RuntimeError("injected while reading")
            return tokens

        return DrawnTokens(torch.tensor([token.token_id for token in tokens]), resolve)

    monkeypatch.setattr(sampler, "draw", draw)


@pytest.mark.parametrize("fields", [{}, {"kv_cache": "none"}], ids=str)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_read_that_fails_costs_only_the_request_that_causes_it(make_engine, monkeypatch, caplog, overlap, fields):
    expected = outcomes(make_engine(**fields), [GREEDY])
    engine = make_engine(**fields)
    engine._core.overlap = overlap
    drawing_lazily(engine, lambda row: row.params.seed == 66 and row.position > 9, monkeypatch)
    bad = engine.submit("Hello", GREEDY.replace(seed=66))
    assert outcomes(engine, [GREEDY]) == expected
    result = bad.result(timeout=30)
    assert result.finish_reason == "error" and "injected while reading" in result.error
    assert outcomes(engine, [GREEDY]) == expected
    assert not engine._core._suspects


def test_a_read_that_fails_once_costs_nobody(make_engine, monkeypatch, caplog):
    expected = outcomes(make_engine(), [GREEDY])
    engine = one_ahead(make_engine())
    collect, calls = engine._core.executor.collect, []

    def failing(step, *, may_rerun=True):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("injected once")
        return collect(step, may_rerun=may_rerun)

    monkeypatch.setattr(engine._core.executor, "collect", failing)
    assert outcomes(engine, [GREEDY]) == expected
    assert engine.stats().num_preemptions > 0, "who was in the unread steps computed them again"


def test_a_launch_that_fails_costs_only_the_request_that_causes_it(make_engine, monkeypatch, caplog):
    expected = outcomes(make_engine(), [GREEDY])
    engine = one_ahead(make_engine())
    model = engine._core.executor.model
    forward = model.forward

    def failing(batch, kv_cache):
        if 35 in batch.kv_lens_list:  # only the longest sequence gets there
            raise RuntimeError("injected at launch")
        return forward(batch, kv_cache)

    monkeypatch.setattr(model, "forward", failing)
    *good, bad = engine.generate([TEXTS[0], TEXTS[1], TEXTS[3], TEXTS[2]], GREEDY)
    assert [outcome(result) for result in good] == [expected[0], expected[1], expected[3]]
    assert bad.finish_reason == "error" and "injected at launch" in bad.error
    assert bad.token_ids == expected[2][0][0][1][: len(bad.token_ids)] and len(bad.token_ids) > 8
    assert len(caplog.records) == 1, "no further step is launched on what the failed one did not draw"
    assert engine.stats().kv_blocks_in_use == 0


def test_what_a_surplus_step_wrote_does_not_poison_the_next_owner_of_the_block(make_engine):
    """The step after the last token is launched before that token is known to be the last: its KV may be anything."""
    clean = make_engine(num_kv_blocks=12, prefix_caching=False).generate(TEXTS[2], GREEDY)[0].token_ids
    engine = one_ahead(make_engine(num_kv_blocks=12, prefix_caching=False))
    first = engine.generate(TEXTS[2], GREEDY)[0].token_ids
    ending = next(token for token in first if token not in engine.tokenizer(TEXTS[2]).input_ids)
    weights = engine._core.executor.model.weights
    poisoned = weights.embed.clone()
    whole, weights.embed = weights.embed, poisoned
    poisoned[ending] = float("nan")
    stopped = engine.generate(TEXTS[2], GREEDY.replace(stop_token_ids=(ending,)))[0]
    assert stopped.finish_reason == "stop" and stopped.error is None
    engine.generate("a", GREEDY.replace(max_tokens=1))  # a step later the surplus one is read and dropped
    kv_cache = engine._core.executor.kv_cache
    assert not any(kv.isnan().any() for kv in kv_cache.kv)
    weights.embed = whole
    assert first == clean and engine.generate(TEXTS[2], GREEDY)[0].token_ids == clean


def test_an_abort_reads_the_step_in_flight_before_it_gives_the_blocks_away(make_engine, monkeypatch):
    engine = one_ahead(make_engine(prefix_caching=False))
    first = engine.generate("Hello", GREEDY)[0].token_ids
    poisoned = first[3]
    weights, executor = engine._core.executor.model.weights, engine._core.executor
    weights.embed = weights.embed.clone()
    num_prompt, launch = len(engine.tokenizer("Hello").input_ids), executor.launch

    def aborting(output, before=None):
        if any(one.end == num_prompt + 4 for one in output.scheduled):
            weights.embed[poisoned] = float("nan")
            handle.cancel()
        return launch(output, before)

    monkeypatch.setattr(executor, "launch", aborting)
    handle = engine.submit("Hello", GREEDY)
    result = handle.result(timeout=10)
    assert result.finish_reason == "error" and "NaN" in result.error, "the step that was in flight had gone wrong"
    assert result.token_ids == first[:4]
    assert not any(kv.isnan().any() for kv in executor.kv_cache.kv)


def test_closing_and_failing_with_a_step_in_flight_answers_everybody(make_engine):
    engine = one_ahead(make_engine())
    handles = [engine.submit(text, GREEDY.replace(max_tokens=80)) for text in TEXTS]
    next(iter(handles[0]))
    engine.close()
    results = [handle.result(timeout=10) for handle in handles]
    assert all(r.finish_reason == "length" or "closed" in r.error for r in results)
    assert engine.stats().kv_blocks_in_use == 0


# Faults planted on purpose


def token_taken_from_the_wrong_row(monkeypatch):
    whole = InFlightStep.tokens_of
    monkeypatch.setattr(InFlightStep, "tokens_of", lambda self, ids: whole(self, ids).roll(1))


def token_of_the_host_used_in_place_of_the_device(monkeypatch):
    monkeypatch.setattr(InFlightStep, "tokens_of", lambda self, ids: torch.full((len(ids),), -1))


def position_of_the_draw_ignores_the_pending_token(monkeypatch):
    whole = Executor._sampling_row

    def row(self, one):
        made = whole(self, one)
        object.__setattr__(made, "position", one.request.num_tokens)
        return made

    monkeypatch.setattr(Executor, "_sampling_row", row)


def output_so_far_ignores_the_pending_token(monkeypatch):
    whole = Executor._sampling_row

    def row(self, one):
        made = whole(self, one)
        object.__setattr__(made, "output_token_ids", one.request.output_token_ids)
        return made

    monkeypatch.setattr(Executor, "_sampling_row", row)


def penalties_do_not_wait(monkeypatch):
    monkeypatch.setattr(Request, "draw_needs_ids", property(lambda self: False))


def penalties_do_not_wait_for_the_step_in_flight(monkeypatch):
    monkeypatch.setattr(EngineCore, "_needs_ids", lambda self: False)


FAULTS = [
    token_taken_from_the_wrong_row,
    token_of_the_host_used_in_place_of_the_device,
    position_of_the_draw_ignores_the_pending_token,
    output_so_far_ignores_the_pending_token,
    penalties_do_not_wait,
    penalties_do_not_wait_for_the_step_in_flight,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_changes_what_comes_out(fault, make_engine, monkeypatch, caplog):
    params = [KINDS[kind] for kind in ("greedy", "sampled", "repetition penalty", "frequency penalty", "min_tokens")]
    expected = outcomes(make_engine(), params)
    fault(monkeypatch)
    assert outcomes(one_ahead(make_engine()), params) != expected
