"""The engine over quantized weights: the same tokens however requests are batched, cut and preempted, and the bytes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from playground import Engine, EngineConfig, SamplingParams
from playground.cli import app
from playground.config import QuantizationConfig
from playground.engine.prefix_cache import _identity
from playground.errors import ConfigError
from playground.ui.launch import ServeOptions
from tests.engine.conftest import EngineFactory

PROMPTS = ["Once upon a time", "The quick brown fox jumps over", "a", "Numbers: 1 2 3 4 5 6 7 8 9 10 11 12"]
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
INT4 = QuantizationConfig(bits=4, group_size=16, symmetric=False)


def tokens(engine: Engine, params: SamplingParams = GREEDY) -> list[tuple[int, ...]]:
    return [tuple(one.token_ids) for one in engine.generate(PROMPTS, params)]


@pytest.mark.parametrize("quantization", ["int8", "fp8", "w8a8", INT4], ids=lambda value: str(value)[:8])
def test_batched_chunked_and_preempted_requests_have_the_tokens_of_single_ones(
    make_engine: EngineFactory, quantization: QuantizationConfig | str
) -> None:
    options = {"quantization": quantization, "dtype": "float32", "prefix_caching": False}
    alone = make_engine(**options, max_num_seqs=1)
    expected = [tuple(alone.generate([prompt], GREEDY)[0].token_ids) for prompt in PROMPTS]
    assert tokens(make_engine(**options)) == expected
    assert tokens(make_engine(**options, max_num_batched_tokens=8)) == expected
    tight = make_engine(**options, num_kv_blocks=33)
    assert tokens(tight) == expected and tight.stats().num_preemptions > 0


def test_a_second_run_hits_the_prefix_cache_with_the_same_tokens(make_engine: EngineFactory) -> None:
    engine = make_engine(quantization="int8", dtype="float32")
    first = tokens(engine)
    assert tokens(engine) == first and engine.stats().prefix_cache_hit_rate > 0


@pytest.mark.parametrize("speculation", [{"method": "ngram"}, {"method": "layer_skip", "skip_layers": (1,)}])
def test_speculation_changes_no_greedy_token(make_engine: EngineFactory, speculation: dict) -> None:
    plain = tokens(make_engine(quantization="int8", dtype="float32"))
    assert tokens(make_engine(quantization="int8", dtype="float32", speculation=speculation)) == plain


def test_a_draft_model_stays_as_it_is(make_engine: EngineFactory, tiny_model: Path) -> None:
    alone = make_engine(dtype="float32").stats().memory_weights_bytes
    int8 = make_engine(quantization="int8", dtype="float32").stats().memory_weights_bytes
    both = make_engine(quantization="int8", dtype="float32", draft_model=str(tiny_model))
    assert int8 < 0.35 * alone
    assert both.stats().memory_weights_bytes == int8 + alone
    assert tokens(both) == tokens(make_engine(quantization="int8", dtype="float32"))


def test_names_dicts_and_configs_become_one_config(make_engine: EngineFactory) -> None:
    for given in ("int8", {"bits": 8}, QuantizationConfig(bits=8)):
        assert EngineConfig(quantization=given).quantization == QuantizationConfig.named("int8")  # type: ignore[arg-type]
    config = make_engine(quantization="int8").config
    assert config.quantization == QuantizationConfig.named("int8")
    assert json.loads(config.model_dump_json())["quantization"]["method"] == "rtn"
    assert ServeOptions(quantization="nf4").engine_config().quantization == QuantizationConfig.named("nf4")


def test_cached_prefixes_of_other_weights_are_not_found(tiny_model: Path) -> None:
    configs = [EngineConfig(model=str(tiny_model), quantization=q) for q in (None, "int8", INT4, "w8a8")]
    assert len({repr(_identity(config)) for config in configs}) == 4


def test_what_the_model_cannot_be_quantized_to_is_one_sentence(make_engine: EngineFactory) -> None:
    with pytest.raises(ConfigError, match="group_size=64 does not divide the 32 inputs"):
        make_engine(quantization="int4")
    with pytest.raises(ConfigError, match="run playground compress --method gptq first"):
        make_engine(quantization="gptq-int4")


def test_the_command_line_quantizes_by_name(tiny_model: Path) -> None:
    options = ["generate", "--model", str(tiny_model), "--prompt", "Hello", "--max-tokens", "3", "--ignore-eos"]
    done = CliRunner().invoke(app, [*options, "--quantization", "int8", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["config"]["quantization"]["bits"] == 8 and len(result["token_ids"]) == 3
