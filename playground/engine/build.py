"""Builds what an engine runs on: loads the models, and puts KV cache, scheduler and executor together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from playground.config import EngineConfig, QuantizationConfig
from playground.engine.block_tables import BlockTables
from playground.engine.core import EngineCore
from playground.engine.events import EventStream
from playground.engine.executor import Executor
from playground.engine.outputs import EngineStats
from playground.engine.pins import PinnedPrefixes
from playground.engine.prefix_cache import LowerTiers
from playground.engine.resolve import resolve_config
from playground.engine.sampler import Sampler
from playground.engine.scheduler import Scheduler, SchedulerConfig
from playground.engine.speculation.setup import Draft, build_speculator, load_draft
from playground.errors import ConfigError
from playground.models.config import DecoderConfig
from playground.models.decode_graphs import DecodeGraphs
from playground.models.decoder import Decoder
from playground.models.kv_cache import KVCache, kv_dtype
from playground.models.layers import AttentionName
from playground.models.loader import LoadedModel, load_model
from playground.models.tokenizer import check_vocabulary, load_tokenizer
from playground.models.weights import OnProgress, step_weights_nbytes


@dataclass(frozen=True, slots=True)
class Built:
    """An engine's parts."""

    config: EngineConfig
    """Resolved: no "auto" is left."""
    model_config: DecoderConfig
    tokenizer: Any | None
    eos_token_ids: frozenset[int]
    tiers: LowerTiers
    core: EngineCore


def build(
    given: EngineConfig,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    attention: AttentionName,
    events: EventStream,
    on_progress: OnProgress | None = None,
) -> Built:
    """Load the model of `path` and all that goes with it. Raises `ConfigError` or `ModelLoadError`."""
    loaded = load_model(
        str(path),
        revision=given.revision,
        device=device,
        dtype=dtype,
        load_format=given.load_format,
        attention=attention,
        sliding_window=given.sliding_window,
        seed=given.seed,
        quantization=cast(QuantizationConfig | None, given.quantization),  # validation has resolved names
        on_progress=on_progress,
    )
    draft = load_draft(given, loaded, device, dtype)
    config = resolve_config(
        given, loaded.config, loaded.path, device, dtype, attention, draft_kv=draft.kv_config if draft else None
    )
    if draft is not None:
        config = config.resolved(speculation=draft.config, draft_model=str(draft.path) if draft.path else None)
    tokenizer = _load_tokenizer(loaded, given.load_format == "dummy")
    eos_token_ids = _eos_token_ids(loaded.config, tokenizer)
    kv_cache, tables, tiers = _build_kv_cache(config, loaded.config, device)
    scheduler = _build_scheduler(config, tables)
    speculator = None
    if draft is not None:
        pool = tables.pool if tables is not None else None
        speculator = build_speculator(draft, loaded.model, kv_cache, pool, config, eos_token_ids)
    executor = Executor(
        _stepper(config, loaded.model, kv_cache),
        kv_cache,
        Sampler(loaded.config.vocab_size, device),
        block_size=tables.block_size if tables is not None else 0,
        eos_token_ids=eos_token_ids,
        speculator=speculator,
        host_memory=tiers.memory,
    )
    core = EngineCore(
        scheduler,
        executor,
        events,
        _constants(loaded, draft, executor),
        overlap=device.type == "cuda",  # on the CPU a launch is the work itself: there is nothing to overlap with
        pins=PinnedPrefixes(scheduler, config.prefix_cache_max_pinned),
    )
    return Built(config, loaded.config, tokenizer, eos_token_ids, tiers, core)


def _build_kv_cache(
    config: EngineConfig, model: DecoderConfig, device: torch.device
) -> tuple[KVCache | None, BlockTables | None, LowerTiers]:
    if config.kv_cache == "none":
        return None, None, LowerTiers()
    block_size, num_blocks = _block_layout(config)
    dtype = kv_dtype(config.kv_cache_dtype)
    kv_cache = KVCache(model, num_blocks + 1, block_size, dtype, device)  # one more: the null block
    tiers = LowerTiers.of(config, kv_cache)
    tables = BlockTables(
        num_blocks,
        block_size,
        prefix_caching=config.prefix_caching,
        ttl=config.prefix_cache_ttl,
        max_cached=config.prefix_cache_max_blocks,
        window=config.sliding_window if config.kv_cache == "paged" else None,
        namespace=tiers.namespace,
        tier=tiers.tier,
    )
    return kv_cache, tables, tiers


def _block_layout(config: EngineConfig) -> tuple[int, int]:
    """(block size, number of blocks). A contiguous cache is a paged one with a block for a whole sequence."""
    assert config.num_kv_blocks is not None and config.max_model_len is not None
    if config.kv_cache == "paged":
        return config.block_size, config.num_kv_blocks
    reservations = config.num_kv_blocks * config.block_size // config.max_model_len
    if reservations < 1:
        raise ConfigError(
            f"kv_cache='contiguous' reserves max_model_len={config.max_model_len} tokens a request, but "
            f"{config.num_kv_blocks} blocks of {config.block_size} hold only "
            f"{config.num_kv_blocks * config.block_size}: raise num_kv_blocks or lower max_model_len."
        )
    return config.max_model_len, min(reservations, config.max_num_seqs)


def _build_scheduler(config: EngineConfig, tables: BlockTables | None) -> Scheduler:
    assert config.max_num_batched_tokens is not None
    limits = SchedulerConfig(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        chunked_prefill=config.chunked_prefill,
        static_batching=config.batching == "static",
        recompute=config.kv_cache == "none",
    )
    return Scheduler(limits, tables)


def _stepper(config: EngineConfig, model: Decoder, kv_cache: KVCache | None) -> Decoder | DecodeGraphs:
    """What runs the steps: the model itself, or recordings of its decode steps."""
    if not config.cuda_graphs or kv_cache is None:
        return model
    assert config.max_model_len is not None
    max_blocks = -(-config.max_model_len // kv_cache.block_size)
    longest = config.speculation.most_drafts + 1 if config.speculation is not None else 1
    return DecodeGraphs(model, kv_cache, max_num_seqs=config.max_num_seqs, max_blocks=max_blocks, max_query_len=longest)


def _constants(loaded: LoadedModel, draft: Draft | None, executor: Executor) -> EngineStats:
    """The figures that never change."""
    kv_cache, speculator = executor.kv_cache, executor.speculator
    draft_kv = speculator.own_kv_cache if speculator is not None else None
    num_blocks = kv_cache.num_blocks - 1 if kv_cache is not None else 0
    return EngineStats(
        kv_blocks_total=num_blocks,
        kv_blocks_empty=num_blocks,
        kv_block_size=kv_cache.block_size if kv_cache is not None else 0,
        memory_weights_bytes=loaded.weights_bytes + (draft.weights_bytes if draft is not None else 0),
        memory_kv_bytes=sum(cache.nbytes for cache in (kv_cache, draft_kv) if cache is not None),
        step_weights_bytes=step_weights_nbytes(loaded.model.weights),
    )


def _load_tokenizer(loaded: LoadedModel, optional: bool) -> Any | None:
    """The model's tokenizer; None only for a dummy model without one, which then takes token ids."""
    if optional and not any((loaded.path / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    tokenizer = load_tokenizer(loaded.path)
    check_vocabulary(loaded.config, tokenizer)
    return tokenizer


def _eos_token_ids(config: DecoderConfig, tokenizer: object | None) -> frozenset[int]:
    own = getattr(tokenizer, "eos_token_id", None)
    return frozenset(config.eos_token_ids) | ({own} if isinstance(own, int) else set())
