"""Random quantized weights of every form, for tests."""

from typing import Any

import torch
from hypothesis import strategies as st

from playground.quantization.weight import QuantizedWeight

KINDS = (("int", 2), ("int", 3), ("int", 4), ("int", 5), ("int", 6), ("int", 8), ("nf4", 4), ("fp8", 8))
FORMS = ("symmetric", "zeros", "fractions", "offsets")


def random_weight(
    outputs: int, inputs: int, *, kind: str = "int", bits: int = 4, group_size: int = 32, form: str = "symmetric",
    shuffled: bool = False, seed: int = 0, scale_dtype: torch.dtype = torch.float32,
) -> QuantizedWeight:  # fmt: skip
    """Codes of all values; scales from 0.5 to 1.5; `shuffled` deals the columns out to equally large groups."""
    generator = torch.Generator().manual_seed(seed)
    groups = 1 if group_size == -1 else -(-inputs // group_size)
    codes = torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8, generator=generator)
    if kind == "fp8":
        numbers = torch.randn(outputs, inputs, generator=generator) * 100
        codes = numbers.to(torch.float8_e4m3fn).view(torch.uint8)
    scales = (torch.rand(outputs, groups, generator=generator) + 0.5).to(scale_dtype)
    parts: dict[str, Any] = {}
    if form == "zeros":
        parts["zeros"] = torch.randint(0, 2**bits, (outputs, groups), dtype=torch.uint8, generator=generator)
    elif form == "fractions":
        parts["zeros"] = torch.rand(outputs, groups, generator=generator) * 2**bits
    elif form == "offsets":
        parts["offsets"] = torch.rand(outputs, groups, generator=generator) * 2 ** (bits - 1)
    if shuffled:
        size = inputs if group_size == -1 else group_size
        order = torch.randperm(inputs, generator=generator)
        parts["group_index"] = (torch.arange(inputs) // size)[order].int()
    return QuantizedWeight(codes, scales, bits, group_size, kind=kind, **parts)  # type: ignore[arg-type]


@st.composite
def weights(draw: st.DrawFn) -> QuantizedWeight:
    """Any form, shapes that fill no block included; groups may be cut short at the end of a row."""
    kind, bits = draw(st.sampled_from(KINDS))
    form = draw(st.sampled_from(FORMS)) if kind == "int" else "symmetric"
    group_size = draw(st.sampled_from((-1, 16, 32, 48, 64, 128)))
    inputs = draw(st.one_of(st.sampled_from((64, 96, 128, 256, 576)), st.integers(1, 200)))
    size = inputs if group_size == -1 else group_size
    return random_weight(
        draw(st.integers(1, 150)), inputs, kind=kind, bits=bits, group_size=group_size, form=form,
        shuffled=draw(st.booleans()) and inputs % size == 0, seed=draw(st.integers(0, 99)),
    )  # fmt: skip
