"""Writes the bundled models' cards: what was measured during training, and samples that nobody picked.

Everything comes from the run's own files and from the exported weights, so a card can be written again at any time:
`python -m playground.training.card CONFIG`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from playground.training.config import TrainConfig, load_config
from playground.training.distill import load_model
from playground.training.documents import Turn
from playground.training.evaluate import reply
from playground.training.generation import generate
from playground.training.model import TrainableLlama
from playground.training.tokenizer import load_tokenizer

TEMPERATURE = 0.7
CHATS: list[list[str]] = [  # what the user says, turn by turn; the seed of a chat is its number
    ["Hello!"],
    ["Hi there, how are you today?"],
    ["Who are you?"],
    ["What can you do?"],
    ["Hi!", "I'm a bit sad today."],
    ["My name is Carla.", "What is my name?"],
    ["I like painting.", "Because it is fun."],
    ["Good morning!", "I'm fine, thanks.", "Tell me a story about a frog who wants to fly.", "Thank you, bye!"],
    ["Tell me a story about a cat."],
    ["Tell me a story about a dragon who loved soup."],
    ["Tell me a story about Nora and a robot."],
    ["Write a short story about a lonely lighthouse."],
    ["Tell me a story about a boy named Ravi and his red kite."],
    ["Can you tell me a story about a princess and a bear?"],
    ["Tell me a story about a rainy day."],
    ["Tell me a story."],
    ["What is 7 + 5?"],
    ["Name three animals."],
    ["Answer in JSON: Tom is 7 years old and has a rabbit."],
    ["What is the capital of France?"],
]


def samples(folder: Path, dtype: torch.dtype) -> str:
    """The twenty chats as markdown, one heading each; `[…]` marks a reply that was cut at 400 tokens."""
    model, tokenizer = load_model(folder, dtype), load_tokenizer(folder)
    out = []
    for seed, said in enumerate(CHATS, 1):
        turns: list[Turn] = []
        lines = [f"### {seed}. {said[0]}", ""]
        for text in said:
            turns.append(("user", text))
            answer, ended = reply(model, tokenizer, turns, seed, TEMPERATURE, 400)
            turns.append(("assistant", answer.strip() or "."))
            quoted = (answer + ("" if ended else " […]")).strip().replace("\n", "\n> ")
            lines += [f"**User:** {text}", "", f"> {quoted}", ""]
        out.append("\n".join(lines))
    return "\n".join(out)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curve_table(output: Path, every: int) -> str:
    """Mean training loss over stretches of the run."""
    points = read_lines(output / "loss.jsonl")
    rows = ["| tokens seen | minutes | stage | training loss (nats/token) |", "|---:|---:|---|---:|"]
    for start in range(0, len(points), max(1, len(points) // every)):
        part = points[start : start + max(1, len(points) // every)]
        mean, last = sum(p["loss"] for p in part) / len(part), part[-1]
        rows.append(f"| {last['tokens'] / 1e6:.1f} M | {last['minutes']:.0f} | {last['stage']} | {mean:.2f} |")
    return "\n".join(rows)


def held_out_table(output: Path) -> str:
    """Bits per byte per source at every evaluation; the sources are rows."""
    evaluations = read_lines(output / "eval.jsonl")
    head = " | ".join(f"{e['tokens'] / 1e6:.1f} M" for e in evaluations)
    rows = [f"| source | {head} |", "|---|" + "---:|" * len(evaluations)]
    for name in evaluations[-1]["bits_per_byte"]:
        cells = " | ".join(
            f"{e['bits_per_byte'][name]:.3f}" if name in e["bits_per_byte"] else "—" for e in evaluations
        )
        rows.append(f"| {name} | {cells} |")
    return "\n".join(rows)


def position_table(output: Path) -> str:
    losses = json.loads((output / "positions.json").read_text())
    heads = " | ".join(f"{i * 128}–{i * 128 + 127}" for i in range(len(losses)))
    return f"| {heads} |\n|{'---:|' * len(losses)}\n| {' | '.join(f'{x:.2f}' for x in losses)} |"


def curve_svg(output: Path, path: Path) -> None:
    """Training loss over tokens as a small line picture."""
    points = [(p["tokens"] / 1e6, p["loss"]) for p in read_lines(output / "loss.jsonl")]
    smooth = [(x, sum(y for _, y in points[max(0, i - 9) : i + 1]) / min(i + 1, 10)) for i, (x, _) in enumerate(points)]
    width, height, left, bottom = 640, 240, 40, 30
    x_max, y_max = smooth[-1][0], 5.0

    def place(x: float, y: float) -> tuple[float, float]:
        down = (y_max - min(y, y_max)) / y_max
        return left + x / x_max * (width - left - 10), 10 + down * (height - bottom - 10)

    line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in smooth)
    levels = [(y, place(0, y)[1]) for y in range(6)]
    ticks = "".join(
        f'<line x1="{left}" x2="{width - 10}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
        f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{y}</text>'
        for y, at in levels
    )
    labels = "".join(
        f'<text x="{place(x_max * i / 4, 0)[0]:.1f}" y="{height - 10}" text-anchor="middle">'
        f"{x_max * i / 4:.0f} M</text>"
        for i in range(5)
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="11">'
        f'<rect width="{width}" height="{height}" fill="#fff"/><g fill="#555">{ticks}{labels}</g>'
        f'<polyline points="{line}" fill="none" stroke="#ff7c00" stroke-width="1.5"/></svg>\n'
    )


@torch.no_grad()
def agreement(target: TrainableLlama, draft: TrainableLlama, folder: Path) -> dict[str, float]:
    """How well the draft guesses on text that the target writes for the twenty chats (sampled at temperature 1)."""
    tokenizer = load_tokenizer(folder)
    overlap, same, count = 0.0, 0, 0
    for seed, said in enumerate(CHATS, 1):
        text = f"<|im_start|>user\n{said[0]}<|im_end|>\n<|im_start|>assistant\n"
        prompt = torch.tensor([tokenizer.encode(text).ids])
        written = generate(target, prompt, 200, 1.0, torch.Generator().manual_seed(seed), stop=(0, 2))
        ids, start = torch.cat([prompt, written], dim=1), prompt.shape[1] - 1
        p, q = target(ids[:, :-1])[0, start:].softmax(-1), draft(ids[:, :-1])[0, start:].softmax(-1)
        overlap += float(torch.minimum(p, q).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        count += len(p)
    return {"sampled": overlap / count, "greedy": same / count, "tokens": count}


def step_seconds(model: TrainableLlama) -> float:
    """Median time of one decode step at batch 1 in this package's simple sampler."""
    prompt = torch.zeros((1, 8), dtype=torch.long)
    times = []
    for seed in range(5):
        started = time.perf_counter()
        generate(model, prompt, 64, 1.0, torch.Generator().manual_seed(seed))
        times.append((time.perf_counter() - started) / 64)
    return sorted(times)[2]


def fill(template: str, **fields: object) -> str:
    for name, value in fields.items():
        template = template.replace("{{" + name + "}}", str(value))
    return template


def write_card(config: TrainConfig) -> Path:
    """README.md (and curve.svg) in the exported folder, from the template next to this file."""
    output, folder = Path(config.output_dir), Path(config.export_dir or Path(config.output_dir) / "export")
    dtype = getattr(torch, config.dtype)
    model = load_model(folder, dtype)
    last = read_lines(output / "loss.jsonl")[-1]
    total = config.tokens_before + last["tokens"]
    fields: dict[str, object] = {
        "parameters": f"{model.num_parameters:,}",
        "tokens": f"{last['tokens'] / 1e6:.1f} M",
        "total_tokens": f"{total / 1e6:.1f} M",
        "tokens_per_parameter": f"{total / model.num_parameters:.1f}",
        "minutes": f"{last['minutes']:.0f}",
        "curve": curve_table(output, 16),
        "held_out": held_out_table(output),
        "positions": position_table(output),
    }
    if config.distill is None:
        fields["samples"] = samples(folder, dtype)
    else:
        target = load_model(Path(config.distill.teacher), dtype)
        rates = agreement(target, model, folder)
        fields |= {k: f"{v:.2f}" if k != "tokens" else f"{v:,.0f}" for k, v in rates.items() if k != "tokens"}
        fields["measured_tokens"] = f"{rates['tokens']:,.0f}"
        fields["ratio"] = f"{step_seconds(model) / step_seconds(target):.2f}"
    template = Path(__file__).parent / "text" / f"card-{config.name}.md"
    (folder / "README.md").write_text(fill(template.read_text(encoding="utf-8"), **fields), encoding="utf-8")
    curve_svg(output, folder / "curve.svg")
    return folder / "README.md"


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_card(load_config(Path(sys.argv[1])))
