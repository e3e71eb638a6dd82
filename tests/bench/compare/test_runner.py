"""Comparisons run for real with tiny models: what is kept, what fails alone, what a stop leaves."""

import threading
from pathlib import Path
from typing import Any

import pytest

from playground import Engine, EngineConfig, SamplingParams
from playground.bench.compare import runner
from playground.bench.compare.measures import BY_KEY as METRICS
from playground.bench.compare.plan import Plan, Side
from playground.bench.compare.presets import PRESETS
from playground.bench.compare.prompts import BY_KEY as PROMPTS
from playground.bench.compare.runner import Comparison
from playground.bench.compare.shapes import shape_folder
from playground.config import SpeculationConfig
from playground.errors import ConfigError
from tests.tiny import write_tiny_model


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SETTLE_SECONDS", 0.0)


def plan(folder: Path, *fields: dict[str, Any], **settings: Any) -> Plan:
    base: dict[str, Any] = {"model": str(folder), "device": "cpu", "dtype": "float32", "num_kv_blocks": 64}
    sides = tuple(Side(name=f"side {i}", config=EngineConfig(**{**base, **one})) for i, one in enumerate(fields))
    defaults = {"prompts": ("one two three", "four five"), "repeats": 3, "max_tokens": 12, "ignore_eos": True}
    return Plan(sides=sides, **{**defaults, **settings})


def test_greedy_speculation_writes_the_same_text_and_both_sides_are_measured(tiny_model: Path) -> None:
    ngram = {"speculation": SpeculationConfig(method="ngram")}
    record = Comparison(plan(tiny_model, {}, ngram)).run()
    assert record["status"] == "done" and record["held"]
    assert [sorted(order) for order in record["rounds"]] == [[0, 1]] * 3
    base, other = record["sides"]
    assert [one["token_ids"] for one in base["outputs"]] == [one["token_ids"] for one in other["outputs"]]
    assert all(one["identical"] for one in record["divergences"][1])
    for side in record["sides"]:
        assert [run["round"] for run in side["runs"]] == [0, 1, 2]
        values = side["runs"][0]["values"]
        assert values["tokens_per_second"] > 0 and values["kv_blocks_peak"] >= 2 and values["steps"] >= 3
        assert values["num_cached_tokens"] == 0  # every run starts with an empty prefix cache
    assert base["runs"][0]["values"]["tokens_per_step"] == 1 and base["runs"][0]["values"]["acceptance_rate"] is None


def test_texts_of_other_weights_part_with_the_logprobs_of_both(tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path, seed=1)
    record = Comparison(plan(tiny_model, {}, {"model": str(other)}, repeats=1)).run()
    parted = [one for one in record["divergences"][1] if not one["identical"]]
    assert parted
    first = parted[0]
    prompt = record["divergences"][1].index(first)
    tokens = [record["sides"][i]["outputs"][prompt]["token_ids"][first["common"]] for i in (0, 1)]
    assert tokens[0] != tokens[1]
    (own, rival), (_, others_own) = first["logprobs"]
    assert own <= 0 and others_own <= 0 and (rival is None or rival <= own)  # greedy: its own token is its best


def test_a_side_that_cannot_load_fails_alone_with_its_sentence(tiny_model: Path) -> None:
    record = Comparison(plan(tiny_model, {"model": "/no/such/folder"}, {}, {"max_model_len": 100_000})).run()
    assert record["status"] == "done"
    first, second, third = record["sides"]
    assert "/no/such/folder" in first["error"] and "max_model_len=100000" in third["error"]
    assert second["error"] is None and len(second["runs"]) == 3
    assert record["divergences"] == [[], [], []]


def test_a_prompt_that_is_too_long_fails_its_side_in_place(tiny_model: Path) -> None:
    record = Comparison(plan(tiny_model, {}, {"max_model_len": 16}, chat=False, prompts=("x" * 40,))).run()
    assert record["sides"][0]["error"] is None and len(record["sides"][0]["runs"]) == 3
    assert "16" in record["sides"][1]["error"] and record["sides"][1]["runs"] == []


def test_where_memory_has_no_room_each_engine_is_loaded_for_its_turn(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Comparison, "_has_room", lambda self: False)
    most = []
    comparison = Comparison(plan(tiny_model, {}, {"attention": "naive"}, repeats=2))
    comparison._on_change = lambda is_record: most.append(len(comparison._held))
    record = comparison.run()
    assert record["status"] == "done" and not record["held"] and max(most) == 1
    assert [len(side["runs"]) for side in record["sides"]] == [2, 2]


def test_concurrent_sides_run_at_once_and_are_all_measured(tiny_model: Path) -> None:
    record = Comparison(plan(tiny_model, {}, {"block_size": 8}, mode="concurrent", repeats=2)).run()
    assert record["status"] == "done" and [len(side["runs"]) for side in record["sides"]] == [2, 2]


@pytest.mark.parametrize("arrival", ["one_by_one", "joining"])
def test_prompts_can_come_one_after_another(tiny_model: Path, arrival: str) -> None:
    record = Comparison(plan(tiny_model, {}, {"prefix_caching": False}, arrival=arrival, repeats=1)).run()
    assert record["status"] == "done" and all(len(side["outputs"]) == 2 for side in record["sides"])


def test_a_stop_keeps_what_was_measured_and_closes_the_engines(tiny_model: Path) -> None:
    comparison = Comparison(plan(tiny_model, {}, {}, repeats=100, max_tokens=64))
    comparison._on_change = lambda is_record: comparison.stop() if comparison.snapshot()["rounds"] else None
    before = threading.active_count()
    record = comparison.run()
    assert record["status"] == "stopped" and len(record["rounds"]) < 3
    assert all(side["outputs"] for side in record["sides"]) and comparison._held == {}
    assert threading.active_count() <= before


def test_a_plan_that_cannot_be_is_refused_in_one_sentence(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="1 configurations cannot be compared: give 2 to 4"):
        plan(tiny_model, {})
    with pytest.raises(ConfigError, match="repeats=0 is not allowed: give a whole number from 1 to 100"):
        plan(tiny_model, {}, {}, repeats=0)
    with pytest.raises(ConfigError, match="is empty"):
        plan(tiny_model, {}, {}, prompts=(" ",))


def test_shapes_that_cannot_be_written_are_told_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inference-playground").write_text("a file in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot be written to .*inference-playground.*XDG_CACHE_HOME"):
        shape_folder("gqa")


def test_every_configuration_of_the_presets_loads_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plans = [preset.plan() for preset in PRESETS]
    configs = {side.config.model_dump_json(): side.config for whole in plans for side in whole.sides}
    for config in configs.values():
        with Engine(config) as engine:
            reply = engine.generate("Once upon a time", SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))[0]
            assert len(reply.token_ids) == 2, config


def test_the_prompts_of_every_preset_fit_its_model() -> None:
    with Engine(EngineConfig(num_kv_blocks=64)) as engine:
        longest = max(
            len(engine.chat_prompt([{"role": "user", "content": prompt}])) + preset.workload["max_tokens"]
            for preset in PRESETS
            for prompt in PROMPTS[preset.prompts].prompts
        )
        assert 512 < longest <= (engine.config.max_model_len or 0)
    assert {preset.watch for preset in PRESETS} <= METRICS.keys()
