"""Replays a real serving trace and counts what of its prompts the prefix cache answered.

A published trace has lengths and times but no text, so what its requests share is an assumption. Three are played: the
most that the lengths allow, one system prompt, and nothing, which no cache may find anything in.
"""

import csv
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from playground import Engine, SamplingParams
from playground.bench.workload import random_prompt
from playground.engine.block_tables import chain_hash
from playground.errors import ConfigError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_PAUSE_SECONDS = 600
MAX_TURN_TOKENS = 256
SYSTEM_TOKENS = 512
CONCURRENCY = 8
SCENARIOS = ("conversations", "system prompt", "nothing shared")

DEFINITIONS = {
    "trace": "Arrival order, prompt lengths and reply lengths are the trace's, divided so that its longest request "
    f"fits the model. Up to {CONCURRENCY} requests run at a time, each as soon as there is room and what it follows is "
    "done.",
    "conversations": "A request is the next turn of the earlier one, at most "
    f"{MAX_PAUSE_SECONDS} s before it and followed by no other, whose prompt and reply are its own prompt less 1 to "
    f"{MAX_TURN_TOKENS} tokens; of several, the longest. That is the most reuse that the lengths allow, not what the "
    "users did.",
    "system prompt": f"Every prompt begins with the same {SYSTEM_TOKENS} tokens, divided like the rest.",
    "nothing shared": "Every prompt is its own: what the cache costs where it can answer nothing.",
    "possible": "Prompt tokens in whole blocks that an earlier request had computed, with a cache that never forgets.",
    "found, written": "Prompt tokens that the engine took from its prefix cache, and that it put there.",
    "same": "Requests whose greedy float32 replies are the same with the cache and without.",
    "off ms, on ms": "Median time to the first token without and with the prefix cache.",
}


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One line of a trace: seconds since the first, tokens of the prompt and of the reply."""

    time: float
    prompt: int
    reply: int


def read_trace(file: Path) -> list[TraceRequest]:
    """The requests of a CSV trace. Raises `ConfigError`, one sentence."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(f"--trace {file} has no column {missing[0]}: give a CSV with {', '.join(COLUMNS)}.")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--trace {file} cannot be read ({reason}): give a CSV with {', '.join(COLUMNS)}.") from None
    try:
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
        lengths = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--trace {file} has a line that is no request ({error}): repair or remove it.") from None
    if not rows or min(min(pair) for pair in lengths) < 1:
        raise ConfigError(f"--trace {file} has no request, or one without tokens: give a trace of real requests.")
    return [
        TraceRequest((time - times[0]).total_seconds(), prompt, reply)
        for time, (prompt, reply) in zip(times, lengths, strict=True)
    ]


def link_turns(trace: Sequence[TraceRequest]) -> list[int | None]:
    """For each request, which earlier one it may continue: see "conversations"."""
    open_ends: dict[int, int] = {}  # request -> tokens of its prompt and reply
    before: list[int | None] = []
    for number, request in enumerate(trace):
        fits = {
            earlier: length
            for earlier, length in open_ends.items()
            if 1 <= request.prompt - length <= MAX_TURN_TOKENS
            and request.time - trace[earlier].time <= MAX_PAUSE_SECONDS
        }
        chosen = max(fits, key=lambda earlier: fits[earlier], default=None)
        if chosen is not None:
            del open_ends[chosen]
        before.append(chosen)
        open_ends[number] = request.prompt + request.reply
    return before


def divisor_for(trace: Sequence[TraceRequest], max_model_len: int) -> int:
    """The smallest whole number that brings the longest request of the trace below the model's length."""
    return -(-max(request.prompt + request.reply for request in trace) // (max_model_len - 1))


@dataclass
class Workload:
    """Prompts and replies of one scenario, filled in as its first run makes the replies."""

    trace: Sequence[TraceRequest]
    divisor: int
    before: Sequence[int | None]
    """The request that each one continues."""
    shared: list[int]
    """Tokens that every prompt begins with."""
    vocabulary: int
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    prompts: dict[int, list[int]] = field(default_factory=dict)
    replies: dict[int, list[int]] = field(default_factory=dict)

    def prompt(self, number: int) -> list[int]:
        """Token ids of a request's prompt; the reply that it continues must be there."""
        if number not in self.prompts:
            earlier = self.before[number]
            start = self.shared if earlier is None else self.prompts[earlier] + self.replies[earlier]
            length = max(1, self.trace[number].prompt // self.divisor)
            fresh = max(1, length - len(start))
            self.prompts[number] = [*start[: length - fresh], *random_prompt(fresh, self.vocabulary, self.rng)]
        return self.prompts[number]

    def reply_length(self, number: int) -> int:
        return max(1, self.trace[number].reply // self.divisor)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one run of a scenario gave: replies by request, tokens found, seconds to each first token."""

    replies: dict[int, list[int]]
    num_cached_tokens: int
    num_written_tokens: int
    first_token_times: list[float]


def play(engine: Engine, workload: Workload) -> Replayed:
    """Run a scenario through an engine, in the trace's order."""
    replies: dict[int, list[int]] = {}
    running: deque[tuple[int, Any]] = deque()
    first_tokens, cached, written = [], 0, 0

    def finish_oldest() -> None:
        nonlocal cached, written
        number, handle = running.popleft()
        result = handle.result(timeout=600)
        metrics = result.metrics
        if result.error is not None or metrics.time_to_first_token is None:
            raise RuntimeError(f"request {number} of the trace failed: {result.error}")
        replies[number] = list(result.token_ids)
        workload.replies.setdefault(number, replies[number])
        first_tokens.append(metrics.time_to_first_token)
        cached += metrics.num_cached_tokens
        written += metrics.num_cache_write_tokens

    for number, earlier in enumerate(workload.before):
        while len(running) >= CONCURRENCY or any(other == earlier for other, _ in running):
            finish_oldest()
        params = SamplingParams(max_tokens=workload.reply_length(number), temperature=0, ignore_eos=True)
        running.append((number, engine.submit(workload.prompt(number), params)))
    while running:
        finish_oldest()
    return Replayed(replies, cached, written, first_tokens)


def possible_tokens(workload: Workload, replies: dict[int, list[int]], block_size: int) -> int:
    """What a cache that never forgets would find: whole blocks of earlier sequences, at most all but the last token."""
    seen: set[int] = set()
    total = 0
    for number in range(len(workload.trace)):
        prompt = workload.prompts[number]
        hashes = _chain([*prompt, *replies[number][:-1]], block_size)  # the last token's KV is never computed
        readable = hashes[: (len(prompt) - 1) // block_size]
        hits = next((index for index, one in enumerate(readable) if one not in seen), len(readable))
        total += hits * block_size
        seen.update(hashes)
    return total


def _chain(token_ids: Sequence[int], block_size: int) -> list[int]:
    hashes, parent = [], 0
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = chain_hash(parent, token_ids[start : start + block_size])
        hashes.append(parent)
    return hashes


def run_replay(
    make_engine: Callable[[bool], Engine], trace: Sequence[TraceRequest], most: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row a scenario, for the first `most` requests. `make_engine(prefix_caching)` gives a fresh engine."""
    rows = []
    for scenario in SCENARIOS:
        say(f"replay, {scenario}: cache off")
        with make_engine(False) as engine:
            workload = _workload(scenario, trace, most, engine)
            plain = play(engine, workload)
            block_size = engine.config.block_size
        say(f"replay, {scenario}: cache on")
        with make_engine(True) as engine:
            cached = play(engine, workload)
        prompt_tokens = sum(map(len, workload.prompts.values()))
        ratios = [on / off for on, off in zip(cached.first_token_times, plain.first_token_times, strict=True)]
        rows.append(
            {
                "scenario": scenario,
                "requests": len(workload.trace),
                "divisor": workload.divisor,
                "prompt_tokens": prompt_tokens,
                "possible_tokens": possible_tokens(workload, cached.replies, block_size),
                "cached_tokens": cached.num_cached_tokens,
                "cache_write_tokens": cached.num_written_tokens,
                "first_token_off": median(plain.first_token_times),
                "first_token_on": median(cached.first_token_times),
                "first_token_ratio": median(ratios),
                "identical": sum(cached.replies[number] == reply for number, reply in plain.replies.items()),
            }
        )
    return rows


def _workload(scenario: str, trace: Sequence[TraceRequest], most: int, engine: Engine) -> Workload:
    max_model_len = engine.config.max_model_len
    assert max_model_len is not None
    vocabulary, divisor = engine.model_config.vocab_size, divisor_for(trace, max_model_len)
    played = trace[:most]
    before = link_turns(played) if scenario == "conversations" else [None] * len(played)
    shared = random_prompt(SYSTEM_TOKENS // divisor, vocabulary, random.Random(1))
    return Workload(played, divisor, before, shared if scenario == "system prompt" else [], vocabulary)
