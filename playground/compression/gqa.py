"""Another number of KV heads: fewer by pooling (GQA, MQA; arXiv 2305.13245), more by repeating.

KV head g of the new model serves the query heads that the heads of its group served, which are those with the same
numbers: query heads are never moved. The KV cache shrinks by exactly the ratio of heads. Uptraining afterwards is
`playground train --from`, or `healing`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from playground.compression.float_checkpoint import FloatCheckpoint
from playground.errors import ConfigError

Pooling = Literal["mean", "first", "random"]


def convert_kv_heads(
    model: FloatCheckpoint, kv_heads: int, pooling: Pooling = "mean", seed: int = 0
) -> FloatCheckpoint:
    """The model with `kv_heads` KV heads in every layer.

    Fewer heads: the mean of each group's keys and values, its first head, or random numbers of the same spread, which
    tell what pooling is worth. More heads: repeated, which changes no logit. Raises `ConfigError` where the model has
    that number, or the numbers do not divide.
    """
    config = model.config
    if len(config.family.names.qkv) == 1:
        raise ConfigError(f"{config.architecture} cannot share KV heads: its checkpoints have no place for it.")
    if kv_heads == config.num_kv_heads:
        raise ConfigError(f"the model has {kv_heads} KV heads already: give another number.")
    fewer, more = sorted((kv_heads, config.num_kv_heads))
    if kv_heads < 1 or more % fewer or config.num_heads % kv_heads:
        raise ConfigError(
            f"{config.num_kv_heads} KV heads of {config.num_heads} query heads do not become {kv_heads}: "
            f"give {_allowed(model)}."
        )
    generator = torch.Generator().manual_seed(seed)

    def convert(tensor: Tensor) -> Tensor:
        heads = tensor.view(config.num_kv_heads, config.head_dim, -1)  # a bias has one column
        if kv_heads > config.num_kv_heads:
            heads = heads.repeat_interleave(kv_heads // config.num_kv_heads, dim=0)
        else:
            heads = _pool(heads.unflatten(0, (kv_heads, -1)), pooling, generator)
        return heads.reshape(-1, *tensor.shape[1:])

    tensors: dict[str, Tensor] = {}
    for layer in range(config.num_layers):
        for name in config.family.names.qkv[1:]:
            for kind in ("weight", "bias"):
                key = f"{name.format(layer)}.{kind}"
                if key in model.tensors:
                    tensors[key] = convert(model.tensors[key])
    return model.changed(tensors, num_key_value_heads=kv_heads, head_dim=config.head_dim)


def _pool(groups: Tensor, pooling: Pooling, generator: torch.Generator) -> Tensor:
    """[G, members, D, I] -> [G, D, I]. The mean of equal numbers is that number: float64 has room for the sum."""
    if pooling == "first":
        return groups[:, 0]
    if pooling == "mean":
        return groups.double().mean(1).to(groups.dtype)
    noise = torch.randn(groups[:, 0].shape, generator=generator)
    return (noise * groups.float().std()).to(groups.dtype)


def _allowed(model: FloatCheckpoint) -> str:
    config = model.config
    numbers = [
        str(n)
        for n in range(1, config.num_heads + 1)
        if config.num_heads % n == 0
        and n != config.num_kv_heads
        and max(n, config.num_kv_heads) % min(n, config.num_kv_heads) == 0
    ]
    return " or ".join(numbers)
