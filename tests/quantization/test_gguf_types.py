"""GGUF's block formats against the decoders of the `gguf` library, to the last bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.quantization.blocks import BlockWeight
from playground.quantization.gguf_codes import CODED_TYPES, to_codes
from playground.quantization.gguf_types import BLOCK_TYPES, BlockType

quants = pytest.importorskip("gguf.quants")
constants = pytest.importorskip("gguf.constants")
TYPES = list(BLOCK_TYPES.values())


def reference(kind: BlockType, rows: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):  # random scales overflow, and what comes of that must be the same
        return quants.dequantize(rows, constants.GGMLQuantizationType[kind.name])


def same_bits(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    """Equal as bits, except that one NaN is as good as another."""
    mine = ours.contiguous().numpy()
    nan = np.isnan(theirs)
    return bool(np.array_equal(nan, np.isnan(mine)) and (mine.view(np.int32) == theirs.view(np.int32))[~nan].all())


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_sizes_and_numbers_are_those_of_the_format(kind: BlockType) -> None:
    assert constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType[kind.name]] == (kind.block_size, kind.nbytes)
    assert constants.GGMLQuantizationType[kind.name].value == kind.type_id
    assert kind.row_bytes(3 * kind.block_size) == 3 * kind.nbytes


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_bytes_decode_to_the_same_bits_as_in_the_reference(kind: BlockType, data: st.DataObject) -> None:
    rows, blocks = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    seed = data.draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).integers(0, 256, (rows, blocks * kind.nbytes), dtype=np.uint8)
    for _ in range(data.draw(st.integers(0, 20))):  # bytes that random ones seldom are
        at = data.draw(st.integers(0, values.shape[1] - 1))
        values[data.draw(st.integers(0, rows - 1)), at] = data.draw(st.sampled_from([0, 0x7F, 0x80, 0xFF, 0x7C, 0xFC]))
    assert same_bits(kind.dequantize(torch.from_numpy(values.copy())), reference(kind, values))


@pytest.mark.parametrize("name", CODED_TYPES)
def test_codes_with_scales_are_the_same_matrix_value_for_value(name: str) -> None:
    kind = next(kind for kind in TYPES if kind.name == name)
    bytes_ = np.random.default_rng(0).integers(0, 256, (5, 3 * kind.nbytes), dtype=np.uint8)
    halves = bytes_.reshape(5, 3, -1)[:, :, kind.halves_at : kind.halves_at + 2 * kind.num_halves]
    halves.view(np.float16)[...] = np.random.default_rng(1).normal(size=(5, 3, kind.num_halves))
    weight = to_codes(BlockWeight(kind, torch.from_numpy(bytes_)))
    assert int(weight.codes.max()) < 2**weight.bits
    assert same_bits(weight.dequantize() + 0.0, reference(kind, bytes_) + np.float32(0))  # -0 is as good as 0
