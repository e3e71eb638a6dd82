"""Turns an `EngineConfig` with "auto" in it into one without, given the model and the machine.

The one place that decides defaults: device, dtype, lengths, token budget, size of the KV pool.
"""

from pathlib import Path
from typing import Literal, cast

import psutil
import torch

from kernels.dispatch import why_not_triton
from kernels.paged import why_not_paged
from playground.config import EngineConfig
from playground.errors import ConfigError
from playground.models.config import DecoderConfig
from playground.models.hub import is_gguf
from playground.models.kv_cache import KVCache, kv_dtype

CPU_TOKEN_BUDGET = 1024
GPU_TOKEN_BUDGET = 2048
CPU_MEMORY_FRACTION = 0.25
GPU_MEMORY_FRACTION = 0.85
MAX_RECOMPUTE_BUDGET = 65_536


def resolve_device(name: str) -> torch.device:
    """The device to run on; raises `ConfigError` where there is no such GPU."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(f"device={name!r}: this machine has {count} CUDA devices; give 'cpu' or 'auto'.")
        return torch.device("cuda", device.index or 0)
    return device


def resolve_dtype(name: str, model_dtype: str | None, device: torch.device) -> torch.dtype:
    """`auto` is the checkpoint's own type, except where the device would be slow or wrong with it."""
    if name != "auto":
        return getattr(torch, name)
    wanted = getattr(torch, model_dtype or "float32", torch.float32)
    if wanted is torch.float64:
        return torch.float64
    if device.type == "cpu":
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if wanted is not torch.float32 and has_bf16 else torch.float32
    if wanted is torch.bfloat16 and not torch.cuda.is_bf16_supported():
        return torch.float16
    return wanted


def resolve_attention(
    name: str, model: DecoderConfig, device: torch.device, dtype: torch.dtype
) -> Literal["sdpa", "naive", "triton"]:
    """`auto` is Triton on a GPU that can run it, else torch's own. Raises `ConfigError` where Triton was asked for."""
    if name == "auto":
        wanted = device.type == "cuda"
        return "triton" if wanted and why_not_triton_attention(model, device, dtype) is None else "sdpa"
    if name == "triton" and (reason := why_not_triton_attention(model, device, dtype)) is not None:
        raise ConfigError(f"attention='triton' cannot run here: {reason}; use 'auto', 'sdpa' or 'naive'.")
    return cast(Literal["sdpa", "naive", "triton"], name)


def why_not_triton_attention(model: DecoderConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why this model's attention cannot run in Triton on this device; None where it can."""
    if dtype == torch.float64:
        return "the kernels compute in float32, the model in float64"
    if (reason := why_not_triton(device.type, device.index)) is not None:
        return reason
    return why_not_paged(model.head_dim, model.num_heads // model.num_kv_heads)


def check_cuda_graphs(config: EngineConfig, device: torch.device, attention: str) -> None:
    """Raises `ConfigError` where recorded decode steps were asked for and cannot be."""
    if not config.cuda_graphs:
        return
    reason = None
    if device.type != "cuda":
        reason = f"it records launches of an NVIDIA GPU, and the device is {str(device)!r}"
    elif attention != "triton":
        reason = f"attention={attention!r} takes lengths from the host, which a recording would freeze; use 'triton'"
    elif config.kv_cache == "none":
        reason = "kv_cache='none' has no decode steps to record"
    if reason is not None:
        raise ConfigError(f"cuda_graphs=True is not possible here: {reason}.")


def resolve_config(
    config: EngineConfig,
    model: DecoderConfig,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    attention: str,
    draft_kv: DecoderConfig | None = None,
    free_bytes: int | None = None,
) -> EngineConfig:
    """The configuration with everything decided. Call after the weights are loaded, so that free memory is known; or
    give what will be free then, to know before.

    `draft_kv` is the shape of a draft model whose KV lies beside the target's in every block.
    """
    max_model_len = _max_model_len(config, model)
    budget = _token_budget(config, max_model_len, device)
    dtype_name = str(dtype).removeprefix("torch.")
    kv_name = dtype_name if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    changes = {
        "model": str(path),
        "device": str(device),
        "dtype": dtype_name,
        "kv_cache_dtype": kv_name,
        "attention": attention,
        "load_format": config.load_format
        if config.load_format != "auto"
        else "gguf"
        if is_gguf(path)
        else "safetensors",
        "max_model_len": max_model_len,
        "max_num_batched_tokens": budget,
        "sliding_window": config.sliding_window if config.sliding_window is not None else model.sliding_window,
    }
    if config.kv_cache != "paged":
        changes["prefix_caching"] = False
    if config.kv_cache != "none":
        models = [model] if draft_kv is None else [model, draft_kv]
        block_bytes = sum(KVCache.bytes_per_block(one, config.block_size, kv_dtype(kv_name)) for one in models)
        changes["num_kv_blocks"] = _num_kv_blocks(config, block_bytes, max_model_len, device, free_bytes)
    changes["prefix_cache_host_memory"] = _host_memory(config, model, max_model_len, kv_dtype(kv_name))
    return config.resolved(**changes)


def _max_model_len(config: EngineConfig, model: DecoderConfig) -> int:
    longest = model.max_position_embeddings
    if config.max_model_len is None:
        return longest
    if config.max_model_len > longest:
        raise ConfigError(
            f"max_model_len={config.max_model_len} is beyond the {longest} positions of the model: "
            f"lower it to {longest}."
        )
    return config.max_model_len


def _token_budget(config: EngineConfig, max_model_len: int, device: torch.device) -> int:
    whole_prompts = not config.chunked_prefill or config.kv_cache == "none"
    given = config.max_num_batched_tokens
    if not whole_prompts:
        return given or max(config.max_num_seqs, CPU_TOKEN_BUDGET if device.type == "cpu" else GPU_TOKEN_BUDGET)
    if config.kv_cache == "none":  # every step runs whole sequences
        needed, usual = max_model_len, min(config.max_num_seqs * max_model_len, MAX_RECOMPUTE_BUDGET)
    else:  # a prompt must fit beside the decode tokens of everybody else, or it could wait for ever
        needed = usual = max_model_len + config.max_num_seqs
    if given is not None and given < needed:
        why = "kv_cache='none'" if config.kv_cache == "none" else "chunked_prefill=False"
        raise ConfigError(
            f"max_num_batched_tokens={given} is too small: {why} runs whole prompts and needs at least {needed}; "
            "raise it or lower max_model_len."
        )
    return given or max(needed, usual)


def _num_kv_blocks(
    config: EngineConfig,
    block_bytes: int,
    max_model_len: int,
    device: torch.device,
    free_bytes: int | None,
) -> int:
    """Blocks of `block_size` tokens that the KV memory holds, whatever the layout."""
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    if isinstance(config.kv_cache_memory, int):
        num_blocks = config.kv_cache_memory // block_bytes
        if num_blocks < 1:
            raise ConfigError(
                f"kv_cache_memory={config.kv_cache_memory} bytes holds no block: one takes {block_bytes} bytes; "
                "raise it."
            )
        return num_blocks
    fraction = config.kv_cache_memory
    free = free_memory(device) if free_bytes is None else free_bytes
    if fraction is not None:
        num_blocks = int(free * fraction) // block_bytes
    else:
        usual = CPU_MEMORY_FRACTION if device.type == "cpu" else GPU_MEMORY_FRACTION
        enough = config.max_num_seqs * -(-max_model_len // config.block_size)
        num_blocks = min(enough, int(free * usual) // block_bytes)
    if num_blocks < 1:
        raise ConfigError(f"no memory for a KV block of {block_bytes} bytes: {free} bytes are free on {device}.")
    return num_blocks


def _host_memory(config: EngineConfig, model: DecoderConfig, max_model_len: int, dtype: torch.dtype) -> int | None:
    """Bytes for evicted blocks, a whole number of them; what comes from a folder passes through such memory too."""
    block_bytes = KVCache.bytes_per_block(model, config.block_size, dtype)
    wanted = config.prefix_cache_host_memory
    if not wanted:
        longest = -(-max_model_len // config.block_size)
        return longest * block_bytes if config.prefix_cache_dir is not None else None
    if wanted < block_bytes:
        raise ConfigError(
            f"prefix_cache_host_memory={wanted} bytes holds no KV block: one takes {block_bytes} bytes; raise it, or "
            "give 0 to turn it off."
        )
    free = int(psutil.virtual_memory().available)
    if wanted > free:
        raise ConfigError(
            f"prefix_cache_host_memory={wanted} bytes is more than the {free} bytes that are free: lower it."
        )
    return wanted // block_bytes * block_bytes


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
