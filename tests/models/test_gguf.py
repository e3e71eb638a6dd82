"""Models from GGUF files: the same logits, tokens and text as transformers reads from them, in the file's own size."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from playground import ConfigError, Engine, EngineConfig, ModelLoadError, SamplingParams
from playground.config import QuantizationConfig
from playground.models.loader import read_config, resolve_model_path
from playground.models.tokenizer import load_tokenizer
from tests.gguf_files import EOS, MERGES, RANDOM_SCALES, tiny_model, vocabulary, write_gguf
from tests.models.driver import load, prompt, whole_batch
from tests.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS

pytest.importorskip("accelerate", reason="transformers reads GGUF files with it")
ROOT = Path(__file__).parents[2]
PROMPT = prompt(40, len(SPECIAL_TOKENS) + 256 + len(MERGES))
# What files with these names hold: a mixture, the embedding and the head apart from the layers.
MIXTURES: dict[str, tuple[str, dict[str, str]]] = {
    "Q4_K_M": ("Q4_K", {"attn_v": "Q6_K", "blk.0.ffn_down": "Q6_K", "token_embd": "Q4_K", "output.": "Q6_K"}),
    "Q4_0 with plain parts": ("Q4_0", {"attn_k": "F16", "token_embd": "F32", "output.": "Q8_0"}),
    **{name: (name, {}) for name in ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q5_0", "Q5_1", *RANDOM_SCALES)},
}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def files(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    return {
        name: write_gguf(llama, folder / f"{name}.gguf", kind, special=special)
        for name, (kind, special) in MIXTURES.items()
    }


def read_by_transformers(file: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model(torch.tensor([PROMPT])).logits[0]


def our_logits(file: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return load(file, dtype=dtype).model.forward(whole_batch([PROMPT]), None)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 2e-5) -> None:
    assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


@pytest.mark.parametrize("name", MIXTURES)
def test_float32_logits_are_those_of_transformers(files: dict[str, Path], name: str) -> None:
    theirs = logits_of(read_by_transformers(files[name]))
    assert_same(our_logits(files[name]), theirs)
    rounded = our_logits(files[name], torch.bfloat16)
    assert (rounded - theirs).norm() < 0.05 * theirs.norm()


@pytest.mark.parametrize("name", [name for name in MIXTURES if name[0] == "Q" and "plain" not in name])
def test_a_model_in_blocks_takes_the_memory_that_the_file_takes(files: dict[str, Path], name: str) -> None:
    loaded, size = load(files[name]), files[name].stat().st_size
    assert 0.97 * size < loaded.weights_bytes < 1.01 * size


RESIDENT_PROBE = """
import ctypes, gc, sys
import torch
from playground.models.loader import load_model

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1])

torch.set_num_threads(1)
load_model(sys.argv[2], dtype=torch.float32)  # what libraries take on first use is not the model
before = resident()
loaded = load_model(sys.argv[1], dtype=torch.float32)
print(loaded.weights_bytes, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and trims glibc's heap")
def test_the_process_grows_by_the_bytes_of_the_blocks(tmp_path: Path, files: dict[str, Path]) -> None:
    """Nothing of the mapped file stays, nor of what was unpacked. (An engine holds the vocabulary besides, as objects
    of the tokenizer: some 300 bytes a token, which no figure of weights has in it.)"""
    wide = tiny_model(hidden_size=1024, num_hidden_layers=6, num_attention_heads=16, num_key_value_heads=16,
                      intermediate_size=2816)  # fmt: skip
    file = write_gguf(wide, tmp_path / "wide.gguf", "Q8_0")
    run = subprocess.run(
        [sys.executable, "-c", RESIDENT_PROBE, str(file), str(files["Q8_0"])],
        capture_output=True, text=True, cwd=ROOT, timeout=170,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    weights, grown = map(int, run.stdout.split())
    print(weights / 1e6, grown / weights)
    assert weights > 75e6 and abs(grown - weights) < 0.03 * weights


def test_in_bfloat16_four_bits_take_five_and_eight_stay_as_they_are(files: dict[str, Path]) -> None:
    size = files["Q8_0"].stat().st_size
    assert 0.97 * size < load(files["Q8_0"], dtype=torch.bfloat16).weights_bytes < 1.01 * size
    for name in ("Q4_K", "Q4_1"):  # and rows are padded to 64 there, which only shows in a model as small as this
        loaded, size = load(files[name], dtype=torch.bfloat16), files[name].stat().st_size
        assert 0.97 * size < loaded.weights_bytes < 1.15 * size


def test_only_a_file_of_plain_weights_is_quantized_at_load(files: dict[str, Path]) -> None:
    int8 = QuantizationConfig.named("int8")
    assert load(files["F32"], quantization=int8).weights_bytes < 0.3 * files["F32"].stat().st_size
    with pytest.raises(ConfigError, match="quantized already"):
        load(files["Q8_0"], quantization=int8)


@pytest.mark.parametrize(
    ("kind", "differences"),
    [
        ("Llama", {"attention_bias": True, "mlp_bias": True}),
        ("Llama", {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
        ("GPT2", {}),
    ],
    ids=str,
)
def test_every_architecture_gives_the_logits_of_the_model_that_was_written(
    tmp_path: Path, kind: str, differences: dict[str, Any]
) -> None:
    model = tiny_model(kind, **differences)
    assert_same(our_logits(write_gguf(model, tmp_path / "model.gguf", "F32")), logits_of(model))


@pytest.mark.parametrize("kind", ["Qwen2", "GPT2"])
def test_blocks_of_other_architectures_are_read_as_by_transformers(tmp_path: Path, kind: str) -> None:
    file = write_gguf(tiny_model(kind), tmp_path / "model.gguf", "Q8_0")
    assert_same(our_logits(file), logits_of(read_by_transformers(file)))


def test_rope_that_was_stretched_as_for_llama_3_is_read_from_its_factors(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = tiny_model(rope_parameters=rope)
    plain = 10_000.0 ** -(np.arange(0, 64, 2) / 64)
    factors = plain / model.model.rotary_emb.inv_freq.double().numpy()
    assert factors.min() == pytest.approx(1) and factors.max() == pytest.approx(4)
    file = write_gguf(model, tmp_path / "model.gguf", "F32", tensors={"rope_freqs.weight": factors})
    assert_same(our_logits(file), logits_of(model), 5e-5)


def test_linear_rope_scaling_is_read_from_the_metadata(tmp_path: Path) -> None:
    model = tiny_model(rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0})
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    assert_same(our_logits(write_gguf(model, tmp_path / "m.gguf", "F32", metadata=scaling)), logits_of(model))


def test_a_tied_table_of_blocks_is_held_once(tmp_path: Path) -> None:
    file = write_gguf(tiny_model(tie_word_embeddings=True), tmp_path / "model.gguf", "Q6_K")
    loaded = load(file)
    assert loaded.config.tie_embeddings
    assert loaded.model.weights.head is loaded.model.weights.embed
    assert loaded.weights_bytes < 1.01 * file.stat().st_size
    assert_same(our_logits(file), logits_of(read_by_transformers(file)))


def test_an_engine_writes_the_tokens_that_transformers_writes(files: dict[str, Path]) -> None:
    file, asked = files["Q4_K_M"], SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    model = read_by_transformers(file)
    theirs = model.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    with Engine(EngineConfig(model=str(file), dtype="float32", device="cpu", num_kv_blocks=64)) as engine:
        assert (engine.config.load_format, engine.config.model) == ("gguf", str(file.resolve()))
        assert engine.generate([PROMPT], asked)[0].token_ids == theirs[0, len(PROMPT) :].tolist()
        assert 0.97 < engine.stats().memory_weights_bytes / file.stat().st_size < 1.01
        answer = engine.chat([{"role": "user", "content": "the"}], SamplingParams(max_tokens=3))
        text = "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
        assert answer.prompt_token_ids == engine.tokenizer(text).input_ids


def test_the_tokenizer_and_the_chat_template_are_those_of_the_file(files: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(files["F32"])
    ids = {token: number for number, token in enumerate(vocabulary())}
    expected = [*(ids[token] for token in ("he", "l", "l", "o", "Ġt", "he")), EOS, ids["Ã"], ids["©"]]
    assert tokenizer("hello the<|im_end|>é").input_ids == expected
    assert tokenizer.decode(expected) == "hello the<|im_end|>é"
    assert (tokenizer.chat_template, tokenizer.eos_token_id) == (CHAT_TEMPLATE, EOS)


def test_end_tokens_and_shape_come_from_the_metadata(tmp_path: Path, llama: Any) -> None:
    file = write_gguf(llama, tmp_path / "m.gguf", metadata={"tokenizer.ggml.eot_token_id": 0})
    config = read_config(file)
    assert (config.eos_token_ids, config.torch_dtype) == ((EOS, 0), "bfloat16")
    assert (config.max_position_embeddings, config.vocab_size) == (128, len(vocabulary()))
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 64)


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")])
def test_a_plain_file_says_its_type(files: dict[str, Path], kind: str, dtype: str) -> None:
    assert read_config(files[kind]).torch_dtype == dtype


def test_a_folder_stands_for_the_one_file_in_it(tmp_path: Path, llama: Any) -> None:
    file = write_gguf(llama, tmp_path / "model.gguf")
    assert resolve_model_path(tmp_path) == resolve_model_path(file) == file
    llama.save_pretrained(tmp_path)
    assert resolve_model_path(tmp_path) == tmp_path  # what is in Hugging Face format is preferred, unless asked for
    assert resolve_model_path(tmp_path, load_format="gguf") == file
    write_gguf(llama, tmp_path / "other.gguf")
    with pytest.raises(ModelLoadError, match=r"2 GGUF files \(model.gguf, other.gguf\): give the path of one"):
        resolve_model_path(tmp_path, load_format="gguf")


def test_random_weights_of_a_files_shape(files: dict[str, Path]) -> None:
    loaded = load(files["Q8_0"], load_format="dummy")
    assert loaded.weights_bytes == 4 * loaded.config.num_parameters


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"metadata": {"general.architecture": "mamba"}}, "architecture 'mamba', which is not supported: use one of llama"),
    ({"metadata": {"general.architecture": "falcon"}}, "architecture 'falcon'"),
    ({"without": ("llama.block_count",)}, "no llama.block_count in its metadata"),
    ({"without": ("llama.attention.layer_norm_rms_epsilon",)}, "no llama.attention.layer_norm_rms_epsilon"),
    ({"metadata": {"llama.expert_count": 8}}, "llama.expert_count=8 is not supported"),
    ({"metadata": {"llama.attention.sliding_window": 8}}, "llama.attention.sliding_window=8 is not supported"),
    ({"metadata": {"llama.attention.head_count_kv": [2, 1]}}, "num_key_value_heads=[2, 1] is not allowed"),
    ({"metadata": {"llama.attention.head_count_kv": 3}}, "4 attention heads cannot share 3 KV heads"),
    ({"metadata": {"llama.rope.dimension_count": 32}}, "llama.rope.dimension_count=32 is not supported"),
    ({"metadata": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}}, "rope type 'yarn'"),
    ({"metadata": {"llama.rope.scaling.type": "linear"}}, "no llama.rope.scaling.factor"),
    ({"metadata": {"llama.block_count": 3}}, "lacks 9 tensors that its metadata asks for (blk.2."),
    ({"metadata": {"llama.block_count": 1}}, "has 9 tensors that LlamaForCausalLM has no place for (blk.1."),
    ({"metadata": {"llama.feed_forward_length": 1024}}, "has shape [512, 256] where metadata asks for [1024, 256]"),
    ({"tensors": {"rope_freqs.weight": np.ones(7)}}, "rope_freqs.weight of shape [7]"),
    ({"tensors": {"rope_freqs.weight": np.zeros(32)}}, "must be positive"),
    ({"metadata": {"split.count": 3}}, "is one of 3 parts"),
    ({"special": {"blk.1.attn_q": "TQ2_0"}}, "blk.1.attn_q.weight is stored as TQ2_0, which is not supported: use"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_file_that_cannot_be_run_is_refused_with_one_sentence(
    tmp_path: Path, llama: Any, changes: dict[str, Any], said: str
) -> None:
    file = write_gguf(llama, tmp_path / "model.gguf", **changes)
    with pytest.raises(ModelLoadError) as error:
        load(file)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_without_a_tokenizer_is_refused_as_text_model(tmp_path: Path, llama: Any) -> None:
    file = write_gguf(llama, tmp_path / "model.gguf", without=("tokenizer",))
    with pytest.raises(ModelLoadError, match="no tokenizer can be built from its metadata") as error:
        Engine(EngineConfig(model=str(file), device="cpu", num_kv_blocks=8))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "load_format", "said"),
    [
        ("{folder}", "gguf", "holds no .gguf file"),
        ("owner/name", "gguf", "a hub id is not enough for load_format='gguf'"),
        ("{folder}/notes.txt", "auto", "is a file: give a .gguf file"),
        ("{folder}/model.GGUF", "safetensors", "is a GGUF file: leave load_format='safetensors' out"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, model: str, load_format: str, said: str) -> None:
    if "/model" in model or "/notes" in model:
        (tmp_path / model.rpartition("/")[2]).write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError) as error:
        resolve_model_path(model.format(folder=tmp_path), load_format=load_format)
    assert said in str(error.value)
