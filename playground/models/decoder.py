"""The one decoder-only model: a ragged batch of tokens in, logits of the rows that ask for them out.

Inference only. Owns its weights; knows nothing of requests. One thread at a time may call `forward`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from playground.errors import ConfigError
from playground.models.batch import ModelBatch
from playground.models.config import DecoderConfig
from playground.models.kv_cache import KVCache
from playground.models.layers import AttentionName, Layer, LayerStack, Norm
from playground.models.linear import Linear
from playground.quantization.linear import QuantizedLinear


@dataclass(slots=True)
class DecoderWeights:
    """Everything learned, in the layout that the forward wants."""

    embed: Tensor | QuantizedLinear
    """[vocab, H]; quantized, it may be the head too."""
    positions: Tensor | None
    layers: list[Layer]
    final_norm: Norm
    head: Linear | QuantizedLinear


class Decoder:
    """A loaded model: `forward`, and what shares its weights."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        *,
        dtype: torch.dtype,
        device: torch.device,
        attention: AttentionName = "sdpa",
    ) -> None:
        self.config, self.weights = config, weights
        self.dtype, self.device, self.attention = dtype, device, attention
        self._stack = LayerStack(config, weights.layers, dtype=dtype, device=device, attention=attention)

    def with_layers(self, keep: Sequence[int]) -> "Decoder":
        """The model with only these of its layers, which skips the others; weights are shared, nothing is copied.

        Its layers keep their numbers: it reads and writes the same `KVCache` as the whole model, and `config` stays
        that of the whole, which says the cache's shape. Self-speculation by skipped layers (arXiv 2309.08168,
        2404.16710) drafts with it. Raises `ConfigError` unless the numbers ascend and exist.
        """
        count = len(self.weights.layers)
        numbers = list(keep)
        if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 0 or numbers[-1] >= count:
            raise ConfigError(f"layers {numbers} cannot be kept: give at least one of 0 to {count - 1}, ascending.")
        part = copy.copy(self)
        part._stack = self._stack.part(numbers)
        part.weights = replace(self.weights, layers=part._stack.layers)
        return part

    def forward(self, batch: ModelBatch, kv_cache: KVCache | None) -> Tensor:
        """Logits [R, vocab] of `batch.logits_rows`, float32 (float64 for a float64 model).

        Writes the batch's keys and values to `kv_cache`; with None, the batch holds whole sequences and attention
        runs over their own keys and values.
        """
        return self._forward(batch, kv_cache, every_row=False)[0]

    __call__ = forward

    def forward_with_hidden(self, batch: ModelBatch, kv_cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """The logits of `forward`, and what the output head reads (behind the final norm) of every token, [T, H]."""
        return self._forward(batch, kv_cache, every_row=True)

    def steps_ahead(self, batch: ModelBatch, slots: Tensor, kv_cache: KVCache) -> list[ModelBatch]:
        """Successive steps of one token a sequence (see `one_token_steps`), prepared together: cheaper one by one.

        Each is to be given to this model's forward in its turn, with its token ids put in, and with this cache.
        """
        return self._stack.steps_ahead(batch, slots, kv_cache)

    @torch.inference_mode()
    def _forward(self, batch: ModelBatch, kv_cache: KVCache | None, every_row: bool) -> tuple[Tensor, Tensor]:
        with self._stack.threads(len(batch.token_ids)):
            attention = self._stack.begin(batch, kv_cache)
            token_ids, positions, rows = batch.token_ids, batch.positions, batch.logits_rows
            if attention.order is not None:
                token_ids, positions = token_ids[attention.order], positions[attention.order]
            x = look_up(self.weights.embed, token_ids)
            if self.weights.positions is not None:
                x = x + F.embedding(positions, self.weights.positions)
            x = self._stack.run(x, attention)
            back = None if attention.order is None else torch.argsort(attention.order)
            if every_row:
                hidden = self.weights.final_norm(x if back is None else x[back])
                return project(self.weights.head, take_rows(hidden, rows)), hidden
            hidden = self.weights.final_norm(take_rows(x, rows) if back is None else x[back[rows]])
            return project(self.weights.head, hidden), hidden


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of x by ascending numbers: as many as there are, are all of them."""
    return x if rows.shape[0] == x.shape[0] else x.index_select(0, rows)


def look_up(embed: Tensor | QuantizedLinear, token_ids: Tensor) -> Tensor:
    """Rows of the embedding, [T, H]."""
    return embed.take(token_ids) if isinstance(embed, QuantizedLinear) else F.embedding(token_ids, embed)


def project(head: Linear | QuantizedLinear, hidden: Tensor) -> Tensor:
    """Logits of hidden rows [R, H], in float32 or wider."""
    if hidden.shape[0] == 0:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        return hidden.new_empty((0, head.out_features), dtype=dtype)
    logits = head(hidden)
    return logits if logits.dtype == torch.float64 else logits.float()
