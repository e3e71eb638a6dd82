"""AWQ (arXiv 2306.00978): before rounding to nearest, input channels that matter are scaled up, and ranges clipped.

Scaling leaves the float function as it is: what comes before a linear is scaled down by as much, in the norm's weight
or in the linear before it. One block in, quantized weights and the tensors that took up the scales out.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from playground.compression.blocks import ResidualBlock, Role
from playground.compression.hessian import output_error, second_moment
from playground.compression.states import CalibrationStates
from playground.quantization.weight import QuantizedWeight

Nearest = Callable[[Tensor], QuantizedWeight]
"""Rounds a matrix [N, K] to nearest."""

_EXPONENTS = [number / 20 for number in range(20)]
_CLIPS = [1 - number / 20 for number in range(10)]
_SEARCH_TOKENS = 4096


@torch.inference_mode()
def fold_scales(block: ResidualBlock, states: CalibrationStates, nearest: Nearest) -> list[str]:
    """Search the best scales of a block's linears and fold them in. Returns the names of other tensors that changed.

    Scales of the norm are chosen such that its weight is exact in the dtype that the file has it in. The loss is that
    of the whole block for the linears behind the norm, and of the linear itself for those behind another one.
    """
    first, second = block.roles
    changed = []
    normed = block.inputs(first, states.first(_SEARCH_TOKENS))
    target = block.branch(normed)
    norm, norm_dtype = block.tensors[f"{block.norm}.weight"], block.dtypes[f"{block.norm}.weight"]
    weight = block.weight(first)

    def block_error(scale: Tensor) -> float:
        trial = replace(block, tensors=dict(block.tensors))
        trial.set_weight(first, nearest(weight * scale).dequantize() / scale)
        return float((trial.branch(normed) - target).square().mean())

    moment, folded = second_moment(states, lambda x: block.inputs(second, x)), _feeds_linearly(block)
    magnitude = _magnitude(states, block, second) if folded else None

    exact = _best(_magnitude(states, block, first), block_error, lambda scale: _exact(scale, norm, norm_dtype))
    if exact is not None:
        block.set_weight(first, weight * exact)
        for part in ("weight", "bias"):
            name = f"{block.norm}.{part}"
            if name in block.tensors:
                block.tensors[name] = block.tensors[name] / exact
                changed.append(name)

    if magnitude is not None:
        weight = block.weight(second)

        def linear_error(scale: Tensor) -> float:
            return float(output_error(nearest(weight * scale).dequantize() / scale - weight, moment))

        scale = _best(magnitude, linear_error, lambda scale: scale)
        if scale is not None:
            block.set_weight(second, weight * scale)
            changed += _scale_outputs(block, first, 1 / scale)
    return changed


def clip(block: ResidualBlock, role: Role, states: CalibrationStates, nearest: Nearest, group_size: int) -> Tensor:
    """The weights of a role [N, K], each group clipped to the range that costs its rounded output least.

    Queries and keys stay as they are: their product would suffer.
    """
    weight = block.weight(role)
    keep = 0
    if role == "qkv":
        keep = weight.shape[0] - block.config.num_kv_heads * block.config.head_dim
    moment = second_moment(states, lambda x: block.inputs(role, x))
    return torch.cat((weight[:keep], clip_groups(weight[keep:], moment, nearest, group_size)))


def clip_groups(weight: Tensor, moment: Tensor, nearest: Nearest, group_size: int) -> Tensor:
    """W [N, K] with each row's groups clipped to 0.55 .. 1 of their largest magnitude, whichever is best.

    A group's error is that of its own share of the output, from its block on the diagonal of `moment` [K, K].
    """
    groups = weight.unflatten(1, (-1, weight.shape[1] if group_size == -1 else group_size))
    n, count, size = groups.shape
    blocks = moment.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    largest = groups.abs().amax(-1, keepdim=True)
    best, best_error = groups.clone(), torch.full((n, count, 1), torch.inf, device=weight.device)
    for share in _CLIPS:
        clipped = groups.clamp(-largest * share, largest * share)
        rounded = nearest(clipped.reshape(weight.shape)).dequantize()
        off = (rounded.view(groups.shape) - groups).transpose(0, 1)
        error = ((off @ blocks) * off).sum(-1, keepdim=True).transpose(0, 1)
        best, best_error = torch.where(error < best_error, clipped, best), torch.minimum(error, best_error)
    return best.reshape(weight.shape)


def _best(magnitude: Tensor, error: Callable[[Tensor], float], usable: Callable[[Tensor], Tensor]) -> Tensor | None:
    """The best scale of the form magnitude^r, or None where leaving the weights alone is best."""
    scales = [torch.ones_like(magnitude)]
    for exponent in _EXPONENTS[1:]:
        scale = magnitude.pow(exponent).clamp_min(1e-4)
        scales.append(usable(scale / (scale.max() * scale.min()).sqrt()))
    errors = [error(scale) for scale in scales]
    best = min(range(len(scales)), key=errors.__getitem__)
    return scales[best] if best else None


def _exact(scale: Tensor, norm: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale next to this one by which the norm's weight can be divided without being rounded in `dtype`."""
    rounded = (norm / scale).to(dtype).to(norm.dtype)
    return torch.where(rounded != 0, norm / rounded, torch.ones_like(scale))


def _magnitude(states: CalibrationStates, block: ResidualBlock, role: Role) -> Tensor:
    """mean |x| [K] of what the linears of a role read."""
    return (
        sum((block.inputs(role, x).abs().flatten(0, -2).sum(0) for x in states.batches()), torch.zeros(()))
        / states.num_tokens
    )


def _feeds_linearly(block: ResidualBlock) -> bool:
    """Whether scaling outputs of the first linears scales inputs of the second ones, one for one."""
    config = block.config
    if block.kind == "attention":
        return config.num_heads == config.num_kv_heads
    return config.gated_mlp or config.activation == "relu"


def _scale_outputs(block: ResidualBlock, role: Role, scale: Tensor) -> list[str]:
    """Scale the last outputs of a role: the values of attention, or the linear half of an MLP. Names of its biases."""
    weight = block.weight(role)
    weight[-len(scale) :] *= scale[:, None]
    block.set_weight(role, weight)
    name = f"{block.names(role)[-1]}.bias"
    if name not in block.tensors:
        return []
    bias = block.tensors[name].clone()
    bias[-len(scale) :] *= scale
    block.tensors[name] = bias
    return [name]
