"""Bad input gets one clear sentence, and the engine goes on."""

import math

import pytest

from playground import ConfigError, Engine, EngineConfig, ModelLoadError, PlaygroundError, RequestError, SamplingParams


def sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert isinstance(error.value, PlaygroundError)
    assert "\n" not in text and 15 < len(text) < 500, text
    assert text.endswith((".", "?")), text
    return text


@pytest.fixture
def engine(make_engine):
    """Whatever a test does to it, the engine serves the next request and has nothing left in use."""
    engine = make_engine()
    yield engine
    assert engine.generate("Hi", SamplingParams(max_tokens=2, ignore_eos=True))[0].finish_reason == "length"
    assert engine.stats().kv_blocks_in_use == 0


NUMBERS = [math.nan, math.inf, -math.inf, -1, -0.5, 10**30, -(10**30), "1", None, [1], True, object()]
CAN_BE_NONE = {"seed", "logprobs", "prompt_logprobs"}
MAY_BE_NEGATIVE = {"presence_penalty", "frequency_penalty", "seed", "length_penalty"}
FIELDS = [
    "max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "n", "beam_width", "length_penalty", "logprobs", "prompt_logprobs",
]  # fmt: skip


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: "object" if type(value) is object else repr(value))
@pytest.mark.parametrize("field", FIELDS)
def test_every_number_of_the_sampling_params_is_checked(field, value):
    if (value is None and field in CAN_BE_NONE) or (value in (-1, -0.5) and field in MAY_BE_NEGATIVE):
        return
    with pytest.raises(RequestError) as error:
        SamplingParams(**{field: value})
    assert field in sentence(error)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temprature": 1}, "temprature"),
        ({"stop": ""}, "empty"),
        ({"stop": ["fine", ""]}, "empty"),
        ({"stop": "x" * 10_240}, "10240"),
        ({"stop": ["a"] * 17}, "17"),
        ({"stop": 5}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"stop_token_ids": 3}, "stop_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"logit_bias": {"AI": 1}}, "AI"),
        ({"logit_bias": {3: math.nan}}, "logit_bias[3]"),
        ({"logit_bias": {3: 1e9}}, "logit_bias[3]"),
        ({"logit_bias": [3]}, "logit_bias"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens=9"),
        ({"n": 2, "temperature": 0}, "n=2"),
        ({"beam_width": 4, "temperature": 0.7}, "leave temperature out"),
        ({"beam_width": 4, "temperature": 1.0}, "leave temperature out"),
        ({"beam_width": 4, "top_k": 5}, "top_k=5"),
        ({"beam_width": 4, "top_p": 0.9}, "top_p=0.9"),
        ({"beam_width": 4, "min_p": 0.1}, "min_p=0.1"),
        ({"beam_width": 4, "stop": "."}, "stop_token_ids"),
        ({"beam_width": 4, "n": 5}, "n=5"),
        ({"beam_width": 129}, "128"),
        ({"beam_width": 4, "early_stopping": "always"}, "'never'"),
        ({"beam_width": 4, "early_stopping": 1}, "'never'"),
        ({"beam_width": 4, "length_penalty": 51}, "50"),
        ({"length_penalty": 2.0}, "beam_width"),
        ({"early_stopping": True}, "beam_width"),
        ({"early_stopping": "never"}, "beam_width"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"cache_salt": "x" * 1000}, "cache_salt"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_sampling_params_say_what_is_wrong(fields, said):
    with pytest.raises(RequestError) as error:
        SamplingParams(**fields)
    assert said in sentence(error)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "empty"),
        ([], "empty"),
        ([0, 10**6], "out of range"),
        ([-1], "out of range"),
        ([1.5], "whole numbers"),
        ([True], "whole numbers"),
        (["a"], "whole numbers"),
        (None, "NoneType"),
        (b"bytes", "bytes"),
        (5, "int"),
        ("x" * 128, "128"),
        ("x" * 129, "at most 127"),
        ("\ud800", "Unicode"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_prompts_that_cannot_be_served_are_refused_at_submit(engine, prompt, said):
    with pytest.raises(RequestError) as error:
        engine.submit(prompt)
    assert said in sentence(error)


def test_the_longest_possible_prompt_still_gets_one_token(engine):
    result = engine.generate("x" * 127, SamplingParams(max_tokens=50, ignore_eos=True))[0]
    assert (len(result.token_ids), result.finish_reason) == (1, "length")


def test_a_request_that_can_never_fit_the_pool_is_refused_with_the_numbers(make_engine):
    engine = make_engine(num_kv_blocks=10)
    with pytest.raises(RequestError) as error:
        engine.submit("x" * 30, SamplingParams(max_tokens=12))
    text = sentence(error)
    assert "need 11 KV blocks" in text and "has 10" in text
    assert len(engine.generate("x" * 30, SamplingParams(max_tokens=11, ignore_eos=True))[0].token_ids) == 11


def test_beams_are_not_streamed(engine):
    with pytest.raises(RequestError) as error:
        engine.stream("Hi", SamplingParams(beam_width=2))
    assert "beam_width=2" in sentence(error) and "submit().result()" in str(error.value)


def test_more_beams_than_sequences_at_once_are_refused(engine):
    with pytest.raises(RequestError) as error:
        engine.submit("Hi", SamplingParams(beam_width=9))
    assert "beam_width=9" in sentence(error) and "max_num_seqs=8" in str(error.value)
    assert engine.generate("Hi", SamplingParams(beam_width=8, max_tokens=3))[0].error is None


def test_beams_that_can_never_fit_the_pool_are_refused_with_the_numbers(make_engine):
    engine = make_engine(num_kv_blocks=19)
    params = SamplingParams(beam_width=3, max_tokens=12)
    with pytest.raises(RequestError) as error:
        engine.submit("x" * 31, params.replace(max_tokens=15))
    text = sentence(error)
    assert "in 3 beams need 22 KV blocks" in text and "has 19" in text and "lower beam_width" in text
    assert engine.generate("x" * 31, params)[0].error is None
    assert engine.stats().kv_blocks_in_use == 0


@pytest.mark.parametrize("field", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_ids_outside_the_vocabulary_are_refused(engine, field):
    value = {10**6: 1.0} if field == "logit_bias" else [10**6]
    with pytest.raises(RequestError) as error:
        engine.submit("Hi", SamplingParams(**{field: value}))
    assert field in sentence(error) and "1000000" in str(error.value)


def test_params_of_another_type_are_refused(engine):
    with pytest.raises(RequestError) as error:
        engine.submit("Hi", {"max_tokens": 3})
    assert "SamplingParams" in sentence(error)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "Hello",
        [{"role": "user"}],
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": "x", "name": "y"}],
        ["Hello"],
    ],
    ids=str,
)
def test_conversations_are_checked(engine, messages):
    with pytest.raises(RequestError) as error:
        engine.chat(messages)
    sentence(error)


def test_bytes_that_are_not_utf8_split_over_tokens_stay_one_valid_text(engine):
    ids = [engine.tokenizer.convert_tokens_to_ids(t) for t in engine.tokenizer.backend_tokenizer.encode("é€😀").tokens]
    broken = [ids[0], ids[2], ids[3], ids[6], ids[0]]  # lead bytes without their continuations
    for token_id in broken:
        params = SamplingParams(allowed_token_ids=broken, max_tokens=9, temperature=1, seed=token_id)
        handle = engine.submit("Hi", params)
        text = "".join(delta.text for delta in handle)
        assert text == handle.result().text and text.encode("utf-8").decode("utf-8") == text and "\ufffd" in text


CONFIGS = [
    ({"modell": "x"}, "modell"),
    ({"device": "tpu"}, "device"),
    ({"dtype": "int3"}, "dtype"),
    ({"max_num_seqs": 0}, "max_num_seqs"),
    ({"max_num_seqs": "8"}, "max_num_seqs"),
    ({"block_size": -1}, "block_size"),
    ({"num_kv_blocks": 0}, "num_kv_blocks"),
    ({"kv_cache_memory": 1.5}, "kv_cache_memory"),
    ({"kv_cache_memory": -3}, "kv_cache_memory"),
    ({"kv_cache_memory": math.nan}, "kv_cache_memory"),
    ({"kv_cache": "virtual"}, "kv_cache"),
    ({"prefix_cache_ttl": 0}, "prefix_cache_ttl"),
    ({"sliding_window": 0}, "sliding_window"),
    ({"chunked_prefill": "yes"}, "chunked_prefill"),
    ({"kv_cache": "none", "num_kv_blocks": 5}, "num_kv_blocks"),
    ({"kv_cache": "contiguous", "prefix_caching": True}, "prefix_caching"),
    ({"speculation": {"method": "guess"}}, "method"),
    ({"speculation": {"num_tokens": 0}}, "num_tokens=0"),
    ({"speculation": {"num_tokens": -1}}, "num_tokens=-1"),
    ({"speculation": {"num_tokens": True}}, "num_tokens=True"),
    ({"speculation": {"num_tokens": "many"}}, "'auto'"),
    ({"speculation": {"num_tokens": 65}}, "from 1 to 64"),
    ({"speculation": {"ngram_min": 5}}, "ngram_min=5 is above ngram_max=4"),
    ({"speculation": {"method": "ngram", "tree_width": 2}}, "makes chains"),
    ({"speculation": {"tree_width": 16, "num_tokens": 4}}, "lower tree_width"),
    ({"speculation": {"method": "ngram"}, "draft_model": "x"}, "no use"),
    ({"kv_cache": "none", "kv_cache_dtype": "int8"}, "nothing to quantize"),
    ({"kv_cache_dtype": "int4"}, "fp8 or int8"),
    ({"quantization": "int5"}, "give int8, int4"),
    ({"quantization": 8}, "or a QuantizationConfig"),
    ({"quantization": {"bits": 5}}, "bits=5"),
    ({"quantization": {"bit": 4}}, "did you mean 'bits'"),
    ({"quantization": {"group_size": 0}}, "group_size=0"),
    ({"quantization": {"method": "nf4", "group_size": 100}}, "block size of nf4"),
    ({"quantization": {"method": "nf4", "bits": 8}}, "bits=8 has no meaning"),
    ({"quantization": {"method": "w8a8", "group_size": 64}}, "group_size=64 has no meaning"),
    ({"quantization": {"method": "fp8", "symmetric": False}}, "symmetric=False has no meaning"),
    ({"quantization": {"double_quant": True}}, "is for method 'nf4'"),
    ({"compile": True}, "not available yet"),
    ({"deterministic": True}, "not available yet"),
    ({"tensor_parallel_size": 2}, "not available yet"),
    ({"model": ""}, "model"),
]


@pytest.mark.parametrize(("fields", "said"), CONFIGS, ids=lambda value: str(value)[:50])
def test_configurations_are_checked_at_construction(fields, said):
    with pytest.raises(ConfigError) as error:
        EngineConfig(**fields)
    assert said in sentence(error)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_model_len": 10_000}, "256 positions"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"chunked_prefill": False, "max_num_batched_tokens": 64}, "at least"),
        ({"kv_cache": "none", "max_num_batched_tokens": 64}, "at least"),
        ({"kv_cache": "contiguous", "num_kv_blocks": 3}, "contiguous"),
        ({"num_kv_blocks": None, "kv_cache_memory": 10}, "holds no block"),
    ],
    ids=str,
)
def test_configurations_that_do_not_fit_the_model_are_refused(make_engine, fields, said):
    with pytest.raises(ConfigError) as error:
        make_engine(**fields)
    assert said in sentence(error)


def test_a_model_that_is_not_there_is_named(make_engine, tmp_path):
    with pytest.raises(ModelLoadError) as error:
        Engine(EngineConfig(model=str(tmp_path / "nowhere"), device="cpu"))
    assert "nowhere" in sentence(error)
