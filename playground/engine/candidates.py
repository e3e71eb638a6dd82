"""What each beam of a search may go on with: its best tokens, scored.

Turns rows of logits into candidates in place of a draw. The log-softmax comes first and the token rules act on its
result, as transformers' processors do in a beam search; nothing is normalised again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from playground.engine.beam_search import Candidate, num_candidates
from playground.engine.logit_rules import SamplingRow, apply_token_rules
from playground.engine.logprobs import most_probable
from playground.engine.outputs import TokenLogprob
from playground.engine.sampler import DrawnTokens, SampledToken, why_unusable


def draw_candidates(logits: Tensor, rows: Sequence[SamplingRow]) -> DrawnTokens:
    """Candidates for each row of logits [R, V], in float32 or better; row i depends on `logits[i]` and `rows[i]` only.

    Waits for nothing: the candidates are picked from copies when somebody asks for them.
    """
    logits = logits.detach()
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    scores = apply_token_rules(logprobs, rows)
    largest = torch.stack((logits.amax(-1).double(), scores.amax(-1).double()))

    def resolve() -> list[SampledToken]:
        before, after_rules = largest.tolist()
        errors = [why_unusable(*values) for values in zip(before, after_rules, strict=True)]
        best = most_probable(scores, [num_candidates(r.params.beam_width, len(r.ending_token_ids)) for r in rows])
        return [
            SampledToken(-1, candidates=_candidates(own, logprobs[i], rows[i].params.logprobs))
            if error is None
            else SampledToken(-1, error=error)
            for i, (own, error) in enumerate(zip(best, errors, strict=True))
        ]

    return DrawnTokens(torch.full((len(rows),), -1, dtype=torch.int64, device=logits.device), resolve)


def _candidates(best: Sequence[tuple[int, float]], logprobs: Tensor, num_rivals: int | None) -> tuple[Candidate, ...]:
    """The `best` (token, score) of a row with their place in its log-probabilities [V]."""
    own = logprobs[torch.tensor([token_id for token_id, _ in best], device=logprobs.device)]
    plain = [Candidate(*pair, logprob) for pair, logprob in zip(best, own.tolist(), strict=True)]
    if num_rivals is None:
        return tuple(plain)
    ranks = (1 + (logprobs > own[:, None]).sum(-1)).tolist()
    (top,) = most_probable(logprobs[None], [num_rivals])
    return tuple(
        one._replace(entry=TokenLogprob(one.token_id, one.logprob, rank, top))
        for one, rank in zip(plain, ranks, strict=True)
    )
