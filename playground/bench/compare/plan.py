"""What a comparison is: its sides (configurations), its workload (prompts and sampling) and how the runs are taken.

Validated like every other input: what cannot be is refused in one sentence. Nothing is run here.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from playground.config import EngineConfig
from playground.sampling_params import MAX_TOKENS_LIMIT, SEED_LIMIT, SamplingParams
from playground.validation import Validated, shorten

MIN_SIDES, MAX_SIDES = 2, 4
MAX_PROMPTS = 64
MAX_NAME = 60
LETTERS = "ABCD"

Arrival = Literal["together", "one_by_one", "joining"]
"""When prompts are sent: all at once, each after the end of the one before, or each once the one before has begun."""
Mode = Literal["sequential", "concurrent"]


class Side(Validated):
    """One configuration and what it is called."""

    name: str = Field(min_length=1, max_length=MAX_NAME, description=f"a name of 1 to {MAX_NAME} characters")
    config: EngineConfig


class Plan(Validated):
    """One comparison. Raises `ConfigError`, one sentence, at construction."""

    sides: tuple[Side, ...]
    prompts: tuple[str, ...]
    chat: bool = Field(True, description="True or False")
    """Each prompt is a user's message under the model's chat template; else it is plain text to go on with."""
    arrival: Arrival = Field("together", description="together, one_by_one or joining")
    mode: Mode = Field("sequential", description="sequential or concurrent")
    repeats: int = Field(5, ge=1, le=100, description="a whole number from 1 to 100")
    warmups: int = Field(1, ge=1, le=10, description="a whole number from 1 to 10")
    """Runs before those that are timed. The last of them gives the text and its log-probabilities, which take time."""
    seed: int = Field(7, ge=0, lt=SEED_LIMIT - MAX_PROMPTS, description="a whole number, 0 or more")
    """Of the sampling (plus the prompt's number) and of the order of the sides."""
    max_tokens: int = Field(96, ge=1, le=MAX_TOKENS_LIMIT, description=f"a whole number from 1 to {MAX_TOKENS_LIMIT}")
    temperature: float = Field(0.0, ge=0, le=100, description="a number from 0 (greedy) to 100")
    top_p: float = Field(1.0, gt=0, le=1, description="a number above 0, up to 1 (off)")
    top_k: int = Field(0, ge=0, le=10_000_000, description="a whole number, 0 (off) or more")
    ignore_eos: bool = Field(False, description="True or False")

    @field_validator("sides", mode="after")
    @classmethod
    def _sides(cls, sides: tuple[Side, ...]) -> tuple[Side, ...]:
        if not MIN_SIDES <= len(sides) <= MAX_SIDES:
            raise ValueError(f"{len(sides)} configurations cannot be compared: give {MIN_SIDES} to {MAX_SIDES}.")
        return sides

    @field_validator("prompts", mode="after")
    @classmethod
    def _prompts(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise ValueError(f"{len(prompts)} prompts are not allowed: give 1 to {MAX_PROMPTS}.")
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError(f"prompt {shorten(prompt)} is empty: write something, or leave it out.")
        return prompts

    def params(self, prompt: int, **changes: Any) -> SamplingParams:
        """The sampling of one prompt: the same for every side."""
        values: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "ignore_eos": self.ignore_eos,
            "seed": self.seed + prompt,
        }
        return SamplingParams(**values, **changes)
