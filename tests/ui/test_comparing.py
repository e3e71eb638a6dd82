"""The compare page's pure parts: fields to plans and back, the words for a difference, the table, the Markdown."""

from typing import Any

import pytest

from playground.bench.compare.alignment import align
from playground.bench.compare.presets import PRESETS
from playground.config import EngineConfig, SpeculationConfig
from playground.ui.comparing import markdown, setup, view
from playground.ui.comparing.texts import why_different
from tests.bench.compare.records import OTHER, TEXT, output, record, run, side

SPECULATING = SpeculationConfig(method="ngram")


def parted(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A record of two sides whose texts part at the fourth token, and the fields it was made from."""
    one = output(TEXT, ["Once ", "there was ", "a fox. ", "You ", "are"])
    two = output(OTHER, ["Once ", "there was ", "a fox. ", "Close ", "your"])
    found = {**align(one, two, same_vocabulary=True), "logprobs": [[-0.71, -0.94], [-0.9, -0.8]]}
    times = ([0.0138, 0.0141, 0.0145], [0.0100, 0.0104, 0.0109])
    runs = [[run(i, time_per_output_token=t, num_cached_tokens=0) for i, t in enumerate(side)] for side in times]
    kept = record([side("plain", [one], runs[0]), side("drafts", [two], runs[1])], [[], [found]])
    fields = setup.of_preset("speculation") | {"temperature": "0.8", "prompt_set": "own", "prompts": "Hello!"}
    return kept, fields | changes


@pytest.mark.parametrize("key", [preset.key for preset in PRESETS])
def test_the_fields_of_every_preset_are_read_back_as_its_plan(
    key: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    preset = next(one for one in PRESETS if one.key == key)
    again = setup.read(setup.of_preset(key))
    assert again.model_dump() == preset.plan().model_dump()
    assert all(view.differing(setup.configs(setup.of_preset(key))))  # every side says how it differs


def test_what_was_typed_wrong_is_refused_with_its_place() -> None:
    fields = setup.of_preset("kv-cache")
    fields["sides"][1]["values"]["num_kv_blocks"] = "-3"
    fields["sides"][1]["values"]["kv_cache"] = "paged"
    with pytest.raises(setup.SetupError, match="num_kv_blocks=-3 is not allowed") as refused:
        setup.read(fields)
    assert (refused.value.side, refused.value.field) == (1, "num_kv_blocks")
    with pytest.raises(setup.SetupError, match="Repeats: 'many' is not allowed, give a whole number from 1 to 100"):
        setup.read(setup.of_preset("paged") | {"repeats": "many"})
    with pytest.raises(setup.SetupError, match="Repeats: 0 is not allowed"):
        setup.read(setup.of_preset("paged") | {"repeats": "0"})
    with pytest.raises(setup.SetupError, match="0 prompts are not allowed"):
        setup.read(setup.of_preset("paged") | {"prompt_set": "own", "prompts": " \n\n "})
    with pytest.raises(setup.SetupError, match="no preset 'nothing'"):
        setup.of_preset("nothing")
    for nonsense in ({}, {"sides": 3}, {"sides": [None, 5]}, {"sides": [{"values": {}}]}):
        with pytest.raises(setup.SetupError):
            setup.read(nonsense)


def test_own_prompts_are_parted_by_blank_lines() -> None:
    plan = setup.read(setup.of_preset("paged") | {"prompt_set": "own", "prompts": "one\ntwo\n\n \nthree\n"})
    assert plan.prompts == ("one\ntwo", "three")


def test_only_the_settings_that_differ_are_named() -> None:
    one, two = view.differing([EngineConfig(), EngineConfig(speculation=SPECULATING)])
    assert one == [{"label": "Speculation", "value": "off"}]
    assert [(said["label"], said["value"]) for said in two] == [
        ("Speculation", "ngram"),
        ("Speculation, drafts at once", "4"),
        ("Speculation, verification", "rejection"),
    ]
    (said,), _ = view.differing([EngineConfig(kv_cache="contiguous"), EngineConfig()])
    assert said == {"label": "KV cache, layout", "value": "contiguous"}


def test_the_first_difference_is_marked_and_told_with_both_logprobs_and_the_gap() -> None:
    shown = view.result(*parted())
    a, b = (column["outputs"][0] for column in shown["columns"])
    assert (a["same"], a["first"], a["rest"]) == ("Once there was a fox. ", "You ", "are")
    assert (b["same"], b["first"], b["rest"]) == ("Once there was a fox. ", "Close ", "your")
    ((band,),) = shown["bands"]
    assert band["text"] == (
        "identical for 3 tokens · first difference at token 4: “You” (A, log p −0.710) against “Close” "
        "(B, log p −0.800), a gap of 0.230 in A; sampled text may differ, its distribution does not"
    )
    assert band["share"] == 3 / 5 and band["coupled"]


def test_the_table_tells_medians_intervals_and_the_paired_ratio() -> None:
    (row,) = view.result(*parted())["table"]
    a, b = row["cells"]
    assert (a["number"], a["unit"], a["interval"], a["n"]) == ("14.1", "ms", "13.8–14.5", 3)
    assert (b["number"], b["interval"]) == ("10.4", "10.0–10.9")
    against = row["against"][1]
    # The pairs' ratios: 13.8/10.0 = 1.38, 14.1/10.4 = 1.356, 14.5/10.9 = 1.330.
    assert (against["text"], against["interval"]) == ("1.36× faster", "1.33–1.38")
    assert against["strong"] and against["clear"]
    assert row["unit"] == "ms" and row["medians"] == pytest.approx([14.1, 10.4])


def test_what_one_side_has_none_of_is_told_as_a_difference() -> None:
    kept, fields = parted()
    for number, told in enumerate(kept["sides"]):
        for one in told["runs"]:
            one["values"]["num_cached_tokens"] = 0 if number else 96
    row = next(row for row in view.result(kept, fields)["table"] if row["key"] == "num_cached_tokens")
    assert row["cells"][1]["number"] == "0" and row["against"][1]["text"] == "−96" and row["against"][1]["clear"]


def test_a_blind_comparison_tells_nothing_until_there_is_a_vote() -> None:
    kept, fields = parted(blind=True)
    hidden = view.result(kept, fields, 1)
    assert hidden["hidden"] and hidden["table"] == [] and hidden["bands"] == [] and hidden["expect"] is None
    assert "plain" not in str(hidden["columns"]) and "drafts" not in str(hidden["columns"])
    assert [column["letter"] for column in hidden["columns"]] == ["1", "2"]
    assert sorted(column["side"] for column in hidden["columns"]) == [0, 1]
    assert [one["choice"] for one in hidden["votes"][2:]] == ["tie", "bad"]
    told = view.result(kept, fields, 1, vote="1")
    assert not told["hidden"] and told["columns"][1]["name"] == "drafts" and told["table"]


@pytest.mark.parametrize(
    ("one", "other", "greedy", "gap", "words"),
    [
        ({}, {"speculation": SPECULATING}, False, 0.2, "its distribution does not"),
        ({}, {"speculation": SPECULATING}, True, 0.001, "near tie"),
        ({}, {"quantization": "int8"}, True, 0.2, "rounded weights"),
        ({}, {"kv_cache_dtype": "int8"}, True, 0.2, "rounded keys and values"),
        ({}, {"model": "elsewhere"}, False, None, "two models"),
        ({}, {"dtype": "float64"}, True, 0.2, "number type"),
        ({}, {"attention": "naive"}, True, 0.3, "another order"),
        ({}, {"attention": "naive"}, False, 3.0, "the same draw"),
    ],
)
def test_a_difference_has_a_reason(one: Any, other: Any, greedy: bool, gap: float | None, words: str) -> None:
    reason = why_different(EngineConfig(**one), EngineConfig(**other), greedy=greedy, gap=gap)
    assert words in reason.text
    assert reason.offer_coupled == ("distribution" in reason.text)


def test_the_markdown_holds_the_table_and_escapes_what_was_written() -> None:
    kept, fields = parted()
    kept["sides"][0]["name"] = "a|b <i>*"
    text = markdown.render(kept, fields)
    assert "| Time per output token | 14.1 ms (13.8–14.5) | 10.4 ms (10.0–10.9) | 1.36× faster (1.33–1.38) |" in text
    assert "\\<i\\>\\*" in text and "first difference at token 4" in text
