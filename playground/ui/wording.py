"""What the page says about the model, the machine and a reply's cost: names, captions, figures. Pure text, no markup.

Numbers and their definitions come from `telemetry`; nothing here measures or rounds by itself.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from playground.config import SpeculationConfig
from playground.engine.outputs import RequestMetrics
from playground.telemetry.definitions import define
from playground.telemetry.format import MISSING, format_count, format_percent, format_rate, format_seconds

PAGE_NAME = "Inference Playground"
TINY_PARAMETERS = 50_000_000
EXAMPLES = (
    "Hello!",
    "Who are you?",
    "Tell me a story about a fox who could not sleep.",
    "Tell me a story about a girl and a little boat.",
)
EMPTY_TITLE = "Talk to the model and watch the engine work"
EMPTY_TEXT = (
    "Your conversation will appear here. Under every reply stands what it took: its tokens, the time to the first of "
    "them, tokens per second, tokens found in the cache, and KV blocks."
)

SPECULATION_TIP = (
    "What speculation did at the end of this reply, and why. Off may change from step to step; disabled is for good."
)
CONTINUED_TIP = (
    "This reply goes on where an earlier one ended. The figures are those of the part that was written last; the "
    "earlier part is kept as a version of its own."
)

Figure = tuple[str, str]
"""A figure as it is shown, and its definition for the hover text."""


def model_name(path: str) -> str:
    """The name people know a model by: its folder, or the hub id that the download cache has in its folder names."""
    hub = re.search(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]", path)
    return f"{hub[1]}/{hub[2]}" if hub else Path(path).name


def parameter_count(count: int) -> str:
    """7 400 000 is "7.4 M"."""
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def speculation_text(config: SpeculationConfig) -> str:
    """How drafts are made: "speculation: draft, K = 4"."""
    return f"speculation: {config.method}, K = {config.num_tokens}"


def caption(name: str, parameters: int) -> str:
    """One honest line below the message box about what answers here."""
    if parameters < TINY_PARAMETERS:
        return f"{name} is a tiny model for showing the engine: small talk and short stories, no facts."
    return f"Replies come from {name} and can be wrong."


def empty_text(name: str, parameters: int) -> list[str]:
    if parameters >= TINY_PARAMETERS:
        return [EMPTY_TEXT]
    tiny = (
        f"{name} is a tiny model of {parameter_count(parameters)} parameters, trained to show the engine. "
        "It greets, makes small talk and tells short stories; it knows no facts."
    )
    return [EMPTY_TEXT, tiny]


def reply_figures(metrics: Mapping[str, Any], *, ended: bool = True) -> list[Figure]:
    """The line under a reply, from the metrics stored with it; one that has not `ended` says only what is known yet."""
    tokens = metrics.get("num_output_tokens")
    per_token = metrics.get("time_per_output_token")
    drafts, accepted = metrics.get("num_draft_tokens"), metrics.get("num_accepted_tokens")
    per_token_text = define("time_per_output_token")
    rate_tip = f"Tokens per second of this reply: 1 / the {_low(per_token_text.label)}. {per_token_text.text}"
    figures: list[tuple[Any, str, str]] = [
        (tokens, plural(tokens, "token"), define("num_output_tokens").hover),
        _figure("time_to_first_token", metrics, lambda value: f"first token {format_seconds(value)}"),
        (per_token, str(format_rate(1 / per_token if per_token else None)), rate_tip),
    ]
    if drafts:
        share = format_percent(accepted / drafts if isinstance(accepted, int) else None)
        tip = f"{define('acceptance_rate').hover} Here: {format_count(accepted)} of n = {format_count(drafts)}."
        figures.append((drafts, f"accepted {share} (n = {format_count(drafts)})", tip))
    figures += [
        _figure("num_cached_tokens", metrics, lambda value: f"cached {format_count(value)}"),
        _figure("kv_blocks_peak", metrics, lambda value: plural(value, "block")),
    ]
    shown = [(text, tip) for value, text, tip in figures if ended or value is not None]
    speculation = metrics.get("speculation")
    if isinstance(speculation, Mapping) and speculation.get("reason"):
        shown.append((f"speculation {speculation.get('state')}: {speculation['reason']}", SPECULATION_TIP))
    if metrics.get("continues") is not None:
        shown.append(("continued", CONTINUED_TIP))
    return shown


def _figure(key: str, metrics: Mapping[str, Any], write: Callable[[Any], str]) -> tuple[Any, str, str]:
    value = metrics.get(key)
    return value, write(value), define(key).hover


def phase(num_tokens: int, num_before: int | None, num_read: int | None, num_prompt_tokens: int) -> str:
    """What a request does: waits behind `num_before` others, has `num_read` tokens of its prompt done, or writes."""
    if num_tokens:
        return "writing"
    if num_before is not None:
        return f"queued, {format_count(num_before)} before you" if num_before else "queued, next in line"
    if num_read is None:
        return "sent to the engine"
    return f"reading the prompt {min(100, 100 * num_read // max(1, num_prompt_tokens))} %"


def context_tokens(metrics: Mapping[str, Any]) -> int | None:
    """Tokens of the model's context that a conversation fills after this reply."""
    prompt, output = metrics.get("num_prompt_tokens"), metrics.get("num_output_tokens")
    return prompt + output if isinstance(prompt, int) and isinstance(output, int) else None


def metrics_dict(metrics: RequestMetrics) -> dict[str, Any]:
    """The metrics by the engine's names, for storing."""
    return dataclasses.asdict(metrics)


def plural(count: Any, noun: str) -> str:
    if not isinstance(count, int):
        return f"{MISSING} {noun}s"
    return f"{format_count(count)} {noun}{'' if count == 1 else 's'}"


def _low(label: str) -> str:
    return label[:1].lower() + label[1:]
