"""The step loop with its attention in Triton: the same tokens, and a clear no where it cannot run."""

import pytest
import torch

from playground import ConfigError, Engine, EngineConfig, SamplingParams
from playground.engine import resolve
from tests.checkpoints import checkpoint
from tests.kernels.triton.oracle import DEVICE

PROMPTS = [[7, 30, 99, 12, 5, 8, 1], [11], [7, 30, 99, 12, 5, 8, 2, 40, 41]]
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
SMALL = {"dtype": "float32", "block_size": 4, "num_kv_blocks": 7, "max_num_batched_tokens": 6, "max_model_len": 24}


def greedy_tokens(variant: str, **fields: object) -> tuple[list[list[int]], Engine]:
    config = EngineConfig(model=str(checkpoint(variant)), **{"device": str(DEVICE)} | SMALL | fields)
    with Engine(config) as engine:
        tokens = [list(out.token_ids) for out in engine.generate(PROMPTS, GREEDY)]
        assert engine.stats().kv_blocks_in_use == 0
        return tokens, engine


@pytest.mark.parametrize("variant", ["llama-3", "mistral"])
def test_triton_attention_gives_the_tokens_of_torch(variant: str) -> None:
    """Chunked, batched, with prefix hits, and in a pool so small that somebody is preempted."""
    triton, engine = greedy_tokens(variant, attention="triton")
    assert engine.config.attention == "triton"
    assert triton == greedy_tokens(variant, attention="sdpa")[0]


@pytest.mark.gpu
def test_recorded_decode_steps_give_the_tokens_of_the_plain_ones() -> None:
    recorded, engine = greedy_tokens("llama-3", attention="triton", cuda_graphs=True, num_kv_blocks=40)
    assert engine.config.cuda_graphs
    assert recorded == greedy_tokens("llama-3", attention="triton", num_kv_blocks=40)[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attention": "triton", "dtype": "float64"}, "compute in float32"),
        ({"cuda_graphs": True, "device": "cpu"}, "records launches of an NVIDIA GPU"),
    ],
    ids=str,
)
def test_what_the_machine_cannot_do_is_refused_with_the_reason(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        greedy_tokens("llama-3", **fields)


def test_triton_on_a_cpu_is_refused_and_auto_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "why_not_triton", lambda kind, index: f"there is no GPU but a {kind}")
    config = EngineConfig(model=str(checkpoint("llama-3")), device="cpu", attention="triton")
    with pytest.raises(ConfigError, match="attention='triton' cannot run here: there is no GPU but a cpu; use 'auto'"):
        Engine(config)
    shape = resolve.DecoderConfig.from_folder(checkpoint("llama-3"))
    for device in ("cpu", "cuda"):
        assert resolve.resolve_attention("auto", shape, torch.device(device), torch.float32) == "sdpa"


def test_auto_takes_triton_where_a_gpu_can_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "why_not_triton", lambda kind, index: None)
    shape = resolve.DecoderConfig.from_folder(checkpoint("llama-3"))
    assert resolve.resolve_attention("auto", shape, torch.device("cuda"), torch.float32) == "triton"
    assert resolve.resolve_attention("auto", shape, torch.device("cpu"), torch.float32) == "sdpa"
