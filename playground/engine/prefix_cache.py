"""Puts the tiers of the prefix cache together for one engine, and writes them to disk when it closes."""

import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from playground.config import EngineConfig
from playground.engine.block_pool import BlockPool
from playground.engine.host_memory import HostMemory
from playground.engine.host_tier import HostTier
from playground.engine.prefix_files import NewBlock, PrefixFiles
from playground.engine.scheduler import Scheduler
from playground.models.fingerprint import model_fingerprint
from playground.models.kv_cache import KVCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LowerTiers:
    """What keeps the blocks that the pool gave up: nothing, host memory, or host memory and files."""

    tier: HostTier | None = None
    memory: HostMemory | None = None
    files: PrefixFiles | None = None
    namespace: str = ""
    """Goes into every hash: two engines find each other's blocks only if theirs are equal."""

    @classmethod
    def of(cls, config: EngineConfig, kv_cache: KVCache) -> "LowerTiers":
        """The tiers of a resolved configuration. Raises `ConfigError` where memory or folder cannot be had."""
        files, namespace = None, f"{config.model}|{config.kv_cache_dtype}"
        if not config.prefix_cache_host_memory:
            return cls(namespace=namespace)
        memory = HostMemory(kv_cache, config.prefix_cache_host_memory // kv_cache.block_bytes)
        if config.prefix_cache_dir is not None:
            identity = _identity(config)
            namespace = repr(sorted(identity.items()))
            files = PrefixFiles(
                Path(config.prefix_cache_dir).expanduser(),
                identity,
                memory,
                limit_bytes=config.prefix_cache_dir_limit,
                ttl=config.prefix_cache_ttl,
            )
        tier = HostTier(memory.num_slots, ttl=config.prefix_cache_ttl, files=files)
        return cls(tier, memory, files, namespace)

    def write_to_disk(self, pool: BlockPool, kv_cache: KVCache) -> None:
        """Write what the pool and host memory hold to the folder, the most recently used first.

        No step may be in flight and no transfer undone. Never raises: a cache that cannot be kept is computed again.
        """
        if self.files is None or self.tier is None or self.memory is None:
            return
        since = time.time() - time.monotonic()  # from the engine's clock to the wall clock, which outlives it
        blocks = [NewBlock(b.key, b.used_at + since, partial(_read, kv_cache, b.block_id)) for b in pool.contents()]
        blocks += [NewBlock(b.key, b.used_at + since, partial(self.memory.slot, b.slot)) for b in self.tier.contents()]
        try:
            count = self.files.write(blocks)
        except Exception:
            logger.exception("prefix cache: could not be written")
        else:
            logger.info("prefix cache: wrote %d KV blocks", count)

    def close(self) -> None:
        """Give host memory back."""
        if self.memory is not None:
            self.memory.free()


def _identity(config: EngineConfig) -> dict[str, Any]:
    """Everything that a block's content depends on, besides the tokens up to its end."""
    assert config.model is not None
    return {
        "model": model_fingerprint(Path(config.model)),
        "weights": f"dummy {config.seed}" if config.load_format == "dummy" else config.load_format,
        "dtype": config.dtype,
        "KV dtype": config.kv_cache_dtype,
        "block size": config.block_size,
        "sliding window": config.sliding_window,
        "quantization": repr(config.quantization),
    }


def _read(kv_cache: KVCache, block_id: int) -> Tensor:
    return kv_cache.block(block_id).contiguous().cpu()


def prefix_stats(scheduler: Scheduler) -> dict[str, int]:
    """The fields of `EngineStats` about the prefix cache."""
    tables = scheduler.tables
    if tables is None:
        return {}
    host, disk = scheduler.prefix_tokens_restored["host"], scheduler.prefix_tokens_restored["disk"]
    return {
        "kv_blocks_pinned": tables.pool.num_pinned,
        "prefix_cache_device_tokens": scheduler.prefix_tokens_hit - host - disk,
        "prefix_cache_host_tokens": host,
        "prefix_cache_disk_tokens": disk,
        "prefix_cache_write_tokens": tables.tokens_written,
        "prefix_cache_host_blocks": len(tables.tier) if tables.tier is not None else 0,
    }
