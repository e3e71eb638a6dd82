"""Loading: every way in which a folder can be broken gives one clear sentence, and what is loaded is what was saved."""

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from playground.errors import ModelLoadError
from playground.models.config import DecoderConfig
from playground.models.loader import load_model, usable_dtype
from playground.models.tokenizer import check_vocabulary, load_tokenizer
from tests.checkpoints import VARIANTS, checkpoint, writable_copy
from tests.models.driver import Driver, Sequence, load, prompt

ROOT = Path(__file__).parents[2]


def refusal(folder: Path | str, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(folder, device=torch.device("cpu"), **options)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    value.update(changes)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))


def edit_tensors(folder: Path, **changes: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.update({k.replace("__", "."): v for k, v in changes.items()})
    save_file({k: v for k, v in tensors.items() if v is not ...}, folder / "model.safetensors")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A whole checkpoint that the test then breaks."""
    return writable_copy("llama-3", tmp_path / "model")


# What is refused


def test_a_folder_that_does_not_exist_is_refused() -> None:
    assert "no such folder" in refusal("./no/such/folder")


def test_a_file_instead_of_a_folder_is_refused(broken: Path) -> None:
    assert "is a file" in refusal(broken / "config.json")


def test_a_hub_id_without_a_network_is_refused() -> None:
    text = refusal("some-owner/some-model")  # the test run is offline: see conftest
    assert "some-owner/some-model" in text and "hub cannot be reached" in text


def ask_hub(port: int, *names: str) -> list[str]:
    """What loading each name says when the hub is at this local port."""
    code = (
        "import sys\nfrom playground.models.loader import load_model\n"
        "for name in sys.argv[1:]:\n"
        "    try: load_model(name, revision='v1')\n"
        "    except Exception as error: print(type(error).__name__, error)"
    )
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120
    )
    lines = run.stdout.splitlines()
    assert len(lines) == len(names) and all(line.startswith("ModelLoadError") for line in lines), run.stderr
    return lines


def test_a_hub_that_does_not_answer_is_refused() -> None:
    with socket.socket() as taken:  # bound, never listening: every connection is refused at once
        taken.bind(("127.0.0.1", 0))
        assert "hub cannot be reached" in ask_hub(taken.getsockname()[1], "some-owner/some-model")[0]


class HubThatRefuses(BaseHTTPRequestHandler):
    """Answers like the hub does for models that are missing, gated, lack the revision, or while it is broken."""

    def do_GET(self) -> None:
        kind = next(kind for kind in HUB_ANSWERS if kind in self.path)
        status, code = HUB_ANSWERS[kind]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


HUB_ANSWERS = {
    "missing": (404, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "unrevised": (404, "RevisionNotFound"),
    "teapot": (418, "None"),
}


def test_what_the_hub_refuses_is_refused_with_its_reason() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubThatRefuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        missing, gated, unrevised, teapot = ask_hub(
            server.server_port, "o/missing", "o/gated", "o/unrevised", "o/teapot"
        )
    finally:
        server.shutdown()
        server.server_close()
    assert "no such model on the hub" in missing
    assert "gated" in gated and "log in" in gated
    assert "no revision 'v1'" in unrevised
    assert "cannot be reached" in teapot


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused() -> None:
    assert "hub id" in refusal("what is this?")


def test_a_missing_config_is_refused(broken: Path) -> None:
    (broken / "config.json").unlink()
    assert "config.json" in refusal(broken)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "\x00\x01"])
def test_a_broken_config_is_refused(broken: Path, content: str) -> None:
    (broken / "config.json").write_text(content)
    assert "config.json" in refusal(broken)


def test_an_unsupported_architecture_is_refused_with_the_supported_ones(broken: Path) -> None:
    edit_json(broken / "config.json", architectures=["MambaForCausalLM"])
    text = refusal(broken)
    assert "MambaForCausalLM" in text and "LlamaForCausalLM" in text and "GPT2LMHeadModel" in text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": "many"}, "hidden_size"),
        ({"hidden_size": -4}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 4}, "KV heads"),
        ({"hidden_act": "swish2"}, "hidden_act"),
        ({"rms_norm_eps": -1}, "norm eps"),
        ({"dtype": "int3"}, "dtype"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 5}}, "high_freq_factor"),
        ({"quantization_config": {"quant_method": "quip"}}, "quant_method='quip'"),
    ],
)
def test_a_config_value_that_cannot_be_is_refused(broken: Path, changes: dict[str, Any], named: str) -> None:
    edit_json(broken / "config.json", **changes)
    assert named in refusal(broken)


def test_a_missing_tensor_is_refused(broken: Path) -> None:
    edit_tensors(broken, model__layers__1__mlp__up_proj__weight=...)
    assert "model.layers.1.mlp.up_proj.weight" in refusal(broken)


def test_an_extra_tensor_is_refused(broken: Path) -> None:
    edit_tensors(broken, model__layers__9__mlp__up_proj__weight=torch.zeros(2, 2))
    assert "model.layers.9.mlp.up_proj.weight" in refusal(broken)


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(broken: Path) -> None:
    edit_tensors(broken, model__norm__weight=torch.ones(47))
    text = refusal(broken)
    assert "[47]" in text and "[48]" in text


def test_a_tensor_of_a_strange_dtype_is_refused(broken: Path) -> None:
    edit_tensors(broken, model__norm__weight=torch.ones(48, dtype=torch.int8))
    assert "I8" in refusal(broken)


@pytest.mark.parametrize("kept", [0, 4, 30, 0.5, 0.999])
def test_a_truncated_file_is_refused(broken: Path, kept: float) -> None:
    file = broken / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    text = refusal(broken)
    assert "model.safetensors" in text and "cut off" in text


def test_a_file_that_is_no_safetensors_is_refused(broken: Path) -> None:
    (broken / "model.safetensors").write_bytes((20).to_bytes(8, "little") + b"x" * 100)
    assert "safetensors" in refusal(broken)


def test_a_pickled_checkpoint_is_refused_and_never_opened(broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    (broken / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    text = refusal(broken)
    assert "pytorch_model.bin" in text and "safetensors" in text


def test_a_folder_without_weights_is_refused(broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    assert "no *.safetensors" in refusal(broken)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(checkpoint("llama-3", "50KB"), tmp_path / "model"))
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    assert shards[1].name in refusal(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(broken: Path) -> None:
    config = DecoderConfig.from_folder(broken)
    tokenizer = load_tokenizer(broken)
    check_vocabulary(config, tokenizer)
    tokenizer.add_tokens(["<extra>"])
    with pytest.raises(ModelLoadError, match=r"260 tokens but the model only 259"):
        check_vocabulary(config, tokenizer)


def test_a_missing_tokenizer_is_refused(broken: Path) -> None:
    (broken / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match=r"no tokenizer\.json"):
        load_tokenizer(broken)


@pytest.mark.parametrize("content", ["", "{}", '{"model": 3}'])
def test_a_broken_tokenizer_is_refused(broken: Path, content: str) -> None:
    (broken / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError, match="tokenizer"):
        load_tokenizer(broken)


# What is accepted


def logits_of(folder: Path, **options: Any) -> torch.Tensor:
    loaded = load(folder, **options)
    return Driver(loaded).step([(Sequence(prompt(20, loaded.config.vocab_size)), 20)])[0]


def test_the_tokenizer_round_trips_text_and_has_the_chat_template(broken: Path) -> None:
    tokenizer = load_tokenizer(broken)
    assert tokenizer.decode(tokenizer.encode("Grüße, 世界!")) == "Grüße, 世界!"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("variant", ["llama-2", "smollm2", "gpt2"])
def test_sharded_and_single_files_load_alike(variant: str) -> None:
    assert len(list(checkpoint(variant, "50KB").glob("*.safetensors"))) > 2
    assert torch.equal(logits_of(checkpoint(variant, "50KB")), logits_of(checkpoint(variant)))


def test_config_keys_of_older_transformers_mean_the_same(broken: Path) -> None:
    expected = logits_of(broken)
    scaling = dict(json.loads((broken / "config.json").read_text())["rope_parameters"])
    theta = scaling.pop("rope_theta")
    edit_json(
        broken / "config.json",
        rope_parameters=...,
        rope_theta=theta,
        rope_scaling=scaling,
        dtype=...,
        torch_dtype="float32",
    )
    assert torch.equal(logits_of(broken), expected)


def test_harmless_buffers_and_a_copy_of_the_tied_head_are_ignored(tmp_path: Path) -> None:
    folder = writable_copy("smollm2", tmp_path / "model")
    expected = logits_of(folder)
    head = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()
    edit_tensors(folder, lm_head__weight=head, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    assert torch.equal(logits_of(folder), expected)


def test_gpt2_without_its_prefix_and_with_its_masks_loads(tmp_path: Path) -> None:
    folder = writable_copy("gpt2", tmp_path / "model")
    expected = logits_of(folder)
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(bare, folder / "model.safetensors")
    assert torch.equal(logits_of(folder), expected)


@pytest.mark.parametrize("stored", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_are_converted_to_the_wanted_dtype(broken: Path, stored: torch.dtype) -> None:
    expected = logits_of(broken)
    tensors = load_file(broken / "model.safetensors")
    save_file({name: value.to(stored) for name, value in tensors.items()}, broken / "model.safetensors")
    tolerance = 1e-5 if stored == torch.float64 else 0.2
    assert (logits_of(broken, dtype=torch.float32) - expected).abs().max() < tolerance


def test_float16_on_a_cpu_becomes_another_dtype_and_says_so(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load(broken, dtype=torch.float16)
    assert loaded.model.dtype in (torch.bfloat16, torch.float32)
    assert "float16 is slow on a CPU" in caplog.text
    assert usable_dtype(torch.float16, torch.device("cuda")) == torch.float16


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_parameters_is_that_of_transformers(variant: str) -> None:
    from tests.checkpoints import reference_model

    loaded = load(checkpoint(variant))
    expected = sum(p.numel() for p in reference_model(variant).parameters())
    assert loaded.config.num_parameters == expected
    # Norm weights of q and k are spread over the heads, which is the only difference in bytes.
    assert loaded.weights_bytes >= 4 * expected and loaded.weights_bytes < 4.1 * expected


def test_end_tokens_come_from_both_configs(broken: Path) -> None:
    edit_json(broken / "generation_config.json", eos_token_id=[7, 2])
    assert DecoderConfig.from_folder(broken).eos_token_ids == (2, 7)


def test_dummy_weights_need_only_a_config_and_follow_the_seed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint("llama-3") / "config.json").read_bytes())
    first, again, other = (logits_of(tmp_path, load_format="dummy", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 0.2 < first.std() < 5


def test_peak_memory_of_loading_stays_within_1_2_times_the_weights(tmp_path: Path) -> None:
    shape = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": 2048, "hidden_size": 1024, "num_hidden_layers": 10,
        "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 2048, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    from playground.models.families import tensor_shapes

    config = DecoderConfig.from_folder(tmp_path)
    tensors = {name: torch.ones(size, dtype=torch.bfloat16) for name, size in tensor_shapes(config).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", PEAK_PROBE, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=170
    )
    assert run.returncode == 0, run.stderr
    weights, peak = map(int, run.stdout.split())
    print(peak / weights)
    assert weights > 200_000_000
    assert peak < 1.2 * weights, f"peak of {peak / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights"


PEAK_PROBE = """
import sys
from contextlib import suppress
from pathlib import Path
import torch
from playground.models.loader import load_model

def kib(field):
    return int(next(l for l in open("/proc/self/status") if l.startswith(field)).split()[1])

torch.set_num_threads(1)
from playground.models.linear import GatedLinear, Linear
linear = Linear(torch.zeros(2048, 1024, dtype=torch.bfloat16), None)
GatedLinear(linear, "silu")(torch.zeros(1, 1024, dtype=torch.bfloat16))
with suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: imports and start-up are not the model
before = kib("VmRSS")
loaded = load_model(sys.argv[1], dtype=torch.bfloat16)
print(loaded.weights_bytes, (kib("VmHWM") - before) * 1024)
"""
