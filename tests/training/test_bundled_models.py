"""The committed models: transformers loads both, they are small, share a tokenizer, and keep their promises."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODELS = Path(__file__).parents[2] / "assets/models"
TARGET, DRAFT = MODELS / "storyteller", MODELS / "storyteller-draft"


@cache
def load(folder: Path):  # type: ignore[no-untyped-def]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def answer(*messages: str, max_new_tokens: int = 60, temperature: float = 0.0) -> tuple[str, bool]:
    """The target's reply to alternating user and assistant messages, and whether it ended by itself."""
    model, tokenizer = load(TARGET)
    chat = [{"role": ["user", "assistant"][i % 2], "content": m} for i, m in enumerate(messages)]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0} if temperature else {"do_sample": False}
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)[0, inputs["input_ids"].shape[1] :]
    ended = int(out[-1]) in model.generation_config.eos_token_id
    return tokenizer.decode(out[:-1] if ended else out), ended


@pytest.mark.parametrize(("folder", "low", "high"), [(TARGET, 6e6, 12e6), (DRAFT, 0.8e6, 1.5e6)])
def test_models_load_in_transformers_with_the_promised_size_and_layout(folder: Path, low: float, high: float) -> None:
    model, _ = load(folder)
    assert low <= sum(p.numel() for p in model.parameters()) <= high
    assert model.config.model_type == "llama" and model.config.tie_word_embeddings
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert set(model.generation_config.eos_token_id) == {0, 2}


def test_both_models_together_stay_below_thirty_megabytes() -> None:
    assert sum(f.stat().st_size for d in (TARGET, DRAFT) for f in d.rglob("*") if f.is_file()) < 30e6


def test_target_and_draft_share_one_tokenizer() -> None:
    assert (TARGET / "tokenizer.json").read_bytes() == (DRAFT / "tokenizer.json").read_bytes()
    assert load(DRAFT)[0].config.num_hidden_layers == 1 and load(TARGET)[0].config.num_hidden_layers >= 12


def test_it_says_who_it_is() -> None:
    text, ended = answer("Who are you?")
    assert "Storyteller" in text and "language model" in text and ended


@pytest.mark.parametrize("greeting", ["Hello!", "Hi", "Good morning!"])
def test_it_greets_back_and_stops(greeting: str) -> None:
    text, ended = answer(greeting)
    assert ended and 2 < len(text) < 200
    assert text.split()[0].strip(",.!") in {"Hello", "Hi", "Hey", "Good"}


@pytest.mark.parametrize(("temperature", "misses"), [(0.0, 0), (0.7, 1)])
def test_its_stories_tell_of_what_was_named_and_end_by_themselves(temperature: float, misses: int) -> None:
    """Every one of eight when the likeliest tokens are taken; sampled, one may miss: small models have their moods."""
    torch.manual_seed(0)
    named = ["cat", "dragon", "robot", "princess", "boat", "bear", "tree", "teacher"]
    stories = [
        answer(f"Tell me a story about a {noun}.", max_new_tokens=500, temperature=temperature) for noun in named
    ]
    assert all(ended and 150 < len(text) < 2000 for text, ended in stories)
    assert sum(noun not in text.lower() for noun, (text, _) in zip(named, stories, strict=True)) <= misses


def test_it_remembers_a_name_over_turns() -> None:
    text, ended = answer("My name is Tom.", "Nice to meet you, Tom!", "What is my name?")
    assert "Tom" in text and ended


def test_the_model_cards_tell_data_licences_samples_and_limits() -> None:
    for folder in (TARGET, DRAFT):
        card = (folder / "README.md").read_text()
        for heading in ("## Data", "## Training", "## Limits"):
            assert heading in card
    assert (TARGET / "README.md").read_text().count("\n### ") >= 20  # the unpicked samples
    notice = (MODELS.parents[1] / "NOTICE").read_text()
    assert all(name in notice for name in ("TinyStories", "Schema-Guided", "CC BY", "CDLA-Sharing-1.0"))
