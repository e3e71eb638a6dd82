"""What must not happen: leaked blocks or threads, a request without an answer, one failure taking others along.

Every test with an engine runs twice: reading each step before the next one, and with a step always in flight.
"""

import json
import random
import subprocess
import sys
import threading
import time

import pytest
import torch

from playground import SamplingParams
from tests.engine.told import told

LONG = SamplingParams(max_tokens=100, ignore_eos=True, temperature=0)


@pytest.fixture(params=[False, True], ids=["one by one", "overlapped"])
def make_engine(make_engine, request):
    def make(**fields):
        engine = make_engine(**fields)
        engine._core.overlap = request.param
        return engine

    return make


def poison_token(engine, token_id: int) -> None:
    """A checkpoint whose embedding of one token is NaN: only requests that contain the token meet it."""
    engine._core.executor.model.weights.embed[token_id] = float("nan")


def untied(engine) -> None:
    """Give the output head its own weights, so that a poisoned embedding does not poison every logit."""
    weights = engine._core.executor.model.weights
    weights.embed = weights.embed.clone()


def test_two_hundred_threads_submitting_and_cancelling_leave_nothing_behind(make_engine):
    engine = make_engine(num_kv_blocks=40, max_num_batched_tokens=16)
    threads_before = threading.active_count()
    problems: list[str] = []

    def user(number: int) -> None:
        rng = random.Random(number)
        try:
            params = SamplingParams(max_tokens=rng.randint(1, 20), seed=number, n=rng.choice([1, 1, 2]))
            if number % 5 == 0:
                params = params.replace(beam_width=rng.choice([2, 3]), max_tokens=rng.randint(1, 10))
            handle = engine.submit("Hello " * rng.randint(1, 5), params)
            behaviour = rng.choice(["wait", "cancel now", "cancel later", "read one", "cancel twice"])
            if behaviour == "cancel now":
                handle.cancel()
            elif behaviour == "cancel later":
                time.sleep(rng.random() * 0.05)
                handle.cancel()
            elif behaviour == "read one":
                next(iter(handle), None)
                handle.cancel()
            elif behaviour == "cancel twice":
                handle.cancel()
                handle.cancel()
            engine.stats()
            result = handle.result(timeout=120)
            if result.finish_reason not in ("stop", "length", "abort"):
                problems.append(f"{number}: {result.finish_reason} {result.error}")
        except Exception as error:
            problems.append(f"{number}: {error!r}")

    threads = [threading.Thread(target=user, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    stats = engine.stats()
    assert (stats.kv_blocks_in_use, stats.num_running, stats.num_waiting) == (0, 0, 0)
    assert threading.active_count() == threads_before


def test_an_exception_inside_a_step_fails_only_the_request_that_causes_it(make_engine, caplog):
    engine = make_engine()
    model = engine._core.executor.model
    forward, bad_token = model.forward, engine.tokenizer("~").input_ids[0]

    def failing(batch, kv_cache):
        if (batch.token_ids == bad_token).any():
            raise RuntimeError("injected fault")
        return forward(batch, kv_cache)

    model.forward = failing
    good = [engine.submit("Hello there", LONG) for _ in range(3)]
    bad = engine.submit("Hello ~ there", LONG)
    result = bad.result(timeout=30)
    assert result.finish_reason == "error" and "injected fault" in result.error and "\n" not in result.error
    expected = [h.result(timeout=60) for h in good]
    assert [r.finish_reason for r in expected] == ["length"] * 3
    assert len({tuple(r.token_ids) for r in expected}) == 1
    assert engine.generate("Hello", LONG)[0].finish_reason == "length"
    assert engine.stats().kv_blocks_in_use == 0


def test_a_step_that_fails_for_everybody_answers_everybody_and_the_next_request_is_served(make_engine, caplog):
    engine = make_engine()
    model = engine._core.executor.model
    forward, broken = model.forward, threading.Event()

    def failing(batch, kv_cache):
        if broken.is_set():
            raise torch.OutOfMemoryError("not enough memory")
        return forward(batch, kv_cache)

    model.forward = failing
    handles = [engine.submit("Hello there", LONG) for _ in range(4)]
    next(iter(handles[0]))
    broken.set()
    results = [handle.result(timeout=30) for handle in handles]
    assert all(r.finish_reason == "error" and "not enough memory" in r.error for r in results)
    assert results[0].text != "" or results[0].token_ids, "what was said before the failure stays"
    broken.clear()
    assert engine.generate("Hello", LONG)[0].finish_reason == "length"
    assert engine.stats().kv_blocks_in_use == 0


def test_an_exception_in_bookkeeping_does_not_stop_the_engine(make_engine, caplog):
    engine = make_engine()
    update = engine._core.scheduler.update
    calls = []

    def failing(output, new_tokens):
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("injected")
        update(output, new_tokens)

    engine._core.scheduler.update = failing
    result = engine.submit("Hello there", LONG).result(timeout=30)
    assert result.finish_reason == "error" and "injected" in result.error
    assert engine.generate("Hello", LONG)[0].finish_reason == "length"
    assert engine.stats().kv_blocks_in_use == 0


def test_nan_logits_fail_one_request_and_leave_no_poison_in_its_blocks(make_engine):
    engine = make_engine(num_kv_blocks=30)
    clean = engine.generate("Hello there", LONG)[0].token_ids
    untied(engine)
    poison_token(engine, engine.tokenizer("~").input_ids[0])
    good = engine.submit("Hello there", LONG)
    bad = engine.submit("a long text with a ~ in the middle of it all", SamplingParams(max_tokens=8)).result(timeout=30)
    assert bad.finish_reason == "error" and "NaN" in bad.error
    assert good.result(timeout=60).token_ids == clean
    for _ in range(3):  # every block that the failed request wrote is used again
        assert engine.generate("Hello there", LONG)[0].token_ids == clean
    again = engine.submit("a long text with a ~ in the middle", SamplingParams(max_tokens=8)).result(timeout=30)
    assert again.finish_reason == "error", "a failed prompt must not have been cached as good"
    assert engine.stats().kv_blocks_in_use == 0


def test_aborting_in_any_phase_frees_everything(make_engine):
    engine = make_engine(num_kv_blocks=32, max_num_batched_tokens=2, max_num_seqs=2)
    prompt = "a prompt that takes many small steps to read"
    for delay in (0, 0.002, 0.01, 0.03, 0.1):
        handles = [engine.submit(prompt, SamplingParams(max_tokens=60, ignore_eos=True, n=2)) for _ in range(3)]
        handles.append(engine.submit(prompt, SamplingParams(max_tokens=20, beam_width=2, ignore_eos=True)))
        time.sleep(delay)
        for handle in handles:
            handle.cancel()
        assert {handle.result(timeout=20).finish_reason for handle in handles} <= {"abort", "length"}
    stats = engine.stats()
    assert (stats.kv_blocks_in_use, stats.num_waiting, stats.num_running) == (0, 0, 0)


def test_the_prefix_of_an_aborted_request_stays_cached(make_engine):
    engine = make_engine()
    handle = engine.submit("a shared prompt of some length", LONG)
    next(iter(handle))
    handle.cancel()
    handle.result(timeout=10)
    assert engine.generate("a shared prompt of some length", LONG)[0].metrics.num_cached_tokens > 20


def test_a_slow_listener_loses_old_events_and_never_slows_the_engine(engine):
    slow = engine.events.subscribe(maxlen=10)
    engine.generate(["Hello"] * 4, LONG)
    assert len(slow.drain()) == 10 and slow.num_dropped > 100
    engine.events.unsubscribe(slow)


def test_events_tell_the_whole_life_of_a_request(make_engine):
    engine = make_engine(num_kv_blocks=29, max_num_batched_tokens=16)
    events = engine.events.subscribe()
    results = engine.generate(["a prompt of twenty-two"] * 3, LONG.replace(max_tokens=80))
    drained = told(engine, events)
    steps = [event for event in drained if type(event).__name__ == "StepEvent"]
    states = [e.state for e in drained if type(e).__name__ == "RequestEvent" and e.request_id == results[2].request_id]
    blocks = [event for event in drained if type(event).__name__ == "BlockEvent"]
    assert [s.step for s in steps] == list(range(1, engine.stats().steps + 1))
    assert states[:3] == ["queued", "running", "first_token"] and states[-1] == "finished"
    assert "preempted" in states
    assert sum(s.num_emitted_tokens for s in steps) == sum(len(r.token_ids) for r in results)
    assert all(s.kv_blocks_in_use + s.kv_blocks_cached + s.kv_blocks_empty == 29 for s in steps)
    assert all(0 <= s.kv_slots_in_use <= s.kv_blocks_in_use * 4 for s in steps)
    held: dict[int, int] = {}
    for event in blocks:
        held[event.block_id] = event.ref_count
        assert event.request_id is not None
    assert not any(held.values()), "the block events alone tell that nothing is in use at the end"


MEMORY_SCRIPT = """
import gc, sys, psutil
from playground import Engine, EngineConfig, SamplingParams

def run():
    with Engine(EngineConfig(model=sys.argv[1], device="cpu", dtype="float32", load_format="dummy",
                             max_num_seqs=4, kv_cache_memory=64 * 2**20)) as engine:
        # All prompts in one step, each time: oneDNN keeps 32 kernels of 252 KiB for every new shape of a product.
        engine.pause()
        params = SamplingParams(max_tokens=8, ignore_eos=True)
        handles = [engine.submit([1, 2, 3] * 20, params) for _ in range(4)]
        engine.resume()
        for handle in handles:
            handle.result(60)
    del engine
    gc.collect()
    return psutil.Process().memory_info().rss

run()  # the first one also loads torch's own lazily made tables
print([run() for _ in range(20)])
"""


@pytest.mark.timeout(180)
def test_loading_and_closing_twenty_times_returns_the_memory(tmp_path):
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=512,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr[-2000:]
    resident = json.loads(done.stdout.strip().splitlines()[-1])
    assert max(resident[1:]) <= resident[0] * 1.05, [value >> 20 for value in resident]


LEFT_OPEN = """
import sys
from playground import Engine, EngineConfig, SamplingParams
engines = [Engine(EngineConfig(model=sys.argv[1], device="cpu", dtype="float32", num_kv_blocks=64)) for _ in range(2)]
params = SamplingParams(max_tokens=200, ignore_eos=True)
print(len(engines[0].generate([[5, 6, 7]], params)[0].token_ids), flush=True)
left_running = engines[1].submit([5, 6, 7], params.replace(max_tokens=240))
sys.exit(3)
"""


def test_a_program_that_leaves_engines_open_ends_in_order(tiny_model):
    command = [sys.executable, "-c", LEFT_OPEN, str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (3, "200\n", "")
