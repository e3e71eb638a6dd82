"""What a caller may ask of one generation: lengths, sampling, penalties, stops, logprobs.

Validates everything that can be judged without a model; limits that depend on the model (vocabulary size, length) are
checked by `Engine.submit`.
"""

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from playground.errors import RequestError
from playground.validation import Validated, shorten

MAX_TOKENS_LIMIT = 1_000_000
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_LOGPROBS = 100
MAX_LENGTH_PENALTY = 50
"""A length of `MAX_TOKENS_LIMIT` to this power is still a float."""
MAX_CACHE_BREAKPOINTS = 16
SEED_LIMIT = 2**63


class SamplingParams(Validated):
    """Parameters of one request. Greedy is `temperature=0`. Raises `RequestError` naming field, value and range.

    `beam_width` above 1 asks for a beam search (see `engine.beam_search` for its scores and its end): nothing is drawn,
    so that temperature, if given at all, must be 0. `Generation.outputs` then holds the `beam_width` best sequences, or
    the `n` best where `n` is above 1.
    """

    error_class: ClassVar[type[RequestError]] = RequestError

    max_tokens: int = Field(256, ge=1, le=MAX_TOKENS_LIMIT, description=f"a whole number from 1 to {MAX_TOKENS_LIMIT}")
    min_tokens: int = Field(0, ge=0, le=MAX_TOKENS_LIMIT, description="a whole number from 0 to max_tokens")
    temperature: float = Field(1.0, ge=0, le=100, description="a number from 0 (greedy) to 100")
    top_k: int = Field(0, ge=0, le=10_000_000, description="a whole number, 0 (off) or more")
    top_p: float = Field(1.0, gt=0, le=1, description="a number above 0, up to 1 (off)")
    min_p: float = Field(0.0, ge=0, le=1, description="a number from 0 (off) to 1")
    repetition_penalty: float = Field(1.0, gt=0, le=100, description="a number above 0, up to 100; 1 is off")
    presence_penalty: float = Field(0.0, ge=-100, le=100, description="a number from -100 to 100; 0 is off")
    frequency_penalty: float = Field(0.0, ge=-100, le=100, description="a number from -100 to 100; 0 is off")
    logit_bias: dict[int, float] = Field(
        default_factory=dict, description="a dict from token id (0 or more) to a number from -1000 to 1000"
    )
    allowed_token_ids: tuple[int, ...] | None = Field(None, description="None or a non-empty list of token ids")
    stop: tuple[str, ...] = Field(
        (), description=f"up to {MAX_STOP_STRINGS} non-empty strings of at most {MAX_STOP_CHARS} characters"
    )
    stop_token_ids: tuple[int, ...] = Field((), description="a list of token ids, each 0 or more")
    ignore_eos: bool = Field(False, description="True or False")
    seed: int | None = Field(
        None, ge=-SEED_LIMIT, lt=SEED_LIMIT, description="None (a new one each time) or a 64-bit whole number"
    )
    n: int = Field(1, ge=1, le=128, description="a whole number from 1 to 128")
    beam_width: int = Field(1, ge=1, le=128, description="a whole number from 1 to 128")
    length_penalty: float = Field(
        1.0,
        ge=-MAX_LENGTH_PENALTY,
        le=MAX_LENGTH_PENALTY,
        description=f"a number from -{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY}",
    )
    early_stopping: bool | Literal["never"] = Field(False, description="True, False or 'never'")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description=f"None or a whole number from 0 to {MAX_LOGPROBS}"
    )
    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description=f"None or a whole number from 0 to {MAX_LOGPROBS}"
    )
    cache_salt: str | None = Field(None, max_length=256, description="None or a string of at most 256 characters")
    cache_breakpoints: tuple[int, ...] | None = Field(
        None, description=f"None (automatic) or up to {MAX_CACHE_BREAKPOINTS} prompt positions, each at least 1"
    )
    """Positions of the prompt up to which its prefix is written to the prefix cache, rounded down to whole KV blocks.

    None writes every full block, the reply's too; an empty tuple writes nothing. Reading is not affected.
    """

    speculate: bool = Field(True, description="True or False")
    """Whether this request may draft, in an engine that speculates; its text has the same distribution either way."""

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_strings(cls, value: Any) -> Any:
        stops = (value,) if isinstance(value, str) else value
        if not isinstance(stops, list | tuple) or not all(isinstance(s, str) for s in stops):
            raise ValueError(f"stop={shorten(value)} is not allowed: give a string or a list of strings.")
        if len(stops) > MAX_STOP_STRINGS:
            raise ValueError(f"stop has {len(stops)} strings: give at most {MAX_STOP_STRINGS}.")
        for stop in stops:
            if not stop:
                raise ValueError("stop contains an empty string, which would end every reply at once: leave it out.")
            if len(stop) > MAX_STOP_CHARS:
                raise ValueError(f"a stop string of {len(stop)} characters is too long: give at most {MAX_STOP_CHARS}.")
        return tuple(stops)

    @field_validator("stop_token_ids", "allowed_token_ids", mode="before")
    @classmethod
    def _token_ids(cls, value: Any, info: Any) -> Any:
        if value is None and info.field_name == "allowed_token_ids":
            return None
        if not isinstance(value, list | tuple | set | frozenset):
            raise ValueError(f"{info.field_name}={shorten(value)} is not allowed: give a list of token ids.")
        if not all(isinstance(t, int) and not isinstance(t, bool) and 0 <= t < 2**31 for t in value):
            raise ValueError(
                f"{info.field_name}={shorten(value)} is not allowed: every id is a whole number, 0 or more."
            )
        if not value and info.field_name == "allowed_token_ids":
            raise ValueError("allowed_token_ids is empty, so no token could ever be drawn: give ids, or None for all.")
        return tuple(value)

    @field_validator("cache_breakpoints", mode="before")
    @classmethod
    def _breakpoints(cls, value: Any) -> Any:
        if value is None:
            return None
        whole = isinstance(value, list | tuple) and all(isinstance(p, int) and not isinstance(p, bool) for p in value)
        if not whole or any(not 1 <= position < 2**31 for position in value):
            raise ValueError(
                f"cache_breakpoints={shorten(value)} is not allowed: give None, or a list of positions in the prompt, "
                "whole numbers from 1."
            )
        if len(value) > MAX_CACHE_BREAKPOINTS:
            raise ValueError(f"cache_breakpoints has {len(value)} positions: give at most {MAX_CACHE_BREAKPOINTS}.")
        return tuple(sorted(set(value)))

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _bias(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"logit_bias={shorten(value)} is not allowed: give a dict from token id to bias.")
        bias: dict[int, float] = {}
        for key, amount in value.items():
            if isinstance(key, str) and key.isdecimal():  # JSON has only string keys
                key = int(key)
            if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < 2**31:
                raise ValueError(f"logit_bias has the key {shorten(key)}: keys are token ids, whole numbers from 0.")
            number = isinstance(amount, int | float) and not isinstance(amount, bool)
            if not number or not math.isfinite(amount) or not -1000 <= amount <= 1000:
                raise ValueError(
                    f"logit_bias[{key}]={shorten(amount)} is not allowed: give a number from -1000 to 1000."
                )
            bias[key] = float(amount)
        return bias

    @model_validator(mode="after")
    def _fits_together(self) -> "SamplingParams":
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}: lower min_tokens.")
        if self.beam_width > 1:
            self._check_beams()
            return self
        if self.length_penalty != 1.0:
            raise ValueError("length_penalty only acts on beam search: leave it at 1, or give a beam_width above 1.")
        if self.early_stopping is not False:
            raise ValueError("early_stopping only acts on beam search: leave it False, or give a beam_width above 1.")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n={self.n} greedy samples would all be the same: raise temperature above 0 or give n=1.")
        return self

    def _check_beams(self) -> None:
        beams = f"beam_width={self.beam_width}"
        if "temperature" in self.model_fields_set and self.temperature > 0:
            raise ValueError(
                f"{beams} searches for the most probable sequences and draws nothing, but temperature="
                f"{self.temperature}: leave temperature out or give 0."
            )
        for field in ("top_k", "top_p", "min_p"):
            if getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(
                    f"{field}={getattr(self, field)} filters draws, and {beams} draws nothing: leave it out."
                )
        if self.stop:
            raise ValueError(
                f"stop strings cannot end beams, whose text is known only when the search has chosen among them: with "
                f"{beams} give stop_token_ids."
            )
        if self.n > self.beam_width:
            raise ValueError(f"n={self.n} is above {beams}, and no more sequences than beams are found: lower n.")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def num_outputs(self) -> int:
        """Sequences that the caller gets."""
        return self.n if self.n > 1 else self.beam_width

    def ending_token_ids(self, eos_token_ids: frozenset[int]) -> frozenset[int]:
        """Tokens that end the output."""
        return frozenset(self.stop_token_ids) | (frozenset() if self.ignore_eos else eos_token_ids)
