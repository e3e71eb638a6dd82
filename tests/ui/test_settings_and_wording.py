"""What is typed into the sampling panel, and what the page says about models and replies."""

import pytest

from playground.errors import RequestError
from playground.sampling_params import SamplingParams
from playground.telemetry.format import MISSING
from playground.ui.settings import DEFAULTS, PRESETS, SETTINGS, sampling_params
from playground.ui.wording import (
    caption,
    context_tokens,
    empty_text,
    model_name,
    parameter_count,
    phase,
    reply_figures,
)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_sets_every_sampling_field(name: str) -> None:
    params = sampling_params({**DEFAULTS, **PRESETS[name]})
    assert params.greedy == (name == "Precise")
    assert set(PRESETS[name]) == {setting.name for setting in SETTINGS} - {"max_tokens", "seed"}


def test_typed_numbers_reach_the_engine_as_numbers() -> None:
    params = sampling_params({"temperature": " 0,5 ", "top_k": "40", "seed": "-7", "max_tokens": "12", "min_p": ""})
    assert (params.temperature, params.top_k, params.seed, params.max_tokens) == (0.5, 40, -7, 12)
    assert params.min_p == SamplingParams().min_p


def test_an_empty_seed_is_a_new_one_each_time() -> None:
    assert sampling_params(DEFAULTS).seed is None


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("typed", ["abc", "1e", "nan", "inf", "-1e99", "99999999999999999999999", "<b>", "1.5.2", "⅓"])
def test_nonsense_in_any_field_is_refused_in_one_sentence_or_is_a_legal_value(setting, typed: str) -> None:
    try:
        value = getattr(sampling_params({setting.name: typed}), setting.name)
    except RequestError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        assert "give" in str(error)
    else:
        assert value == float(typed)


def test_a_number_that_is_none_names_the_field_as_the_page_does() -> None:
    with pytest.raises(RequestError, match=r"Most tokens in a reply: 'many' is not allowed, give a whole number"):
        sampling_params({"max_tokens": "many"})


def test_a_model_is_called_by_its_folder_or_hub_id() -> None:
    assert model_name("/data/models/storyteller") == "storyteller"
    assert model_name("/home/me/.cache/huggingface/hub/models--org--name-1B/snapshots/0a1b2c") == "org/name-1B"


def test_parameters_are_counted_in_words_people_use() -> None:
    assert [parameter_count(n) for n in (999, 1_120_000, 6_540_000, 135_000_000, 1_240_000_000)] == [
        "999", "1.12 M", "6.54 M", "135 M", "1.24 B",
    ]  # fmt: skip


def test_only_a_tiny_model_is_called_tiny() -> None:
    assert "tiny model" in caption("storyteller", 6_500_000) and "no facts" in " ".join(empty_text("s", 6_500_000))
    assert "tiny" not in caption("big", 1_000_000_000) + " ".join(empty_text("big", 1_000_000_000))


def test_the_figures_under_a_reply_are_those_of_its_metrics() -> None:
    metrics = {
        "num_prompt_tokens": 20,
        "num_output_tokens": 187,
        "num_cached_tokens": 16,
        "time_to_first_token": 0.0842,
        "time_per_output_token": 0.0104,
        "kv_blocks_peak": 1,
    }
    figures = reply_figures(metrics)
    assert [text for text, _ in figures] == [
        "187 tokens", "first token 84.2 ms", "96.2 tok/s", "cached 16", "1 block",
    ]  # fmt: skip
    assert all(len(definition) > 20 for _, definition in figures)
    assert context_tokens(metrics) == 207


def test_the_figures_tell_of_drafts_where_there_were_some() -> None:
    drafted = {"num_draft_tokens": 40, "num_accepted_tokens": 31}
    text, tip = reply_figures(drafted)[3]
    assert text == "accepted 77.5 % (n = 40)" and "31 of n = 40" in tip
    off = {"speculation": {"state": "off", "reason": "slower than without", "num_tokens": 0}}
    assert reply_figures(off)[-1][0] == "speculation off: slower than without"
    assert not [text for text, _ in reply_figures({"num_draft_tokens": 0, "speculation": None}) if "accepted" in text]


def test_what_was_not_measured_is_a_dash_and_never_a_zero() -> None:
    figures = " ".join(text for text, _ in reply_figures({"num_output_tokens": 0}))
    assert figures == f"0 tokens first token {MISSING} {MISSING} cached {MISSING} {MISSING} blocks"
    assert context_tokens({}) is None
    assert [text for text, _ in reply_figures({"num_output_tokens": 3}, ended=False)] == ["3 tokens"]


def test_a_running_reply_says_what_it_waits_for() -> None:
    assert phase(0, 2, None, 50) == "queued, 2 before you"
    assert phase(0, 0, None, 50) == "queued, next in line"
    assert phase(0, None, 20, 50) == "reading the prompt 40 %"
    assert phase(0, None, None, 50) == "sent to the engine"
    assert phase(1, None, 50, 50) == "writing"
