"""Drives a Decoder by hand: sequences with scattered blocks, any number of tokens each per step."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from playground.models.batch import ModelBatch, tree_masks
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


@dataclass
class Tree:
    """Draft tokens behind a sequence's next token: see `tree_masks`."""

    drafts: list[int]
    parents: list[int]

    def branch(self, draft: int) -> list[int]:
        """Numbers of the drafts from the first to this one."""
        return [] if draft < 0 else [*self.branch(self.parents[draft]), draft]

    def depths(self) -> list[int]:
        """Of the next token and of each draft."""
        return [0, *(len(self.branch(draft)) for draft in range(len(self.drafts)))]


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

    def batch(
        self, work: list[tuple[Sequence, int]], rows: str = "all", trees: dict[int, Tree] | None = None
    ) -> ModelBatch:
        """The next n tokens of each sequence; of one with a tree (by place), its next token and the tree's drafts."""
        ids, positions, slots, wanted = [], [], [], []
        for number, (sequence, count) in enumerate(work):
            end, tree = sequence.num_computed + count, (trees or {}).get(number)
            own = range(sequence.num_computed, end)
            ids += [sequence.token_ids[own[0]], *tree.drafts] if tree else [sequence.token_ids[p] for p in own]
            positions += [own[0] + depth for depth in tree.depths()] if tree else own
            slots += [self.slot(sequence, p) for p in own]
            wanted += range(len(ids) - count, len(ids)) if rows == "all" else [len(ids) - 1]
        batch = make_batch(
            ids, positions, slots, [s.blocks for s, _ in work], [c for _, c in work],
            [s.num_computed + c for s, c in work], wanted, self.model.device,
        )  # fmt: skip
        if trees is not None:
            put_trees(batch, trees)
        return batch

    def slot(self, sequence: Sequence, position: int) -> int:
        """Where a token's keys and values go; takes a block where there is none yet."""
        size = self.cache.block_size
        while len(sequence.blocks) * size <= position:
            sequence.blocks.append(self.free.pop())
        return sequence.blocks[position // size] * size + position % size


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


def put_trees(batch: ModelBatch, trees: dict[int, Tree]) -> None:
    """Give a batch its tree mask: these trees are the last tokens of their sequences, all other tokens are causal."""
    masks: list[int] = []
    batch.tree_lens = [1 + len(trees[i].drafts) if i in trees else 0 for i in range(len(batch.query_lens))]
    for number, (count, in_tree) in enumerate(zip(batch.query_lens, batch.tree_lens, strict=True)):
        causal = (
            tree_masks(range(-1, count - in_tree - 1))[: count - in_tree] if count <= 64 else [0] * (count - in_tree)
        )
        masks += causal + (tree_masks(trees[number].parents) if in_tree else [])
    batch.tree_mask = torch.tensor(masks, device=batch.token_ids.device)


def whole_batch(prompts: list[list[int]], device: torch.device | None = None) -> ModelBatch:
    """Whole sequences without a cache: logits of every row."""
    lens = [len(p) for p in prompts]
    ids = [t for p in prompts for t in p]
    positions, rows = [i for n in lens for i in range(n)], list(range(len(ids)))
    return make_batch(ids, positions, [-1] * len(ids), [[0]] * len(lens), lens, lens, rows, device)


def prompt(length: int, vocabulary: int, seed: int = 0) -> list[int]:
    return torch.randint(0, vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
