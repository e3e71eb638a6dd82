"""What is proposed to the target in one step, and what it said to it: plain data between proposer and verification."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kernels.host import to_device
from playground.engine.sampler import SampledToken


@dataclass(frozen=True)
class Proposal:
    """Drafts of S requests, up to N each: chains, or trees where `parents` is given."""

    request_ids: list[int]
    counts: list[int]
    """Drafts of each request, at least 1."""
    token_ids: Tensor
    """int64 [S, N] on the device of the target; arbitrary beyond a request's count."""
    probabilities: Tensor | None = None
    """float32 [S, N, V]: what each draft of a chain was drawn from; None where drafts were chosen, not drawn."""
    parents: list[list[int]] | None = None
    """For trees, by request and draft: the draft it follows, -1 for the request's last token. Parents come first."""
    longest_catch_up: int = 0
    """Most tokens of one request that a draft model with KV of its own ran before the first draft: the last one, or
    two, but more after steps without drafts, and the whole prompt at first."""

    @classmethod
    def of_lists(cls, drafts: dict[int, list[int]], device: torch.device) -> "Proposal":
        """Chains that the host knows, by request id; none of them is empty."""
        longest = max(len(ids) for ids in drafts.values())
        rows = [ids + [0] * (longest - len(ids)) for ids in drafts.values()]
        proposal = cls(list(drafts), [len(ids) for ids in drafts.values()], to_device(torch.tensor(rows), device))
        proposal.__dict__["host_ids"] = list(drafts.values())
        return proposal

    @cached_property
    def row_of(self) -> dict[int, int]:
        return {request_id: row for row, request_id in enumerate(self.request_ids)}

    @cached_property
    def host_ids(self) -> list[list[int]]:
        """The drafts of each request; waits for the device where they were drawn on one."""
        return [ids[:count] for ids, count in zip(self.token_ids.tolist(), self.counts, strict=True)]

    def paths(self, row: int) -> list[list[int]]:
        """For each row of the target's logits of a request: the drafts (indices) that stand before what it predicts."""
        if self.parents is None:
            return [list(range(length)) for length in range(self.counts[row] + 1)]
        paths: list[list[int]] = [[]]
        for draft, parent in enumerate(self.parents[row]):
            paths.append([*paths[parent + 1], draft])
        return paths


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step gave one request: accepted drafts, and the token after them. Without drafts, that one token."""

    tokens: list[SampledToken]
    draft_ids: tuple[int, ...] = ()
    path: tuple[int, ...] = ()
    """Indices of the accepted drafts among `draft_ids`."""
    num_positions: int = 0
    """How many drafts could have been accepted: the length of the chain, the depth of the tree."""

    @property
    def error(self) -> str | None:
        return self.tokens[-1].error

    @property
    def num_accepted(self) -> int:
        return len(self.path)

    @property
    def has_bonus(self) -> bool:
        """Whether every position was accepted, so that the last token came on top."""
        return 0 < self.num_positions < len(self.tokens)

    @property
    def num_reached(self) -> int:
        """Positions whose draft was looked at: all accepted ones, and the one that was not."""
        return min(len(self.tokens), self.num_positions)


def match(tokens: Sequence[SampledToken], draft_ids: Sequence[int], parents: Sequence[int] | None) -> list[int]:
    """Drafts (indices) that are what the target drew itself: `tokens[0]` at the root, `tokens[i + 1]` after draft i."""
    path: list[int] = []
    row = 0
    for draft, token_id in enumerate(draft_ids):
        parent = draft - 1 if parents is None else parents[draft]
        if parent == row - 1 and token_id == tokens[row].token_id:
            path.append(draft)
            row = draft + 1
    return path
