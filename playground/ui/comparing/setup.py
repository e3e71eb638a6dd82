"""A comparison as the page's fields hold it, and the way from there to a `Plan`.

Plain texts on one side, checked values on the other. Everything that is judged is judged here or below, in one sentence
that names the place.
"""

import re
from collections.abc import Mapping
from typing import Any

from playground.bench.compare.plan import LETTERS, MAX_NAME, Plan, Side
from playground.bench.compare.presets import BY_KEY as PRESETS
from playground.bench.compare.prompts import BY_KEY as PROMPT_SETS
from playground.bench.compare.prompts import SETS
from playground.config import EngineConfig
from playground.errors import ConfigError
from playground.ui import config_form
from playground.validation import shorten

Setup = dict[str, Any]
OWN_PROMPTS = "own"

_NUMBERS: dict[str, tuple[str, type[int] | type[float]]] = {
    "repeats": ("Repeats", int),
    "warmups": ("Warm-ups", int),
    "seed": ("Seed", int),
    "max_tokens": ("Most tokens", int),
    "temperature": ("Temperature", float),
    "top_p": ("Top-p", float),
    "top_k": ("Top-k", int),
}
_CHOICES = ("arrival", "mode")
_SWITCHES = ("chat", "ignore_eos")


class SetupError(ConfigError):
    """What was typed is no comparison. `side` and `field` say where, where that is known."""

    def __init__(self, sentence: str, side: int | None = None, field: str | None = None) -> None:
        super().__init__(sentence)
        self.side, self.field = side, field


def from_plan(plan: Plan, preset: str | None = None, *, blind: bool = False) -> Setup:
    """The fields of a plan."""
    named = next((one.key for one in SETS if one.prompts == plan.prompts), OWN_PROMPTS)
    return {
        "preset": preset,
        "sides": [{"name": side.name, "values": config_form.write(side.config)} for side in plan.sides],
        "prompt_set": named,
        "prompts": "\n\n".join(plan.prompts),
        "blind": blind,
        **{
            name: f"{getattr(plan, name):g}" if kind is float else str(getattr(plan, name))
            for name, (_, kind) in _NUMBERS.items()
        },
        **{name: getattr(plan, name) for name in (*_CHOICES, *_SWITCHES)},
    }


def of_preset(key: str, *, blind: bool = False) -> Setup:
    """Raises `SetupError` for a preset that does not exist."""
    if key not in PRESETS:
        raise SetupError(f"There is no preset {shorten(key)}: choose one from the list.")
    return from_plan(PRESETS[key].plan(), key, blind=blind)


def own(config: EngineConfig | None) -> Setup:
    """A start for one's own: the present configuration twice, one story."""
    base = config or EngineConfig()
    sides = (Side(name="present configuration", config=base), Side(name="changed", config=base))
    return from_plan(Plan(sides=sides, prompts=PROMPT_SETS["story"].prompts))


def read(given: Mapping[str, Any]) -> Plan:
    """The plan of what was typed. Raises `SetupError`."""
    sides = given.get("sides")
    if not isinstance(sides, list):
        raise SetupError("There is nothing to compare: choose a preset.")
    values: dict[str, Any] = {name: _number(name, given) for name in _NUMBERS if str(given.get(name, "")).strip()}
    values |= {name: given[name] for name in (*_CHOICES, *_SWITCHES) if name in given}
    try:
        return Plan(sides=tuple(_side(i, side) for i, side in enumerate(sides)), prompts=_prompts(given), **values)
    except SetupError:
        raise
    except ConfigError as error:
        raise SetupError(_labelled(str(error))) from None


def configs(setup: Mapping[str, Any]) -> list[EngineConfig | None]:
    """The sides' configurations; None for one that an older or newer version cannot read."""
    found: list[EngineConfig | None] = []
    for side in setup["sides"]:
        try:
            found.append(config_form.read(side["values"]))
        except ConfigError:
            found.append(None)
    return found


def _side(index: int, given: Any) -> Side:
    if not isinstance(given, Mapping) or not isinstance(given.get("values"), Mapping):
        raise SetupError("A configuration is missing: choose a preset, or reload the page.", index)
    name = " ".join(str(given.get("name", "")).split())[:MAX_NAME] or f"configuration {LETTERS[index % len(LETTERS)]}"
    try:
        return Side(name=name, config=config_form.read(given["values"]))
    except config_form.FormError as error:
        raise SetupError(str(error), index, error.field) from None


def _prompts(given: Mapping[str, Any]) -> tuple[str, ...]:
    named = PROMPT_SETS.get(str(given.get("prompt_set")))
    if named is not None:
        return named.prompts
    return tuple(text.strip() for text in re.split(r"\n[ \t]*\n", str(given.get("prompts", ""))) if text.strip())


def _number(name: str, given: Mapping[str, Any]) -> int | float:
    label, kind = _NUMBERS[name]
    text = str(given[name]).strip().replace(",", ".")
    try:
        return kind(text)
    except ValueError:
        allowed = Plan.model_fields[name].description
        raise SetupError(f"{label}: {shorten(text)} is not allowed, give {allowed}.", field=name) from None


def _labelled(sentence: str) -> str:
    """The sentence with the field's label in place of its name in code."""
    name = sentence.partition("=")[0]
    return sentence.replace(f"{name}=", f"{_NUMBERS[name][0]}: ", 1) if name in _NUMBERS else sentence
