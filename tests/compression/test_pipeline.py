"""`compress`: what it writes is what it measured, engine and readers agree on it, interruptions leave no trace."""

import errno
import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from playground import QuantizationConfig
from playground.compression import Calibration, compress
from playground.compression.blocks import BLOCK_KINDS, PlainDecoder
from playground.compression.calibration import calibration_tokens
from playground.compression.gptq import gptq
from playground.compression.hessian import second_moment
from playground.compression.methods import choose_format
from playground.compression.states import CalibrationStates
from playground.errors import ConfigError, ModelLoadError, PlaygroundError
from playground.models.checkpoint import Checkpoint
from playground.models.config import DecoderConfig
from playground.models.loader import check_names
from playground.quantization import writer
from tests.checkpoints import checkpoint, writable_copy
from tests.models.driver import load, whole_batch

TEXT = "".join(chr(97 + (n * n // 7 + n // 3) % 26) + (" " if n % 5 == 0 else "") for n in range(4000))
METHODS = {
    "rtn": {"bits": 4, "group_size": 16},
    "gptq": {"bits": 4, "group_size": 16},
    "gptq-asymmetric": {"method": "gptq", "bits": 4, "group_size": 16, "symmetric": False},
    "gptq-ordered": {"method": "gptq", "bits": 4, "group_size": 16, "act_order": True, "static_groups": False},
    "gptq-static": {"method": "gptq", "bits": 2, "group_size": 16, "act_order": True},
    "awq": {"bits": 4, "group_size": 16, "symmetric": False},
    "nf4": {"bits": 4, "group_size": 32},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "calibration.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose widths fill 32-bit words at any number of bits, with grouped attention."""
    return build("Llama", tmp_path_factory.mktemp("wide"))


def build(family: str, folder: Path, **differences: Any) -> Path:
    import transformers

    from tests.tiny import write_tiny_tokenizer

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.15,
             "bos_token_id": None, "eos_token_id": 2, **differences}  # fmt: skip
    config = getattr(transformers, f"{family}Config")(vocab_size=write_tiny_tokenizer(folder), **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    return folder


def options(name: str) -> QuantizationConfig:
    return QuantizationConfig(**{"method": name, **METHODS[name]})


def calibration(text: Path) -> Calibration:
    return Calibration((text,), sequences=6, length=48)


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file of a folder; of weights without their header, whose metadata come in any order."""
    hashes = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            header = json.loads(data[8 : 8 + (length := int.from_bytes(data[:8], "little"))])
            header["__metadata__"] = sorted(header.get("__metadata__", {}).items())
            data = json.dumps(header, sort_keys=True).encode() + data[8 + length :]
        hashes[path.name] = hashlib.sha256(data).hexdigest()
    return hashes


@torch.inference_mode()
def float_logits(source: Path, output: Path, quantization: QuantizationConfig, ids: Tensor) -> Tensor:
    """Logits of the float model with each matrix replaced by what its file says it is: no engine in it."""
    config = DecoderConfig.from_folder(source)
    file_format = choose_format(quantization, config)
    with Checkpoint(source) as old, Checkpoint(output) as new:
        decoder = PlainDecoder(config, check_names(config, old))
        stored: dict[str, Tensor] = {}
        for name in new.entries:
            read_stored(new, name, stored)
        x = decoder.embed(ids)
        for block in decoder.blocks():
            matrices = [name for role in block.roles for name in block.names(role)]
            for name in block.tensors.keys() - {f"{name}.weight" for name in matrices}:
                block.tensors[name] = stored[name].float()
            for name in matrices:
                n, k = block.tensors[f"{name}.weight"].shape
                block.tensors[f"{name}.weight"] = file_format.unpack(name, (n, k), stored).dequantize()
            x = block(x)
        return decoder.logits(x)


def read_stored(files: Checkpoint, name: str, into: dict[str, Tensor]) -> None:
    from safetensors import safe_open

    with safe_open(files.entries[name].file, framework="pt") as opened:
        into[name] = opened.get_tensor(name)


@pytest.mark.parametrize("name", METHODS)
def test_the_engine_reads_what_was_written(name: str, wide: Path, text: Path, tmp_path: Path) -> None:
    seen = []
    before = contents(wide)
    result = compress(
        wide, options(name), tmp_path / "small", calibration=calibration(text), progress=lambda *at: seen.append(at)
    )
    assert seen == [(n, 3) for n in range(4)]
    assert contents(wide) == before
    assert result.output == tmp_path / "small" and result.bytes_after < 0.7 * result.bytes_before
    ids = torch.randint(0, 200, (1, 40), generator=torch.Generator().manual_seed(3))
    expected = float_logits(wide, result.output, options(name), ids)[0]
    loaded = load(result.output)
    got = loaded.model.forward(whole_batch([ids[0].tolist()]), None)
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-3)
    original = load(wide).model.forward(whole_batch([ids[0].tolist()]), None)
    assert not torch.equal(got, original)


@pytest.mark.parametrize("variant", ["qwen2", "qwen3", "mistral", "gpt2", "llama-biased"])
def test_every_family_is_compressed_and_read(variant: str, text: Path, tmp_path: Path) -> None:
    quantization = QuantizationConfig(method="gptq", bits=8, group_size=16)
    source = checkpoint(variant)
    output = compress(source, quantization, tmp_path / "small", calibration=calibration(text)).output
    ids = torch.randint(0, 200, (1, 40), generator=torch.Generator().manual_seed(3))[0].tolist()
    got, original = (load(folder).model.forward(whole_batch([ids]), None) for folder in (output, source))
    assert float((got - original).norm() / original.norm()) < 0.05


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(name: str, wide: Path, text: Path, tmp_path: Path) -> None:
    whole = compress(wide, options(name), tmp_path / "whole", calibration=calibration(text)).output

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        compress(wide, options(name), cut, calibration=calibration(text), progress=interrupt)
    assert not cut.exists()
    with pytest.raises(ConfigError, match="unfinished run"):
        compress(wide, options(name), cut, calibration=calibration(text))
    with pytest.raises(ConfigError, match="another run"):
        compress(wide, options("rtn"), cut, resume=True)
    seen = []
    compress(wide, options(name), cut, calibration=calibration(text), resume=True, progress=lambda *at: seen.append(at))
    assert seen == [(2, 3), (3, 3)]
    assert contents(cut) == contents(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_each_layer_is_calibrated_on_its_quantized_predecessors(wide: Path, text: Path, tmp_path: Path) -> None:
    """The whole run again, by hand: each role's codes from inputs that all matrices before it make as quantized."""
    source = wide
    quantize = QuantizationConfig(method="gptq", bits=2, group_size=16)
    compress(source, quantize, tmp_path / "coarse", calibration=calibration(text))
    config = DecoderConfig.from_folder(source)
    with Checkpoint(source) as files, Checkpoint(tmp_path / "coarse") as written, torch.inference_mode():
        decoder = PlainDecoder(config, check_names(config, files))
        states = CalibrationStates(decoder.embed(calibration_tokens(source, config, calibration(text))))
        tensors: dict[str, Tensor] = {}
        for name in written.entries:
            read_stored(written, name, tensors)
        file_format = choose_format(quantize, config)
        for layer in range(3):
            for kind in BLOCK_KINDS:
                block = decoder.block(layer, kind)
                for role in block.roles:
                    moment = second_moment(states, partial(block.inputs, role))
                    weight = gptq(block.weight(role), moment, quantize)
                    row = 0
                    for name, outputs in block.parts(role):
                        kept = file_format.unpack(name, (outputs, weight.shape[1]), tensors)
                        assert torch.equal(kept.codes, weight.rows(row, row + outputs).codes)
                        row += outputs
                    block.set_weight(role, weight.dequantize())
                states.advance(block)


def test_text_of_the_models_own_is_the_default_and_survives_an_interruption(wide: Path, tmp_path: Path) -> None:
    own = Calibration(sequences=4, length=24)

    def interrupt(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(wide, options("gptq"), tmp_path / "small", calibration=own, progress=interrupt)
    kept = (tmp_path / "small.partial" / "calibration.json").read_text()
    assert kept.count("[") == 1 + 4 and kept.count(",") == 4 * 24 - 1
    output = compress(wide, options("gptq"), tmp_path / "small", calibration=own, resume=True).output
    assert not (output / "calibration.json").exists()


def broken(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_what_cannot_be_done_is_refused_in_one_sentence(wide: Path, text: Path, tmp_path: Path) -> None:
    long = Calibration((text,), sequences=64, length=128)
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    cut = shutil.copytree(wide, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = broken(shutil.copytree(wide, tmp_path / "done"), quantization_config={"quant_method": "gptq", "bits": 4})
    gptq, rtn = options("gptq"), options("rtn")
    cases: list[tuple[str, Any, dict[str, Any], str]] = [
        ("groups", wide, {"quantization": QuantizationConfig(bits=4, group_size=40)}, "group_size=40 does not divide"),
        ("twice", done, {"quantization": rtn}, "is quantized already (gptq): give the original weights"),
        ("short", wide, {"quantization": gptq, "calibration": long}, "sequences of 128 need 8192"),
        ("utf-8", wide, {"quantization": gptq, "calibration": Calibration((latin,))}, "is not UTF-8 text (byte 3)"),
        ("missing", wide, {"quantization": gptq, "calibration": Calibration((tmp_path / "no",))}, "cannot be read"),
        ("truncated", cut, {"quantization": rtn}, "is cut off"),
        ("format", wide, {"quantization": rtn, "file_format": "onnx"}, "format 'onnx' is not known"),
        ("3-bit awq", wide, {"quantization": QuantizationConfig(method="awq", bits=3, group_size=16),
                             "file_format": "awq"}, "cannot be written as awq"),
        ("nf4 as gptq", wide, {"quantization": options("nf4"), "file_format": "gptq"}, "cannot be written as gptq"),
        ("g_idx", wide, {"quantization": options("gptq-ordered"), "file_format": "compressed-tensors"},
         "groups of their own order"),
        ("fp8", wide, {"quantization": QuantizationConfig(method="fp8")}, "has no file to be written to"),
    ]  # fmt: skip
    for what, source, arguments, sentence in cases:
        with pytest.raises(PlaygroundError) as refused:
            compress(source, output=tmp_path / f"out {what}", **arguments)
        assert sentence in str(refused.value) and "\n" not in str(refused.value), what
        assert not (tmp_path / f"out {what}").exists()
    with pytest.raises(ConfigError, match="exists already"):
        compress(wide, rtn, taken)
    assert (taken / "mine.txt").read_text() == "mine"


def test_a_model_of_undefined_numbers_is_refused(text: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = writable_copy("llama-2", tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="infinite or undefined numbers"):
        compress(folder, options("gptq"), tmp_path / "small", calibration=calibration(text))
    assert not (tmp_path / "small").exists()


def test_a_full_disk_leaves_what_was_done_and_nothing_half_written(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(wide)
    whole = compress(wide, options("rtn"), tmp_path / "whole").output
    save = writer.save_tensors
    calls = []

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(writer, "save_tensors", full)
    with pytest.raises(ConfigError, match=r"is full.*--resume") as refused:
        compress(wide, options("rtn"), tmp_path / "small")
    assert "\n" not in str(refused.value)
    left = sorted(path.name for path in (tmp_path / "small.partial").iterdir())
    assert left == ["model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"]
    assert not (tmp_path / "small").exists() and contents(wide) == before
    output = compress(wide, options("rtn"), tmp_path / "small", resume=True).output
    assert contents(output) == contents(whole)


@pytest.mark.parametrize(
    ("library", "name", "file_format"),
    [
        ("compressed_tensors", "rtn", None),
        ("compressed_tensors", "gptq", "compressed-tensors"),
        ("compressed_tensors", "awq", "compressed-tensors"),
        ("bitsandbytes", "nf4", None),
    ],
)
def test_transformers_reads_what_was_written(
    library: str, name: str, file_format: str | None, wide: Path, text: Path, tmp_path: Path
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    output = compress(
        wide, options(name), tmp_path / "small", calibration=calibration(text), file_format=file_format
    ).output
    ids = torch.randint(0, 200, (1, 40), generator=torch.Generator().manual_seed(3))
    # Packed zeros are loaded only so; matrices themselves are the same either way.
    how = {} if options(name).symmetric else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    theirs = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32, device_map="cpu", **how)
    with torch.inference_mode():
        expected = theirs(ids).logits[0]
    got = load(output).model.forward(whole_batch([ids[0].tolist()]), None)
    rounded_on_the_way = 0.05 if library == "bitsandbytes" else 2e-3  # its own forward is in bfloat16
    assert float((got - expected).norm() / expected.norm()) < rounded_on_the_way
