"""`playground bench samples`: KV blocks that the samples or beams of one prompt take, and would take without sharing.

Counts blocks, measures no time: the numbers are the same on every machine, but for the beams, whose sharing follows the
model's probabilities. The rival is a private cache for each sequence: computed from the same run, and for samples also
measured, as separate requests without a prefix cache.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from playground import Engine, EngineConfig, SamplingParams, info
from playground.bench.progress import Say, counted
from playground.bench.workload import model_folder, random_prompt, read_shape
from playground.engine.events import BlockEvent, Event
from playground.models.kv_cache import KVCache, kv_dtype

BLOCK_SIZE = 16

DEFINITIONS = {
    "shared": "The most distinct KV blocks that all sequences of the request held at one time.",
    "private": "What they would have held at that moment with a cache each: a block counts once for each holder.",
    "separate": "Measured: the most KV blocks in use while as many separate requests of the same prompt ran together, "
    "without a prefix cache. Beams depend on each other and cannot be run apart.",
    "saved": "1 - shared / private.",
    "copies": "Part-filled blocks that were copied because a sequence wrote into a block which others held.",
    "bytes": "Blocks times the bytes of one: keys and values of its tokens in all layers.",
}


@dataclass(frozen=True)
class SamplesPlan:
    """One run: how long prompt and outputs are, and how many samples or beams each case has."""

    model: str
    prompt_tokens: int
    output_tokens: int
    samples: tuple[int, ...]
    beams: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Blocks of one request at its peak."""

    kind: Literal["samples", "beams"]
    width: int
    blocks_shared: int
    blocks_private: int
    blocks_separate: int | None
    copies: int


def full_plan(model: str | None = None) -> SamplesPlan:
    """The prompt's last block is part-filled, so that copies happen."""
    return SamplesPlan(model or "bundled", 250, 64, (1, 2, 4, 8, 16), (2, 4, 8, 16))


def quick_plan(model: str | None = None) -> SamplesPlan:
    """Seconds: shows that everything runs."""
    return SamplesPlan(model or "dummy-tiny", 37, 12, (1, 2, 3), (2, 3))


def run_samples(plan: SamplesPlan, say: Say = print) -> dict[str, Any]:
    """Run every case of the plan; plain data for JSON and `render`."""
    widest = max((*plan.samples, *plan.beams))
    say = counted(say, 1 + len(plan.samples) + len(plan.beams))
    with model_folder(plan.model) as folder:
        shape = read_shape(folder)
        prompt = random_prompt(plan.prompt_tokens, shape["vocab_size"], random.Random(0))
        with _engine(folder, plan, widest) as engine:
            say(f"{plan.model}: {engine.config.kv_cache_dtype} cache, blocks of {BLOCK_SIZE}")
            rows = [_run(engine, prompt, plan, "samples", n, say) for n in plan.samples]
            rows += [_run(engine, prompt, plan, "beams", width, say) for width in plan.beams]
            dtype = kv_dtype(engine.config.kv_cache_dtype)
            block_bytes = KVCache.bytes_per_block(engine.model_config, BLOCK_SIZE, dtype)
    return {
        "benchmark": "samples",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "definitions": DEFINITIONS,
        "versions": info.versions(),
        "machine": info.machine(),
        "plan": asdict(plan),
        "block_size": BLOCK_SIZE,
        "block_bytes": block_bytes,
        "rows": [_with_bytes(row, block_bytes) for row in rows],
    }


def _engine(folder: Path, plan: SamplesPlan, widest: int) -> Engine:
    blocks = widest * (-(-(plan.prompt_tokens + plan.output_tokens) // BLOCK_SIZE) + 1)
    return Engine(
        EngineConfig(
            model=str(folder),
            max_num_seqs=widest,
            block_size=BLOCK_SIZE,
            num_kv_blocks=blocks,
            prefix_caching=False,  # sharing with earlier cases would hide what one request shares with itself
        )
    )


def _run(
    engine: Engine, prompt: list[int], plan: SamplesPlan, kind: Literal["samples", "beams"], width: int, say: Say
) -> Row:
    say(f"{plan.model}: {width} {kind}")
    params = SamplingParams(max_tokens=plan.output_tokens, ignore_eos=True, seed=0)
    asked = params.replace(n=width) if kind == "samples" else params.replace(beam_width=width)
    subscription = engine.events.subscribe()
    try:
        metrics = engine.generate(prompt, asked)[0].metrics
        copies = sum(isinstance(event, BlockEvent) and event.action == "copy" for event in subscription.drain())
        separate = None
        if kind == "samples":
            engine.generate([prompt] * width, [params.replace(seed=i) for i in range(width)])
            separate = most_in_use(subscription.drain())
    finally:
        engine.events.unsubscribe(subscription)
    return Row(kind, width, metrics.kv_blocks_peak, metrics.kv_blocks_private, separate, copies)


def most_in_use(events: Sequence[Event]) -> int:
    """The most KV blocks in use at one time, from events that begin while none is.

    A step's event counts the blocks after requests have left, so the block events are replayed.
    """
    held: dict[int, int] = {}
    in_use = most = 0
    for event in events:
        if isinstance(event, BlockEvent):
            in_use += (event.ref_count > 0) - (held.get(event.block_id, 0) > 0)
            held[event.block_id] = event.ref_count
            most = max(most, in_use)
    return most


def _with_bytes(row: Row, block_bytes: int) -> dict[str, Any]:
    return {
        **asdict(row),
        "bytes_shared": row.blocks_shared * block_bytes,
        "bytes_private": row.blocks_private * block_bytes,
        "saved": 1 - row.blocks_shared / row.blocks_private,
    }


def render(data: dict[str, Any]) -> None:
    """Print the result of `run_samples`."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, text in data["definitions"].items():
        console.print(f"[bold]{name}[/bold]: {text}", highlight=False)
    plan = data["plan"]
    title = (
        f"{plan['model']}: {plan['prompt_tokens']} prompt tokens, {plan['output_tokens']} new ones; blocks of "
        f"{data['block_size']} tokens, {data['block_bytes'] / 1024:.0f} KiB each"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("case", no_wrap=True)
    for name in ("shared", "private", "separate", "KiB", "of KiB", "saved", "copies"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in data["rows"]:
        table.add_row(
            f"{row['width']} {row['kind']}",
            str(row["blocks_shared"]),
            str(row["blocks_private"]),
            "—" if row["blocks_separate"] is None else str(row["blocks_separate"]),
            f"{row['bytes_shared'] / 1024:,.0f}",
            f"{row['bytes_private'] / 1024:,.0f}",
            f"{row['saved']:.0%}",
            str(row["copies"]),
        )
    console.print()
    console.print(table)
