"""What cannot work is refused in one sentence, and a draft that fails takes nobody along."""

import json
import logging
import shutil

import pytest

from playground import ConfigError, Engine, EngineConfig, ModelLoadError, SamplingParams
from playground.config import SpeculationConfig
from tests.checkpoints import checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


def refusal(error_class, **fields) -> str:
    with pytest.raises(error_class) as error:
        Engine(EngineConfig(device="cpu", **fields))
    text = str(error.value)
    assert "\n" not in text and text.rstrip().endswith((".", ")", "?")) and len(text) < 400
    return text


def test_a_draft_with_another_tokenizer(tiny_model, draft_model, tmp_path):
    other = shutil.copytree(draft_model, tmp_path / "other")
    raw = json.loads((other / "tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(raw))
    text = refusal(ConfigError, model=str(tiny_model), draft_model=str(other))
    assert "another tokenizer" in text and "ngram" in text


def test_a_draft_that_is_not_there_or_not_named(tiny_model):
    assert "nowhere" in refusal(ModelLoadError, model=str(tiny_model), draft_model="./nowhere")
    text = refusal(ConfigError, model=str(tiny_model), speculation=SpeculationConfig(method="draft"))
    assert "needs a draft_model" in text


def test_a_draft_larger_than_the_target_is_warned_of(tiny_model, caplog):
    # both have the byte-level tokenizer
    with caplog.at_level(logging.WARNING):
        config = EngineConfig(model=str(tiny_model), draft_model=str(checkpoint("llama-2")), device="cpu")
        with Engine(config) as engine:
            assert engine.generate("abc", GREEDY)[0].metrics.num_draft_tokens > 0
    assert "larger than the target" in caplog.text


def test_more_drafts_than_the_model_has_room_for(tiny_model):
    speculation = SpeculationConfig(method="ngram", num_tokens=40)
    text = refusal(ConfigError, model=str(tiny_model), max_model_len=40, speculation=speculation)
    assert "num_tokens=40" in text and "at most 39" in text


@pytest.mark.parametrize("skipped", [(), (0, 1), (7,), (-1,)])
def test_layers_that_cannot_be_skipped(tiny_model, skipped):
    speculation = SpeculationConfig(method="layer_skip", skip_layers=skipped)
    assert "layers 0 to 1" in refusal(ConfigError, model=str(tiny_model), speculation=speculation)


def test_an_eagle_head_where_it_cannot_be(tiny_model, draft_model, eagle_head):
    eagle = SpeculationConfig(method="eagle")
    assert "needs a draft_model" in refusal(ConfigError, model=str(tiny_model), speculation=eagle)
    fields = {"model": str(tiny_model), "speculation": eagle}
    text = refusal(ConfigError, **fields, draft_model=str(eagle_head), kv_cache="none")
    assert "kv_cache='none'" in text
    assert "layers" in refusal(ModelLoadError, **fields, draft_model=str(draft_model))


def test_a_tree_that_may_be_deeper_than_the_window(tiny_model, draft_model):
    speculation = SpeculationConfig(method="draft", tree_width=2)
    fields = {"model": str(tiny_model), "draft_model": str(draft_model), "speculation": speculation}
    assert "window" in refusal(ConfigError, **fields, sliding_window=9)


def test_a_draft_model_alone_means_speculation_with_it(make_speculative, draft_model):
    engine = make_speculative(None, draft_model=str(draft_model))
    assert engine.config.speculation is not None and engine.config.speculation.method == "draft"
    assert engine.config.draft_model == str(draft_model)
    assert engine.generate("abc", GREEDY)[0].metrics.num_draft_tokens > 0


def test_a_draft_that_fails_is_given_up_and_everybody_is_answered(make_speculative, monkeypatch):
    engine = make_speculative({"method": "draft"})
    expected = [g.token_ids for g in make_speculative(None).generate(["abc", "hello"], GREEDY)]
    draft = engine._core.executor.speculator.proposer.model
    calls = iter(range(100))
    whole = draft.forward

    def failing(batch, kv_cache):
        if next(calls) == 6:
            raise RuntimeError("out of memory, or so")
        return whole(batch, kv_cache)

    monkeypatch.setattr(draft, "forward", failing)
    results = engine.generate(["abc", "hello"], GREEDY)
    assert [g.token_ids for g in results] == expected
    for result in results:
        assert result.finish_reason == "length"
        state = result.metrics.speculation
        assert state.state == "disabled" and "out of memory, or so" in state.reason
    again = engine.generate("abc", GREEDY)[0]
    assert again.token_ids == expected[0] and again.metrics.num_draft_tokens == 0
    assert engine.stats().kv_blocks_in_use == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_of_nan_changes_nothing(make_speculative, monkeypatch, temperature):
    params = GREEDY.replace(temperature=temperature, seed=1)
    engine = make_speculative({"method": "draft", "verification": "coupled"})
    draft = engine._core.executor.speculator.proposer.model
    whole = draft.forward
    monkeypatch.setattr(draft, "forward", lambda batch, kv_cache: whole(batch, kv_cache) * float("nan"))
    expected = make_speculative(None).generate("abc", params)[0].token_ids
    assert engine.generate("abc", params)[0].token_ids == expected
    rejecting = make_speculative({"method": "draft"})
    draft = rejecting._core.executor.speculator.proposer.model
    monkeypatch.setattr(draft, "forward", lambda batch, kv_cache: whole(batch, kv_cache) * float("nan"))
    result = rejecting.generate("abc", params)[0]
    assert result.finish_reason == "length" and len(result.token_ids) == 20
    assert rejecting.stats().kv_blocks_in_use == 0


def test_a_target_of_nan_fails_its_request_alone(make_speculative, monkeypatch):
    engine = make_speculative({"method": "ngram", "num_tokens": 3})
    model = engine._core.executor.model
    whole = model.forward

    def spoiled(batch, kv_cache):
        logits = whole(batch, kv_cache)
        if 7 in batch.token_ids.tolist():
            return logits * float("nan")
        return logits

    monkeypatch.setattr(model, "forward", spoiled)
    for params in (GREEDY, GREEDY.replace(temperature=1.0, seed=2)):
        bad, good = engine.submit([7, 8, 7, 8], params), engine.submit([9, 10, 9, 10], params)
        assert bad.result().finish_reason == "error" and "NaN" in bad.result().error
        assert good.result().finish_reason in ("length", "error")
        assert engine.stats().kv_blocks_in_use == 0
