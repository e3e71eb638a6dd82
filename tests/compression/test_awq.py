"""AWQ: folding leaves the float function as it is, and scaling and clipping lower the error that rounding makes."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from playground.compression.awq import clip_groups, fold_scales
from playground.compression.blocks import BLOCK_KINDS, PlainDecoder, ResidualBlock
from playground.compression.hessian import output_error, second_moment
from playground.compression.states import CalibrationStates
from playground.models.checkpoint import Checkpoint
from playground.models.config import DecoderConfig
from playground.models.loader import check_names
from playground.quantization.rtn import round_to_nearest
from tests.checkpoints import checkpoint

NEAREST = partial(round_to_nearest, bits=3, group_size=16, symmetric=False, scale_dtype=torch.float16)


def blocks(folder: Path, layer: int = 1) -> list[ResidualBlock]:
    config = DecoderConfig.from_folder(folder)
    with Checkpoint(folder) as files:
        decoder = PlainDecoder(config, check_names(config, files))
        return [decoder.block(layer, kind) for kind in BLOCK_KINDS]


def outlier_states(width: int, seed: int = 0) -> Tensor:
    """Hidden states [8, 32, H] in which a few channels are much larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(8, 32, width, generator=generator)
    states[..., ::11] *= 12
    return states


@pytest.mark.parametrize("variant", ["llama-2", "llama-biased", "qwen3", "gpt2"])
@torch.inference_mode()
def test_folding_leaves_the_float_function_as_it_is(variant: str) -> None:
    """Multi-head and grouped attention, biases, norms of queries and keys, and LayerNorm with a fused projection."""
    for block in blocks(checkpoint(variant)):
        states = outlier_states(block.config.hidden_size)
        before, old = block(states), dict(block.tensors)
        changed = fold_scales(block, CalibrationStates(states.clone()), NEAREST)
        first, second = block.roles
        assert changed and not torch.equal(
            block.weight(first), torch.cat([old[f"{n}.weight"] for n in block.names(first)])
        )
        multi_head = block.config.num_heads == block.config.num_kv_heads
        folded_second = multi_head if block.kind == "attention" else block.config.gated_mlp
        moved = not torch.equal(block.weight(second), torch.cat([old[f"{n}.weight"] for n in block.names(second)]))
        assert moved == folded_second
        torch.testing.assert_close(block(states), before, atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_scales_leave_the_norm_exact_in_the_dtype_of_the_file() -> None:
    block = blocks(checkpoint("llama-2"))[0]
    name = f"{block.norm}.weight"
    block.tensors[name] = block.tensors[name].bfloat16().float()
    block.dtypes[name] = torch.bfloat16
    fold_scales(block, CalibrationStates(outlier_states(48)), NEAREST)
    assert torch.equal(block.tensors[name], block.tensors[name].bfloat16().float())


@torch.inference_mode()
def test_scaling_lowers_the_error_of_inputs_with_outlier_channels() -> None:
    """What the whole block gets wrong after rounding to nearest, with the scales folded in and without."""
    for number in range(2):
        plain, scaled = blocks(checkpoint("llama-2"))[number], blocks(checkpoint("llama-2"))[number]
        states = outlier_states(48)
        target = plain(states)
        fold_scales(scaled, CalibrationStates(states.clone()), NEAREST)
        errors = []
        for block in (plain, scaled):
            block.set_weight(block.roles[0], NEAREST(block.weight(block.roles[0])).dequantize())
            errors.append(float((block(states) - target).square().mean()))
        assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_lowers_the_error_where_weights_have_outliers(symmetric: bool) -> None:
    """tr((W - Q) H (W - Q)^T) of weights with a few that are larger than the rest, inputs correlated."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 64, generator=generator)
    weight[torch.rand(24, 64, generator=generator) < 0.03] *= 3
    x = torch.randn(500, 64, generator=generator) @ (torch.eye(64) + 0.3 * torch.randn(64, 64, generator=generator) / 8)
    moment = x.t() @ x / 500
    nearest = partial(round_to_nearest, bits=3, group_size=32, symmetric=symmetric)
    clipped = clip_groups(weight, moment, nearest, 32)
    assert bool((clipped.abs() <= weight.abs()).all())
    errors = [output_error(nearest(w).dequantize() - weight, moment) for w in (weight, clipped)]
    assert errors[1] < 0.9 * errors[0]


@torch.inference_mode()
def test_the_second_moment_is_that_of_all_tokens_in_any_batches() -> None:
    block = blocks(checkpoint("qwen2"))[1]
    states = outlier_states(48)
    x = block.inputs("down", states).flatten(0, 1).double()
    got = second_moment(CalibrationStates(states), lambda part: block.inputs("down", part))
    torch.testing.assert_close(got.double(), x.t() @ x / len(x), rtol=1e-4, atol=1e-4)
