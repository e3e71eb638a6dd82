"""Makes every layer narrower: fewer FFN channels, or fewer heads (whole KV groups), the same number in each layer.

A channel's importance is the size of what it adds to the residual stream: the norm of its column of the down (output)
projection times the root mean square of its activation, which is Wanda's score (arXiv 2306.11695) summed over a
structure, as in FLAP and Wanda-sp. Layers are pruned one after another, each on what the pruned ones before it make of
the calibration text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from playground.compression.blocks import PlainDecoder, ResidualBlock
from playground.compression.float_checkpoint import FloatCheckpoint
from playground.compression.hessian import second_moment
from playground.compression.states import CalibrationStates
from playground.compression.targets import Target, parts_to_keep
from playground.errors import ConfigError
from playground.models.config import DecoderConfig

MULTIPLE = 8
"""Widths stay multiples of this: matrix units and vector loads take 8 numbers or more at a time."""


def channels_to_keep(model: FloatCheckpoint, target: Target) -> int:
    """How many FFN channels a layer the target leaves, a multiple of 8."""
    config = model.config
    return parts_to_keep(
        target,
        config.intermediate_size,
        lambda n: replace(config, intermediate_size=n).num_parameters,
        "FFN channels",
        MULTIPLE,
    )


def groups_to_keep(model: FloatCheckpoint, target: Target) -> int:
    """How many KV groups (a KV head and the query heads that read it) the target leaves."""
    config = _with_heads(model)
    return parts_to_keep(
        target,
        config.num_kv_heads,
        lambda n: _fewer_groups(config, n).num_parameters,
        "KV groups",
        groups_step(config),
    )


@torch.inference_mode()
def prune_channels(model: FloatCheckpoint, ids: Tensor, keep: int) -> FloatCheckpoint:
    """The model with `keep` FFN channels in every layer; `ids` int64 [S, L] is calibration text."""
    total = model.config.intermediate_size
    if not 0 < keep < total or keep % MULTIPLE:
        raise ConfigError(
            f"{keep} of {total} FFN channels cannot be kept: give a multiple of {MULTIPLE} below {total}."
        )

    def choose(scores: Tensor) -> tuple[Tensor, list[Tensor]]:
        best = _best(scores, keep)
        return best, [best] * len(model.config.family.names.up)

    narrow = replace(model.config, intermediate_size=keep)
    return model.changed(_narrowed(model, narrow, ids, "mlp", choose), intermediate_size=keep)


@torch.inference_mode()
def prune_groups(model: FloatCheckpoint, ids: Tensor, keep: int) -> FloatCheckpoint:
    """The model with `keep` KV heads in every layer and the query heads that read them."""
    config = _with_heads(model)
    if not 0 < keep < config.num_kv_heads or keep % groups_step(config):
        raise ConfigError(
            f"{keep} of {config.num_kv_heads} KV groups cannot be kept: give a multiple of "
            f"{groups_step(config)} below that."
        )
    width = config.group_size * config.head_dim

    def choose(scores: Tensor) -> tuple[Tensor, list[Tensor]]:
        best = _best(scores.view(-1, width).sum(1), keep)
        queries, keys = _spread(best, width), _spread(best, config.head_dim)
        return queries, [queries, keys, keys]

    narrow = _fewer_groups(config, keep)
    return model.changed(
        _narrowed(model, narrow, ids, "attention", choose),
        num_attention_heads=narrow.num_heads,
        num_key_value_heads=keep,
        head_dim=config.head_dim,
    )


def _narrowed(
    model: FloatCheckpoint,
    narrow: DecoderConfig,
    ids: Tensor,
    kind: Literal["attention", "mlp"],
    choose: Callable[[Tensor], tuple[Tensor, list[Tensor]]],
) -> dict[str, Tensor]:
    """The blocks of a kind with part of their inner width, by checkpoint name.

    `choose` makes of the importance of each input of the second projection [K] which of them stay, and which outputs of
    each of the first projections.
    """
    plain = PlainDecoder(model.config, model)
    states = CalibrationStates(plain.embed(ids))
    changed: dict[str, Tensor] = {}
    for block in plain.blocks():
        if block.kind == kind:
            scores = _importance(block, states)
            inputs, outputs = choose(scores)
            block = _cut(block, narrow, inputs, outputs)
            for role in block.roles:
                for name in block.names(role):
                    weight = block.tensors[f"{name}.weight"]
                    changed[f"{name}.weight"] = weight.t() if model.config.family.transposed else weight
                    if f"{name}.bias" in block.tensors:
                        changed[f"{name}.bias"] = block.tensors[f"{name}.bias"]
        states.advance(block)
    return changed


def _importance(block: ResidualBlock, states: CalibrationStates) -> Tensor:
    """[K]: mean square of what each input of the block's second projection adds to the residual stream."""
    second = block.roles[1]
    moment = second_moment(states, lambda x: block.inputs(second, x))
    return block.weight(second).square().sum(0) * moment.diagonal()


def _cut(block: ResidualBlock, narrow: DecoderConfig, inputs: Tensor, outputs: list[Tensor]) -> ResidualBlock:
    first, second = block.roles
    tensors = dict(block.tensors)
    for name, rows in zip(block.names(first), outputs, strict=True):
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in tensors:
                tensors[f"{name}.{kind}"] = tensors[f"{name}.{kind}"][rows]
    (name,) = block.names(second)
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"][:, inputs]
    return replace(block, config=narrow, tensors=tensors)


def _best(scores: Tensor, keep: int) -> Tensor:
    """Numbers of the highest scores, ascending."""
    return scores.topk(keep).indices.sort().values


def _spread(numbers: Tensor, width: int) -> Tensor:
    """Numbers of the rows of these heads, each `width` rows."""
    return (numbers[:, None] * width + torch.arange(width, device=numbers.device)).flatten()


def _with_heads(model: FloatCheckpoint) -> DecoderConfig:
    if len(model.config.family.names.qkv) == 1:
        raise ConfigError(f"heads of {model.config.architecture} cannot be pruned: its config.json has no head_dim.")
    return model.config


def _fewer_groups(config: DecoderConfig, groups: int) -> DecoderConfig:
    return replace(config, num_heads=groups * config.group_size, num_kv_heads=groups)


def groups_step(config: DecoderConfig) -> int:
    """KV groups come in multiples of this, so that their width is one of 8."""
    return MULTIPLE // math.gcd(MULTIPLE, config.head_dim)
