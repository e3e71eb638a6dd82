"""Which drafts stay, given what the target thinks of them: exact for every sampling setting.

Two rules. *Matching*: the target draws at every position with its own noise, and a draft stays while it is what was
drawn; the text is then the very same as without drafts. That is greedy verification, and `coupled` at any temperature.
*Rejection* (`kernels.rejection`) keeps a draft with probability min(1, p / q) and has the target's distribution. Both
see logits after masks, bias and penalties, each row with the drafts before it as part of the output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.host import from_device, to_device
from kernels.rejection import Drafts, verify
from kernels.sampling import probabilities
from playground.engine.logit_rules import SamplingRow, apply_token_rules, row_parameters
from playground.engine.sampler import SampledToken, Sampler, largest_logits, logprobs_of, why_unusable
from playground.engine.speculation.proposal import Outcome, Proposal, match


@dataclass(frozen=True)
class DraftedRow:
    """One request with drafts, as verification sees it."""

    row: SamplingRow
    """For the token after its last one."""
    place: int
    """Its row in the proposal."""
    first: int
    """Its first row of the logits; the others follow it."""
    paths: list[list[int]]
    """See `Proposal.paths`."""


def match_drafts(
    sampler: Sampler, logits: Tensor, candidates: Sequence[DraftedRow], proposal: Proposal
) -> Callable[[], list[Outcome]]:
    """The target draws after every draft; returns a function that waits for that and tells the outcomes."""
    drawn = sampler.draw(_rows_of(logits, candidates), sampling_rows(candidates, proposal))

    def resolve() -> list[Outcome]:
        tokens = drawn.resolve()
        outcomes, first = [], 0
        for one in candidates:
            own = tokens[first : first + len(one.paths)]
            draft_ids = proposal.host_ids[one.place]
            path = match(own, draft_ids, None if proposal.parents is None else proposal.parents[one.place])
            kept = [own[row] for row in _rows_on(path)]
            outcomes.append(_outcome(one, kept, draft_ids, path))
            first += len(one.paths)
        return outcomes

    return resolve


def reject_drafts(
    sampler: Sampler, logits: Tensor, candidates: Sequence[DraftedRow], proposal: Proposal
) -> Callable[[], list[Outcome]]:
    """Keeps drafts by p / q; returns a function that waits for that and tells the outcomes."""
    rows = sampling_rows(candidates, proposal)
    logits = _rows_of(logits, candidates)
    ruled = apply_token_rules(logits, rows)
    device = logits.device
    target = probabilities(ruled, row_parameters(rows, device))
    counts = [len(one.paths) - 1 for one in candidates]
    most = max(counts)
    numbers, first = [], 0
    for count in counts:  # rows of the logits by candidate, padded with its first
        numbers.append([first + (i if i <= count else 0) for i in range(most + 1)])
        first += count + 1
    places = [one.place for one in candidates]
    everybody = places == list(range(len(proposal.request_ids)))

    def of_candidates(values: Tensor) -> Tensor:
        chosen = values if everybody else values[to_device(torch.tensor(places), device)]
        return chosen[:, :most]

    verified = verify(
        Drafts(
            ids=of_candidates(proposal.token_ids).contiguous(),
            target=target[to_device(torch.tensor(numbers), device)],
            proposal=None if proposal.probabilities is None else of_candidates(proposal.probabilities),
            seeds=_words([one.row.seed for one in candidates], device),
            positions=_words([one.row.position for one in candidates], device),
            parents=_parents(candidates, proposal, most, device),
            counts=to_device(torch.tensor(counts), device),
        )
    )
    read_tokens, read_path = from_device(verified.tokens), from_device(verified.path)
    read_errors = from_device(torch.stack((largest_logits(logits).double(), largest_logits(ruled).double())))
    kept_logits = logits.clone() if any(row.params.logprobs is not None for row in rows) else None

    def resolve() -> list[Outcome]:
        errors = [why_unusable(*values) for values in zip(*read_errors(), strict=True)]
        outcomes = []
        for one, own, ids, path in zip(candidates, numbers, read_tokens(), read_path(), strict=True):
            path = [int(draft) for draft in path if draft >= 0]
            on_path = [own[row] for row in _rows_on(path)]
            kept = _tokens(one, ids, [errors[row] for row in on_path])
            if one.row.params.logprobs is not None and kept_logits is not None and kept[-1].error is None:
                kept = _with_logprobs(kept, kept_logits, on_path, one.row.params.logprobs)
            outcomes.append(_outcome(one, kept, proposal.host_ids[one.place], path))
        return outcomes

    return resolve


def sampling_rows(candidates: Sequence[DraftedRow], proposal: Proposal) -> list[SamplingRow]:
    """The row of every draw: what stands before it includes the drafts on its path."""
    rows = []
    for one in candidates:
        looked_at = one.row.changes_logits  # else the ids do not matter, and need not be read from the device
        ids = proposal.host_ids[one.place] if looked_at else []
        for path in one.paths:
            before = [ids[draft] for draft in path] if looked_at else [-1] * len(path)
            rows.append(
                replace(
                    one.row,
                    position=one.row.position + len(path),
                    output_token_ids=[*one.row.output_token_ids, *before],
                )
            )
    return rows


def cut_at_end(tokens: list[SampledToken], row: SamplingRow) -> list[SampledToken]:
    """Nothing follows a token that ends the request."""
    ending = row.ending_token_ids
    for i, token in enumerate(tokens):
        if token.token_id in ending and len(row.output_token_ids) + i >= row.params.min_tokens:
            return tokens[: i + 1]
    return tokens


def _outcome(one: DraftedRow, kept: list[SampledToken], draft_ids: list[int], path: list[int]) -> Outcome:
    failed = next((i for i, token in enumerate(kept) if token.error is not None), None)
    tokens = cut_at_end(kept if failed is None else kept[: failed + 1], one.row)
    depth = max(len(path) for path in one.paths)
    return Outcome(tokens, tuple(draft_ids), tuple(path[: len(tokens)]), depth)


def _rows_on(path: list[int]) -> list[int]:
    """Rows of a request's logits that an accepted path of drafts passes: the root, then one after each draft."""
    return [0, *(draft + 1 for draft in path)]


def _rows_of(logits: Tensor, candidates: Sequence[DraftedRow]) -> Tensor:
    rows = [one.first + i for one in candidates for i in range(len(one.paths))]
    if rows == list(range(len(logits))):
        return logits
    return logits.index_select(0, to_device(torch.tensor(rows), logits.device))


def _tokens(one: DraftedRow, ids: list[float], errors: list[str | None]) -> list[SampledToken]:
    """One token for each row on the path; the first that could not be drawn is the last."""
    tokens: list[SampledToken] = []
    for token_id, error in zip(ids, errors, strict=False):
        tokens.append(SampledToken(int(token_id)) if error is None else SampledToken(-1, error=error))
        if error is not None:
            break
    return tokens


def _with_logprobs(kept: list[SampledToken], logits: Tensor, rows: list[int], top_k: int) -> list[SampledToken]:
    entries = logprobs_of(logits, rows[: len(kept)], [token.token_id for token in kept], top_k)
    return [SampledToken(token.token_id, entry) for token, entry in zip(kept, entries, strict=True)]


def _words(values: Sequence[int], device: torch.device) -> Tensor:
    return to_device(torch.tensor(list(values), dtype=torch.int64), device)


def _parents(candidates: Sequence[DraftedRow], proposal: Proposal, most: int, device: torch.device) -> Tensor | None:
    if proposal.parents is None:
        return None
    rows = [proposal.parents[one.place] for one in candidates]
    return _words_table([row + [-1] * (most - len(row)) for row in rows], device)


def _words_table(rows: list[list[int]], device: torch.device) -> Tensor:
    return to_device(torch.tensor(rows, dtype=torch.int64), device)
