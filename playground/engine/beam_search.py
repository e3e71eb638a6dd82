"""The selection of a beam search: which continuations live on, which are finished, and when the search is over.

Knows nothing of requests, blocks or tensors: candidates with their scores go in, beams and hypotheses come out. The
rules, ties apart, are those of `transformers.generate(num_beams=width, do_sample=False)`.

Scores. A candidate's score is its log-probability (log-softmax of the model's logits) after the token rules of the
request, in the order of `logit_rules`: bias and masks, repetition penalty, presence and frequency penalties; nothing is
normalised again. A beam's total is the sum over its output tokens. A hypothesis is a finished beam; its score is
total / length ** length_penalty, where the length counts its output tokens, the one that ended it included. The
unpenalised sum under the model's own distribution is kept beside it.

Rounds. All candidates of all beams are ranked by their new totals. Of the `width` best those that end (an ending token,
or the length limit) become hypotheses, of which the `width` best are kept. The `width` best that do not end are the
next beams. The search is over when no beam is left, or when there are `width` hypotheses and
- `early_stopping=True`: at once;
- `early_stopping=False`: the best beam, if it ended at its present length, would not beat the worst of them;
- `early_stopping="never"`: it could not beat it at any length up to the limit (for a negative penalty: as with False).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from playground.engine.outputs import FinishReason, TokenLogprob


class Candidate(NamedTuple):
    """A token that a beam may go on with."""

    token_id: int
    score: float
    """Log-probability after the request's token rules: what the search adds up."""
    logprob: float
    """Log-probability under the model's own distribution."""
    entry: TokenLogprob | None = None
    """The same with rank and rivals, for requests that want `logprobs`."""


@dataclass(frozen=True, slots=True)
class Beam:
    """The output of one live beam."""

    token_ids: tuple[int, ...] = ()
    total: float = 0.0
    """Sum of the candidates' scores."""
    cumulative_logprob: float = 0.0
    entries: tuple[TokenLogprob, ...] = ()

    def extended(self, candidate: Candidate) -> "Beam":
        return Beam(
            (*self.token_ids, candidate.token_id),
            self.total + candidate.score,
            self.cumulative_logprob + candidate.logprob,
            self.entries if candidate.entry is None else (*self.entries, candidate.entry),
        )


class Hypothesis(NamedTuple):
    """A beam that has ended, and its length-penalised score."""

    beam: Beam
    score: float
    finish_reason: FinishReason


def num_candidates(width: int, num_ending_tokens: int) -> int:
    """How many of its best candidates a beam must name, so that none that could matter is missing.

    The `width` best of all beams, and the `width` best that do not end: of a beam's candidates at most
    `num_ending_tokens` end.
    """
    return width + num_ending_tokens


class BeamSearch:
    """One search. `beams` are its live beams and `hypotheses` its finished ones, both best first."""

    def __init__(
        self,
        width: int,
        max_tokens: int,
        *,
        ending_token_ids: frozenset[int] = frozenset(),
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
    ) -> None:
        """`max_tokens` is the length limit in output tokens, at least 1."""
        self.width, self.max_tokens = width, max_tokens
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self._ending = ending_token_ids
        self.beams: list[Beam] = [Beam()]
        self.hypotheses: list[Hypothesis] = []
        self.done = False

    def advance(self, candidates: Sequence[Sequence[Candidate]]) -> list[int]:
        """Play one round with the candidates of each beam; returns, for each new beam, which old one it continues.

        Equal totals are ranked by the rank of their beams, then by token id.
        """
        ranked = sorted(
            (-(beam.total + candidate.score), parent, candidate)
            for parent, (beam, own) in enumerate(zip(self.beams, candidates, strict=True))
            for candidate in own
        )
        at_limit = len(self.beams[0].token_ids) + 1 >= self.max_tokens
        parents: list[int] = []
        beams: list[Beam] = []
        for place, (_, parent, candidate) in enumerate(ranked):
            stops = candidate.token_id in self._ending
            if not stops and not at_limit:
                beams.append(self.beams[parent].extended(candidate))
                parents.append(parent)
                if len(beams) == self.width:
                    break  # everything worse than this is behind the `width` best, too
            elif place < self.width:
                self._finish(self.beams[parent].extended(candidate), "stop" if stops else "length")
        self.beams = beams
        self.done = not beams or self._cannot_improve()
        return parents

    def interrupted(self, reason: FinishReason) -> list[Hypothesis]:
        """What there is when the search is ended from outside: finished and live beams, best first, for this reason."""
        found = [Hypothesis(one.beam, one.score, reason) for one in self.hypotheses]
        found += [Hypothesis(beam, self._score(beam), reason) for beam in self.beams]
        return sorted(found, key=lambda one: -one.score)[: self.width]

    def _finish(self, beam: Beam, reason: FinishReason) -> None:
        self.hypotheses.append(Hypothesis(beam, self._score(beam), reason))
        self.hypotheses.sort(key=lambda one: -one.score)
        del self.hypotheses[self.width :]

    def _score(self, beam: Beam) -> float:
        return beam.total / max(1, len(beam.token_ids)) ** self.length_penalty

    def _cannot_improve(self) -> bool:
        if len(self.hypotheses) < self.width:
            return False
        if self.early_stopping is True:
            return True
        best = self.beams[0]
        hopes_for_length = self.early_stopping == "never" and self.length_penalty > 0
        length = self.max_tokens if hopes_for_length else len(best.token_ids)
        return best.total / length**self.length_penalty <= self.hypotheses[-1].score
