"""The tokenizer of the bundled models: every text survives, digits stay single, chats render one way only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from playground.training.documents import Document, Encoder, chat
from playground.training.tokenizer import SPECIAL_TOKENS, load_tokenizer, save_tokenizer, train_tokenizer

BUNDLED = Path(__file__).parents[2] / "assets/models/storyteller"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(BUNDLED)


@settings(max_examples=60, deadline=None)
@given(text=st.text())
def test_any_text_survives_a_round_trip(text: str) -> None:
    tokenizer = load_tokenizer_once()
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def load_tokenizer_once(cache: dict[str, Tokenizer] = {}) -> Tokenizer:  # noqa: B006 - a cache on purpose
    return cache.setdefault("it", load_tokenizer(BUNDLED))


@pytest.mark.parametrize("text", ["1234567890", "in 1984 there were 12,000.50", "room101b"])
def test_digits_are_always_single_tokens(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text).tokens
    assert all(len(token) == 1 or not any(c.isdigit() for c in token) for token in tokens)


def test_all_256_bytes_and_the_special_tokens_are_in_the_vocabulary() -> None:
    tokenizer = train_tokenizer(["hello"], 300)
    for byte in range(256):
        text = bytes([byte]).decode("latin-1")
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS] == [0, 1, 2, 3]


CHATS = [
    [("user", "Hello!")],
    [("system", "You tell short stories."), ("user", "Tell me one\n\nabout 2 cats"), ("assistant", "Once.\nThe end.")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
]


@pytest.mark.parametrize("turns", CHATS)
def test_training_sees_a_chat_exactly_as_the_chat_template_renders_it(turns: list, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(BUNDLED)
    save_tokenizer(tokenizer, tmp_path, 1024)
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, return_dict=True)["input_ids"]
    ids, _ = Encoder(tokenizer).encode([chat("", *turns)], assistant_only=True)[0]
    assert ids == [*expected, tokenizer.token_to_id("<|endoftext|>")]


def test_the_generation_prompt_opens_an_assistant_turn_and_stray_spaces_are_trimmed() -> None:
    text = AutoTokenizer.from_pretrained(BUNDLED).apply_chat_template(
        [{"role": "user", "content": "  Hi \n"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_loss_falls_on_assistant_turns_and_their_end_mark_only(tokenizer: Tokenizer) -> None:
    document = chat("", ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye"), ("assistant", "See you."))
    ids, mask = Encoder(tokenizer).encode([document], assistant_only=True)[0]
    learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=False)
    assert learned == "Hello!<|im_end|>See you.<|im_end|>"
    everything = Encoder(tokenizer).encode([document, Document(key="", text="x")], assistant_only=False)
    assert all(all(mask) for _, mask in everything)
