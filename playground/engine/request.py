"""One sequence on its way through the engine: its tokens, and how far their KV has been computed.

Progress is a single integer, `num_computed_tokens`; there is no prefill or decode phase. Knows nothing of tensors,
text or threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from playground.engine.holdings import Holdings
from playground.engine.outputs import FinishReason
from playground.sampling_params import SamplingParams

if TYPE_CHECKING:
    from playground.engine.beam_group import BeamGroup


class RequestStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """A prompt and what was generated after it; `token_ids` holds both, in order."""

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    max_total_tokens: int
    """Prompt plus output may not grow beyond this: min(prompt + max_tokens, max_model_len)."""
    fork_of: "Request | None" = None
    """The sibling whose KV of `num_shared_tokens` this one shares once it is computed, instead of computing it."""
    num_shared_tokens: int = 0
    """Leading tokens that are the same as those of `fork_of`: the prompt, or more in a beam search."""
    holdings: Holdings = field(default_factory=Holdings)
    """Counts the blocks of all requests of a submission: its siblings have the same object."""
    beams: "BeamGroup | None" = None
    """The beam search that this request carries a beam of."""
    held: bool = False
    """Not to be scheduled: a beam that waits for its siblings, or a request that no beam needs at present."""

    status: RequestStatus = RequestStatus.WAITING
    finish_reason: FinishReason | None = None
    token_ids: list[int] = field(default_factory=list)
    num_planned_drafts: int = 0
    """Draft tokens that the next step is to verify beside the token it runs anyway; how many, not yet which."""
    awaits_drafts: bool = False
    """Whether drafts are made from its tokens, so that none of them may still be pending when a step is planned."""
    num_pending_tokens: int = 0
    """Tokens after `token_ids` that launched steps draw but nobody has read yet: they are known to the device only."""
    num_computed_tokens: int = 0
    """Tokens whose KV is in the cache, or will be once the steps launched so far have run."""
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was found at first admission rather than computed."""
    num_cache_write_tokens: int = 0
    """Prompt tokens whose full blocks this request was the first to put into the prefix cache."""
    num_preemptions: int = 0
    block_table: list[int] = field(default_factory=list)
    """Physical block of each logical block; 0 where the block slid out of the attention window."""
    block_hashes: list[int] = field(default_factory=list)
    """Hash chain over the full blocks of `token_ids`, as far as it was needed: the root, then one entry a block."""
    num_registered_blocks: int = 0
    """Leading blocks whose hash is in the prefix cache, or that `cache_breakpoints` keeps out of it."""
    num_found_blocks: int = 0
    """Leading blocks that were found rather than computed at the latest admission."""
    num_accounted_blocks: int = 0
    """Leading blocks that were found or written already, so that nothing is counted again after a preemption."""

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)
        if self.fork_of is not None:
            self.num_shared_tokens = len(self.prompt_token_ids)

    @property
    def unit(self) -> "Sequence[Request]":
        """The requests that are admitted and preempted together with this one, itself included."""
        return (self,) if self.beams is None else self.beams.members

    @property
    def num_forked_tokens(self) -> int:
        """Tokens whose KV comes from `fork_of`: what is shared, but never the last token, which runs for its logits."""
        return min(self.num_shared_tokens, len(self.token_ids) - 1)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[len(self.prompt_token_ids) :]

    @property
    def num_tokens_with_spec(self) -> int:
        return self.num_tokens_with_pending + self.num_planned_drafts

    @property
    def num_tokens_with_pending(self) -> int:
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose KV is not in the cache yet: the whole of what scheduling is about."""
        return self.num_tokens_with_spec - self.num_computed_tokens

    @property
    def awaits_last_token(self) -> bool:
        """Whether the last token that the request may have is drawn already: there is nothing left to run."""
        return self.num_tokens_with_pending >= self.max_total_tokens

    @property
    def draw_needs_ids(self) -> bool:
        """Whether a draw, or a draft, depends on which tokens came before, so that none may still be pending.

        What a beam goes on with is known only when all of its siblings have been read.
        """
        p = self.params
        penalised = p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0
        return penalised or self.awaits_drafts or self.beams is not None

    @property
    def finished(self) -> bool:
        return self.status is RequestStatus.FINISHED
