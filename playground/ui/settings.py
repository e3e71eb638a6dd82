"""Sampling settings as the page shows them: fields, presets, and their way into `SamplingParams`.

The page sends what was typed; every judgement about it is made here or by `SamplingParams`, in one sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from playground.errors import RequestError
from playground.sampling_params import SamplingParams
from playground.validation import shorten


@dataclass(frozen=True, slots=True)
class Setting:
    """One input of the sampling panel."""

    name: str
    label: str
    whole: bool
    tip: str
    placeholder: str = ""


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "temperature",
        "Temperature",
        False,
        "How freely tokens are drawn: 0 always takes the most probable one, 1 draws as the model was trained.",
    ),
    Setting(
        "top_p",
        "Top-p",
        False,
        "Draw only from the most probable tokens that reach this probability together; 1 is off.",
    ),
    Setting("top_k", "Top-k", True, "Draw only from this many most probable tokens; 0 is off."),
    Setting("min_p", "Min-p", False, "Drop tokens less probable than this share of the most probable one; 0 is off."),
    Setting(
        "repetition_penalty",
        "Repetition penalty",
        False,
        "Lowers the scores of tokens that already occurred; 1 is off.",
    ),
    Setting(
        "max_tokens",
        "Most tokens in a reply",
        True,
        "The reply ends after this many tokens if the model has not ended it before.",
    ),
    Setting(
        "seed",
        "Seed",
        True,
        "The same seed, settings and conversation give the same reply. Leave it empty for a new one each time.",
        "new each time",
    ),
)

PRESETS: dict[str, dict[str, str]] = {
    "Precise": {"temperature": "0", "top_p": "1", "top_k": "0", "min_p": "0", "repetition_penalty": "1"},
    "Balanced": {"temperature": "0.7", "top_p": "0.9", "top_k": "0", "min_p": "0", "repetition_penalty": "1"},
    "Creative": {"temperature": "1", "top_p": "0.95", "top_k": "0", "min_p": "0.03", "repetition_penalty": "1.05"},
}
DEFAULTS: dict[str, str] = {**PRESETS["Balanced"], "max_tokens": "256", "seed": ""}


def sampling_params(typed: Mapping[str, Any]) -> SamplingParams:
    """The parameters for what was typed; an empty field means its default. Raises `RequestError`, one sentence."""
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = str(typed.get(setting.name, DEFAULTS[setting.name])).strip()
        if text:
            values[setting.name] = _number(setting, text)
    return SamplingParams(**values)


def _number(setting: Setting, text: str) -> int | float:
    try:
        return int(text) if setting.whole else float(text.replace(",", "."))
    except ValueError:
        allowed = SamplingParams.model_fields[setting.name].description
        raise RequestError(f"{setting.label}: {shorten(text)} is not allowed, give {allowed}.") from None
