"""Models quantized while they are loaded, or from a source that delivers quantized matrices."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from playground.config import QuantizationConfig
from playground.errors import ConfigError
from playground.models import loader
from playground.models.checkpoint import Checkpoint
from playground.models.config import DecoderConfig
from playground.models.decoder import Decoder
from playground.models.linear import GatedLinear, StackedLinear
from playground.models.loader import LoadedModel, check_names
from playground.models.weights import QuantizedSource, build_weights
from playground.quantization.linear import QuantizedLinear
from playground.quantization.rtn import round_to_nearest
from playground.quantization.schemes import quantize
from playground.quantization.weight import QuantizedWeight
from tests.checkpoints import checkpoint, reference_model
from tests.models.driver import Driver, Sequence, load

ROOT = Path(__file__).parents[2]
IDS = [5, 17, 200, 3, 90, 41, 41, 8]
GROUPS_OF_16 = QuantizationConfig(bits=4, group_size=16, symmetric=False)
CONFIGS = {
    "int8": QuantizationConfig.named("int8"),
    "int3 in 16s": QuantizationConfig(bits=3, group_size=16),
    "int4 in 16s": GROUPS_OF_16,
    "fp8": QuantizationConfig.named("fp8"),
    "int8, head kept": QuantizationConfig(bits=8, head="keep"),
}


def logits(loaded: LoadedModel) -> Tensor:
    return Driver(loaded).step([(Sequence(IDS), len(IDS))])[0]


def rounded_reference(variant: str, config: QuantizationConfig) -> Tensor:
    """Logits of transformers, float64, with every matrix rounded by the quantizer alone."""
    model = copy.deepcopy(reference_model(variant)).double()
    head = model.get_output_embeddings()
    turned = variant == "gpt2"
    for name, module in model.named_modules():
        if module is head:
            if config.head == "int8":
                int8 = quantize(module.weight.data.float(), QuantizationConfig.named("int8"))
                module.weight.data = int8.dequantize(torch.float64)  # the embedding too, where it is tied
        elif type(module).__name__ in ("Linear", "Conv1D"):
            weight = module.weight.data.float().t() if turned else module.weight.data.float()
            rounded = quantize(weight, config, name=name).dequantize(torch.float64)
            module.weight.data = rounded.t() if turned else rounded
    if model.config.tie_word_embeddings:
        model.get_input_embeddings().weight.data = head.weight.data
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("variant", ["llama-2", "smollm2", "llama-biased", "qwen3", "gpt2"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_quantized_model_is_the_model_with_rounded_weights(variant: str, name: str) -> None:
    loaded = load(checkpoint(variant), quantization=CONFIGS[name])
    expected = rounded_reference(variant, CONFIGS[name])
    assert (logits(loaded).double() - expected).abs().max() < 2e-5 * expected.abs().max()


def test_nf4_blocks_are_groups_of_a_row() -> None:
    with pytest.raises(ConfigError, match=r"group_size=64 does not divide the 48 inputs of .*q_proj: give another"):
        load(checkpoint("llama-2"), quantization=QuantizationConfig.named("nf4"))


def test_a_tied_int8_head_is_the_embedding_and_an_untied_one_is_not() -> None:
    tied = load(checkpoint("smollm2"), quantization=CONFIGS["int8"]).model.weights
    assert tied.head is tied.embed and isinstance(tied.head, QuantizedLinear)
    untied = load(checkpoint("llama-2"), quantization=CONFIGS["int8"]).model.weights
    assert isinstance(untied.head, QuantizedLinear) and isinstance(untied.embed, Tensor)
    kept = load(checkpoint("smollm2"), quantization=CONFIGS["int8, head kept"]).model.weights
    assert kept.head.weight is kept.embed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_int8_activations_are_in_the_layers_alone_and_change_little(dtype: torch.dtype) -> None:
    quantization = QuantizationConfig.named("w8a8")
    loaded = load(checkpoint("smollm2"), dtype=dtype, quantization=quantization)
    layer = loaded.model.weights.layers[0]
    assert isinstance(layer.qkv, QuantizedLinear) and layer.qkv.layout.name == "int8 x int8"
    assert isinstance(loaded.model.weights.head, QuantizedLinear)
    assert loaded.model.weights.head.layout.name != "int8 x int8"
    plain, got = logits(load(checkpoint("smollm2"))), logits(loaded)
    difference = (got - plain).abs().max() / plain.abs().max()
    assert 1e-5 < difference < 0.1


def test_part_of_a_quantized_model_shares_its_layers() -> None:
    loaded = load(checkpoint("llama-2"), quantization=GROUPS_OF_16)
    part = loaded.model.with_layers([0, 2])
    assert part.weights.layers[1].down is loaded.model.weights.layers[2].down


def test_dummy_weights_are_quantized_too_and_follow_the_seed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint("llama-3") / "config.json").read_bytes())
    options: dict[str, Any] = {"load_format": "dummy", "quantization": GROUPS_OF_16}
    first, again, other = (load(tmp_path, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(logits(first), logits(again)) and not torch.equal(logits(first), logits(other))
    assert first.weights_bytes < load(tmp_path, load_format="dummy").weights_bytes / 2


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_that_need_calibration_are_refused_before_anything_is_read(method: str) -> None:
    with pytest.raises(ConfigError, match=f"run playground compress --method {method} first"):
        load(checkpoint("llama-2"), quantization=QuantizationConfig.named(f"{method}-int4"))


class Delivered:
    """A source of which some matrices are quantized, each as the test says."""

    def __init__(self, plain: Any, forms: dict[str, Callable[[Tensor], QuantizedWeight]]) -> None:
        self._plain, self._forms, self.asked = plain, forms, list[str]()

    def read(self, name: str, use: Callable[[Tensor], None]) -> None:
        self._plain.read(name, use)

    def quantized(self, name: str) -> QuantizedWeight | None:
        self.asked.append(name)
        form = next((form for end, form in self._forms.items() if name.endswith(end)), None)
        found: list[QuantizedWeight] = []
        if form is not None:
            self._plain.read(f"{name}.weight", lambda tensor: found.append(form(tensor.clone())))
        return found[0] if found else None


def in_groups(bits: int, group_size: int) -> Callable[[Tensor], QuantizedWeight]:
    return lambda tensor: round_to_nearest(tensor, bits, group_size, symmetric=True)


def build(variant: str, forms: dict[str, Callable[[Tensor], QuantizedWeight]]) -> tuple[LoadedModel, Delivered]:
    config = DecoderConfig.from_folder(checkpoint(variant))
    with Checkpoint(checkpoint(variant)) as files:
        source = Delivered(check_names(config, files), forms)
        weights = build_weights(config, source, torch.float32, torch.device("cpu"))
    model = Decoder(config, weights, dtype=torch.float32, device=torch.device("cpu"))
    return LoadedModel(model, config, checkpoint(variant), 0), source


def test_matrices_that_a_source_delivers_quantized_are_joined_where_they_can_be() -> None:
    forms = {"q_proj": in_groups(8, 16), "k_proj": in_groups(4, 16), "up_proj": in_groups(8, -1)}
    forms |= {"gate_proj": in_groups(8, -1), "lm_head": in_groups(8, 48)}
    loaded, source = build("llama-biased", forms)
    weights = loaded.model.weights
    assert isinstance(source, QuantizedSource)
    assert isinstance(weights.layers[0].qkv, StackedLinear), "8 bits, 4 bits, and a plain one"
    assert [type(part).__name__ for part in weights.layers[0].qkv.parts] == ["QuantizedLinear"] * 2 + ["Linear"]
    up = weights.layers[0].up
    assert isinstance(up, GatedLinear) and isinstance(up._both, QuantizedLinear)
    assert isinstance(weights.head, QuantizedLinear) and isinstance(weights.embed, Tensor)
    assert len(source.asked) == len(set(source.asked)) == 7 * 3 + 2

    model = copy.deepcopy(reference_model("llama-biased")).double()
    for name, module in model.named_modules():
        form = next((form for end, form in forms.items() if name.endswith(end)), None)
        if form is not None:
            module.weight.data = form(module.weight.data.float()).dequantize(torch.float64)
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0]
    assert (logits(loaded).double() - expected).abs().max() < 2e-5 * expected.abs().max()


def test_a_source_that_is_quantized_is_not_quantized_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = loader.check_names
    monkeypatch.setattr(loader, "check_names", lambda *args: Delivered(whole(*args), {}))
    with pytest.raises(ConfigError, match="quantized already: leave quantization out"):
        load(checkpoint("llama-2"), quantization=CONFIGS["int8"])
    load(checkpoint("llama-2"))


SHAPE = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 8192, "hidden_size": 1024, "num_hidden_layers": 5,
    "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 2048, "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}  # fmt: skip
RESIDENT_PROBE = """
import ctypes, gc, sys
from pathlib import Path
import torch
from playground.config import QuantizationConfig
from playground.models.loader import load_model

def kib(field):
    return int(next(l for l in open("/proc/self/status") if l.startswith(field)).split()[1])

def load(folder):
    how = None if sys.argv[3] == "none" else QuantizationConfig.named(sys.argv[3])
    return load_model(folder, dtype=torch.bfloat16, load_format="dummy", quantization=how)

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return kib("VmRSS")

torch.set_num_threads(1)
load(sys.argv[2])  # what libraries take on first use is not the model
before = resident()
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
loaded = load(sys.argv[1])
print(loaded.weights_bytes, (resident() - before) * 1024, (kib("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and trims glibc's heap")
@pytest.mark.parametrize("name", ["int8", "int4", "nf4"])
def test_the_process_grows_by_the_packed_bytes_and_by_one_matrix_while_it_loads(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    small = {**SHAPE, "vocab_size": 512, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    (tmp_path / "small").mkdir()
    (tmp_path / "small/config.json").write_text(json.dumps(small))
    run = subprocess.run(
        [sys.executable, "-c", RESIDENT_PROBE, str(tmp_path), str(tmp_path / "small"), name],
        capture_output=True, text=True, cwd=ROOT, timeout=170,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    weights, grown, peak = map(int, run.stdout.split())
    print(weights / 1e6, grown / weights, peak / weights)
    plain = 2 * (8192 * 1024 + 5 * (4 * 1024 * 1024 + 3 * 2048 * 1024))
    assert weights < plain * (0.51 if name == "int8" else 0.36)
    assert abs(grown - weights) < 0.03 * weights
    # Beside the model: a matrix as it is read, as codes of a byte, and pieces of a million elements in float32.
    assert peak < weights + 50e6
