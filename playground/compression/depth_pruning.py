"""Removes whole layers: which ones matter least, and the model without them.

Importance by block influence (ShortGPT, arXiv 2403.03853), by the angular distance over a run of layers (arXiv
2403.17887), or by the perplexity of the model without the layer, one layer at a time (as BlockPruner, arXiv
2406.10594, does with half layers).
"""

from __future__ import annotations

import logging
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from playground.compression.blocks import PlainDecoder
from playground.compression.float_checkpoint import FloatCheckpoint
from playground.compression.perplexity import Window, decoder_scorer
from playground.compression.states import CalibrationStates
from playground.compression.targets import Target, parts_to_keep
from playground.errors import ConfigError

logger = logging.getLogger(__name__)

LayerChoice = Literal["perplexity", "influence", "angular"]
_SEARCH_TOKENS = 16_384


def layers_to_keep(model: FloatCheckpoint, target: Target) -> int:
    """How many layers the target leaves."""
    config = model.config
    return parts_to_keep(target, config.num_layers, lambda n: replace(config, num_layers=n).num_parameters, "layers")


def choose_layers(model: FloatCheckpoint, ids: Tensor, keep: int, by: LayerChoice = "perplexity") -> list[int]:
    """The layers to remove so that `keep` remain, ascending; `ids` int64 [S, L] is calibration text."""
    count = model.config.num_layers - keep
    if not 1 <= keep < model.config.num_layers:
        raise ConfigError(f"{keep} of {model.config.num_layers} layers cannot be kept: give 1 to one less than all.")
    if by == "influence":
        scores = torch.tensor(block_influence(model, ids))
        return sorted(scores.argsort(stable=True)[:count].tolist())
    if by == "angular":
        distances = angular_distances(model, ids, count)
        first = distances.index(min(distances))
        return list(range(first, first + count))
    return _least_perplexity(model, ids, count)


def remove_layers(model: FloatCheckpoint, layers: Sequence[int]) -> FloatCheckpoint:
    """The model without these layers, the others renumbered. Raises `ConfigError` where a layer is not there."""
    config = model.config
    keep = [layer for layer in range(config.num_layers) if layer not in set(layers)]
    if len(keep) + len(layers) != config.num_layers or not layers:
        raise ConfigError(f"layers {list(layers)} cannot be removed: give some of 0 to {config.num_layers - 1}, once.")
    if not keep:
        raise ConfigError(f"all {config.num_layers} layers would be removed: at least one must stay.")
    prefix = config.family.names.attn_norm.partition("{}")[0]
    numbered = re.compile(rf"{re.escape(prefix)}(\d+)\.(.*)")
    place = {layer: number for number, layer in enumerate(keep)}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        match = numbered.fullmatch(name)
        if match is None:
            tensors[name] = tensor
        elif int(match[1]) in place:
            tensors[f"{prefix}{place[int(match[1])]}.{match[2]}"] = tensor
    raw = dict(model.raw)
    if isinstance(raw.get("layer_types"), list):
        raw["layer_types"] = [raw["layer_types"][layer] for layer in keep]
    if isinstance(raw.get("max_window_layers"), int):  # how many of the first layers do not slide
        raw["max_window_layers"] = sum(layer < raw["max_window_layers"] for layer in keep)
    return replace(model, raw=raw).changed(tensors, num_hidden_layers=len(keep))


def block_influence(model: FloatCheckpoint, ids: Tensor) -> list[float]:
    """1 - mean over tokens of cos(x before the layer, x behind it), of every layer: 0 changes no direction."""
    return [1 - _cosine(before, after) for before, after in _apart(model, ids, 1)]


def angular_distances(model: FloatCheckpoint, ids: Tensor, count: int) -> list[float]:
    """arccos(mean cosine of x before layer l and x behind layer l + count - 1) / pi, of every l; over all tokens.

    The paper looks at the last token of each sequence; short calibration texts need all of them.
    """
    return [
        math.acos(max(-1.0, min(1.0, _cosine(before, after)))) / math.pi for before, after in _apart(model, ids, count)
    ]


def _cosine(before: Tensor, after: Tensor) -> float:
    return float(F.cosine_similarity(before, after, dim=-1).double().mean())


@torch.inference_mode()
def _apart(model: FloatCheckpoint, ids: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Residual streams [S, L, H] before layer l and behind layer l + count - 1, for every l in turn."""
    plain = PlainDecoder(model.config, model)
    states = CalibrationStates(plain.embed(ids))
    kept: deque[Tensor] = deque([states.first(states.num_tokens).clone()], maxlen=count + 1)
    for block in plain.blocks():
        states.advance(block)
        if block.kind == "mlp":
            kept.append(states.first(states.num_tokens).clone())
            if len(kept) == count + 1:
                yield kept[0], kept[-1]


def _least_perplexity(model: FloatCheckpoint, ids: Tensor, count: int) -> list[int]:
    """Greedy: of all layers still there, the one without which the calibration text is least surprising, again.

    Some thousand tokens, spread over the text, tell layers apart: their differences are those of pairs.
    """
    decoder = model.decoder()
    rows = min(len(ids), max(1, _SEARCH_TOKENS // ids.shape[1]))
    chosen = torch.linspace(0, len(ids) - 1, rows).long()
    pieces = [Window(row, 1) for row in ids[chosen].tolist()]
    removed: list[int] = []
    for _ in range(count):
        losses: dict[int, float] = {}
        for layer in range(model.config.num_layers):
            if layer not in removed:
                rest = [other for other in range(model.config.num_layers) if other not in (layer, *removed)]
                losses[layer] = float(decoder_scorer(decoder.with_layers(rest))(pieces).mean())
        best = min(losses, key=lambda layer: losses[layer])
        removed.append(best)
        logger.info("layer %d goes: perplexity %.3f on the calibration text", best, math.exp(losses[best]))
    return sorted(removed)
