"""Memory of a model and its KV cache, predicted from shapes alone: no weight is read, no device is asked.

Two uses: `predict` says before loading what an `EngineConfig` will take of a given model, by the engine's own rules;
`Calculation` answers for any model from its numbers, as the published back-of-the-envelope estimates do:

    KV bytes a token = 2 (K and V) x layers x KV heads x head dim x bytes a number
    KV bytes = that x min(context, window) x sequences
    weights  = parameters x bits / 8

Assumptions. Weights: every parameter takes the same bits; quantized matrices at load as `quantization` stores them
(codes, scales, zeros), the embedding of a model with an output head of its own and all norms and biases in the model's
type; of checkpoints that are quantized already, what their files take. KV: nothing is shared between sequences and no
block is partly filled; only layers with a window keep less than the whole context. Left out: activations and whatever
the runtime takes for itself (in a process with torch some 0.3 GiB; on a GPU 0.5 to 1 GiB for the CUDA context).

Published figures that this reproduces (and the tests hold it to): OPT-13B in 16 bits keeps 800 KB a token (2 x 40 x
5120 x 2 bytes = 819 200; Kwon et al., arXiv 2309.06180, section 1). Rounded up to 1 MB, as the estimate for a 40 GB
A100 does: 40 GB less 26 GB of weights leaves 14 GB, so 14 thousand tokens or 7 sequences of 2 048 (6.8; decimal
units); unrounded it is 17 thousand tokens. Llama 2 7B keeps 512 KiB a token: 1, 16 and 64 GiB at 2k, 32k and 128k; 70B,
whose 64 heads share 8 KV heads, 320 KiB: 0.625, 10 and 40 GiB.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from playground.config import EngineConfig, QuantizationConfig
from playground.engine.resolve import resolve_attention, resolve_config, resolve_dtype
from playground.models.config import DecoderConfig
from playground.models.families import ROLES, linear_inputs, linear_parts
from playground.models.gguf_file import PLAIN_TYPES, GGUFFile
from playground.models.hub import is_gguf
from playground.models.kv_cache import KVCache
from playground.models.loader import usable_dtype

HEADROOM = 0.05
"""Share of the weights that loading takes besides them for a while."""


def kv_bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, bytes_per_number: float) -> float:
    """Bytes of keys and values that one token takes over all layers."""
    return 2 * num_layers * num_kv_heads * head_dim * bytes_per_number


@dataclass(frozen=True, slots=True)
class Calculation:
    """One back-of-the-envelope estimate; sizes in bytes. See the module for what is assumed."""

    parameters: float
    weight_bits: float
    num_layers: int
    num_kv_heads: int
    head_dim: int
    kv_bits: float
    context: int
    """Tokens of one sequence, prompt and reply together."""
    sequences: int = 1
    window: int | None = None
    """Tokens that a token sees, where every layer has a sliding window."""
    memory_bytes: float | None = None
    """Of the device."""
    rounded_kv_bytes_per_token: float | None = None
    """In place of what the shapes give, as published estimates round it."""

    @property
    def weights_bytes(self) -> float:
        return self.parameters * self.weight_bits / 8

    @property
    def kv_bytes_per_token(self) -> float:
        exact = kv_bytes_per_token(self.num_layers, self.num_kv_heads, self.head_dim, self.kv_bits / 8)
        return self.rounded_kv_bytes_per_token or exact

    @property
    def kv_bytes_per_sequence(self) -> float:
        kept = self.context if self.window is None else min(self.context, self.window)
        return self.kv_bytes_per_token * kept

    @property
    def kv_bytes(self) -> float:
        return self.kv_bytes_per_sequence * self.sequences

    @property
    def total_bytes(self) -> float:
        return self.weights_bytes + self.kv_bytes

    @property
    def left_for_kv(self) -> float | None:
        """What the weights leave of the memory; below 0 they do not fit. None where no memory was given."""
        return None if self.memory_bytes is None else self.memory_bytes - self.weights_bytes

    @property
    def tokens_that_fit(self) -> float | None:
        """Tokens of KV beside the weights."""
        return None if self.left_for_kv is None else max(0.0, self.left_for_kv) / self.kv_bytes_per_token

    @property
    def sequences_that_fit(self) -> float | None:
        """Sequences of `context` tokens beside the weights, with the part of one that is left over."""
        return None if self.left_for_kv is None else max(0.0, self.left_for_kv) / self.kv_bytes_per_sequence


def weights_bytes(
    model: DecoderConfig, dtype: torch.dtype, device: torch.device, quantization: QuantizationConfig | None = None
) -> int:
    """Bytes of a model's weights in `dtype`, its matrices quantized when they are loaded if so asked.

    A tied embedding counts once; a small one is laid out a second time for the product on a CPU with bfloat16.
    """
    table = model.vocab_size * model.hidden_size
    matrices = [
        (outputs, linear_inputs(model, role)) for role in ROLES for _, outputs in linear_parts(model, role)
    ] * model.num_layers
    tables = 1 if model.tie_embeddings else 2
    rest = model.num_parameters - sum(map(math.prod, matrices)) - tables * table
    if quantization is None:
        copied = dtype == torch.bfloat16 and device.type == "cpu" and table * 2 <= 8 << 20
        return (model.num_parameters + (table if copied and model.tie_embeddings else 0)) * dtype.itemsize
    head = QuantizationConfig.named("int8") if quantization.head == "int8" else None
    size = rest * dtype.itemsize
    size += sum(_quantized_bytes(rows, columns, quantization, dtype, device) for rows, columns in matrices)
    plain_tables = tables - (head is not None)
    size += plain_tables * table * dtype.itemsize
    if head is not None:
        size += _quantized_bytes(model.vocab_size, model.hidden_size, head, dtype, device)
    return size


def _quantized_bytes(
    rows: int, columns: int, quantization: QuantizationConfig, dtype: torch.dtype, device: torch.device
) -> int:
    groups = 1 if quantization.group_size == -1 else -(-columns // quantization.group_size)
    code_bits, scale_bytes = int(quantization.bits), min(dtype.itemsize, 4)
    group_bytes = scale_bytes if quantization.symmetric else scale_bytes + 1  # a zero is a byte
    plain = quantization.method in ("rtn", "gptq", "awq")
    if device.type == "cpu" and dtype == torch.bfloat16 and plain and code_bits in (3, 4):
        code_bits, group_bytes = 4, 4  # torch's int4 product: a scale and a shift a group
    return rows * columns * code_bits // 8 + rows * groups * group_bytes


def checkpoint_bytes(path: Path, dtype: torch.dtype) -> int:
    """Bytes of weights in a folder's or a GGUF file's own form: what a checkpoint that is quantized already takes."""
    if not is_gguf(path):
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    with GGUFFile(path) as file:
        return sum(
            math.prod(entry.shape) * dtype.itemsize if entry.type_id in PLAIN_TYPES else entry.nbytes
            for entry in file.entries.values()
        )


@dataclass(frozen=True, slots=True)
class DraftShape:
    """What drafts for a model: another model, loaded like it but never quantized, or the one layer of an EAGLE head."""

    model: DecoderConfig
    path: Path
    is_head: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an engine will take, before it is loaded; sizes in bytes."""

    config: EngineConfig
    """Resolved, as the engine will have it."""
    parameters: int
    weights_bytes: int
    draft_weights_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    """Of the model and its draft."""
    kv_tokens: int
    """Tokens that the KV cache holds; 0 without one."""
    available_bytes: int
    """What was free before."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.draft_weights_bytes + self.kv_bytes

    @property
    def kv_sequences(self) -> float:
        """Sequences of `max_model_len` tokens that the KV cache holds."""
        return self.kv_tokens / (self.config.max_model_len or 1)

    @property
    def fits(self) -> bool:
        return self.total_bytes + int(HEADROOM * self.weights_bytes) <= self.available_bytes


def predict(
    config: EngineConfig,
    model: DecoderConfig,
    path: Path,
    device: torch.device,
    available_bytes: int,
    draft: DraftShape | None = None,
) -> Prediction:
    """What an engine of this configuration takes where `available_bytes` are free. Raises `ConfigError` as it would.

    `path` is where the model's files are; only their headers are read.
    """
    if config.sliding_window is not None:
        model = model.with_sliding_window(config.sliding_window)
    dtype = resolve_dtype(config.dtype, model.torch_dtype, device)
    attention = resolve_attention(config.attention, model, device, dtype)
    weights = _loaded_bytes(config, model, path, dtype, device)
    draft_weights = 0
    if draft is not None and draft.is_head:
        draft_weights = checkpoint_bytes(draft.path, dtype)
    elif draft is not None:
        draft_weights = _loaded_bytes(config, draft.model, draft.path, dtype, device, plain=True)
    free = max(0, available_bytes - weights - draft_weights)
    resolved = resolve_config(
        config, model, path, device, dtype, attention, draft_kv=None if draft is None else draft.model, free_bytes=free
    )
    kv_dtype = getattr(torch, resolved.kv_cache_dtype)
    models = [model] if draft is None else [model, draft.model]
    blocks, block_size = _layout(resolved)
    return Prediction(
        config=resolved,
        parameters=model.num_parameters,
        weights_bytes=weights,
        draft_weights_bytes=draft_weights,
        kv_bytes=sum(_cache_bytes(one, blocks, block_size, kv_dtype) for one in models) if blocks else 0,
        kv_bytes_per_token=sum(one.kv_bytes_per_token(kv_dtype) for one in models),
        kv_tokens=blocks * block_size,
        available_bytes=available_bytes,
    )


def _loaded_bytes(
    config: EngineConfig,
    model: DecoderConfig,
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    plain: bool = False,
) -> int:
    dtype = usable_dtype(dtype, device)
    if config.load_format != "dummy" and (is_gguf(path) or model.quantization is not None):
        return checkpoint_bytes(path, dtype)
    quantization = None if plain else config.quantization
    assert quantization is None or isinstance(quantization, QuantizationConfig)
    return weights_bytes(model, dtype, device, quantization)


def _layout(config: EngineConfig) -> tuple[int, int]:
    """(blocks, tokens in each), as the engine lays the cache out."""
    if config.kv_cache == "none" or config.num_kv_blocks is None:
        return 0, 0
    if config.kv_cache == "paged":
        return config.num_kv_blocks, config.block_size
    assert config.max_model_len is not None
    reservations = config.num_kv_blocks * config.block_size // config.max_model_len
    return min(reservations, config.max_num_seqs), config.max_model_len


def _cache_bytes(model: DecoderConfig, num_blocks: int, block_size: int, dtype: torch.dtype) -> int:
    """With the null block, and the spare row that every layer has."""
    blocks = (num_blocks + 1) * KVCache.bytes_per_block(model, block_size, dtype)
    return blocks + model.num_layers * model.head_dim * dtype.itemsize
