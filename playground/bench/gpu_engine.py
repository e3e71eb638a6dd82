"""The engine on a GPU against what its memory allows: decode steps of an 8 B Llama shape with random weights.

A decode step must read every weight and every key and value once: (weight bytes + KV bytes) / copy bandwidth is the
time that no engine can beat. Random weights take the same time as trained ones.
"""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from playground import Engine, EngineConfig, SamplingParams
from playground.bench.workload import random_prompt
from playground.engine.events import StepEvent

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096,
    "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
TINY = LLAMA_8B | {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip
CASES = ((1, 128, 128), (1, 4096, 128), (16, 1024, 128), (64, 1024, 128))
REACH = 0.8


def run_engine(
    device: torch.device, copy_bytes_per_second: float | None, *, quick: bool, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows for every case, plain and with recorded decode steps; without bandwidth (on a CPU) nothing is timed."""
    shape, cases = (TINY, ((1, 8, 3), (2, 8, 3))) if quick else (LLAMA_8B, CASES)
    rows = []
    with TemporaryDirectory(prefix="playground-bench-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        for graphs in (False, True) if device.type == "cuda" else (False,):
            config = EngineConfig(
                model=folder, load_format="dummy", device=str(device), dtype="bfloat16" if not quick else "float32",
                attention="triton", cuda_graphs=graphs, prefix_caching=False, max_num_seqs=64,
                block_size=64 if not quick else 16, num_kv_blocks=64 * 20 if not quick else 16,
            )  # fmt: skip
            with Engine(config) as engine:
                for case in cases:
                    say(f"engine: {case[0]} x {case[1]} tokens in, CUDA graphs {'on' if graphs else 'off'}")
                    rows.append(_measure(engine, case, shape, graphs, copy_bytes_per_second))
    return rows


def _measure(
    engine: Engine, case: tuple[int, int, int], shape: dict[str, Any], graphs: bool, bandwidth: float | None
) -> dict[str, Any]:
    requests, prompt_len, output_len = case
    rng = random.Random(0)
    prompts = [random_prompt(prompt_len, shape["vocab_size"], rng) for _ in range(requests)]
    params = SamplingParams(max_tokens=output_len, temperature=0, ignore_eos=True)
    engine.generate(prompts, params.replace(max_tokens=2))  # compiles and records
    subscription = engine.events.subscribe()
    engine.generate(prompts, params)
    steps = [event for event in subscription.drain() if isinstance(event, StepEvent)]
    engine.events.unsubscribe(subscription)
    decode = [s for s in steps if s.num_prefill_tokens == 0 and s.num_decode_tokens == requests]
    row: dict[str, Any] = {
        "requests": requests, "prompt_tokens": prompt_len, "output_tokens": output_len, "cuda_graphs": graphs,
        "steps": len(decode), "rehearsal": bandwidth is None,
    }  # fmt: skip
    if bandwidth is None or len(decode) < 3:
        return row
    starts = [s.time_ns for s in decode]
    step_s = median(b - a for a, b in itertools.pairwise(starts)) * 1e-9
    context = prompt_len + output_len / 2
    kv_bytes = 2 * requests * context * shape["num_key_value_heads"] * shape["head_dim"] * 2
    weights = engine.stats().memory_weights_bytes - shape["vocab_size"] * shape["hidden_size"] * 2  # less the embedding
    bound_s = (weights + kv_bytes * shape["num_hidden_layers"]) / bandwidth
    host = median(s.schedule_ns + s.prepare_ns + s.post_ns for s in decode) * 1e-9
    return row | {
        "step_ms": step_s * 1e3,
        "tokens_per_second": requests / step_s,
        "bound_ms": bound_s * 1e3,
        "share_of_bound": bound_s / step_s,
        "host_ms": host * 1e3,
        "reach": f">= {REACH:.0%} of the bound" if requests == 1 else None,
        "reached": bound_s / step_s >= REACH if requests == 1 else None,
    }
