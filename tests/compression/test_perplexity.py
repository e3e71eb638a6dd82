"""Perplexity: every token counts once, NLLs equal transformers', and two models are compared token by token."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from playground import Engine, EngineConfig
from playground.compression.perplexity import (
    decoder_scorer,
    encode_text,
    engine_scorer,
    paired_difference,
    perplexity,
    read_text,
    text_nlls,
    windows,
)
from playground.errors import ConfigError
from playground.models.loader import load_model
from playground.models.tokenizer import load_tokenizer
from tests.tiny import write_tiny_model

TEXT = "The fox said: 'I am not a cat.' " * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@given(count=st.integers(2, 200), length=st.integers(2, 50), data=st.data())
def test_every_token_but_the_first_counts_once_behind_enough_context(
    count: int, length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length - 1))
    counted = []
    for window in windows(range(count), length, stride):
        assert len(window.token_ids) <= length and window.first >= 1
        for place in range(window.first, len(window.token_ids)):
            token = window.token_ids[place]
            counted.append(token)
            assert place >= min(token, length - stride)
    assert counted == list(range(1, count))


def test_nlls_equal_those_of_transformers_window_by_window(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = encode_text(load_tokenizer(folder), TEXT)
    length, stride = 64, 48
    expected, done = [], 1
    for start in range(0, len(ids), stride):
        piece = torch.tensor([ids[start : start + length]])
        logprobs = reference(piece).logits[0].double().log_softmax(-1)
        nlls = -logprobs[:-1].gather(1, piece[0, 1:, None])[:, 0]
        expected.append(nlls[done - start - 1 :])
        done = start + piece.shape[1]
        if done == len(ids):
            break
    found = text_nlls(decoder_scorer(load_model(folder, dtype=torch.float32).model), ids, length, stride)
    torch.testing.assert_close(found, torch.cat(expected).detach(), atol=2e-5, rtol=0)
    assert len(found) == len(ids) - 1
    assert perplexity(found) == pytest.approx(math.exp(found.mean()))


def test_the_engine_scores_as_the_decoder_does_through_its_kv_cache(folder: Path) -> None:
    ids = encode_text(load_tokenizer(folder), TEXT)
    plain = text_nlls(decoder_scorer(load_model(folder, dtype=torch.float32).model), ids, 64)
    switches = {"device": "cpu", "dtype": "float32", "max_num_batched_tokens": 40, "num_kv_blocks": 40}
    with Engine(EngineConfig(model=str(folder), **switches)) as engine:
        torch.testing.assert_close(text_nlls(engine_scorer(engine), ids, 64), plain, atol=2e-5, rtol=0)
    with Engine(EngineConfig(model=str(folder), kv_cache_dtype="bfloat16", **switches)) as engine:
        coarse = text_nlls(engine_scorer(engine), ids, 64)
    assert 1e-5 < float((coarse - plain).abs().max()) < 0.2  # the cache's rounding shows, and is only that


def test_a_paired_difference_is_mean_error_and_interval_of_the_change() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(4000, generator=generator, dtype=torch.float64) * 8
    noise = torch.randn(4000, generator=generator, dtype=torch.float64) * 0.1
    change = paired_difference(base + 0.01 + noise, base)
    assert change.mean == pytest.approx(0.01, abs=0.005)
    assert change.standard_error == pytest.approx(0.1 / math.sqrt(4000), rel=0.05)
    assert change.z == pytest.approx(change.mean / change.standard_error)
    low, high = change.interval
    assert change.relative == pytest.approx(math.exp(change.mean) - 1)
    assert low < change.relative < high
    assert 0.002 < low < 0.01 < high < 0.02
    same = paired_difference(base, base)
    assert (same.mean, same.z, same.relative) == (0.0, 0.0, 0.0)
    assert paired_difference(base + 1, base).z > 1e9


def test_what_cannot_be_scored_is_refused_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 1 tokens: a perplexity takes at least 2"):
        windows([7], 16)
    for length, stride in ((1, 1), (8, 8), (8, 0)):
        with pytest.raises(ConfigError, match="do not work: give a window of at least 2"):
            windows([1, 2, 3], length, stride)
    with pytest.raises(ConfigError, match="longer than this model reads, 256"):
        text_nlls(decoder_scorer(load_model(folder).model), list(range(3, 103)) * 4, 300)
    with pytest.raises(ConfigError, match="cannot be paired"):
        paired_difference(torch.zeros(5), torch.zeros(6))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name, reason in (("empty.txt", "holds no text"), ("latin.txt", "byte 3"), ("none.txt", "cannot be read")):
        with pytest.raises(ConfigError, match=reason):
            read_text(tmp_path / name)
