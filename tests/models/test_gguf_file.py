"""The container: what the `gguf` library's reader finds is found, and what is broken is refused, never half read."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from playground.errors import ModelLoadError
from playground.models.gguf_file import GGUFFile

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One value of every type, and tensors of several."""
    file = tmp_path_factory.mktemp("container") / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for kind, value in (
        ("uint8", 200), ("int8", -100), ("uint16", 60_000), ("int16", -30_000), ("uint32", 4_000_000_000),
        ("int32", -2_000_000_000), ("uint64", 2**63), ("int64", -(2**62)), ("float32", 0.25), ("float64", 0.1),
        ("bool", True), ("string", "ä ▁"),
    ):  # fmt: skip
        getattr(writer, f"add_{kind}")(f"some.{kind}", value)
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.words", ["a", "", "ccc"])
    writer.add_tensor("first.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    blocks = gguf.quants.quantize(np.ones((4, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("second.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("third", np.array([1.5, -2.0], dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_metadata_and_tensors_are_those_of_the_librarys_reader(whole: Path) -> None:
    reader = gguf.GGUFReader(whole)
    with GGUFFile(whole) as file:
        theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        theirs["some.words"] = len(theirs["some.words"])  # a vocabulary is only counted
        assert file.metadata == theirs
        assert set(file.entries) == {tensor.name for tensor in reader.tensors}
        for tensor in reader.tensors:
            entry = file.entries[tensor.name]
            assert (entry.start, entry.nbytes) == (tensor.data_offset, tensor.n_bytes)
            assert (entry.shape, entry.type_id) == (tuple(tensor.shape.tolist()[::-1]), tensor.tensor_type)
            if entry.type_id == gguf.GGMLQuantizationType.Q8_0:
                assert np.array_equal(file.read_blocks(tensor.name).numpy(), tensor.data)
            else:
                file.read_plain(tensor.name, lambda data, want=tensor.data: np.testing.assert_array_equal(data, want))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: b"GG", "is not a GGUF file"),
        (lambda data: b"\x08\0\0\0{}      " + data, "is not a GGUF file"),
        (lambda data: data[:4] + (1).to_bytes(4, "little") + data[8:], "is GGUF version 1, which is not supported"),
        (lambda data: data[:4] + (3).to_bytes(4, "big") + data[8:], "big-endian"),
        (lambda data: data[:100], "is cut off or broken in its header (100 bytes)"),
        (lambda data: data[:-40], "is cut off: "),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "is cut off or broken in its header"),
        (lambda data: data[:16] + b"\xff" * 8 + data[24:], "is cut off or broken in its header"),
    ],
)
def test_what_is_no_whole_file_is_named(whole: Path, tmp_path: Path, change: object, said: str) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(change(whole.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ModelLoadError) as error:
        GGUFFile(broken)
    assert said in str(error.value) and str(broken) in str(error.value)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_the_header_gets_beyond_one_sentence(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))])
    try:
        with GGUFFile(broken) as file:
            size = broken.stat().st_size
            assert all(entry.start + entry.nbytes <= size for entry in file.entries.values())
    except ModelLoadError as error:
        assert "\n" not in str(error)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("odd.weight", np.zeros((2, 34), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = file.read_bytes()
    shape = (32).to_bytes(8, "little") + (2).to_bytes(8, "little")
    assert content.count(shape) == 1
    file.write_bytes(content.replace(shape, (33).to_bytes(8, "little") + (2).to_bytes(8, "little")))
    with pytest.raises(ModelLoadError, match="do not divide into blocks of 32, as Q8_0 needs"):
        GGUFFile(file)
