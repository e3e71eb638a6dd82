"""Every way in which a quantized checkpoint can be broken gives one sentence before a weight is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from playground.errors import ConfigError, ModelLoadError
from playground.models.config import DecoderConfig
from playground.models.loader import load_model
from playground.quantization.formats import (
    AWQFormat,
    BitsAndBytesFormat,
    CompressedTensorsFormat,
    GPTQFormat,
    QuantizedFormat,
    read_format,
)
from playground.quantization.weight import QuantizedWeight
from tests.checkpoints import writable_copy
from tests.models.driver import load, prompt, whole_batch
from tests.quantization.folders import GROUP, round_to_integers, round_to_nf4, write_folder

FORMATS: dict[str, QuantizedFormat] = {
    "gptq": GPTQFormat(4, GROUP, symmetric=False),
    "awq": AWQFormat(GROUP),
    "compressed-tensors": CompressedTensorsFormat.packed(4, GROUP, False),
    "bitsandbytes": BitsAndBytesFormat(double_quantization=True),
}
MATRIX = "model.layers.1.self_attn.k_proj"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Whole folders, written once each."""
    root, made = tmp_path_factory.mktemp("quantized"), {}

    def folder(method: str) -> Path:
        if method not in made:
            nf4 = method == "bitsandbytes"
            rounded = (lambda w: round_to_nf4(w, 32)) if nf4 else (lambda w: round_to_integers(w, 4, GROUP, False))
            write_folder(root / method, FORMATS[method], rounded)
            made[method] = root / method
        return made[method]

    return folder


@pytest.fixture
def broken(folders: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy that the test then breaks."""
    return lambda method: Path(shutil.copytree(folders(method), tmp_path / method))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


def edit_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
    """Change a tensor where it lies; None takes it away."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            if change is None:
                del tensors[name]
            else:
                tensors[name] = change(tensors[name]).contiguous()
            save_file(tensors, file)
            return
    raise AssertionError(f"no {name}")


def edit_entry(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(changes)
    path.write_text(json.dumps(config))


PARTS = [
    ("gptq", "qweight"),
    ("gptq", "qzeros"),
    ("gptq", "scales"),
    ("awq", "qweight"),
    ("awq", "qzeros"),
    ("awq", "scales"),
    ("compressed-tensors", "weight_packed"),
    ("compressed-tensors", "weight_scale"),
    ("compressed-tensors", "weight_shape"),
    ("compressed-tensors", "weight_zero_point"),
    ("bitsandbytes", "weight"),
    ("bitsandbytes", "weight.absmax"),
    ("bitsandbytes", "weight.nested_absmax"),
    ("bitsandbytes", "weight.quant_map"),
    ("bitsandbytes", "weight.quant_state.bitsandbytes__nf4"),
]


@pytest.mark.parametrize(("method", "part"), PARTS)
def test_a_missing_part_is_named(method: str, part: str, broken: Callable[[str], Path]) -> None:
    folder = broken(method)
    edit_tensor(folder, f"{MATRIX}.{part}", None)
    text = refusal(folder)
    assert f"lacks {MATRIX}.{part}" in text


@pytest.mark.parametrize(("method", "part"), [*PARTS[:-1], ("gptq", "g_idx")])
def test_a_misshapen_part_is_named(method: str, part: str, broken: Callable[[str], Path]) -> None:
    folder = broken(method)
    edit_tensor(folder, f"{MATRIX}.{part}", lambda tensor: tensor[:-1])
    assert f"{MATRIX}.{part} has shape" in refusal(folder)


@pytest.mark.parametrize(("method", "part"), PARTS)
def test_a_part_of_another_type_is_named_with_it(method: str, part: str, broken: Callable[[str], Path]) -> None:
    folder = broken(method)
    edit_tensor(folder, f"{MATRIX}.{part}", lambda tensor: torch.zeros(tensor.shape, dtype=torch.int16))
    text = refusal(folder)
    assert f"{MATRIX}.{part} is stored as I16, which is not supported" in text


@pytest.mark.parametrize("method", FORMATS)
def test_a_truncated_file_is_refused(method: str, broken: Callable[[str], Path]) -> None:
    folder = broken(method)
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "is cut off" in refusal(folder)


@pytest.mark.parametrize("method", FORMATS)
def test_a_tensor_that_has_no_place_is_refused(method: str, broken: Callable[[str], Path]) -> None:
    folder = broken(method)
    save_file({f"{MATRIX}.extra": torch.zeros(2)}, folder / "model-00004-of-00003.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"][f"{MATRIX}.extra"] = "model-00004-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"{MATRIX}.extra" in refusal(folder)


def test_biases_of_zeros_that_a_model_does_not_have_are_passed_over(broken: Callable[[str], Path]) -> None:
    folder = broken("gptq")
    tensors = load_file(folder / "model-00001-of-00003.safetensors")
    name = "model.layers.0.self_attn.q_proj.bias"
    save_file({**tensors, name: torch.zeros(64)}, folder / "model-00001-of-00003.safetensors")
    load_model(folder)
    save_file({**tensors, name: torch.ones(64)}, folder / "model-00001-of-00003.safetensors")
    assert name in refusal(folder)


def test_groups_of_columns_that_there_are_not_are_refused(broken: Callable[[str], Path]) -> None:
    folder = broken("gptq")
    edit_tensor(folder, f"{MATRIX}.g_idx", lambda tensor: tensor + 1)
    assert f"{MATRIX}.g_idx names groups from 1 to 2" in refusal(folder)


def test_a_state_that_says_nothing_is_refused(broken: Callable[[str], Path]) -> None:
    folder = broken("bitsandbytes")
    for text in ("{", "[]", '{"shape": [1]}', '{"shape": [32, 64], "blocksize": 0}'):
        state = torch.tensor(list(text.encode()), dtype=torch.uint8)
        edit_tensor(folder, f"{MATRIX}.weight.quant_state.bitsandbytes__nf4", lambda _, state=state: state)
        assert "does not say how the matrix is stored" in refusal(folder)


def test_shapes_of_another_model_are_refused(broken: Callable[[str], Path]) -> None:
    folder = broken("compressed-tensors")
    edit_tensor(folder, f"{MATRIX}.weight_shape", lambda tensor: tensor + 1)
    assert "weight_shape says [33, 65] where config.json asks for [32, 64]" in refusal(folder)
    folder = broken("gptq")
    edit_entry(folder, group_size=64)
    assert "qzeros has shape [2, " in refusal(folder)


def test_a_plain_checkpoint_that_calls_itself_quantized_is_refused(tmp_path: Path) -> None:
    folder = writable_copy("llama-2", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = GPTQFormat(4, 128).config_entry()
    (folder / "config.json").write_text(json.dumps(config))
    assert "says that its weights are quantized (gptq), and none is" in refusal(folder)


def test_a_quantized_checkpoint_that_does_not_say_so_is_refused(broken: Callable[[str], Path]) -> None:
    folder = broken("gptq")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "lacks 14 tensors" in refusal(folder)


def compressed(**changes: Any) -> dict[str, Any]:
    """A `quantization_config` of compressed-tensors; dotted keys change what is inside its group."""
    entry = CompressedTensorsFormat.packed(4, 128, True).config_entry()
    for key, value in changes.items():
        *inside, last = key.split("__")
        place = entry["config_groups"]["group_0"] if inside else entry
        for part in inside[1:]:
            place = place[part]
        place[last] = value
    return entry


ENTRIES: list[tuple[Any, str]] = [
    ("gptq", "restore the config.json"),
    ({}, "quant_method=None"),
    ({"quant_method": "fp8"}, "quant_method='fp8' is not supported: use one of gptq, awq, compressed-tensors"),
    ({"quant_method": "gptq", "bits": 5}, "bits=5 is not supported: use 2, 3, 4, 8"),
    ({"quant_method": "gptq", "bits": True}, "bits=True"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size=0"),
    ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format='marlin'"),
    ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "is_marlin_format"),
    ({"quant_method": "gptq", "bits": 4, "pack_dtype": "int16"}, "pack_dtype='int16'"),
    ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:(": {"bits": 8}}}, "regular expression"),
    ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:a": {"bits": 7}}}, "dynamic.+:a.bits=7"),
    ({"quant_method": "awq", "version": "gemv"}, "version='gemv'"),
    ({"quant_method": "awq", "bits": 8}, "bits=8"),
    ({"quant_method": "bitsandbytes"}, "load_in_4bit"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb_4bit_quant_type='fp4' is not supported: use nf4"),
    ({"quant_method": "compressed-tensors"}, "config_groups is missing"),
    (compressed(format="nvfp4-pack-quantized"), "format='nvfp4-pack-quantized'"),
    (compressed(quantization_status="frozen"), "quantization_status='frozen'"),
    (compressed(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
    (compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
    (compressed(transform_config={"config_groups": {"a": {}}}), "transform_config"),
    (compressed(ignore=["re:("]), "regular expression"),
    (compressed(ignore="lm_head"), "ignore='lm_head'"),
    (compressed(group__weights=None), "without weights"),
    (compressed(group__weights__num_bits=9), "num_bits=9"),
    (compressed(group__weights__strategy="block"), "strategy='block'"),
    (compressed(group__weights__group_size=None), "needs a group_size"),
    (compressed(group__weights__type="float"), "weights of type float"),
    (compressed(group__output_activations={"num_bits": 8}), "output_activations"),
    (compressed(group__input_activations={"num_bits": 8, "dynamic": False}), "static activation scales"),
    (compressed(group__input_activations={"num_bits": 4, "dynamic": True}), "num_bits=4"),
    (compressed(group__input_activations={"num_bits": 8, "dynamic": True, "symmetric": False}), "symmetric=False"),
]


@pytest.mark.parametrize(("entry", "part"), ENTRIES)
def test_a_config_that_is_not_supported_is_refused_in_one_sentence(entry: Any, part: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read_format(entry, "some-model")
    text = str(caught.value)
    assert part in text and "some-model" in text and "\n" not in text


def test_configs_as_they_are_published_are_understood() -> None:
    gptq = {
        "bits": 4, "group_size": 128, "damp_percent": 0.1, "desc_act": True, "static_groups": False, "sym": True,
        "true_sequential": True, "model_name_or_path": None, "quant_method": "gptq",
        "dynamic": {r"-:.*\.0\..*": {}, r"+:.*down_proj": {"bits": 8, "group_size": 64}},
    }  # fmt: skip
    assert read_format(gptq, "m") == GPTQFormat(4, 128, True, True, 1, ((".*down_proj", 8, 64),))
    awq = {"quant_method": "awq", "zero_point": True, "group_size": 64, "bits": 4, "version": "GEMM"}
    assert read_format({**awq, "modules_to_not_convert": None}, "m") == AWQFormat(64)
    old = {"load_in_8bit": True, "llm_int8_threshold": 6.0}
    assert read_format(old, "m") == BitsAndBytesFormat(8)
    dynamic = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token", "symmetric": True}
    entry = compressed(
        format="int-quantized", group__input_activations=dynamic, group__weights__num_bits=8,
        group__weights__strategy="channel", group__weights__group_size=None,
    )  # fmt: skip
    read = read_format(entry, "m")
    assert isinstance(read, CompressedTensorsFormat)
    assert read.schemes[0].activations == "int8" and read.schemes[0].group_size == -1


def test_matrices_of_other_bits_and_groups_are_read(folders: Callable[[str], Path]) -> None:
    """gptqmodel's "dynamic" and several groups of compressed-tensors."""
    generator = torch.Generator().manual_seed(0)
    weight, _ = round_to_integers(torch.randn(32, 64, generator=generator), 8, 16, True)
    plain = GPTQFormat(4, GROUP, overrides=((".*down_proj", 8, 16),))
    stored = GPTQFormat(8, 16).pack("model.layers.0.mlp.down_proj", weight)
    assert torch.equal(plain.unpack("model.layers.0.mlp.down_proj", (32, 64), stored).codes, weight.codes)
    first, second = (CompressedTensorsFormat.packed(bits, 16, True).schemes[0] for bits in (4, 8))
    several = CompressedTensorsFormat((_with_targets(second, "re:.*down_proj"), first))
    stored = CompressedTensorsFormat((second,)).pack("model.layers.0.mlp.down_proj", weight)
    assert torch.equal(several.unpack("model.layers.0.mlp.down_proj", (32, 64), stored).codes, weight.codes)


def _with_targets(scheme: Any, *targets: str) -> Any:
    from dataclasses import replace

    return replace(scheme, targets=targets)


# Zeros of GPTQ's first version


def test_version_1_that_holds_symmetric_zeros_of_version_2_is_seen_through(tmp_path: Path) -> None:
    """Files exist that say "gptq" and store 8 where 7 is meant: every weight would be one step off."""
    rounded = lambda w: round_to_integers(w, 4, GROUP, True)  # noqa: E731
    write_folder(tmp_path / "right", GPTQFormat(4, GROUP), rounded)
    write_folder(tmp_path / "wrong", GPTQFormat(4, GROUP, version=2), rounded)
    edit_entry(tmp_path / "wrong", checkpoint_format="gptq")
    assert DecoderConfig.from_folder(tmp_path / "wrong").quantization == GPTQFormat(4, GROUP)
    batch = whole_batch([prompt(9, 256)])
    right, wrong = (load(tmp_path / name).model.forward(batch, None) for name in ("right", "wrong"))
    assert torch.equal(right, wrong)


def test_zeros_of_version_1_that_borrowed_from_their_neighbours_are_read() -> None:
    """gptqmodel takes 0x11111111 from a whole word, also where a zero is 0."""
    codes = torch.randint(0, 16, (8, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    zeros = torch.tensor([3, 0, 5, 0, 0, 15, 1, 0], dtype=torch.uint8).view(8, 1)
    weight = QuantizedWeight(codes, torch.ones(8, 1).half(), 4, 32, zeros)
    stored = GPTQFormat(4, 32, symmetric=False, version=2).pack("m", weight)
    word = sum(int(zero) << (4 * place) for place, zero in enumerate(zeros.flatten())) - 0x11111111
    word &= 0xFFFFFFFF
    stored["m.qzeros"] = torch.tensor([[word - 2**32 if word >= 2**31 else word]], dtype=torch.int32)
    first = GPTQFormat(4, 32, symmetric=False, version=1)
    assert torch.equal(first.unpack("m", (8, 32), stored).dequantize(), weight.dequantize())
    with pytest.raises(ConfigError, match="zeros of 0, which version 1 cannot store"):
        first.pack("m", weight)


# What cannot be written


def weight_of(bits: int = 4, **changes: Any) -> QuantizedWeight:
    values: dict[str, Any] = {"zeros": None, "kind": "int", "n": 32, "k": 64, "group_size": 32} | changes
    n, k, group_size = (values.pop(name) for name in ("n", "k", "group_size"))
    codes = torch.zeros(n, k, dtype=torch.uint8)
    return QuantizedWeight(codes, torch.ones(n, -(-k // group_size)), bits, group_size, **values)


UNWRITABLE: list[tuple[QuantizedFormat, QuantizedWeight, str]] = [
    (GPTQFormat(4, 32), weight_of(8), "it has 8 bits"),
    (GPTQFormat(4, 64), weight_of(4), "in groups of 32, and the config says 4 in groups of 64"),
    (GPTQFormat(4, 32), weight_of(4, zeros=torch.ones(32, 2)), "it has zeros"),
    (GPTQFormat(4, 32, symmetric=False), weight_of(4, zeros=torch.full((32, 2), 0.5)), "fractions"),
    (GPTQFormat(4, 32), weight_of(4, offsets=torch.ones(32, 2)), "offsets"),
    (GPTQFormat(4, 32), weight_of(4, group_index=torch.zeros(64, dtype=torch.int32)), "activation_order"),
    (GPTQFormat(3, 32), weight_of(3, n=16), "do not fill 32-bit words"),
    (GPTQFormat(6, 32), weight_of(6), "6 bits"),
    (GPTQFormat(4, 32), weight_of(4, kind="nf4"), "its codes are nf4"),
    (AWQFormat(32), weight_of(4, n=12), "no multiple of 8"),
    (BitsAndBytesFormat(), weight_of(4), "use nf4"),
    (BitsAndBytesFormat(), weight_of(4, kind="nf4", group_size=16), "groups of 16"),
    (BitsAndBytesFormat(), weight_of(4, kind="nf4", group_size=64, k=96), "divides the columns"),
    (CompressedTensorsFormat.packed(4, 32, True), weight_of(4, zeros=torch.ones(32, 2)), "symmetric=False"),
]


@pytest.mark.parametrize(("quantized", "weight", "part"), UNWRITABLE)
def test_what_a_format_cannot_hold_is_refused(quantized: QuantizedFormat, weight: QuantizedWeight, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        quantized.pack("some.matrix", weight)
    text = str(caught.value)
    assert part in text and "some.matrix" in text and "\n" not in text
