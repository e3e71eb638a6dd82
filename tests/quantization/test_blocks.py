"""A layer over a GGUF file's blocks: the product of the decoded matrix, from no more memory than the file's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.quantization import blocks
from playground.quantization.blocks import BlockWeight, join_blocks
from playground.quantization.gguf_types import BLOCK_TYPES, BlockType
from playground.quantization.linear import QuantizedLinear

TYPES = list(BLOCK_TYPES.values())
CPU = torch.device("cpu")


def random_weight(kind: BlockType, rows: int, columns: int, seed: int = 0) -> BlockWeight:
    """Any codes, under scales between 0.001 and 0.002."""
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (rows, columns // kind.block_size, kind.nbytes), dtype=np.uint8)
    halves = generator.uniform(0.001, 0.002, (*data.shape[:2], kind.num_halves)).astype(np.float16)
    data[:, :, kind.halves_at : kind.halves_at + 2 * kind.num_halves] = halves.view(np.uint8)
    return BlockWeight(kind, torch.from_numpy(data.reshape(rows, -1)))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_the_product_and_the_rows_are_those_of_the_decoded_matrix(kind: BlockType, data: st.DataObject) -> None:
    outputs, inputs = data.draw(st.integers(1, 70)), kind.block_size * data.draw(st.integers(1, 3))
    rows, biased = data.draw(st.integers(1, 20)), data.draw(st.booleans())
    weight = random_weight(kind, outputs, inputs)
    bias = torch.randn(outputs, generator=torch.Generator().manual_seed(1)) if biased else None
    with pytest.MonkeyPatch.context() as patch:  # several panels, the last one padded, of matrices quick to test
        patch.setattr(blocks, "_PANEL_ELEMENTS", 1)
        patch.setattr(blocks, "_NARROWEST", data.draw(st.integers(1, 80)))
        layer = QuantizedLinear(weight, bias, dtype=torch.float32, device=CPU)
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0))
    exact = x.double() @ weight.dequantize(torch.float64).t() + (0 if bias is None else bias)
    torch.testing.assert_close(layer(x).double(), exact, rtol=1e-4, atol=1e-4)
    residual = torch.randn(rows, outputs)
    torch.testing.assert_close(layer.plus(x, residual.clone()), residual + layer(x))
    numbers = torch.tensor(data.draw(st.lists(st.integers(0, outputs - 1), min_size=1, max_size=9)))
    assert torch.equal(layer.take(numbers), weight.dequantize()[numbers])


@pytest.mark.parametrize("rows", [1, 8, 9, 40])
@pytest.mark.parametrize("name", ["Q8_0", "Q6_K"])
def test_a_bfloat16_model_rounds_at_most_the_matrix_and_the_sums(name: str, rows: int) -> None:
    kind = next(kind for kind in TYPES if kind.name == name)
    weight = random_weight(kind, 100, 512)
    x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = QuantizedLinear(weight, None, dtype=torch.bfloat16, device=CPU)(x)
    exact = x.double() @ weight.dequantize(torch.float64).t()
    assert y.dtype == torch.bfloat16
    assert (y.double() - exact).norm() < 2**-8 * exact.norm()


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_memory_is_that_of_the_file_but_for_rows_of_padding(kind: BlockType) -> None:
    weight = random_weight(kind, 3000, 1024)
    layer = QuantizedLinear(weight, None, dtype=torch.bfloat16, device=CPU)
    assert weight.data.numel() <= layer.nbytes <= 1.001 * weight.data.numel()
    assert layer.num_elements == 3000 * 1024


def test_only_matrices_of_one_format_become_one() -> None:
    kinds = {kind.name: kind for kind in TYPES}
    first, second = (random_weight(kinds["Q4_K"], rows, 256, seed=rows) for rows in (3, 5))
    joined = join_blocks([first, second])
    assert joined is not None and joined.shape == (8, 256)
    assert torch.equal(joined.dequantize(), torch.cat((first.dequantize(), second.dequantize())))
    assert join_blocks([first, random_weight(kinds["Q6_K"], 3, 256)]) is None
