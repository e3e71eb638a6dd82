"""Several processes that train one model on the same machine: each takes a part of every batch, gradients are averaged.

Two single-threaded processes on two cores wait for each other once per step, where two threads of one process wait
hundreds of times: on a busy machine that is the difference between 4,000 and 7,000 tokens a second.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Group:
    """The processes of one run. Rank 0 is the caller's own; it alone writes files and decides when to stop."""

    def __init__(self, rank: int = 0, size: int = 1, port: int = 0) -> None:
        self.rank, self.size = rank, size
        if size > 1:
            dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)

    def share(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch."""
        return batch[self.rank :: self.size]

    def average_gradients(self, parameters: Iterable[nn.Parameter], clock: float, stop: bool) -> tuple[float, bool]:
        """Averages the gradients in place; returns rank 0's clock and stop flag, which travel with them."""
        if self.size == 1:
            return clock, stop
        gradients = [p.grad for p in parameters if p.grad is not None]
        said = torch.tensor([clock, float(stop)] if self.rank == 0 else [0.0, 0.0]) * self.size
        flat = torch.cat([*(g.flatten().cpu() for g in gradients), said])
        dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return float(flat[-2]), bool(flat[-1] > 0)

    def gather(self, rows: Tensor) -> Tensor:
        """Every process's rows (equally many each), one after the other, in all of them."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    def wait(self) -> None:
        """Until every process of the group has come here."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()


def start_helpers(size: int, target: Callable[..., None], *args: Any) -> tuple[Group, list[BaseProcess]]:
    """Starts the other processes, which call target(rank, size, port, *args), and joins the group as rank 0."""
    if size == 1:
        return Group(), []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    helpers: list[BaseProcess] = []
    for rank in range(1, size):
        helper = context.Process(target=target, args=(rank, size, port, *args), daemon=True)
        helper.start()
        helpers.append(helper)
    return Group(0, size, port), helpers
