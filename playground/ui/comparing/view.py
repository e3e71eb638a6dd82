"""What the compare page shows of a comparison: columns, the band below them, the table, the dots.

Pure functions from the saved record and the fields it was made from; texts stay plain strings, no markup is made here.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from playground.bench.compare.measures import Kind
from playground.bench.compare.plan import LETTERS
from playground.bench.compare.presets import BY_KEY as PRESETS
from playground.bench.compare.prompts import BY_KEY as PROMPT_SETS
from playground.bench.compare.summary import Against, Row, drafts, predictions, summarise
from playground.bench.stats import Interval
from playground.config import EngineConfig
from playground.telemetry.format import (
    MISSING,
    Quantity,
    format_bytes,
    format_count,
    format_number,
    format_percent,
    format_rate,
    format_seconds,
)
from playground.ui import config_form
from playground.ui.comparing import setup as fields
from playground.ui.comparing.texts import why_different
from playground.ui.wording import model_name

View = dict[str, Any]
_ALWAYS_TOLD = ("speculation.num_tokens", "speculation.verification")
TIMES_FROM = 1.25
"""Ratios from here on are told as "1.36×", smaller ones in per cent."""
THE_END = "the end"
UNCLEAR = "The interval includes no difference."


def title(setup: Mapping[str, Any]) -> str:
    """What a comparison is called in the list of saved ones."""
    preset = PRESETS.get(setup.get("preset") or "")
    return preset.name if preset is not None else " / ".join(side["name"] for side in setup["sides"])


def prompts_label(setup: Mapping[str, Any]) -> str:
    named = PROMPT_SETS.get(setup["prompt_set"])
    if named is not None:
        return f"{named.name} ({len(named.prompts)})"
    count = len([text for text in str(setup["prompts"]).split("\n\n") if text.strip()])
    return f"own ({count})"


def protocol(record: Mapping[str, Any], setup: Mapping[str, Any]) -> str:
    """How the runs were taken, in one line."""
    rounds = len(record["rounds"])
    if setup["mode"] == "concurrent":
        return f"All at once: what is measured is contention, n = {rounds}."
    how = "held beside each other" if record["held"] else "loaded for every turn, as memory had no room for all"
    each = "the one round" if rounds == 1 else f"each of {rounds} rounds"
    return f"One engine at a time, {how}; order shuffled in {each} with seed {setup['seed']}."


def result(
    record: Mapping[str, Any], setup: Mapping[str, Any], comparison_id: int | None = None, vote: str | None = None
) -> View:
    """Everything that is shown of one comparison. While a blind one has no vote, nothing tells the sides apart."""
    hidden = bool(setup.get("blind")) and vote is None
    configs = fields.configs(setup)
    sides = list(range(len(record["sides"])))
    if hidden:
        random.Random(f"{record['created']}{setup['seed']}").shuffle(sides)
    preset = PRESETS.get(setup.get("preset") or "")
    rows = [] if hidden else summarise(record)
    return {
        "id": comparison_id,
        "title": title(setup),
        "status": record["status"],
        "created": record["created"],
        "hidden": hidden,
        "vote": vote,
        "votes": _votes(record, sides, hidden) if setup.get("blind") else None,
        "expect": None if preset is None or hidden else preset.expect,
        "watch": "time_per_output_token" if preset is None else preset.watch,
        "protocol": protocol(record, setup),
        "machine": _machine(record),
        "prompts": _prompts(setup),
        "columns": [_column(place, side, record, configs, hidden) for place, side in enumerate(sides)],
        "bands": [] if hidden else _bands(record, setup, configs),
        "agreement": None if hidden else _agreement(record),
        "table": [_table_row(row, record) for row in rows],
        "n": max((len(side["runs"]) for side in record["sides"]), default=0),
    }


# Columns


def _column(
    place: int, side: int, record: Mapping[str, Any], configs: Sequence[EngineConfig | None], hidden: bool
) -> View:
    kept = record["sides"][side]
    return {
        "side": side,
        "letter": str(place + 1) if hidden else LETTERS[side],
        "name": "hidden until the vote" if hidden else kept["name"],
        "differs": [] if hidden else differing(configs)[side],
        "error": kept["error"],
        "outputs": [_output(record, side, number, hidden) for number in range(len(kept["outputs"]))],
    }


def differing(configs: Sequence[EngineConfig | None]) -> list[list[View]]:
    """For each side the settings that are not the same on all sides, as the form labels them."""
    readable = [config for config in configs if config is not None]
    names = config_form.differing(readable)
    texts = []
    for config in configs:
        values = {} if config is None else config_form.write(config)
        shown = [] if config is None else [name for name in names if _tells(name, values, readable)]
        texts.append([{"label": _label(name), "value": _value(name, values[name])} for name in shown])
    return texts


def _tells(name: str, values: Mapping[str, str], configs: Sequence[EngineConfig]) -> bool:
    """Whether a setting says something on its side: it has a rival on another side, or is not what it always is."""
    if not config_form.is_shown(name, values):
        return False
    rivals = {other[name] for other in map(config_form.write, configs) if config_form.is_shown(name, other)}
    return len(rivals) > 1 or name in _ALWAYS_TOLD or values[name] != config_form.default_values()[name]


def _label(name: str) -> str:
    return config_form.label(name).removesuffix(": method").replace(": ", ", ")


def _value(name: str, text: str) -> str:
    if name in ("model", "draft_model") and text:
        return model_name(text)
    return text or ("bundled" if name in ("model", "draft_model") else "automatic")


def _output(record: Mapping[str, Any], side: int, prompt: int, hidden: bool) -> View:
    """The text in three parts: what is the same as the other's, the first difference, the rest."""
    output = record["sides"][side]["outputs"][prompt]
    text = output["text"]
    parted = [] if hidden else _parted(record, side, prompt)
    start, end = min(parted, default=(None, None))
    figures = f"{format_count(len(output['token_ids']))} tokens"
    if output["finish_reason"] == "length":
        figures += ", cut at the limit"
    told: View = {"figures": figures, "run": None if hidden else output.get("run")}
    if start is None:
        same = len(text) if not hidden and _is_compared(record, side, prompt) else 0
        return {**told, "same": text[:same], "first": "", "rest": text[same:], "parted": False}
    return {**told, "same": text[:start], "first": text[start:end], "rest": text[end:], "parted": True}


def _parted(record: Mapping[str, Any], side: int, prompt: int) -> list[tuple[int, int]]:
    """Where this side's text parts from the first side's; for the first side, from each of the others'."""
    others = range(1, len(record["sides"])) if side == 0 else (side,)
    found = [record["divergences"][other][prompt] for other in others if len(record["divergences"][other]) > prompt]
    which = 0 if side == 0 else 1
    return [(one["at"][which], one["until"][which]) for one in found if not one["identical"]]


def _is_compared(record: Mapping[str, Any], side: int, prompt: int) -> bool:
    others = range(1, len(record["sides"])) if side == 0 else (side,)
    return any(len(record["divergences"][other]) > prompt for other in others)


# The band


def _bands(
    record: Mapping[str, Any], setup: Mapping[str, Any], configs: Sequence[EngineConfig | None]
) -> list[list[View]]:
    """For each prompt one band a side that was held against the first."""
    prompts = max((len(one) for one in record["divergences"]), default=0)
    return [
        [
            _band(record, setup, configs, side, prompt)
            for side in range(1, len(record["sides"]))
            if prompt < len(record["divergences"][side])
        ]
        for prompt in range(prompts)
    ]


def _band(
    record: Mapping[str, Any],
    setup: Mapping[str, Any],
    configs: Sequence[EngineConfig | None],
    side: int,
    prompt: int,
) -> View:
    one = record["divergences"][side][prompt]
    outputs = [record["sides"][who]["outputs"][prompt] for who in (0, side)]
    by_token = one["unit"] == "token"
    total = max(len(output["token_ids"] if by_token else output["text"]) for output in outputs)
    view = {
        "letter": LETTERS[side],
        "share": one["common"] / total if total else 1.0,
        "parted": not one["identical"],
        "coupled": False,
    }
    if one["identical"]:
        return view | {"text": f"{LETTERS[side]} is identical to A: all {_plural(total, one['unit'])}"}
    if not by_token:
        text = f"{LETTERS[side]} and A have other vocabularies: identical for {_plural(one['common'], 'character')}"
        return view | {"text": text}
    logprobs = one["logprobs"] or [[None, None], [None, None]]
    letters = ("A", LETTERS[side])
    tokens = [
        _token(output["text"][start:end], letter, logprobs[i][i])
        for i, (output, letter, start, end) in enumerate(zip(outputs, letters, one["at"], one["until"], strict=True))
    ]
    own, rival = logprobs[0]
    gap = None if own is None or rival is None else own - rival
    base, other = configs[0], configs[side]
    reason = None
    if base is not None and other is not None:
        greedy = float(setup["temperature"]) == 0
        reason = why_different(base, other, greedy=greedy, gap=gap)
    several = f"{LETTERS[side]}: " if len(record["sides"]) > 2 else ""
    head = f"identical for {_plural(one['common'], 'token')}" if one["common"] else "different from the start"
    said = f"{several}{head} · first difference at token {one['common'] + 1}: {tokens[0]} against {tokens[1]}"
    if gap is not None:
        said += f", a gap of {_signed(gap)} in A"
    if reason is not None:
        said += f"; {reason.text}"
    return view | {"text": said, "coupled": reason is not None and reason.offer_coupled}


def _token(text: str, letter: str, logprob: float | None) -> str:
    shown = f"“{text.strip() or '␣'}”" if text else THE_END
    return f"{shown} ({letter}{'' if logprob is None else f', log p {_signed(logprob)}'})"


def _agreement(record: Mapping[str, Any]) -> str | None:
    """Over all prompts, where there are several."""
    said = []
    for side, found in enumerate(record["divergences"]):
        if len(found) > 1:
            same = sum(one["identical"] for one in found)
            said.append(f"{LETTERS[side]} is identical to A in {same} of {len(found)}")
    return "; ".join(said) or None


# The table


def _table_row(row: Row, record: Mapping[str, Any]) -> View:
    metric = row.metric
    medians = [side.median for side in row.sides if side is not None]
    scale = _Scale.of(metric.kind, max(medians))
    notes = _notes(row, record)
    return {
        "key": metric.key,
        "label": metric.label,
        "tip": metric.text,
        "unit": scale.unit,
        "cells": [
            None if side is None else _cell(side, metric.kind, note)
            for side, note in zip(row.sides, notes, strict=True)
        ],
        "against": [None if one is None else _against(one, row) for one in row.against],
        "dots": [[[number, scale.of_value(value)] for number, value in sorted(side.items())] for side in row.values],
        "medians": [None if side is None else scale.of_value(side.median) for side in row.sides],
        "zero": metric.key != "acceptance_rate",
    }


def _notes(row: Row, record: Mapping[str, Any]) -> list[str | None]:
    if row.metric.key == "acceptance_rate":
        return [f"n = {count:,}" if count else None for count in drafts(record)]
    if row.metric.key == "tokens_per_step":
        return [None if one is None else f"formula {format_number(one).number}" for one in predictions(record)]
    return [None] * len(row.sides)


def _cell(interval: Interval, kind: Kind, note: str | None) -> View:
    scale = _Scale.of(kind, interval.median)
    shown = quantity(interval.median, kind)
    low, high = (None if value is None else scale.text(value) for value in (interval.low, interval.high))
    between = f"{low}–{high}" if low is not None and low != high else None
    return {"number": shown.number, "unit": shown.unit, "interval": between, "n": interval.n, "note": note}


def quantity(value: float, kind: Kind) -> Quantity:
    """A number of this kind as it is written."""
    match kind:
        case "seconds":
            return format_seconds(value)
        case "rate":
            return format_rate(value)
        case "share":
            return format_percent(value)
        case "bytes":
            return format_bytes(value)
        case "count":
            return format_count(round(value)) if value == round(value) else format_number(value)
    return format_number(value)


class _Scale:
    """The unit of one number, for others that stand beside it."""

    def __init__(self, unit: str, factor: float, kind: Kind) -> None:
        self.unit, self._factor, self._kind = unit, factor, kind

    @classmethod
    def of(cls, kind: Kind, value: float) -> "_Scale":
        shown = quantity(value, kind)
        factors = {"ms": 1e3, "%": 100.0, "KiB": 2**-10, "MiB": 2**-20, "GiB": 2**-30, "TiB": 2**-40}
        return cls(shown.unit, factors.get(shown.unit, 1.0), kind)

    def of_value(self, value: float) -> float:
        return value * self._factor

    def text(self, value: float) -> str:
        scaled = self.of_value(value)
        return f"{scaled:,.0f}" if self._kind == "count" and scaled == round(scaled) else format_number(scaled).number


def _against(one: Against, row: Row) -> View:
    """One side against the first, in words that fit the metric."""
    kind, better = row.metric.kind, row.metric.better
    if one.difference == 0:
        return {"text": "no difference", "interval": None, "strong": False, "clear": False, "tip": None}
    ratio = one.ratio
    if kind == "share" or ratio is None:
        unit = " points" if kind == "share" else ""
        text = f"{_percent(one.difference * 100) if kind == 'share' else _signed(one.difference)}{unit}"
        return {"text": text, "interval": None, "strong": False, "clear": True, "tip": None}
    if ratio.median == 0:  # of a number there is nothing left: no ratio says that
        shown = quantity(abs(one.difference), kind)
        text = f"−{shown.number}{f' {shown.unit}' if shown.unit else ''}"
        return {"text": text, "interval": None, "strong": False, "clear": one.is_clear, "tip": None}
    clear = one.is_clear or ratio.n == 1
    view: View = {"strong": False, "clear": clear, "tip": None if clear else UNCLEAR}
    times = max(ratio.median, 1 / ratio.median)
    if times < TIMES_FROM:
        text = f"{_percent((ratio.median - 1) * 100)} %"
        if kind == "bytes":
            text = f"{'+' if one.difference > 0 else '−'}{format_bytes(abs(one.difference))}"
        elif ratio.low is not None and ratio.high is not None and ratio.low != ratio.high:
            view["interval"] = f"{_percent((ratio.low - 1) * 100)} to {_percent((ratio.high - 1) * 100)}"
        return {"interval": None, **view, "text": text}
    more = ratio.median > 1
    if kind in ("seconds", "rate"):
        word = "faster" if more == (kind == "rate") else "slower"
    else:
        word = "more" if more else "less"
    bounds = [ratio.low, ratio.high] if more else [_inverse(ratio.high), _inverse(ratio.low)]
    low, high = (None if value is None else format_number(value).number for value in bounds)
    interval = f"{low}–{high}" if low is not None and low != high else None
    good = better is not None and more == (better == "higher")
    return {**view, "text": f"{format_number(times).number}× {word}", "interval": interval, "strong": clear and good}


# Parts


def _votes(record: Mapping[str, Any], sides: Sequence[int], hidden: bool) -> list[View]:
    letters = [str(place + 1) if hidden else LETTERS[side] for place, side in enumerate(sides)]
    choices = [
        {"choice": str(side), "label": f"{letter} is better"} for side, letter in zip(sides, letters, strict=True)
    ]
    return [
        *choices,
        {"choice": "tie", "label": "Tie"},
        {"choice": "bad", "label": "All bad" if len(sides) > 2 else "Both bad"},
    ]


def vote_text(vote: str | None, setup: Mapping[str, Any]) -> str | None:
    """A stored vote in words."""
    if vote is None:
        return None
    if vote in ("tie", "bad"):
        return {"tie": "voted a tie", "bad": "voted: none is good"}[vote]
    name = setup["sides"][int(vote)]["name"] if int(vote) < len(setup["sides"]) else ""
    return f"voted for {LETTERS[int(vote)]} ({name})"


def _prompts(setup: Mapping[str, Any]) -> list[str]:
    named = PROMPT_SETS.get(setup["prompt_set"])
    if named is not None:
        return list(named.prompts)
    return [text.strip() for text in str(setup["prompts"]).split("\n\n") if text.strip()]


def _machine(record: Mapping[str, Any]) -> str:
    machine = record.get("machine") or {}
    devices = {side["facts"]["device_name"] for side in record["sides"] if side["facts"].get("device_name")}
    return " · ".join(sorted(devices) or [str(machine.get("processor", ""))])


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _signed(value: float) -> str:
    shown = format_number(abs(value)).number
    return shown if shown == MISSING or value >= 0 else f"−{shown}"


def _percent(value: float) -> str:
    digits = f"{abs(value):.0f}" if abs(value) >= 9.95 else f"{abs(value):.1f}"
    return f"{'+' if value >= 0 else '−'}{digits}"


def _inverse(value: float | None) -> float | None:
    return None if not value else 1 / value
