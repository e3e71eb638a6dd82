"""The packed layout: an exact inverse for every format, a layout that kernels can rely on, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.quant_pack import NF4_LEVELS, dequantize, pack, unpack


@st.composite
def weights(draw: st.DrawFn) -> dict[str, object]:
    bits = draw(st.sampled_from([2, 4, 8]))
    group = draw(st.sampled_from([-1, 32, 64, 128, 256]))
    n, k = draw(st.integers(1, 5)), draw(st.integers(1, 300))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    groups = 1 if group == -1 else -(-k // group)
    zeros = draw(st.sampled_from([None, torch.uint8, torch.float16, torch.float32]))
    return {
        "codes": torch.randint(0, 2**bits, (n, k), generator=generator, dtype=torch.uint8),
        "scales": torch.rand(n, groups, generator=generator).to(draw(st.sampled_from([torch.float16, torch.bfloat16]))),
        "zeros": None if zeros is None else (torch.rand(n, groups, generator=generator) * 2**bits).to(zeros),
        "bits": bits,
        "group_size": group,
    }


@given(weights())
def test_unpacking_gives_back_what_was_packed(weight: dict[str, object]) -> None:
    packed = pack(**weight)
    for given_tensor, got in zip((weight["codes"], weight["scales"], weight["zeros"]), unpack(packed), strict=True):
        assert (given_tensor is None) == (got is None)
        if got is not None:
            assert got.dtype == given_tensor.dtype and torch.equal(got, given_tensor)


@given(weights())
def test_dequantized_weights_follow_the_formula_one_by_one(weight: dict[str, object]) -> None:
    matrix = dequantize(pack(**weight), torch.float64)
    codes, scales, zeros, bits, group = weight.values()
    for k in {0, codes.shape[1] // 2, codes.shape[1] - 1}:
        g = 0 if group == -1 else k // group
        zero = 2 ** (bits - 1) if zeros is None else zeros[:, g].double()
        assert torch.equal(matrix[:, k], (codes[:, k].double() - zero) * scales[:, g].double())


@pytest.mark.parametrize(("bits", "width"), [(2, 16), (4, 32), (8, 128)])
def test_a_word_holds_codes_that_are_one_plane_apart(bits: int, width: int) -> None:
    codes = torch.randint(0, 2**bits, (1, 256), dtype=torch.uint8)
    words = pack(codes, torch.ones(1, 1), bits=bits, group_size=-1).words[0]
    assert words.shape == (2 * width,)
    for word in (0, width - 1, width, 2 * width - 1):
        block, j = divmod(word, width)
        expected = sum(int(codes[0, block * 128 + p * width + j]) << (bits * p) for p in range(128 // width))
        assert int(words[word]) % 2**16 == expected


def test_nf4_and_fp8_codes_mean_levels_and_numbers() -> None:
    levels = pack(torch.arange(16, dtype=torch.uint8)[None], torch.full((1, 1), 2.0), bits=4, group_size=64, kind="nf4")
    assert torch.equal(dequantize(levels)[0], 2 * torch.tensor(NF4_LEVELS))
    numbers = torch.tensor([[0.0, -448.0, 0.001953125, 1.5]])
    codes = numbers.to(torch.float8_e4m3fn).view(torch.uint8)
    packed = pack(codes, torch.full((1, 1), 0.5), bits=8, group_size=-1, kind="fp8")
    assert torch.equal(dequantize(packed), numbers / 2)


def test_size_is_counted_in_bytes() -> None:
    packed = pack(torch.zeros(8, 256, dtype=torch.uint8), torch.ones(8, 2).half(), bits=4, group_size=128)
    assert packed.nbytes == 8 * 128 + 8 * 2 * 2
    assert packed.to("cpu").nbytes == packed.nbytes


def test_what_does_not_fit_is_refused() -> None:
    codes, scales = torch.zeros(2, 64, dtype=torch.uint8), torch.ones(2, 2)
    with pytest.raises(ValueError, match="kind='int' with bits=3"):
        pack(codes, scales, bits=3, group_size=32)
    with pytest.raises(ValueError, match="kind='nf4' with bits=2"):
        pack(codes, scales, bits=2, group_size=32, kind="nf4")
    with pytest.raises(ValueError, match="group_size=48"):
        pack(codes, scales, bits=4, group_size=48)
    with pytest.raises(ValueError, match="4 bits hold 0 to 15"):
        pack(codes + 16, scales, bits=4, group_size=32)
    with pytest.raises(ValueError, match=r"scales are \[2, 2\].*\[2, 1\]"):
        pack(codes, scales, bits=4, group_size=64)
    with pytest.raises(ValueError, match="zeros are"):
        pack(codes, scales, scales[:1], bits=4, group_size=32)
    with pytest.raises(ValueError, match="has no zeros"):
        pack(codes, scales, scales, bits=4, group_size=32, kind="nf4")
    with pytest.raises(ValueError, match="not empty"):
        pack(codes[:, :0], scales, bits=4, group_size=32)
