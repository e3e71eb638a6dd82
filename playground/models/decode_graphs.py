"""Decode steps as recorded CUDA graphs: one launch for a whole forward, whatever the number of kernels in it.

A step where every sequence runs equally many tokens (1, or 1 + K drafts) is copied into fixed buffers, padded to the
next recorded size, and replayed. Padding rows have no keys and write nowhere (slot -1, the null block). Every other
step runs as it always did. Stands in front of a `Decoder` with the same `forward`, whose attention must take its
lengths from the device (`attention="triton"`): what the host knew while recording is not what it knows at a replay.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from playground.models.batch import ModelBatch
from playground.models.decoder import Decoder
from playground.models.kv_cache import KVCache

logger = logging.getLogger(__name__)

Replay = Callable[[], tuple[Tensor, Tensor]]
"""Logits and hidden states of every row of a recorded batch."""


class Recorder(Protocol):
    """Turns a forward into something that repeats it on the same memory."""

    def __call__(self, forward: Replay) -> Replay: ...


@dataclass(frozen=True, slots=True)
class _Recorded:
    batch: ModelBatch
    replay: Replay


class DecodeGraphs:
    """A decoder whose uniform decode batches run from recordings, one for each (padded batch size, query length)."""

    def __init__(
        self,
        model: Decoder,
        kv_cache: KVCache,
        *,
        max_num_seqs: int,
        max_blocks: int,
        max_query_len: int = 1,
        record: Recorder | None = None,
    ) -> None:
        """`max_blocks` is the width of the block table; batches of more than `max_query_len` a sequence run as ever."""
        self.model, self.config, self.dtype, self.device = model, model.config, model.dtype, model.device
        self._kv_cache, self._max_blocks, self._max_query_len = kv_cache, max_blocks, max_query_len
        self._sizes = batch_sizes(max_num_seqs)
        self._record = record or _CudaRecorder()
        self._recorded: dict[tuple[int, int, bool], _Recorded] = {}

    def forward(self, batch: ModelBatch, kv_cache: KVCache | None) -> Tensor:
        """See `Decoder.forward`; the logits are overwritten by the next call."""
        replayed = self._replay(batch, kv_cache)
        return self.model.forward(batch, kv_cache) if replayed is None else replayed[0]

    __call__ = forward

    def forward_with_hidden(self, batch: ModelBatch, kv_cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """See `Decoder.forward_with_hidden`; both results are overwritten by the next call."""
        return self._replay(batch, kv_cache) or self.model.forward_with_hidden(batch, kv_cache)

    def steps_ahead(self, batch: ModelBatch, slots: Tensor, kv_cache: KVCache) -> list[ModelBatch]:
        """See `Decoder.steps_ahead`."""
        return self.model.steps_ahead(batch, slots, kv_cache)

    @torch.inference_mode()
    def _replay(self, batch: ModelBatch, kv_cache: KVCache | None) -> tuple[Tensor, Tensor] | None:
        """Logits and hidden states from a recording, where the batch is one that can be recorded."""
        query_len = self._uniform(batch)
        if query_len is None or kv_cache is not self._kv_cache:
            return None
        count, with_tree = len(batch.query_lens), batch.tree_mask is not None
        size = next(size for size in self._sizes if size >= count)
        key = (size, query_len, with_tree)
        if key not in self._recorded:
            self._recorded[key] = self._prepare(size, query_len, with_tree)
        recorded = self._recorded[key]
        fill(recorded.batch, batch)
        logits, hidden = recorded.replay()
        return logits[: count * query_len], hidden[: count * query_len]

    def _uniform(self, batch: ModelBatch) -> int | None:
        """Query tokens of every sequence, where they are equally many, few enough and all want logits."""
        lens = batch.query_lens
        if not lens or len(lens) > self._sizes[-1] or lens[0] > self._max_query_len or min(lens) != max(lens):
            return None
        every_row = len(batch.logits_rows) == len(lens) * lens[0]
        return lens[0] if every_row and batch.block_table.shape[1] <= self._max_blocks else None

    def _prepare(self, size: int, query_len: int, with_tree: bool) -> _Recorded:
        batch = empty_batch(size, query_len, self._max_blocks, self.device, with_tree=with_tree)
        logger.info("recording decode steps of %d x %d tokens%s", size, query_len, " as trees" if with_tree else "")
        return _Recorded(batch, self._record(lambda: self.model.forward_with_hidden(batch, self._kv_cache)))


def batch_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, then every 8th up to 64, then every 32nd: little padding, few recordings."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, max_num_seqs + 32, 32)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def empty_batch(
    size: int, query_len: int, max_blocks: int, device: torch.device, *, with_tree: bool = False
) -> ModelBatch:
    """A batch of nothing but padding: no keys to see and nowhere to write."""
    tokens = size * query_len

    def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return ModelBatch(
        token_ids=zeros(tokens, dtype=torch.int64),
        positions=zeros(tokens, dtype=torch.int64),
        cu_seqlens_q=torch.arange(0, tokens + 1, query_len, dtype=torch.int32, device=device),
        kv_lens=zeros(size, dtype=torch.int32),
        block_table=zeros(size, max_blocks, dtype=torch.int32),
        slot_mapping=zeros(tokens, dtype=torch.int64).fill_(-1),
        logits_rows=torch.arange(tokens, device=device),
        query_lens=[query_len] * size,
        kv_lens_list=[0] * size,
        tree_mask=zeros(tokens, dtype=torch.int64) if with_tree else None,
        tree_lens=[query_len] * size if with_tree else None,
    )


def fill(fixed: ModelBatch, batch: ModelBatch) -> None:
    """Copy a batch into the first rows of a fixed one of the same query length; the rest becomes padding."""
    tokens, (count, width) = len(batch.token_ids), batch.block_table.shape
    fixed.token_ids[:tokens].copy_(batch.token_ids)
    fixed.positions[:tokens].copy_(batch.positions)
    fixed.slot_mapping[:tokens].copy_(batch.slot_mapping)
    fixed.slot_mapping[tokens:].fill_(-1)
    fixed.kv_lens[:count].copy_(batch.kv_lens)
    fixed.kv_lens[count:].zero_()
    fixed.block_table[:count, :width].copy_(batch.block_table)
    if fixed.tree_mask is not None and batch.tree_mask is not None:
        fixed.tree_mask[:tokens].copy_(batch.tree_mask)


class _CudaRecorder:
    """Records with `torch.cuda.CUDAGraph`; all recordings share one memory pool, because one runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, forward: Replay) -> Replay:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles the kernels and lets cuBLAS take its workspace outside the recording
                forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread (a second engine) may allocate meanwhile: only this thread's calls are watched.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = forward()
        self._pool = graph.pool()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return results

        return replay
