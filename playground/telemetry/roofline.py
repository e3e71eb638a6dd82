"""The roofline model of an inference step: operations and bytes on paper, and the least time that ceilings allow them.

After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures"
(CACM 2009). Counted are the products of the model's matrices, the output head for the rows whose logits are needed,
and attention; read are all weights once a step, as they are stored (so quantized ones count less), and the KV that the
queries see; written is the KV of the step's tokens. Activations, norms and table look-ups are left out: a step that is
bound by launches, Python or the sampler stays below its roof. Pure: no torch, no clock, no engine.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from playground.models.config import DecoderConfig

OPERATIONS_PER_PRODUCT = 2
"""A multiplication and an addition."""


class Work(NamedTuple):
    """What a step has to do at least."""

    flops: float
    read_bytes: float
    written_bytes: float

    @property
    def moved_bytes(self) -> float:
        return self.read_bytes + self.written_bytes


class Share(NamedTuple):
    """One request's part in a step."""

    start: int
    """Tokens before those of the step: each of them sees all of these and, causally, each other."""
    tokens: int
    logit_rows: int
    """Tokens whose logits are needed: 1 where a token is drawn and 1 for every draft verified, 0 within a prompt."""


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What one model costs a step, in coefficients."""

    flops_per_token: float
    """Of the layers' matrices."""
    flops_per_logit_row: float
    flops_per_pair: float
    """Of one query with one key and its value, in one layer, all heads together."""
    windows: tuple[tuple[int | None, int], ...]
    """Attention windows in tokens (None: all of them), each with the number of layers that have it."""
    weights_bytes: int
    """Read by every step: all weights, as stored, but the table of embeddings."""
    kv_bytes_per_token: float
    """Over all layers; 0 without a KV cache."""

    def step(self, shares: Iterable[Share]) -> Work:
        """The work of one step that runs these shares as one batch."""
        flops, read, written = 0.0, float(self.weights_bytes), 0.0
        num_layers = sum(count for _, count in self.windows)
        kv_bytes = self.kv_bytes_per_token / num_layers if num_layers else 0.0
        for share in shares:
            flops += share.tokens * self.flops_per_token + share.logit_rows * self.flops_per_logit_row
            for window, count in self.windows:
                flops += count * self.flops_per_pair * attended_pairs(share.start, share.tokens, window)
                read += count * kv_bytes * visible_tokens(share.start, share.tokens, window)
            written += share.tokens * self.kv_bytes_per_token
        return Work(flops, read, written)

    def prompt(self, start: int, tokens: int) -> Work:
        """The work of reading `tokens` of a prompt alone, in one step, after `start` that were in the cache."""
        return self.step([Share(start, tokens, 1)])


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device can do at most, measured."""

    flops_per_second: float
    """Of a large matrix product in `dtype`."""
    bytes_per_second: float
    """Of reading as much as the model's weights are: a small model's stay in the processor's caches."""
    memory_bytes_per_second: float
    """Of reading far more than any cache holds."""
    dtype: str
    device: str
    """Its name, for people."""
    undisturbed: bool = True
    """Whether nothing else used the processor while it was measured."""

    def least_seconds(self, work: Work) -> float:
        """The roof: the time of the operations or of the bytes, whichever is longer."""
        return max(work.flops / self.flops_per_second, work.moved_bytes / self.bytes_per_second)


def model_work(config: "DecoderConfig", weights_bytes: int, kv_bytes_per_token: float) -> ModelWork:
    """The coefficients of a model; `weights_bytes` and `kv_bytes_per_token` as `ModelWork` has them."""
    heads, width = config.num_heads * config.head_dim, config.hidden_size
    qkv = width * (heads + 2 * config.num_kv_heads * config.head_dim)
    mlp = (3 if config.gated_mlp else 2) * width * config.intermediate_size
    per_layer = qkv + heads * width + mlp
    counts: dict[int | None, int] = {}
    for window in config.layer_windows:
        counts[window] = counts.get(window, 0) + 1
    return ModelWork(
        flops_per_token=OPERATIONS_PER_PRODUCT * config.num_layers * per_layer,
        flops_per_logit_row=OPERATIONS_PER_PRODUCT * config.vocab_size * width,
        flops_per_pair=2 * OPERATIONS_PER_PRODUCT * heads,
        windows=tuple(counts.items()),
        weights_bytes=weights_bytes,
        kv_bytes_per_token=kv_bytes_per_token,
    )


def attended_pairs(start: int, tokens: int, window: int | None = None) -> int:
    """Pairs of a query and a key it sees: Σ min(start + i, window) for i = 1 .. tokens."""
    if window is None or start + tokens <= window:
        return tokens * start + tokens * (tokens + 1) // 2
    whole = max(0, window - start)  # queries that the window does not cut yet
    return whole * start + whole * (whole + 1) // 2 + (tokens - whole) * window


def visible_tokens(start: int, tokens: int, window: int | None = None) -> int:
    """Keys that at least one of the queries sees, each read once."""
    end = start + tokens
    return end if window is None else min(end, window + tokens - 1)
