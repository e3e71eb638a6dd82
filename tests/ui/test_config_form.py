"""The form of `EngineConfig`: nothing is missing, what it shows comes back, what is wrong is said of its field."""

import json
from typing import Any

import pytest

from playground import EngineConfig
from playground.config import QuantizationConfig, SpeculationConfig
from playground.ui import config_form
from playground.ui.config_form import FormError, default_values, differing, field_names, groups, read, write


def test_every_field_of_the_configuration_is_in_the_form_once() -> None:
    wanted = set(EngineConfig.model_fields)
    wanted |= {f"speculation.{name}" for name in SpeculationConfig.model_fields if name != "method"}
    wanted |= {f"quantization.{name}" for name in QuantizationConfig.model_fields}
    names = field_names()
    assert set(names) == wanted and len(names) == len(wanted)


def test_the_form_is_plain_data_with_a_label_and_the_allowed_values_for_each_field() -> None:
    drawn = json.loads(json.dumps(groups()))
    fields = {field["name"]: field for group in drawn for field in group["fields"]}
    assert all(field["label"] and field["tip"].endswith(".") for field in fields.values())
    assert [one["value"] for one in fields["kv_cache"]["choices"]] == ["paged", "contiguous", "none"]
    assert "a whole number from 1 to 4096" in fields["max_num_seqs"]["tip"]
    assert next(one for one in fields["compile"]["choices"] if one["value"] == "on")["missing"]
    assert fields["speculation.ngram_min"]["when"] == {"field": "speculation", "values": ["ngram"]}


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(model="some/model", kv_cache="contiguous", dtype="bfloat16", block_size=32, seed=-5),
        EngineConfig(kv_cache_memory=0.25, prefix_cache_ttl=1.5, prefix_caching=True),
        EngineConfig(kv_cache_memory=2**31, chunked_prefill=False, batching="static"),
        EngineConfig(speculation=SpeculationConfig(method="ngram", num_tokens="auto", ngram_max=6)),
        EngineConfig(speculation=SpeculationConfig(method="layer_skip", skip_layers=(1, 3))),
        EngineConfig(draft_model="a/b", speculation=SpeculationConfig(tree_width=3, verification="coupled")),
        *[EngineConfig(quantization=name) for name in ("int8", "int4", "nf4", "w8a8", "awq-int4")],
        EngineConfig(quantization=QuantizationConfig(bits=4, group_size=32, head="keep")),
        EngineConfig(quantization=QuantizationConfig(method="gptq", bits=4, act_order=True, damping=0.05)),
    ],
)
def test_a_configuration_written_into_the_form_is_read_back(config: EngineConfig) -> None:
    assert read(write(config)) == config


def test_a_draft_model_alone_is_shown_as_the_speculation_it_means() -> None:
    shown = write(EngineConfig(draft_model="a/b"))
    assert (shown["speculation"], shown["speculation.num_tokens"], shown["draft_model"]) == ("draft", "auto", "a/b")


def test_an_empty_form_is_the_default_configuration() -> None:
    assert read({}) == read(default_values()) == EngineConfig()


def test_fields_that_are_not_shown_are_not_read() -> None:
    values = default_values() | {"speculation.num_tokens": "9", "draft_model": "left/over", "quantization.bits": "4"}
    assert read(values) == EngineConfig()


@pytest.mark.parametrize(
    ("typed", "field", "sentence"),
    [
        ({"max_num_seqs": "0"}, "max_num_seqs", "max_num_seqs=0 is not allowed: give a whole number from 1 to 4096"),
        ({"block_size": "many"}, "block_size", "Block size: 'many' is not allowed, give a whole number"),
        ({"kv_cache_memory": "2"}, None, ""),
        ({"kv_cache_memory": "1.5"}, "kv_cache_memory", "kv_cache_memory=1.5 is not allowed"),
        ({"speculation": "draft", "speculation.num_tokens": "99"}, "speculation.num_tokens", "num_tokens=99"),
        ({"speculation": "layer_skip", "speculation.skip_layers": "first"}, "speculation.skip_layers", "'first'"),
        ({"compile": "on"}, "compile", "not available yet"),
        ({"device": "tpu"}, "device", "auto, cpu, cuda or cuda:N"),
        ({"quantization": "custom", "quantization.group_size": "0"}, "quantization.group_size", "group_size=0"),
    ],
)
def test_what_is_not_allowed_is_said_in_one_sentence_about_its_field(
    typed: dict[str, Any], field: str | None, sentence: str
) -> None:
    if not sentence:
        assert read(typed).kv_cache_memory == 2
        return
    with pytest.raises(FormError) as refused:
        read(typed)
    assert refused.value.field == field and sentence in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "size"), [("4096", 4096), ("2 GiB", 2**31), ("1.5 MiB", 3 * 2**19), ("500 MB", 500_000_000), ("0.5", 0.5)]
)
def test_sizes_can_be_typed_with_units(typed: str, size: float) -> None:
    assert read({"kv_cache_memory": typed}).kv_cache_memory == size


def test_only_settings_that_differ_are_named() -> None:
    plain, drafts = EngineConfig(), EngineConfig(speculation=SpeculationConfig(method="ngram", num_tokens=6))
    assert differing([plain, plain]) == []
    names = differing([plain, drafts, EngineConfig(block_size=32)])
    assert {"speculation", "speculation.num_tokens", "block_size"} <= set(names)
    assert "speculation.skip_layers" not in names and "model" not in names
    assert config_form.label("speculation.num_tokens") == "Speculation: drafts at once"
