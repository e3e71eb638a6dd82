"""The prefix cache as its user meets it: equal tokens from every tier, pins, counts, failures, nothing left behind."""

import functools
import math
import time

import pytest
import torch

from playground import ConfigError, Engine, EngineConfig, PlaygroundError, RequestError, SamplingParams
from playground.engine.host_memory import HostMemory
from tests.engine.told import told

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SYSTEM = "You are a fox. Be brief and kind. "
PROMPTS = [SYSTEM + "Who are you?", SYSTEM + "Tell me a story", SYSTEM, "Once upon a time", SYSTEM + "Who are they?"]
TIERS = {
    "pool": {},
    "small pool": {"num_kv_blocks": 24, "max_num_batched_tokens": 16},
    "limited pool": {"prefix_cache_max_blocks": 3},
    "host": {"prefix_cache_max_blocks": 0, "prefix_cache_host_memory": 1 << 20},
    "small pool and little host memory": {"num_kv_blocks": 24, "prefix_cache_host_memory": 20_000},
    "sliding window": {"prefix_cache_max_blocks": 2, "prefix_cache_host_memory": 1 << 20, "sliding_window": 9},
}


@pytest.fixture(params=[False, True], ids=["one by one", "overlapped"])
def make_either_engine(make_engine, request):
    """Engines that read each step before the next one, and engines with a step always in flight."""

    def make(**fields):
        engine = make_engine(**fields)
        engine._core.overlap = request.param
        return engine

    return make


@pytest.fixture(scope="module")
def expected(tiny_model):
    """`expected(**fields)`: greedy tokens of the prompts without a prefix cache."""

    @functools.cache
    def run(**fields):
        plain = {"model": str(tiny_model), "device": "cpu", "dtype": "float64", "max_model_len": 128, "block_size": 4}
        with Engine(EngineConfig(**{**plain, "num_kv_blocks": 64, "prefix_caching": False, **fields})) as engine:
            return tokens(engine)

    return run


@pytest.fixture(scope="module")
def one_engine(tiny_model):
    plain = {"model": str(tiny_model), "device": "cpu", "dtype": "float64", "max_model_len": 128, "block_size": 4}
    with Engine(EngineConfig(**{**plain, "num_kv_blocks": 64, "max_num_batched_tokens": 16})) as engine:
        yield engine


@pytest.fixture
def engine(one_engine):
    """One engine for all tests that need nothing special of it; each gets it empty and leaves nothing in use."""
    yield one_engine
    for pinned in one_engine.pinned_prefixes():
        one_engine.unpin_prefix(pinned)
    one_engine.flush_prefix_cache()
    one_engine.generate("a", GREEDY.replace(max_tokens=1))
    stats = one_engine.stats()
    assert (stats.kv_blocks_in_use, stats.kv_blocks_pinned, stats.kv_blocks_cached) == (0, 0, 0)


def tokens(engine, prompts=PROMPTS, params=GREEDY):
    return [result.token_ids for result in engine.generate(prompts, params)]


def wait_for_stats(engine, holds) -> None:
    deadline = time.monotonic() + 10
    while not holds(engine.stats()):
        assert time.monotonic() < deadline, engine.stats()
        time.sleep(0.002)


@pytest.mark.parametrize("tier", TIERS)
def test_greedy_tokens_are_the_same_from_every_tier(make_either_engine, expected, tier):
    window = {name: value for name, value in TIERS[tier].items() if name == "sliding_window"}
    engine = make_either_engine(**TIERS[tier])
    for _ in range(3):
        assert tokens(engine) == expected(**window)
    for prompt, own in zip(PROMPTS, expected(**window), strict=True):
        assert tokens(engine, [prompt]) == [own]
    stats = engine.stats()
    assert stats.kv_blocks_in_use == 0 and stats.prefix_cache_hit_rate > 0
    if "host" in tier:
        assert stats.prefix_cache_host_tokens > 0, "the case is meant to restore"


def test_what_was_read_written_and_neither_adds_up_and_is_told_in_events(engine):
    events, before = engine.events.subscribe(), engine.stats()
    first, second = (engine.generate(PROMPTS[0], GREEDY)[0].metrics for _ in range(2))
    whole = (first.num_prompt_tokens - 1) // 4 * 4
    assert (first.num_cached_tokens, first.num_cache_write_tokens) == (0, first.num_prompt_tokens // 4 * 4)
    assert (second.num_cached_tokens, second.num_cache_write_tokens) == (whole, 0)
    ends = [e for e in told(engine, events) if type(e).__name__ == "RequestEvent" and e.state == "finished"]
    assert [(e.num_cached_tokens, e.num_cache_write_tokens) for e in ends] == [
        (0, first.num_cache_write_tokens),
        (whole, 0),
    ]
    stats = engine.stats()
    assert stats.prefix_cache_write_tokens - before.prefix_cache_write_tokens == first.num_cache_write_tokens
    assert stats.prefix_cache_device_tokens - before.prefix_cache_device_tokens == whole


def test_writes_survive_preemption_uncounted(make_engine):
    engine = make_engine(num_kv_blocks=18, max_num_batched_tokens=16)
    results = engine.generate(["a prompt of thirty-two characters", "b prompt of thirty-two characters"], GREEDY)
    assert engine.stats().num_preemptions > 0, "the case is meant to preempt"
    assert [r.metrics.num_cache_write_tokens for r in results] == [32, 32]


def test_breakpoints_keep_the_rest_out_of_the_cache(engine):
    params = GREEDY.replace(cache_breakpoints=(len(SYSTEM) + 1,))
    first = engine.generate(PROMPTS[0], params)[0].metrics
    assert first.num_cache_write_tokens == (len(SYSTEM) + 1) // 4 * 4
    assert engine.generate(PROMPTS[0], GREEDY)[0].metrics.num_cached_tokens == first.num_cache_write_tokens
    engine.flush_prefix_cache()
    nothing = engine.generate(PROMPTS[0], GREEDY.replace(cache_breakpoints=()))[0].metrics
    assert nothing.num_cache_write_tokens == 0 and engine.stats().kv_blocks_cached == 0


def test_a_salt_separates_equal_prompts_in_host_memory(make_engine):
    engine = make_engine(prefix_cache_max_blocks=0, prefix_cache_host_memory=1 << 20)
    mine, theirs = GREEDY.replace(cache_salt="mine"), GREEDY.replace(cache_salt="theirs")
    engine.generate(PROMPTS[0], mine)
    found = [engine.generate(PROMPTS[0], p)[0].metrics.num_cached_tokens for p in (theirs, GREEDY, mine)]
    assert found == [0, 0, (len(PROMPTS[0]) - 1) // 4 * 4]


def test_a_prefix_in_host_memory_survives_abort_and_preemption_of_its_owner(make_either_engine):
    engine = make_either_engine(num_kv_blocks=22, prefix_cache_max_blocks=0, prefix_cache_host_memory=1 << 20)
    handle = engine.submit(PROMPTS[0], GREEDY.replace(max_tokens=40))
    next(iter(handle))
    handle.cancel()
    handle.result(timeout=10)
    assert engine.generate(PROMPTS[0], GREEDY)[0].metrics.num_cached_tokens >= len(SYSTEM)
    alone = [tokens(engine, [prompt], GREEDY.replace(max_tokens=20))[0] for prompt in PROMPTS[:2]]
    assert engine.stats().num_preemptions == 0
    assert tokens(engine, PROMPTS[:2], GREEDY.replace(max_tokens=20)) == alone
    assert engine.stats().num_preemptions > 0 and engine.stats().kv_blocks_in_use == 0


def test_a_flush_forgets_host_memory_and_closing_gives_it_back(make_engine):
    engine = make_engine(prefix_cache_max_blocks=0, prefix_cache_host_memory=1 << 20)
    engine.generate(PROMPTS[0], GREEDY)
    engine.flush_prefix_cache()
    assert engine.generate(PROMPTS[0], GREEDY)[0].metrics.num_cached_tokens == 0
    memory = engine._core.executor.host_memory
    assert engine.config.prefix_cache_host_memory == memory.num_slots * memory.block_bytes <= 1 << 20
    engine.close()
    assert not memory._pieces


def test_tiers_work_in_the_type_of_the_kv_cache(make_engine, expected):
    fields = {"dtype": "float32", "kv_cache_dtype": "bfloat16"}
    engine = make_engine(prefix_cache_max_blocks=0, prefix_cache_host_memory=1 << 20, **fields)
    assert [tokens(engine) for _ in range(2)] == [expected(**fields)] * 2
    assert engine.stats().prefix_cache_host_tokens > 0


# Pinned prefixes


def test_a_pinned_prefix_is_computed_at_once_and_stays_whatever_comes(make_either_engine, expected):
    engine = make_either_engine(num_kv_blocks=30)
    pinned = engine.pin_prefix(SYSTEM)
    whole = len(SYSTEM) // 4
    assert (pinned.num_tokens, pinned.num_blocks, pinned.expires_in) == (whole * 4, whole, None)
    assert engine.pinned_prefixes() == [pinned]
    stats = engine.stats()
    assert (stats.kv_blocks_pinned, stats.kv_blocks_in_use) == (whole, 0)
    for letter in "abcdef":
        engine.generate(letter * 40, GREEDY)
    engine.flush_prefix_cache()
    results = engine.generate(PROMPTS, GREEDY)
    assert [result.token_ids for result in results] == expected()
    assert results[0].metrics.num_cached_tokens == whole * 4
    stats = engine.stats()
    assert stats.kv_blocks_in_use == 0 and stats.kv_blocks_pinned == whole
    assert stats.kv_blocks_cached + stats.kv_blocks_empty == stats.kv_blocks_total
    engine.unpin_prefix(pinned)
    engine.flush_prefix_cache()
    engine.generate("a", GREEDY)
    assert engine.stats().kv_blocks_pinned == 0 and engine.pinned_prefixes() == []
    assert engine.generate(PROMPTS[0], GREEDY)[0].metrics.num_cached_tokens == 0


def test_what_is_cached_already_is_pinned_without_computing(engine):
    engine.generate(SYSTEM, GREEDY)
    steps = engine.stats().steps
    first, second = engine.pin_prefix(SYSTEM), engine.pin_prefix(engine.tokenizer(SYSTEM).input_ids)
    assert engine.stats().steps == steps
    engine.unpin_prefix(first.pin_id)
    assert engine.pinned_prefixes() == [second], "two pins of one prefix count for themselves"


def test_a_pin_ends_with_its_time(engine, monkeypatch):
    pinned = engine.pin_prefix(SYSTEM, ttl=60)
    assert 50 < pinned.expires_in <= 60
    clock = engine._pins._clock
    monkeypatch.setattr(engine._pins, "_clock", lambda: clock() + 61)
    assert engine.pinned_prefixes() == []
    engine.generate("a", GREEDY)
    assert engine.stats().kv_blocks_pinned == 0
    with pytest.raises(RequestError, match=f"no prefix is pinned as {pinned.pin_id}"):
        engine.unpin_prefix(pinned)


def test_a_time_that_is_over_before_the_prefix_is_there_says_so(engine):
    with pytest.raises(RequestError, match="ttl=1e-06 seconds were over"):
        engine.pin_prefix(SYSTEM, ttl=1e-6)
    engine.generate("a", GREEDY)
    assert engine.stats().kv_blocks_pinned == 0


def test_a_salted_pin_serves_only_its_salt(engine):
    engine.pin_prefix(SYSTEM, cache_salt="mine")
    found = [
        engine.generate(PROMPTS[0], GREEDY.replace(cache_salt=salt))[0].metrics.num_cached_tokens
        for salt in ("theirs", None, "mine")
    ]
    assert found == [0, 0, len(SYSTEM) // 4 * 4]


def test_with_a_window_only_what_it_reaches_is_pinned(make_engine):
    engine = make_engine(sliding_window=9, num_kv_blocks=18)
    pinned = engine.pin_prefix(SYSTEM)
    assert (pinned.num_tokens, pinned.num_blocks) == (len(SYSTEM) // 4 * 4, 2)
    engine.generate(["b" * 30] * 4, GREEDY)
    assert engine.generate(PROMPTS[0], GREEDY)[0].metrics.num_cached_tokens == pinned.num_tokens


def test_a_request_that_fails_leaves_a_pinned_prefix_as_it_is(make_either_engine, expected, caplog):
    engine = make_either_engine()
    pinned = engine.pin_prefix(SYSTEM)
    model, bad = engine._core.executor.model, engine.tokenizer("~").input_ids[0]
    forward = model.forward

    def failing(batch, kv_cache):
        if (batch.token_ids == bad).any():
            raise RuntimeError("injected")
        return forward(batch, kv_cache)

    model.forward = failing
    assert engine.generate(SYSTEM + "~", GREEDY)[0].finish_reason == "error"
    result = engine.generate(PROMPTS[0], GREEDY)[0]
    assert result.metrics.num_cached_tokens == pinned.num_tokens and result.token_ids == expected()[0]


def test_a_prefix_that_cannot_be_computed_is_not_pinned(make_engine):
    engine = make_engine(max_num_batched_tokens=8)
    weights = engine._core.executor.model.weights
    weights.embed = weights.embed.clone()
    weights.embed[engine.tokenizer("~").input_ids[0]] = math.nan
    with pytest.raises(RequestError, match=r"could not be computed: .*NaN"):
        engine.pin_prefix(SYSTEM + "~~~~" + SYSTEM)
    wait_for_stats(engine, lambda stats: stats.kv_blocks_pinned == 0)
    assert engine.pinned_prefixes() == [] and engine.stats().kv_blocks_in_use == 0
    assert engine.generate(SYSTEM + "~~~~" + SYSTEM, GREEDY)[0].finish_reason == "error"


def test_a_pin_beyond_its_share_of_the_pool_is_refused_with_the_numbers(make_engine):
    engine = make_engine(num_kv_blocks=20, prefix_cache_max_pinned=0.4)
    engine.pin_prefix("a" * 20)
    with pytest.raises(RequestError) as error:
        engine.pin_prefix("b" * 17)
    text = sentence(error)
    assert "pinning 4 blocks" in text and "would pin 9 of the pool's 20" in text and "allows 8" in text
    engine.pin_prefix("a" * 20)  # the same blocks again cost nothing
    assert engine.stats().kv_blocks_pinned == 5


def test_a_request_too_large_beside_the_pins_is_refused_with_the_numbers_unless_it_shares_them(make_engine):
    engine = make_engine(num_kv_blocks=20)
    pinned = engine.pin_prefix(SYSTEM)
    with pytest.raises(RequestError) as error:
        engine.submit("b" * 50, GREEDY)
    assert "need 16 KV blocks" in sentence(error) and "8 of them pinned" in sentence(error)
    assert engine.generate(SYSTEM + "b" * 20, GREEDY)[0].finish_reason == "length"
    engine.unpin_prefix(pinned)
    assert engine.generate("b" * 50, GREEDY)[0].finish_reason == "length"


def test_a_pin_that_a_running_request_needs_the_room_of_is_refused(make_engine):
    engine = make_engine(num_kv_blocks=24)
    handle = engine.submit("b" * 20, GREEDY.replace(max_tokens=70))
    next(iter(handle))
    with pytest.raises(RequestError, match="would leave request 1, which needs up to 23"):
        engine.pin_prefix(SYSTEM)
    assert handle.result(timeout=30).finish_reason == "length"
    assert engine.pin_prefix(SYSTEM).num_blocks == 8


def sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert isinstance(error.value, PlaygroundError) and "\n" not in text and text.endswith("."), text
    return text


def test_a_pin_that_makes_no_sense_is_refused(engine):
    refusals = [
        ({"prompt": "abc"}, "3 tokens"),
        ({"prompt": ""}, "empty"),
        ({"prompt": [10**6] * 8}, "out of range"),
        ({"prompt": SYSTEM, "ttl": 0}, "ttl=0"),
        ({"prompt": SYSTEM, "ttl": math.nan}, "ttl=nan"),
        ({"prompt": SYSTEM, "ttl": "1"}, "ttl='1'"),
        ({"prompt": SYSTEM, "cache_salt": 5}, "cache_salt=5"),
    ]
    for arguments, said in refusals:
        with pytest.raises(RequestError) as error:
            engine.pin_prefix(**arguments)
        assert said in sentence(error)
    assert engine.pinned_prefixes() == [] and engine.stats().kv_blocks_pinned == 0


def test_without_a_prefix_cache_or_an_engine_nothing_can_be_pinned(make_engine):
    for fields in ({"prefix_caching": False}, {"kv_cache": "none"}):
        with pytest.raises(RequestError, match="prefix_caching is on"):
            make_engine(**fields).pin_prefix(SYSTEM)
    engine = make_engine()
    pinned = engine.pin_prefix(SYSTEM)
    engine.close()
    with pytest.raises(RequestError, match="closed"):
        engine.pin_prefix(SYSTEM)
    with pytest.raises(RequestError, match="closed"):
        engine.unpin_prefix(pinned)


# Bad input


@pytest.mark.parametrize("value", [5, "12", [0], [-1], [1.5], [True], ["a"], list(range(1, 18)), [2**40]], ids=str)
def test_breakpoints_that_are_none_are_refused(value):
    with pytest.raises(RequestError) as error:
        SamplingParams(cache_breakpoints=value)
    assert "cache_breakpoints" in sentence(error)


def test_a_breakpoint_behind_the_prompt_is_refused(engine):
    with pytest.raises(RequestError) as error:
        engine.submit("Hello", SamplingParams(cache_breakpoints=(2, 6)))
    assert "position 6, but the prompt has 5 tokens" in sentence(error)
    assert SamplingParams(cache_breakpoints=[9, 2, 2]).cache_breakpoints == (2, 9)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prefix_cache_max_blocks": -1}, "prefix_cache_max_blocks=-1"),
        ({"prefix_cache_max_pinned": 1.5}, "prefix_cache_max_pinned=1.5"),
        ({"prefix_cache_host_memory": -1}, "prefix_cache_host_memory=-1"),
        ({"prefix_cache_host_memory": 0.5}, "prefix_cache_host_memory=0.5"),
        ({"prefix_cache_host_memory": 1, "prefix_caching": False}, "needs prefix_caching"),
        ({"prefix_cache_dir": "x", "kv_cache": "none"}, "needs prefix_caching"),
        ({"prefix_cache_dir": ""}, "prefix_cache_dir=''"),
        ({"prefix_cache_dir_limit": 0}, "prefix_cache_dir_limit=0"),
    ],
    ids=str,
)
def test_a_cache_that_makes_no_sense_is_refused(fields, said):
    with pytest.raises(ConfigError) as error:
        EngineConfig(**fields)
    assert said in sentence(error)


@pytest.mark.parametrize(
    ("given", "said"), [(100, "100 bytes holds no KV block: one takes 2048"), (1 << 60, "more than the")], ids=str
)
def test_host_memory_that_holds_nothing_or_is_not_there_is_refused(tiny_model, given, said):
    from playground import Engine

    fields = {"device": "cpu", "dtype": "float64", "max_model_len": 64, "block_size": 4, "num_kv_blocks": 8}
    with pytest.raises(ConfigError) as error:
        Engine(EngineConfig(model=str(tiny_model), prefix_cache_host_memory=given, **fields))
    assert said in sentence(error)


# Failures


def test_blocks_zeroed_after_an_unreadable_step_are_not_saved_as_zeros(
    make_either_engine, expected, monkeypatch, caplog
):
    """The blocks of a rewound request are given up, evicted and wiped at once: what was full is saved before."""
    engine = make_either_engine(prefix_cache_max_blocks=0, prefix_cache_host_memory=1 << 20)
    executor, calls = engine._core.executor, []
    collect = executor.collect

    def failing(step, *, may_rerun=True):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("injected once")
        return collect(step, may_rerun=may_rerun)

    monkeypatch.setattr(executor, "collect", failing)
    assert [tokens(engine) for _ in range(2)] == [expected()] * 2
    assert engine.stats().num_preemptions > 0


def test_a_transfer_that_fails_costs_its_step_and_nothing_is_found_of_it(
    make_either_engine, expected, monkeypatch, caplog
):
    engine = make_either_engine(prefix_cache_max_blocks=0, prefix_cache_host_memory=1 << 20)
    assert tokens(engine) == expected()
    whole, faults = HostMemory.carry_out, [RuntimeError("injected")]

    def failing(self, transfers, kv_cache):
        if faults:
            raise faults.pop()
        whole(self, transfers, kv_cache)

    monkeypatch.setattr(HostMemory, "carry_out", failing)
    with pytest.raises(RequestError, match="injected"):
        engine.pin_prefix(SYSTEM)
    assert [tokens(engine) for _ in range(2)] == [expected()] * 2
    faults.append(RuntimeError("injected"))
    failed = engine.generate(PROMPTS, GREEDY)
    assert {result.finish_reason for result in failed} <= {"error", "length"}
    assert any("injected" in (result.error or "") for result in failed)
    assert [tokens(engine) for _ in range(2)] == [expected()] * 2
    assert engine.stats().kv_blocks_in_use == 0


def test_what_a_failed_request_read_is_forgotten_in_every_tier(make_engine, expected):
    engine = make_engine(prefix_cache_max_blocks=0, prefix_cache_host_memory=1 << 20)
    tokens(engine)
    engine.generate("a", GREEDY)  # the last evictions are carried out before it runs
    memory = engine._core.executor.host_memory
    for slot in range(len(engine._core.scheduler.tables.tier)):
        memory.slot(slot).fill_(math.nan)
    assert "NaN" in engine.generate(PROMPTS[0], GREEDY)[0].error
    again = engine.generate(PROMPTS[0], GREEDY)[0]
    assert again.error is None and again.token_ids == expected()[0]


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
def test_on_a_gpu_tiers_give_the_same_tokens(make_engine, overlap):
    fields = {"device": "cuda", "dtype": "float32"}
    plain = tokens(make_engine(prefix_caching=False, **fields))
    engine = make_engine(prefix_cache_max_blocks=0, prefix_cache_host_memory=1 << 20, **fields)
    engine._core.overlap = overlap
    assert [tokens(engine) for _ in range(3)] == [plain] * 3
    assert engine.stats().prefix_cache_host_tokens > 0
    assert engine._core.executor.host_memory.slot(0).is_pinned()
    assert not torch.isnan(engine._core.executor.kv_cache.block(1)).any()
