"""Turns what a caller gives (text, token ids, a conversation) into token ids, and refuses what no model could take.

All checks that need the vocabulary or the model's length live here, so that nothing invalid reaches the engine thread.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from playground.errors import RequestError
from playground.sampling_params import SamplingParams
from playground.validation import shorten

ROLES = ("system", "user", "assistant")


class PromptReader:
    """Reads prompts for one model."""

    def __init__(self, tokenizer: Any | None, vocab_size: int, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len

    def read(self, prompt: object) -> list[int]:
        """Token ids of a prompt. Raises `RequestError`: empty, too long, of a wrong type, ids out of range."""
        token_ids = self._encode(prompt) if isinstance(prompt, str) else self._check_ids(prompt)
        if not token_ids:
            raise RequestError("the prompt is empty: give at least one token.")
        if len(token_ids) >= self._max_model_len:
            raise RequestError(
                f"the prompt has {len(token_ids)} tokens, which leaves no room for a reply within "
                f"max_model_len={self._max_model_len}: shorten it to at most {self._max_model_len - 1}."
            )
        return token_ids

    def _encode(self, text: str) -> list[int]:
        if not text:
            raise RequestError("the prompt is empty: give at least one character.")
        if self._tokenizer is None:
            raise RequestError("this model has no tokenizer: give token ids, not text.")
        try:
            return list(self._tokenizer(text).input_ids)
        except (UnicodeError, TypeError) as error:  # lone surrogates
            raise RequestError(
                f"the prompt is not valid Unicode text ({error}): remove the broken characters."
            ) from None

    def _check_ids(self, prompt: object) -> list[int]:
        if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Sequence):
            raise RequestError(f"the prompt is a {type(prompt).__name__}: give a string or a list of token ids.")
        for token_id in prompt:
            if not isinstance(token_id, int) or isinstance(token_id, bool):
                raise RequestError(f"the prompt contains {shorten(token_id)}: token ids are whole numbers.")
            if not 0 <= token_id < self._vocab_size:
                raise RequestError(
                    f"token id {token_id} is out of range: this model's ids go from 0 to {self._vocab_size - 1}."
                )
        return list(prompt)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation with the chat template's start of the reply. Raises `RequestError`."""
        if isinstance(messages, str | Mapping) or not messages:
            raise RequestError('messages is empty or not a list: give a list of {"role": …, "content": …}.')
        for message in messages:
            self._check_message(message)
        if self._tokenizer is None or not getattr(self._tokenizer, "chat_template", None):
            raise RequestError("this model has no chat template: use generate() with a plain prompt.")
        special = self._tokenizer.all_special_tokens
        contents = [message["content"] for message in messages]
        if not any(token in content for content in contents for token in special):
            return self._encode_rendered(self._render(messages))
        # What a user types is text, never a control token: such contents are encoded apart from the template.
        marks = [f"\ue000{index}\ue001" for index in range(len(contents))]
        marked = [{"role": m["role"], "content": mark} for m, mark in zip(messages, marks, strict=True)]
        token_ids: list[int] = []
        rest = self._render(marked)
        for mark, content in zip(marks, contents, strict=True):
            before, found, after = rest.partition(mark)
            if found:  # a template may leave a message out
                token_ids += self._encode_rendered(before) + self._encode_literally(content)
                rest = after
        return token_ids + self._encode_rendered(rest)

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        assert self._tokenizer is not None
        plain = [dict(message) for message in messages]
        try:
            return str(self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates are programs of the checkpoint: whatever they raise is about the input
            raise RequestError(f"the chat template refused the conversation: {' '.join(str(error).split())}.") from None

    def _encode_rendered(self, text: str) -> list[int]:
        assert self._tokenizer is not None
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _encode_literally(self, text: str) -> list[int]:
        """Token ids of `text` with control tokens spelled out as ordinary characters."""
        assert self._tokenizer is not None
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def _check_message(self, message: object) -> None:
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise RequestError(f"a message is {shorten(message)}: give exactly role and content.")
        if message["role"] not in ROLES:
            raise RequestError(f"role={shorten(message['role'])} is not allowed: give {', '.join(ROLES)}.")
        if not isinstance(message["content"], str):
            raise RequestError(f"content={shorten(message['content'])} is not text: give a string.")

    def check_params(self, params: SamplingParams, num_prompt: int) -> None:
        """Raise `RequestError` where a parameter names what the vocabulary or a prompt of this length does not have."""
        if params.cache_breakpoints and params.cache_breakpoints[-1] > num_prompt:
            raise RequestError(
                f"cache_breakpoints names position {params.cache_breakpoints[-1]}, but the prompt has {num_prompt} "
                "tokens: give positions within it."
            )
        named = {
            "stop_token_ids": params.stop_token_ids,
            "logit_bias": tuple(params.logit_bias),
            "allowed_token_ids": params.allowed_token_ids or (),
        }
        for field, token_ids in named.items():
            outside = [token_id for token_id in token_ids if token_id >= self._vocab_size]
            if outside:
                raise RequestError(
                    f"{field} names token {outside[0]}, but this model's ids go from 0 to {self._vocab_size - 1}."
                )
        if params.stop and self._tokenizer is None:
            raise RequestError("stop strings need a tokenizer, and this model has none: use stop_token_ids.")
