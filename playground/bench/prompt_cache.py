"""`playground bench prompt-cache`: what a cached prefix saves, from every tier, and that it changes no token.

Every measurement has its rival in the same run: the first token after a prefix that was never seen beside the first
token after the same prefix again, one directly after the other.
"""

import random
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from playground import Engine, EngineConfig, SamplingParams, info
from playground.bench import replay
from playground.bench.progress import Say, counted
from playground.bench.workload import model_folder, random_prompt, read_shape

BLOCK_SIZE = 16
SUFFIX = 16
REACH, REACH_LENGTH = 0.15, 1024
NO_TRACE = (
    "No trace was replayed: give --trace FILE, a CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens, "
    "such as the Azure LLM inference traces."
)
DEFINITIONS = {
    "cold": f"Time to the first token of a prompt whose first tokens, the shared ones, the engine has never seen; "
    f"{SUFFIX} more follow. One request at a time; token ids go in.",
    "warm": f"The same shared tokens again, right after, followed by {SUFFIX} others.",
    "ratio": "Warm over cold, below 1 is better. Median of the pairs, and their range.",
    "pool": "The blocks are still in the KV pool.",
    "host": "The pool keeps nothing that is not in use; the blocks come back from host memory.",
    "disk": "The engine was closed and a new one opened in between; files that were just written are in the system's "
    "page cache.",
    "same tokens": "Greedy replies in float32 to prompts that share prefixes, with the tier and without a cache.",
}


@dataclass(frozen=True)
class Plan:
    """One run of the benchmark."""

    models: tuple[str, ...]
    dtype: str
    repeats: int
    shared_lengths: tuple[int, ...]
    equal_prompts: int
    equal_tokens: int
    replay_model: str
    replay_requests: int


def full_plan(models: tuple[str, ...] = (), repeats: int | None = None) -> Plan:
    return Plan(
        models or ("dummy-135m", "bundled"), "auto", repeats or 5, (128, 256, 512, 1024), 16, 32, "bundled", 120
    )


def quick_plan(models: tuple[str, ...] = (), repeats: int | None = None) -> Plan:
    """Seconds instead of minutes: shows that everything runs. Its numbers mean nothing."""
    return Plan(models or ("dummy-tiny",), "float32", repeats or 2, (32, 64), 4, 6, "dummy-tiny", 12)


@dataclass
class Row:
    """First tokens after one shared length, from one tier: all pairs, in seconds."""

    model: str
    tier: str
    shared: int
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        ratios = [warm / cold for warm, cold in zip(self.warm, self.cold, strict=True)]
        reach = REACH if self.tier == "pool" and self.shared == REACH_LENGTH else None
        return {
            **asdict(self),
            "cold_median": median(self.cold),
            "warm_median": median(self.warm),
            "ratio": median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "reach": reach,
            "reached": None if reach is None else median(ratios) <= reach,
        }


def run_benchmark(plan: Plan, trace: Path | None, threads: int | None = None, say: Say = print) -> dict[str, Any]:
    """Measure everything; `say` gets one line of progress at a time. Raises `ConfigError` for a trace that is none."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    requests = replay.read_trace(trace) if trace is not None else []
    timed = (len(plan.shared_lengths) + 1) * (plan.repeats + 1) + 1
    counting = counted(say, len(plan.models) * (timed + EQUALITY_TIERS))
    rows: list[Row] = []
    equality: list[dict[str, Any]] = []
    for model in plan.models:
        with model_folder(model) as folder:
            bench = _Bench(plan, model, folder, counting)
            rows += bench.first_tokens()
            equality += bench.equality()
    result: dict[str, Any] = {
        "benchmark": "prompt-cache",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "definitions": DEFINITIONS | (replay.DEFINITIONS if requests else {}),
        "versions": info.versions(),
        "machine": info.machine(),
        "plan": asdict(plan),
        "first_tokens": [row.to_dict() for row in rows],
        "equality": equality,
        "replay": {"skipped": NO_TRACE},
    }
    if trace is not None:
        with model_folder(plan.replay_model) as folder:
            bench = _Bench(plan, plan.replay_model, folder, say)
            played = replay.run_replay(bench.replay_engine, requests, plan.replay_requests, say)
        result["replay"] = {"trace": trace.name, "model": plan.replay_model, "rows": played}
    return result


EQUALITY_TIERS = 3
"""Whose replies are compared: the pool's, host memory's, the disk's."""


class _Bench:
    """One model."""

    def __init__(self, plan: Plan, model: str, folder: Path, say: Say) -> None:
        self.plan, self.model, self.folder, self.say = plan, model, folder, say
        shape = read_shape(folder)
        self.vocabulary, self.max_len = shape["vocab_size"], shape["max_len"]
        self.rng = random.Random(0)

    def engine(self, **fields: Any) -> Engine:
        plain = {"model": str(self.folder), "dtype": self.plan.dtype, "block_size": BLOCK_SIZE, "max_num_seqs": 16}
        return Engine(EngineConfig(**{**plain, "num_kv_blocks": 16 * self.blocks(self.longest), **fields}))

    def replay_engine(self, prefix_caching: bool) -> Engine:
        """A pool for eight of the longest sequences, so that a long trace has to evict."""
        return self.engine(num_kv_blocks=8 * self.blocks(self.max_len), dtype="float32", prefix_caching=prefix_caching)

    @property
    def lengths(self) -> list[int]:
        """The shared lengths, in whole blocks, that leave room for the rest of a prompt and one token."""
        most = (self.max_len - SUFFIX - 1) // BLOCK_SIZE * BLOCK_SIZE
        return sorted({min(length, most) for length in self.plan.shared_lengths})

    @property
    def longest(self) -> int:
        return self.lengths[-1] + SUFFIX + max(1, self.plan.equal_tokens)

    def blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // BLOCK_SIZE)

    def tokens(self, length: int) -> list[int]:
        return random_prompt(length, self.vocabulary, self.rng)

    # First tokens

    def first_tokens(self) -> list[Row]:
        rows = []
        with self.engine() as engine:
            for length in self.lengths:
                rows.append(self._pairs(engine, Row(self.model, "pool", length)))
        with self.engine(**self._host_only()) as engine:
            rows.append(self._pairs(engine, Row(self.model, "host", self.lengths[-1])))
        rows.append(self._restarted(Row(self.model, "disk", self.lengths[-1])))
        return rows

    def _host_only(self) -> dict[str, Any]:
        """A pool that keeps nothing, and host memory for four of the longest sequences in the widest type."""
        import torch

        from playground.models.config import DecoderConfig

        token_bytes = DecoderConfig.from_folder(self.folder).kv_bytes_per_token(torch.float32)
        memory = 4 * self.blocks(self.longest) * BLOCK_SIZE * token_bytes
        return {"prefix_cache_max_blocks": 0, "prefix_cache_host_memory": memory}

    def _pairs(self, engine: Engine, row: Row) -> Row:
        for repeat in range(-1, self.plan.repeats):  # the first pair warms up
            self.say(f"{self.model}: first token, {row.shared} shared, {row.tier}, {repeat + 1} of {self.plan.repeats}")
            shared = self.tokens(row.shared)
            cold = self._first_token(engine, shared, found=0)
            self._first_token(engine, [], found=0)  # what the cold one leaves to be copied is not the warm one's work
            warm = self._first_token(engine, shared, found=row.shared)
            if repeat >= 0:
                row.cold.append(cold)
                row.warm.append(warm)
        return row

    def _restarted(self, row: Row) -> Row:
        prefixes = [self.tokens(row.shared) for _ in range(self.plan.repeats)]
        self.say(f"{self.model}: first token, {row.shared} shared, disk")
        with TemporaryDirectory(prefix="playground-bench-") as folder:
            with self.engine(prefix_cache_dir=folder) as engine:
                self._first_token(engine, self.tokens(row.shared), found=0)
                row.cold += [self._first_token(engine, shared, found=0) for shared in prefixes]
            with self.engine(prefix_cache_dir=folder) as engine:
                self._first_token(engine, self.tokens(row.shared), found=0)
                row.warm += [self._first_token(engine, shared, found=row.shared) for shared in prefixes]
        return row

    def _first_token(self, engine: Engine, shared: list[int], found: int) -> float:
        params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        (result,) = engine.generate([shared + self.tokens(SUFFIX)], params)
        metrics = result.metrics
        if result.error is not None or metrics.time_to_first_token is None or metrics.num_cached_tokens != found:
            raise RuntimeError(f"{metrics.num_cached_tokens} tokens were cached instead of {found}: {result.error}")
        return metrics.time_to_first_token

    # Equality

    def equality(self) -> list[dict[str, Any]]:
        """How many greedy float32 replies are the same from each tier as without a prefix cache."""
        length = self.lengths[-1] // 2
        stems = [self.tokens(length), self.tokens(length // 2)]
        prompts = [stems[number % 2] + self.tokens(SUFFIX) for number in range(self.plan.equal_prompts)]
        with self.engine(dtype="float32", prefix_caching=False) as engine:
            expected, _ = self._replies(engine, prompts)
        found: list[dict[str, Any]] = []

        def compare(tier: str, engine: Engine) -> None:
            self.say(f"{self.model}: equal tokens, {tier}")
            replies, cached = self._replies(engine, prompts)
            same = sum(reply == plain for reply, plain in zip(replies, expected, strict=True))
            found.append(
                {
                    "model": self.model,
                    "tier": tier,
                    "requests": len(prompts),
                    "identical": same,
                    "cached_tokens": cached,
                }
            )

        with self.engine(dtype="float32") as engine:
            self._replies(engine, prompts)
            compare("pool", engine)
        with self.engine(dtype="float32", **self._host_only()) as engine:
            self._replies(engine, prompts)
            compare("host", engine)
        with TemporaryDirectory(prefix="playground-bench-") as folder:
            with self.engine(dtype="float32", prefix_cache_dir=folder) as engine:
                self._replies(engine, prompts)
            with self.engine(dtype="float32", prefix_cache_dir=folder) as engine:
                compare("disk", engine)
        return found

    def _replies(self, engine: Engine, prompts: list[list[int]]) -> tuple[list[list[int]], int]:
        params = SamplingParams(max_tokens=self.plan.equal_tokens, temperature=0, ignore_eos=True)
        results = engine.generate(prompts, params)
        return [list(result.token_ids) for result in results], sum(r.metrics.num_cached_tokens for r in results)
