"""Drives a Decoder by hand: sequences with scattered blocks, any number of tokens each per step."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from playground.models.batch import ModelBatch
from playground.models.decoder import Decoder
from playground.models.kv_cache import KVCache
from playground.models.loader import LoadedModel, load_model


def load(folder: Path, **options: object) -> LoadedModel:
    """Load in float32 unless told otherwise."""
    return load_model(folder, **{"device": torch.device("cpu"), "dtype": torch.float32, **options})  # type: ignore[arg-type]


@dataclass
class Sequence:
    token_ids: list[int]
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)


class Driver:
    """A model, a cache full of stale numbers, and a free list in random order."""

    def __init__(self, loaded: LoadedModel, *, block_size: int = 16, num_blocks: int = 80, seed: int = 0) -> None:
        self.model: Decoder = loaded.model
        device = loaded.model.device
        self.cache = KVCache(loaded.config, num_blocks, block_size, loaded.model.dtype, device)
        generator = torch.Generator(device).manual_seed(seed)
        for kv in self.cache.kv:
            kv[:, 1:].normal_(0, 30, generator=generator)
        self.free = list(range(1, num_blocks))
        random.Random(seed).shuffle(self.free)

    def step(self, work: list[tuple[Sequence, int]], rows: str = "all") -> list[Tensor]:
        """Run the next n tokens of each sequence; logits [n, vocab] of each (or of its last row)."""
        batch = self.batch(work, rows)
        logits = self.model.forward(batch, self.cache)
        for sequence, count in work:
            sequence.num_computed += count
        return list(logits.split([count if rows == "all" else 1 for _, count in work]))

    def batch(self, work: list[tuple[Sequence, int]], rows: str = "all") -> ModelBatch:
        size, ids, positions, slots, wanted = self.cache.block_size, [], [], [], []
        for sequence, count in work:
            end = sequence.num_computed + count
            while len(sequence.blocks) * size < end:
                sequence.blocks.append(self.free.pop())
            own = range(sequence.num_computed, end)
            ids += [sequence.token_ids[p] for p in own]
            positions += own
            slots += [sequence.blocks[p // size] * size + p % size for p in own]
            wanted += range(len(ids) - count, len(ids)) if rows == "all" else [len(ids) - 1]
        return make_batch(
            ids, positions, slots, [s.blocks for s, _ in work], [c for _, c in work],
            [s.num_computed + c for s, c in work], wanted, self.model.device,
        )  # fmt: skip


def make_batch(
    ids: list[int],
    positions: list[int],
    slots: list[int],
    tables: list[list[int]],
    query_lens: list[int],
    kv_lens: list[int],
    rows: list[int],
    device: torch.device | None = None,
) -> ModelBatch:
    width = max(map(len, tables), default=0)
    batch = ModelBatch(
        token_ids=torch.tensor(ids, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        cu_seqlens_q=torch.tensor([0, *torch.tensor(query_lens).cumsum(0).tolist()], dtype=torch.int32),
        kv_lens=torch.tensor(kv_lens, dtype=torch.int32),
        block_table=torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32),
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        logits_rows=torch.tensor(rows, dtype=torch.int64),
        query_lens=query_lens,
        kv_lens_list=kv_lens,
    )
    for name in ("token_ids", "positions", "cu_seqlens_q", "kv_lens", "block_table", "slot_mapping", "logits_rows"):
        setattr(batch, name, getattr(batch, name).to(device))
    return batch


def whole_batch(prompts: list[list[int]], device: torch.device | None = None) -> ModelBatch:
    """Whole sequences without a cache: logits of every row."""
    lens = [len(p) for p in prompts]
    ids = [t for p in prompts for t in p]
    positions, rows = [i for n in lens for i in range(n)], list(range(len(ids)))
    return make_batch(ids, positions, [-1] * len(ids), [[0]] * len(lens), lens, lens, rows, device)


def prompt(length: int, vocabulary: int, seed: int = 0) -> list[int]:
    return torch.randint(0, vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
