"""An engine that has nothing to do keeps no OpenMP workers from others."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, time
import torch
torch.set_num_threads(3)
from playground import Engine, EngineConfig, SamplingParams

def num_threads():
    return len(os.listdir("/proc/self/task"))

config = EngineConfig(model=sys.argv[1], device="cpu", dtype="float32", load_format="dummy", kv_cache_memory=2**24)
with Engine(config) as engine:
    most = 0
    handle = engine.submit(list(range(3, 203)) * 8, SamplingParams(max_tokens=20, ignore_eos=True))
    for _ in handle:
        most = max(most, num_threads())
    until = time.monotonic() + 10
    while num_threads() > most - 2 and time.monotonic() < until:
        time.sleep(0.01)
    print(most, num_threads())
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells threads by /proc")
def test_an_idle_engine_keeps_no_workers(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=2048, architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path)  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    most, at_rest = map(int, done.stdout.split())
    assert at_rest <= most - 2, "three threads: two workers, which are gone"
